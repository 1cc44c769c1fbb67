"""The files half of undo, where bytes, files, names or depth are more than are kept."""

import gc
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from workspaces import MIB, Room, fill, rooms, tree

from onetrip import copies, shots
from onetrip.beneath import MAX_DEPTH


def test_what_does_not_fit_is_left_out_the_largest_first_and_named(owner, settled):
    with rooms(None, owner, max_bytes=MIB) as room:
        for name, size in (("small", 1000), ("large", 900_000), ("larger", 950_000), ("largest", 2 * MIB)):
            room.write(name, os.urandom(size))
        shot = room.take()
        assert shot.left_out == ("larger", "largest")
        assert shot.why == f"2 × does not fit into {MIB} bytes for all copies of the session"
        assert room.shelf.used_bytes == sum(copy.room_bytes for copy in shot.copies()) <= MIB
        assert room.restore(shot).failed == ()  # those that are as they were need no copy
        with room.program():
            (room.top / "largest").unlink()
        room.write("larger", "changed")
        room.write("small", "changed")
        restored = room.restore(shot)
        why = f"does not fit into {MIB} bytes for all copies of the session"
        assert restored.failed == (("larger", why), ("largest", why))
        assert (room.top / "larger").read_text() == "changed"
        assert len((room.top / "small").read_bytes()) == 1000


def test_dropped_shots_free_what_no_other_shares(room, settled):
    room.write("shared", os.urandom(MIB))
    room.write("changing", os.urandom(MIB))
    first = room.take()
    room.write("changing", os.urandom(2 * MIB))
    second = room.take(first)
    on_disk = os.fstat(room.shelf._copies._fd).st_blocks * 512
    assert room.shelf.used_bytes == 4 * MIB
    room.shelf.drop(first)
    room.shelf.drop(first)
    assert room.shelf.used_bytes == 3 * MIB
    assert os.fstat(room.shelf._copies._fd).st_blocks * 512 <= on_disk - MIB // 2
    with pytest.raises(ValueError, match="this shot is not on the shelf"):
        room.restore(first)
    room.write("shared", "x")
    assert room.restore(second).failed == ()
    assert (room.top / "shared").stat().st_size == MIB
    third = room.take(first)  # a `before` that was dropped is no help, and no harm
    room.shelf.drop(second)
    room.shelf.drop(third)
    assert room.shelf.used_bytes == 0
    assert os.fstat(room.shelf._copies._fd).st_size == 0


def test_copies_have_no_names_and_close_frees_them(room):
    fill(room)
    before = len(os.listdir("/proc/self/fd"))
    shot = room.take()
    assert os.listdir(room.kept_in) == []
    assert len(os.listdir("/proc/self/fd")) == before + 1
    room.shelf.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert room.shelf.used_bytes == 0
    room.shelf.drop(shot)
    with pytest.raises(ValueError, match="not on the shelf"):
        room.restore(shot)
    assert room.take().left_out == ()


def test_where_there_are_no_anonymous_files_a_name_is_taken_back_at_once(room, monkeypatch):
    real = os.open

    def older(path, flags, *arguments, **options):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", older)
    fill(room)
    before, shot = tree(room.top), room.take()
    assert os.listdir(room.kept_in) == []
    shutil.rmtree(room.top / "d")
    assert room.restore(shot).failed == ()
    assert tree(room.top) == before


def test_where_no_holes_can_be_punched_the_space_counts_until_all_is_free(room, monkeypatch, settled):
    monkeypatch.setattr(copies, "_punch", lambda fd, at, length: 95)
    room.write("a", b"1" * MIB)
    first = room.take()
    room.write("a", b"2" * MIB)
    second = room.take(first)
    room.shelf.drop(first)
    assert room.shelf.used_bytes == 2 * MIB
    with room.program(), (room.top / "a").open("wb") as file:
        file.truncate(MIB)
    third = room.take(second)
    room.restore(second)
    assert (room.top / "a").read_bytes() == b"2" * MIB
    room.restore(third)
    assert (room.top / "a").read_bytes() == bytes(MIB)
    room.shelf.drop(second)
    room.shelf.drop(third)
    assert room.shelf.used_bytes == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_leaves_files_out_and_says_so(room, settled):
    room.write("first", "x")
    first = room.take()
    room.write("small", b"x" * 1000)
    room.write("other", b"x" * 60_000)
    kept = os.dup(room.shelf._copies._fd)
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, room.shelf._copies._fd)
    second = room.take(first)
    os.dup2(kept, room.shelf._copies._fd)
    os.close(full)
    os.close(kept)
    assert second.left_out == ("other", "small")
    assert second.why == "2 × the disk for copies is full"
    assert room.shelf.used_bytes == 4096
    assert room.take(second).left_out == ()


def test_a_folder_for_copies_that_is_gone_leaves_files_out_and_says_so(room):
    room.kept_in.rmdir()
    room.write("a", "x")
    shot = room.take()
    assert (shot.left_out, shot.why) == (("a",), "1 × the folder for copies cannot be used: No such file or directory")


@pytest.mark.slow
def test_file_systems_that_are_really_full():
    """A workspace of 8 MiB has room for going back, whatever was replaced by what; a disk of 2 MiB for copies takes what fits."""
    program = f"""
import os, subprocess, sys
sys.path.insert(0, {str(Path(shots.__file__).parents[1])!r})
from pathlib import Path
from onetrip.shelf import Shelf
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", "/mnt"], check=True)
Path("/mnt/shelf").mkdir(); subprocess.run(["mount", "-t", "tmpfs", "none", "/mnt/shelf"], check=True)
os.mkdir("/mnt/w"); top = Path("/mnt/w"); fd = os.open("/mnt/w", os.O_RDONLY)
shelf = Shelf(Path("/mnt/shelf"), max_bytes=64 << 20)
(top / "a").write_bytes(b"a" * (5 << 20)); (top / "b").write_bytes(b"b")
shot = shelf.take(fd, owner=None)
(top / "a").unlink(); (top / "a").write_bytes(b"new" * (5 << 18))
assert shelf.restore(fd, shot, owner=None).failed == ()
(top / "a").write_bytes(b""); (top / "b").write_bytes(b"b" * (7 << 20))
assert shelf.restore(fd, shot, owner=None).failed == ()
assert (top / "a").read_bytes() == b"a" * (5 << 20) and (top / "b").read_bytes() == b"b"
(top / "a").unlink()
Path("/mnt/elsewhere").write_bytes(b"x" * (6 << 20))
assert shelf.restore(fd, shot, owner=None).failed == (("a", "no space in the workspace"),)
assert os.listdir(top) == ["b"]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", "/mnt/shelf"], check=True)
os.unlink("/mnt/elsewhere")
(top / "a").write_bytes(b"a" * (3 << 20)); (top / "c").write_bytes(b"c" * (1 << 20))
shelf = Shelf(Path("/mnt/shelf"), max_bytes=64 << 20)
shot = shelf.take(fd, owner=None)
assert (shot.left_out, shot.why) == (("a",), "1 × the disk for copies is full"), shot
assert os.fstat(shelf._copies._fd).st_blocks * 512 == shelf.used_bytes == (1 << 20) + 4096
"""
    done = subprocess.run(["unshare", "-Urm", sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if "unshare failed" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("needs a user namespace: " + done.stderr.strip())
    assert done.returncode == 0, done.stderr


def test_more_files_than_are_looked_at_are_named_and_never_taken_for_new(owner, settled):
    with rooms(None, owner, max_files=50) as room:
        for number in range(60):
            room.write(f"f{number}", str(number))
        shot = room.take()
        assert not shot.whole
        assert shot.why == "more than 50 files and folders, or too long names; the rest is not recorded"
        room.write("new")
        assert not room.unchanged(shot)
        restored = room.restore(shot)
        assert restored.failed[0][0] == "."
        assert len(os.listdir(room.top)) == 61


def test_a_cell_that_made_more_files_than_are_looked_at_is_undone_as_far_as_is_bounded(owner, settled):
    with rooms(None, owner, max_files=50) as room:
        room.write("old", "x")
        shot = room.take()
        for number in range(150):
            room.write(f"f{number}")
        assert room.restore(shot).failed == ()
        assert os.listdir(room.top) == ["old"]
        for number in range(1000):
            room.write(f"f{number}")
        restored = room.restore(shot)
        assert restored.failed == ((".", "more than 50 files and folders; what was made since may be among the rest"),)
        assert (room.top / "old").read_text() == "x"


def test_long_link_texts_and_names_are_bounded(room, monkeypatch):
    monkeypatch.setattr(shots, "MAX_NAMES_BYTES", 10_000)
    with room.program():
        for number in range(20):
            (room.top / f"l{number}").symlink_to("x" * 1000)
    shot = room.take()
    assert not shot.whole
    assert len(shot.entries) == 10


def deep(room: Room, levels: int, mode: int = 0o755) -> None:
    with room.program():
        at = os.open(room.top, os.O_RDONLY)
        for level in range(levels):
            os.mkdir("d", dir_fd=at)
            os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=at))
            below = os.open("d", os.O_RDONLY, dir_fd=at)
            if level:
                os.fchmod(at, mode)
            os.close(at)
            at = below
        os.fchmod(at, mode)
        os.close(at)


@pytest.mark.parametrize("mode", [0o755, 0o500, 0])
def test_a_tree_made_since_is_removed_whatever_its_depth_and_modes(room, settled, mode):
    shot = room.take()
    deep(room, 300, mode)
    assert room.restore(shot).failed == ()
    assert os.listdir(room.top) == []
    deep(room, MAX_DEPTH)
    shot = room.take()
    last = room.top.joinpath(*["d"] * MAX_DEPTH)
    with room.program():
        (last / "made" / "below").mkdir(parents=True)
        (last / "made" / "below").chmod(mode)
        (last / "made").chmod(mode)
    assert room.restore(shot).failed == ()
    assert os.listdir(last) == []


def test_a_very_deep_tree_is_named(room, settled):
    deep(room, MAX_DEPTH + 5)
    shot = room.take()
    folder = "/".join(["d"] * (MAX_DEPTH + 1))
    assert shot.left_out == (folder,)
    assert shot.why == f"1 × is more than {MAX_DEPTH} folders deep, and not looked into"
    assert room.restore(shot).changed == ()
    with room.program():
        shutil.rmtree(room.top / "d")
    assert room.restore(shot).failed == ((folder, f"is more than {MAX_DEPTH} folders deep, and not looked into"),)
    subprocess.run(["rm", "-rf", room.top / "d"], check=True)


def test_a_file_in_too_many_pieces_is_left_out(room, settled, monkeypatch):
    monkeypatch.setattr(copies, "MAX_PARTS", 10)
    with room.program(), (room.top / "scattered").open("wb") as file:
        for number in range(20):
            os.pwrite(file.fileno(), b"x", number << 20)
    shot = room.take()
    assert (shot.left_out, shot.why) == (("scattered",), "1 × lies in more than 10 pieces")
    assert room.shelf.used_bytes == 0


def test_a_shot_of_many_files_is_few_objects(room):
    with room.program():
        for number in range(2000):
            (room.top / f"file {number}").touch()
    room.shelf.drop(room.take())
    gc.collect()  # empties the interpreter's lists of free objects, too
    before = sys.getallocatedblocks()
    first = room.take()
    second = room.take(first)
    assert len(second.entries) == 2001
    assert room.restore(second).failed == ()
    gc.collect()
    assert sys.getallocatedblocks() - before < 400


@pytest.mark.parametrize("mtime_ns", [-1, (1 << 63) + 1, 10**25])
def test_what_64_bits_do_not_hold_is_listed(mtime_ns):
    seen = shots.Seen(stat.S_IFREG | 0o644, (1 << 64) - 1, 1 << 62, mtime_ns, 10**18 + 1, 2, 4096, b"to")
    listing = shots.Listing()
    listing[b"a"], listing[b"a b/\xff"] = shots.seen_of(os.stat("/")), seen
    assert list(listing.each())[1] == (b"a b/\xff", seen)
    assert listing[b"a b/\xff"] == seen
    del listing[b"a"]
    assert list(listing) == [b"a b/\xff"]
    assert list(listing.each()) == [(b"a b/\xff", seen)]


def test_a_copy_that_is_freed_leaves_nothing_to_the_one_that_takes_its_number(room, settled):
    kept = room.write("kept", "as it was")
    with room.program(), (room.top / "hole").open("wb") as file:
        file.truncate(MIB)
        os.pwrite(file.fileno(), b"end", MIB - 3)
    first = room.take()
    (room.top / "hole").unlink()
    second = room.take(first)
    room.shelf.drop(first)
    empty = room.write("empty")
    with room.program():
        os.truncate(empty, MIB)
    third = room.take(second)
    assert sorted(copy.number for copy in third.copies()) == [0, 1]
    room.write("empty", "x" * 100)
    room.write("kept", "changed")
    assert room.restore(third).failed == ()
    assert empty.read_bytes() == bytes(MIB)
    assert kept.read_text() == "as it was"
    assert empty.stat().st_blocks == 0
