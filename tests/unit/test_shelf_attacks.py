"""The files half of undo, against a program that does its worst in its workspace."""

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import threading
import time

import pytest
from workspaces import MIB, ROOT, fill, tree

from onetrip import copies, rewind, shelf, shots


def test_odd_names_come_back(room, settled):
    with room.program():
        for name in (b"new\nline", b"\xff\xfe", b"tab\t\x1b[31m", b"-rf", b"*", b"a" * 255, b"...", "\u202e".encode()):
            (room.top / os.fsdecode(name)).write_bytes(name)
            (room.top / "d").mkdir(exist_ok=True)
            (room.top / "d" / os.fsdecode(name)).symlink_to(os.fsdecode(name))
    before, shot = tree(room.top), room.take()
    with room.program():
        for path in room.top.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    restored = room.restore(shot)
    assert restored.failed == ()
    for path in restored.changed:
        path.encode()
    assert tree(room.top) == before


def test_pipes_sockets_and_devices_are_not_opened_and_named(room, settled):
    with room.program():
        os.mkfifo(room.top / "pipe")
        with socket.socket(socket.AF_UNIX) as server:
            at = os.open(room.top, os.O_PATH)
            server.bind(f"/proc/self/fd/{at}/socket")
            os.close(at)
    names = ["pipe", "socket"]
    if ROOT and room.owner is None:
        os.mknod(room.top / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        names.insert(0, "device")
    opened = threading.Event()

    def wait_for_reader():
        os.close(os.open(room.top / "pipe", os.O_WRONLY))
        opened.set()

    threading.Thread(target=wait_for_reader, daemon=True).start()
    shot = room.take()
    assert shot.left_out == tuple(names)
    assert room.unchanged(shot)
    assert room.restore(shot).failed == ()
    assert not opened.wait(0.1)
    os.close(os.open(room.top / "pipe", os.O_RDONLY | os.O_NONBLOCK))  # lets the thread go
    with room.program():
        (room.top / "socket").unlink()
    assert room.restore(shot).failed == (("socket", "is a pipe, socket or device, which is not kept"),)


@pytest.mark.parametrize("kind", ["file", "folder", "both"])
def test_what_the_program_closed_to_itself_is_kept_and_comes_back_closed(room, settled, kind):
    fill(room)
    with room.program():
        if kind in ("file", "both"):
            (room.top / "a.txt").chmod(0)
            (room.top / "d/b.bin").chmod(0)
        if kind in ("folder", "both"):
            (room.top / "d/e").chmod(0)
            (room.top / "d").chmod(0o100)
    before = tree(room.top)
    shot = room.take()
    assert (shot.left_out, shot.why) == ((), "")
    assert tree(room.top) == before
    with room.program():
        (room.top / "d").chmod(0o700)
        (room.top / "d/e").chmod(0o700)
        shutil.rmtree(room.top / "d")
        (room.top / "a.txt").unlink()
    assert room.restore(shot).failed == ()
    assert tree(room.top) == before
    assert room.restore(shot).changed == ()


def test_a_closed_tree_made_since_is_removed(room, settled):
    shot = room.take()
    with room.program():
        (room.top / "d/e/f").mkdir(parents=True)
        room.write("d/e/f/x", "x").chmod(0)
        for path in ("d/e/f", "d/e", "d"):
            (room.top / path).chmod(0o000)
    assert room.restore(shot).failed == ()
    assert os.listdir(room.top) == []


def test_a_lease_of_the_program_does_not_hold_us_up(room, settled):
    file = room.write("leased", b"x")
    shot = room.take()
    room.write("leased", b"y")
    code = (
        "import fcntl, os, signal, sys\n"
        "signal.signal(signal.SIGIO, signal.SIG_IGN)\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    ids = dict(zip(("user", "group"), room.owner, strict=True)) | {"extra_groups": []} if room.owner else {}
    with subprocess.Popen(
        ["/usr/bin/env", "python3", "-c", code, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **ids
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        begun = time.monotonic()
        second = room.take(shot)
        assert (second.left_out, second.why) == (("leased",), "1 × is leased by a process")
        assert room.restore(shot).failed == ()
        assert file.read_bytes() == b"x"
        assert time.monotonic() - begun < 20  # the kernel gives the holder 45 s
        assert holder.stdin is not None
        holder.stdin.close()


def test_a_program_that_is_running_comes_back(room, settled):
    shutil.copy("/bin/cat", room.top / "cat")
    os.chown(room.top / "cat", room.top.stat().st_uid, room.top.stat().st_gid)
    shot = room.take()
    with subprocess.Popen([room.top / "cat"], stdin=subprocess.PIPE) as running:
        with room.program():
            (room.top / "cat").chmod(0o700)
        assert room.restore(shot).failed == ()
        assert room.unchanged(shot)
        assert running.stdin is not None
        running.stdin.close()


def test_a_file_that_grows_while_it_is_copied_ends(room):
    """Each read of the copying finds the file longer than before."""
    file = room.write("growing", b"x" * MIB)
    real = os.sendfile
    grown = 0

    def growing(target, source, offset, length):
        nonlocal grown
        with file.open("ab") as opened:
            opened.write(b"y" * MIB)
        grown += 1
        return real(target, source, offset, min(length, 1 << 16))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sendfile", growing)
        shot = room.take()
    assert grown == 16
    assert room.shelf.used_bytes == MIB
    room.restore(shot)
    assert file.read_bytes() == b"x" * MIB


@pytest.mark.parametrize("size", [1000, MIB])
def test_a_file_that_shrinks_while_it_is_copied_gives_zeros_and_nothing_of_others(room, settled, size):
    room.write("other", b"other" * 100_000)
    first = room.take()
    file = room.write("shrinking", b"x" * size)
    real = copies._segments

    def shrinking(fd, asked):
        found = real(fd, asked)
        os.truncate(file, 10)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "_segments", shrinking)
        shot = room.take(first)
    room.write("shrinking", b"z" * 2 * size)
    room.restore(shot)
    assert file.read_bytes() == b"x" * 10 + bytes(size - 10)
    assert not room.unchanged(first)


@pytest.mark.parametrize("target", ["other/file", "../secret", "/proc/self/root/etc/passwd"])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_swapped_in_after_the_look_is_not_followed(room, settled, monkeypatch, what, target):
    """The moment that an attacker waits for: the walk has seen a file, and it is not yet open."""
    room.write("d/file", "one")
    room.write("other/file", "another")
    room.write("other/made", "kept")
    first = room.take()
    room.write("d/file", "two")
    room.write("other/file", "ANOTHER")

    def swapped_after(*arguments):
        found = shots.look(*arguments)
        with room.program():
            shutil.rmtree(room.top / "d")
            if what == "file":
                (room.top / "d").mkdir()
                (room.top / "d/file").symlink_to(target if target.startswith("/") else f"../{target}")
            else:
                (room.top / "d").symlink_to(target.rpartition("/")[0])
        return found

    for module in (shelf, rewind):
        monkeypatch.setattr(module, "look", swapped_after)
    second = room.take()
    assert second.left_out == ("d/file",)
    assert second.why in ("1 × was replaced meanwhile", "1 × cannot be opened: Too many levels of symbolic links")
    monkeypatch.undo()
    room.restore(first)
    room.write("d/file", "two")
    room.write("d/made", "since")
    (room.top / "other/file").write_text("ANOTHER")
    for module in (shelf, rewind):
        monkeypatch.setattr(module, "look", swapped_after)
    failed = dict(room.restore(first).failed)
    assert "d/file" in failed
    assert (room.top / "other/file").read_text() == "another"
    assert (room.top / "other/made").read_text() == "kept"
    assert room.outside.read_text() == "of the host"
    monkeypatch.undo()
    assert room.restore(first).failed == ()
    assert (room.top / "d/file").read_text() == "one"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_race_with_links_never_gets_out(room, what):
    """The owner swaps a folder or file for a link to the outside, again and again, while the host takes and restores."""
    (room.outside.parent / "host").mkdir()
    hostile = room.outside.parent / "host" / "secret"
    hostile.write_text("of the host")
    room.write("real/secret", "inside")
    room.write("file", "inside")
    with room.program():
        (room.top / "to folder").symlink_to("../host")
        (room.top / "to file").symlink_to("../secret")
    sources = ("real", "to folder") if what == "folder" else ("file", "to file")
    good = room.take()
    stop = threading.Event()

    def swap():
        with room.program():
            while not stop.is_set():
                for source in sources:
                    with contextlib.suppress(OSError):
                        os.rename(room.top / source, room.top / "d")
                    with contextlib.suppress(OSError):
                        os.rename(room.top / "d", room.top / source)
                with contextlib.suppress(OSError):  # the name may be a link by now, and this thread may write to the outside
                    fd = os.open(room.top / "file", os.O_WRONLY | os.O_NOFOLLOW)
                    os.truncate(fd, 3)
                    os.close(fd)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        latest = good
        for number in range(300):
            shot = room.take(latest)
            room.restore(good if number % 2 else shot)
            room.shelf.drop(latest) if latest is not good else None
            latest = shot
    finally:
        stop.set()
        thread.join()
    assert room.outside.read_text() == hostile.read_text() == "of the host"
    assert sorted(os.listdir(room.outside.parent)) == ["host", "secret", "shelf", "workspace"]
    assert os.listdir(hostile.parent) == ["secret"]
    contents = os.pread(room.shelf._copies._fd, MIB, 0)
    assert b"of the host" not in contents
    assert room.restore(good).failed == ()
    assert (room.top / "file").read_text() == (room.top / "real/secret").read_text() == "inside"
