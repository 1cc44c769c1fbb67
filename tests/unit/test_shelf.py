"""The files half of undo: what a shot keeps, what restoring gives back, and what that costs."""

import contextlib
import mmap
import os
import shutil
import stat
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from workspaces import FOREIGN, MIB, ROOT, TMPFS, everything, fill, put, rooms, tree

from onetrip import rewind, shots


def atomically(path: Path, data: str) -> None:
    path.with_name("temporary").write_text(data)
    path.with_name("temporary").replace(path)


def swap(one: Path, other: Path) -> None:
    one.rename(one.with_name("x"))
    other.rename(one)
    one.with_name("x").rename(other)


def to_folder(path: Path) -> None:
    path.unlink()
    (path / "below").mkdir(parents=True)
    (path / "below" / "f").write_text("new")


def to_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("was a folder")


def to_link(path: Path, target: str) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    path.symlink_to(target)


def link_over(source: Path, target: Path) -> None:
    target.unlink()
    os.link(source, target)


def made_and_removed(path: Path) -> None:
    path.write_text("")
    path.unlink()


CHANGES = {
    "nothing": lambda top: None,
    "rewritten": lambda top: (top / "a.txt").write_text("something else, and longer"),
    "rewritten with the same size": lambda top: (top / "a.txt").write_text("CONTENT OF A"),
    "appended": lambda top: put(top / "d/b.bin", "ab", b"more"),
    "truncated": lambda top: os.truncate(top / "d/b.bin", 10),
    "emptied": lambda top: os.truncate(top / "d/b.bin", 0),
    "the empty one filled": lambda top: (top / "empty file").write_text("full"),
    "replaced by rename": lambda top: atomically(top / "run.sh", "new"),
    "removed": lambda top: (top / "d/b.bin").unlink(),
    "made": lambda top: (top / "new").write_text("new"),
    "made and removed": lambda top: made_and_removed(top / "d" / "passing"),
    "a tree made": lambda top: (top / "n/e/w").mkdir(parents=True),
    "renamed": lambda top: (top / "run.sh").rename(top / "d/e/run"),
    "two swapped": lambda top: swap(top / "run.sh", top / "d/b.bin"),
    "touched": lambda top: os.utime(top / "a.txt"),
    "mode": lambda top: (top / "a.txt").chmod(0o777),
    "mode taken away": lambda top: (top / "d/b.bin").chmod(0),
    "a read-only file changed": lambda top: ((top / "locked").chmod(0o600), (top / "locked").write_text("x")),
    "folder removed": lambda top: shutil.rmtree(top / "d"),
    "folder renamed": lambda top: (top / "d").rename(top / "D"),
    "folder emptied": lambda top: (shutil.rmtree(top / "d"), (top / "d").mkdir()),
    "folder closed": lambda top: (top / "d").chmod(0),
    "folder read-only": lambda top: ((top / "d/e/c").write_text("x"), (top / "d/e").chmod(0o555), (top / "d").chmod(0o500)),
    "workspace closed": lambda top: top.chmod(0),
    "workspace emptied": lambda top: [
        shutil.rmtree(p) if p.is_dir() and not p.is_symlink() else p.unlink() for p in top.iterdir()
    ],
    "file to folder": lambda top: to_folder(top / "run.sh"),
    "folder to file": lambda top: to_file(top / "d"),
    "file to link": lambda top: to_link(top / "run.sh", "a.txt"),
    "folder to link": lambda top: to_link(top / "d", "/"),
    "link to file": lambda top: ((top / "link").unlink(), (top / "link").write_text("x")),
    "link elsewhere": lambda top: to_link(top / "link", "a.txt"),
    "link touched": lambda top: os.utime(top / "link", follow_symlinks=False),
    "hard link made": lambda top: os.link(top / "run.sh", top / "d/again"),
    "hard link removed": lambda top: (top / "a.txt").unlink(),
    "hard link broken": lambda top: atomically(top / "d/also a", "alone"),
    "both names removed": lambda top: ((top / "a.txt").unlink(), (top / "d/also a").unlink()),
    "one file linked over another": lambda top: link_over(top / "run.sh", top / "d/b.bin"),
    "pipe made": lambda top: os.mkfifo(top / "pipe"),
    "file to pipe": lambda top: ((top / "a.txt").unlink(), os.mkfifo(top / "a.txt")),
    "turned sparse": lambda top: (os.truncate(top / "d/b.bin", 0), os.truncate(top / "d/b.bin", 1 << 30)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_a_cell_did_to_files_is_undone(room, settled, change):
    fill(room)
    before = tree(room.top)
    shot = room.take()
    assert (shot.left_out, shot.why) == ((), "")
    assert tree(room.top) == before
    with room.program():
        CHANGES[change](room.top)
    assert room.unchanged(shot) == (change == "nothing")
    restored = room.restore(shot)
    assert restored.failed == ()
    assert tree(room.top) == before
    assert bool(restored.changed) == (change != "nothing")
    assert restored.changed_count == len(restored.changed)
    assert room.unchanged(shot)
    assert {path.lstat().st_uid for path in everything(room.top)} == {room.top.stat().st_uid}
    assert room.restore(shot).changed == ()


@pytest.mark.parametrize("change", CHANGES)
def test_a_second_shot_is_as_good_as_a_first(room, change):
    """With the real clock: files are young, so nothing may be shared that was not compared."""
    fill(room)
    first, first_tree = room.take(), tree(room.top)
    with room.program():
        CHANGES[change](room.top)
    second, second_tree = room.take(first), tree(room.top)
    room.restore(first)
    assert tree(room.top) == first_tree
    failed = room.restore(second).failed
    if "pipe" in change:
        assert [why for _, why in failed] == ["is a pipe, socket or device, which is not kept"]
    else:
        assert failed == ()
        assert tree(room.top) == second_tree
    room.restore(first)
    assert tree(room.top) == first_tree


NAMES = st.sampled_from(["a", "b", "d", "d/a", "d/b", "d/e", "d/e/a"])
STEPS = st.one_of(
    st.tuples(st.just("write"), NAMES, st.binary(max_size=3)),
    st.tuples(st.just("replace"), NAMES, st.binary(max_size=3)),
    st.tuples(st.sampled_from(["remove", "mkdir", "shot"]), NAMES, st.just(b"")),
    st.tuples(st.sampled_from(["rename", "link", "symlink"]), NAMES, NAMES),
    st.tuples(st.just("chmod"), NAMES, st.sampled_from([0o700, 0o755, 0o600, 0o400, 0])),
    st.tuples(st.just("restore"), st.integers(0, 5), st.just(b"")),
)


@pytest.mark.slow
@given(st.lists(STEPS, max_size=25))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_any_shot_comes_back_after_any_steps(settled, steps):
    with rooms(TMPFS, FOREIGN if ROOT else None) as room:
        taken, latest = [], None

        def record():
            nonlocal latest
            latest = room.take(latest)
            assert latest.left_out == ()
            taken.append((latest, tree(room.top)))

        record()
        for what, name, other in steps:
            if what == "shot":
                record()
            elif what == "restore":
                latest, then = taken[name % len(taken)]
                assert room.restore(latest).failed == ()
                assert tree(room.top) == then
            else:
                with room.program(), contextlib.suppress(OSError):
                    step(room.top, what, room.top / name, other)
        for shot, then in taken:
            assert room.restore(shot).failed == ()
            assert tree(room.top) == then
        for shot, _ in taken:
            room.shelf.drop(shot)
        assert room.shelf.used_bytes == 0


def step(top: Path, what: str, path: Path, other) -> None:
    match what:
        case "write":
            path.write_bytes(other)
        case "replace":
            (top / "temporary").write_bytes(other)
            (top / "temporary").replace(path)
        case "remove" if path.is_dir():
            shutil.rmtree(path)
        case "remove":
            path.unlink()
        case "mkdir":
            path.mkdir()
        case "rename":
            path.rename(top / other)
        case "link":
            os.link(path, top / other)
        case "symlink":
            (top / other).symlink_to(path)
        case "chmod":
            path.chmod(other)


def test_an_unchanged_workspace_costs_a_walk_and_no_copy(room, settled, work):
    fill(room)
    first = room.take()
    used = room.shelf.used_bytes
    work.update(add=0, equals=0, write=0)
    second = room.take(first)
    assert room.unchanged(second)
    assert room.restore(second).changed == ()
    assert work == {"add": 0, "equals": 0, "write": 0}
    assert room.shelf.used_bytes == used
    assert set(second.copies()) == set(first.copies())
    assert second.entries == first.entries


def test_an_empty_workspace_opens_nothing_and_takes_no_space(room, work):
    before = os.listdir("/proc/self/fd")
    shot = room.take()
    assert room.take(shot).left_out == ()
    assert room.unchanged(shot)
    assert os.listdir("/proc/self/fd") == before
    assert room.shelf.used_bytes == 0
    room.write("made")
    assert room.restore(shot).changed == (".", "made") or room.restore(shot).changed == ()
    assert os.listdir(room.top) == []


def test_a_file_that_changed_only_its_mode_is_compared_and_shared(room, settled, work):
    file = room.write("big", os.urandom(MIB))
    first = room.take()
    with room.program():
        file.chmod(0o600)
    second = room.take(first)
    assert (work["add"], work["equals"]) == (1, 1)
    assert set(first.copies()) == set(second.copies())
    room.restore(first)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    room.restore(second)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_young_stamp_is_not_relied_upon_until_a_look_that_is_later(room, monkeypatch, work):
    file = room.write("a", "one")
    ctime = file.stat().st_ctime_ns
    monkeypatch.setattr(time, "clock_gettime_ns", lambda clock: ctime)
    first = room.take()
    second = room.take(first)
    assert work["equals"] == 1
    monkeypatch.setattr(time, "clock_gettime_ns", lambda clock: ctime + 1_000_000_001)
    third = room.take(second)
    assert work["equals"] == 2
    fourth = room.take(third)
    assert (work["add"], work["equals"]) == (1, 2)
    assert set(fourth.copies()) == set(first.copies())


@pytest.mark.parametrize(
    ("ctime", "looked", "is_settled"),
    [(5, 5, False), (5, 6, True), (6, 5, False), (2 * 10**9, 2 * 10**9 + 5, False), (2 * 10**9, 3 * 10**9 + 1, True)],
)
def test_a_stamp_is_settled_when_the_clock_of_the_kernel_is_beyond_it(ctime, looked, is_settled):
    assert shots.is_settled(ctime, looked) == is_settled


def test_the_clock_is_the_one_that_files_are_stamped_with(room):
    before = time.clock_gettime_ns(shots.CLOCK)
    file = room.write("a")
    assert before <= file.stat().st_ctime_ns


@pytest.mark.parametrize("small", [True, False])
def test_stores_through_a_mapping_are_found_where_the_caller_names_the_file(room, settled, small):
    file = room.write("mapped", b"a" * (8192 if small else MIB))
    with room.program(), file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapping:
        mapping[0] = ord("b")  # from here on the page is mapped, and the kernel does not see what is stored
        first = room.take()
        mapping[0] = ord("c")
        assert room.unchanged(first)  # the very reason for `always`
        assert not room.unchanged(first, always=["mapped"])
        assert not room.unchanged(first, always=None)
        second = room.take(first, always=["mapped"])
        assert room.restore(first).changed == ("mapped",)
        assert mapping[0] == ord("b")
        room.restore(second)
        assert mapping[0] == ord("c")
        mapping[1] = ord("!")
        assert room.restore(second, always=["mapped"]).changed == ("mapped",)
        mapping[1] = ord("!")
        assert room.restore(second, always=None).changed == ("mapped",)
        assert mapping[:3] == b"caa"


@pytest.mark.parametrize("change", ["rewritten", "appended", "truncated", "renamed", "rotated"])
def test_a_process_that_holds_a_file_open_sees_the_old_content(room, settled, change):
    file = room.write("log", "line 1\n")
    shot = room.take()
    with file.open("r+") as opened:
        with room.program():
            match change:
                case "rewritten":
                    file.write_text("LINE 1\n")
                case "appended":
                    put(file, "ab", b"line 2\n")
                case "truncated":
                    os.truncate(file, 0)
                case "renamed":
                    file.rename(room.top / "old").write_text("changed")
                case "rotated":
                    file.rename(room.top / "log.1")
                    file.write_text("another")
        assert room.restore(shot).failed == ()
        assert opened.read() == "line 1\n"
        opened.write("line 2\n")
        opened.flush()
        assert file.read_text() == "line 1\nline 2\n"
    assert os.listdir(room.top) == ["log"]


def test_a_sparse_file_comes_back_sparse(room, settled):
    def write():
        with room.program(), (room.top / "sparse").open("r+b" if (room.top / "sparse").exists() else "wb") as file:
            file.truncate(1 << 40)
            os.pwrite(file.fileno(), b"middle", 1 << 39)
            os.pwrite(file.fileno(), b"x" * 100_000, 0)

    write()
    shot = room.take()
    assert room.shelf.used_bytes < 2 * MIB
    for change in (
        lambda path: path.unlink(),
        lambda path: os.truncate(path, 5),
        lambda path: put(path, "r+b", b"y" * 3 * MIB),
    ):
        with room.program():
            change(room.top / "sparse")
        assert room.restore(shot).failed == ()
        status = (room.top / "sparse").stat()
        assert status.st_size == 1 << 40
        assert status.st_blocks * 512 < 2 * MIB
        with (room.top / "sparse").open("rb") as file:
            assert os.pread(file.fileno(), 7, (1 << 39)) == b"middle\0"
            assert os.pread(file.fileno(), 2, 99_999) == b"x\0"


def test_a_branch_starts_with_the_same_files(room, settled):
    fill(room)
    before = tree(room.top)
    shot = room.take()
    with rooms(None, room.owner) as branch:
        for _ in range(2):  # the second time it is not empty
            restored = room.shelf.copy_into(branch.fd, shot, owner=branch.owner)
            assert restored.failed == ()
            assert tree(branch.top) == before
        branch.write("a.txt", "of the branch")
    assert tree(room.top) == before
    assert room.unchanged(shot)


def test_set_id_bits_stay_but_are_never_given(room, settled):
    file = room.write("tool", "one")
    with room.program():
        file.chmod(0o4755)
    shot = room.take()
    assert room.restore(shot) == rewind.Restored((), 0, (), 0)
    assert stat.S_IMODE(file.stat().st_mode) == 0o4755
    with room.program():
        file.unlink()
    assert room.restore(shot).failed == (("tool", "its set-uid and set-gid bits are not given back"),)
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("one", 0o755)


def test_the_ids_of_the_thread_are_as_before(room):
    def ids():
        lines = Path("/proc/thread-self/status").read_text().splitlines()
        return [line for line in lines if line.startswith(("Uid", "Gid", "CapEff"))]

    before = ids()
    fill(room)
    shot = room.take()
    room.unchanged(shot)
    room.restore(shot)
    room.kept_in.rmdir()
    assert ids() == before


def test_no_descriptor_is_left_open(room):
    fill(room)
    latest = room.take()
    before = len(os.listdir("/proc/self/fd"))
    for change in CHANGES.values():
        with room.program(), contextlib.suppress(OSError):
            change(room.top)
        shot = room.take(latest)
        room.unchanged(latest)
        room.restore(latest)
        room.shelf.drop(latest)
        latest = shot
    assert len(os.listdir("/proc/self/fd")) == before


def test_two_threads_take_turns(room):
    fill(room)
    before = tree(room.top)
    first = room.take()
    failures = []

    def work_on():
        for _ in range(20):
            shot = room.take(first)
            if room.restore(shot).failed:
                failures.append(shot)
            room.shelf.drop(shot)

    threads = [threading.Thread(target=work_on) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert tree(room.top) == before
    room.shelf.drop(first)
    assert room.shelf.used_bytes == 0
