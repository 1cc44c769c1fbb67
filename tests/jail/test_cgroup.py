"""Control groups: the version that the real kernel has here, and version 2 on a tree of ordinary files that stands in for one.

`make vm-test` runs these on a kernel that has version 2 only.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from errno import EBUSY, EINVAL, ESPIPE
from pathlib import Path

import pytest

from onetrip.jail import cgroup, cgroup_place

MIB = 1 << 20
REAL = cgroup.probe()
needs_groups = pytest.mark.skipif(REAL.version == "none", reason=f"no usable control groups: {dict(REAL.reasons)}")
needs_v2 = pytest.mark.skipif(
    REAL.version != "v2", reason="no usable control groups of version 2 on this kernel: see `make vm-test`"
)


def _kill_members(group) -> None:
    for pid in group.members():
        os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def child_in(group: cgroup.Group, body: Callable[[], None]) -> Iterator[int]:
    """A fork that joins the group by itself and then runs `body`; killed and reaped at the end."""
    ready, joined = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()  # what it forks ends with it
            for fd in group.procs_fds:
                os.write(fd, b"0")
            os.write(joined, b"1")
            body()
        finally:
            os._exit(0)
    os.close(joined)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def v2_root() -> str:
    return cgroup_place._mounts("/proc/self")["cgroup2"]


@pytest.fixture
def real() -> Iterator[cgroup.Hierarchy]:
    """A place of this test's own, so that it counts nobody else's groups."""
    name = f"onetrip-test-{os.getpid()}"
    parents = [os.path.join(place, name) for place in dict.fromkeys(REAL.places.values())]
    for parent in parents:
        os.mkdir(parent)
    found = cgroup.probe(parents[0].removeprefix(v2_root()) if REAL.version == "v2" else name)
    assert sorted(set(found.places.values())) == sorted(parents)
    yield found
    cgroup.sweep(found)
    for parent in parents:
        os.rmdir(parent)


@pytest.fixture
def group(real: cgroup.Hierarchy) -> Iterator[cgroup.Group]:
    made = cgroup.Group.create(real, "test", memory_bytes=64 * MIB, processes=8)
    yield made
    made.remove()


def groups_of(hierarchy: cgroup.Hierarchy) -> list[str]:
    """Names of our groups, once per hierarchy that has them (version 2 is one)."""
    bases = {base for name in hierarchy.places if os.path.isdir(base := hierarchy.base(name))}
    return sorted(entry.name for base in bases for entry in os.scandir(base) if entry.is_dir())


@needs_groups
def test_memory_beyond_the_limit_kills_the_process_and_is_counted(group):
    # The limit on processes is far away, and there is no swap to escape to.
    def eat() -> None:
        bytearray(b"x" * (256 * MIB))

    with child_in(group, eat) as pid:
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    used = group.usage()
    assert used.oom_kills == 1
    assert 60 * MIB < used.peak_memory_bytes <= 64 * MIB


@needs_groups
def test_fork_beyond_the_limit_is_refused_and_counted(group):
    group.set_limits(
        memory_bytes=2048 * MIB, processes=8
    )  # far away: each fork copies the page tables of this process, which is large
    read_end, write_end = os.pipe()

    def bomb() -> None:
        made = 0
        with contextlib.suppress(OSError):
            while made < 100:
                if os.fork() == 0:
                    signal.pause()
                made += 1
        os.write(write_end, made.to_bytes(2, "big"))
        signal.pause()

    with child_in(group, bomb):
        assert int.from_bytes(os.read(read_end, 2), "big") == 7  # with itself: 8
        assert group.usage().refused_forks == 1
        _kill_members(group)
    os.close(read_end)
    os.close(write_end)


@needs_groups
def test_limits_can_be_raised_and_lowered(real, group):
    group.set_limits(memory_bytes=128 * MIB, processes=16)
    group.set_limits(memory_bytes=32 * MIB, processes=4, cpus=0.5)
    folder = f"{real.base('memory')}/{groups_of(real)[0]}"
    memory, swap, no_swap = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", 32 * MIB  # version 1: with the memory
    if real.version == "v2":
        memory, swap, no_swap = "memory.max", "memory.swap.max", 0
    assert Path(folder, memory).read_text() == f"{32 * MIB}\n"
    if os.path.exists(f"{folder}/{swap}"):
        assert Path(folder, swap).read_text() == f"{no_swap}\n"


@needs_groups
@pytest.mark.slow
def test_cpu_share_is_bounded_over_all_processes_and_counted(real):
    group = cgroup.Group.create(real, "cpu", memory_bytes=64 * MIB, processes=8, cpus=0.2)
    try:

        def spin() -> None:
            os.fork()
            while True:
                pass

        with child_in(group, spin):
            started = time.monotonic()
            while time.monotonic() - started < 0.6:
                os.sched_yield()
            used = group.usage().cpu_us
            _kill_members(group)
        assert 60_000 < used < 300_000  # 0.2 × 0.6 s, and up to one period of each CPU more
    finally:
        group.remove()


@needs_groups
def test_reset_counts_from_zero(group):
    with child_in(group, lambda: bytearray(b"x" * (40 * MIB))) as pid:
        os.waitpid(pid, 0)
    before = group.usage()
    assert before.peak_memory_bytes > 30 * MIB
    assert before.cpu_us > 0
    assert group.renew()
    after = group.usage()
    assert after.cpu_us == 0
    assert after.peak_memory_bytes < 10 * MIB


@needs_groups
def test_a_higher_peak_between_two_readings_is_seen_after_a_reset(group):
    # Before Linux 6.12 nobody can reset the peak of version 2; what comes after is not to be lost for that.
    with child_in(group, lambda: bytearray(b"x" * (20 * MIB))) as pid:
        os.waitpid(pid, 0)
    assert group.usage().peak_memory_bytes > 20 * MIB
    group.reset_peak()
    assert group.usage().peak_memory_bytes < 10 * MIB
    with child_in(group, lambda: bytearray(b"x" * (40 * MIB))) as pid:
        os.waitpid(pid, 0)
    assert group.usage().peak_memory_bytes > 40 * MIB
    group.reset_peak()
    assert group.usage().peak_memory_bytes < 10 * MIB


@needs_groups
def test_remove_leaves_no_folder_and_no_descriptor(real):
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        group = cgroup.Group.create(real, "leak", memory_bytes=64 * MIB, processes=8, cpus=1.0)
        with child_in(group, signal.pause):
            _kill_members(group)
        group.remove()
        group.remove()
    assert groups_of(real) == []
    assert len(os.listdir("/proc/self/fd")) == descriptors
    cgroup.sweep(real)
    assert [name for name in real.places if os.path.exists(real.base(name))] == []


@needs_groups
def test_remove_gives_up_at_its_deadline_and_can_be_called_again(real, group):
    with child_in(group, signal.pause):
        with pytest.raises(OSError, match="Device or resource busy"):
            group.remove(deadline_s=0.01)
        assert groups_of(real) != []
    group.remove()
    assert groups_of(real) == []


@needs_groups
def test_sweep_removes_what_a_dead_server_left_and_nothing_of_a_live_one(real, group):
    mine = groups_of(real)
    pid = os.fork()
    if pid == 0:
        cgroup.Group.create(real, "orphan", memory_bytes=64 * MIB, processes=8)
        os._exit(0)
    os.waitpid(pid, 0)
    assert len(groups_of(real)) == 2 * len(mine)
    assert cgroup.sweep(real) == len(mine)
    assert groups_of(real) == mine


@needs_groups
def test_a_configured_place_that_is_not_there_is_named():
    found = cgroup.probe("nowhere-at-all")
    assert found.version == "none"
    assert found.reasons["memory"].endswith("nowhere-at-all does not exist")
    assert "cgroup_parent" in (found.remedy or "")


# ---------------------------------------------------------------------------------------------------- version 2, where it is real


def run_as(uid: int, body: Callable[[], str]) -> str:
    """What `body` returns in a fork that has become another user; nothing when it fails."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.write(write_end, body().encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, encoding="utf-8") as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return said


@needs_v2
def test_controllers_that_were_switched_off_in_our_place_are_switched_on_again(real):
    # systemd does so for what no unit of its own needs.
    cgroup_place.write(f"{real.places['cpu']}/cgroup.subtree_control", "-cpu -memory")
    group = cgroup.Group.create(real, "again", memory_bytes=64 * MIB, processes=8, cpus=0.5)
    with pytest.raises(OSError, match="busy"):  # now that a group of ours has it, nobody can
        cgroup_place.write(f"{real.places['cpu']}/cgroup.subtree_control", "-cpu")
    group.remove()


@needs_v2
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it delegates to another user")
def test_a_delegated_place_that_lies_apart_from_our_own_is_refused_and_one_above_it_is_taken():
    place, uid = f"{v2_root()}/onetrip-apart-{os.getpid()}", 65534

    def look() -> str:
        found = cgroup.probe(os.path.basename(place))
        if found.version == "none":
            return f"none: {found.reasons['memory']}"
        group = cgroup.Group.create(found, "apart", memory_bytes=64 * MIB, processes=8)
        with child_in(group, signal.pause):
            members = len(group.members())
            _kill_members(group)
        group.remove()
        cgroup.sweep(found)
        return f"{found.version}: {members}"

    own = f"{v2_root()}{cgroup_place._own_groups('/proc/self')['']}"
    os.mkdir(place)
    os.mkdir(f"{place}/server")
    try:
        for path in (place, f"{place}/cgroup.procs", f"{place}/cgroup.subtree_control", f"{place}/server/cgroup.procs"):
            os.chown(path, uid, uid)
        assert run_as(uid, look).endswith(f"{v2_root()} is not delegated to this user")
        cgroup_place.write(f"{place}/server/cgroup.procs", "0")
        assert run_as(uid, look) == "v2: 1"
    finally:
        cgroup_place.write(f"{own}/cgroup.procs", "0")
        os.rmdir(f"{place}/server")
        os.rmdir(place)


# ---------------------------------------------------------------------------------------------------- version 2, made of files


class FakeKernel:
    """A version 2 tree. Folders that are made get the files that the kernel would put there."""

    def __init__(self, root: Path, own: str, controllers: str) -> None:
        self.root, self.controllers = root / "cg", controllers
        self.proc = root / "proc"
        self.proc.mkdir()
        (self.proc / "mountinfo").write_text(f"41 31 0:38 / {self.root} rw - cgroup2 cgroup2 rw\n")
        (self.proc / "cgroup").write_text(f"0::{own}\n")
        for folder in [Path("/"), *reversed(Path(own).parents), Path(own)]:
            if not (self.root / str(folder).strip("/")).exists():
                self.make(str(self.root / str(folder).strip("/")))

    def make(self, path: str) -> None:
        os.mkdir(path)
        files = {
            "cgroup.controllers": self.controllers,
            "cgroup.subtree_control": " ".join(name for name in ("memory", "pids") if name in self.controllers.split()),
            "cgroup.procs": "",
            "memory.max": "max",
            "memory.swap.max": "max",
            "memory.current": "1000",
            "memory.peak": "3000",
            "memory.events": "low 0\noom 2\noom_kill 2\n",
            "cpu.max": "max 100000",
            "cpu.stat": "usage_usec 1234\nuser_usec 1000\n",
            "pids.max": "max",
            "pids.events": "max 5\n",
        }
        for name, text in files.items():
            Path(path, name).write_text(text)

    def drop(self, path: str) -> None:
        for name in os.listdir(path):
            if os.path.isdir(os.path.join(path, name)):
                raise OSError(39, "Directory not empty")
            os.unlink(os.path.join(path, name))
        os.rmdir(path)

    def probe(self, parent: str | None = None) -> cgroup.Hierarchy:
        found = cgroup.probe(parent, proc=str(self.proc))
        return cgroup.Hierarchy(found.version, found.places, found.reasons, found.remedy, self.make, self.drop)


OWN = "/user.slice/user@1000.service/app.slice/shell.scope"


@pytest.fixture
def v2(tmp_path):
    return FakeKernel(tmp_path, OWN, "cpu io memory pids\n")


def test_v2_goes_beside_our_own_group_and_switches_controllers_on(v2):
    found = v2.probe()
    place = v2.root / "user.slice/user@1000.service/app.slice"
    assert (found.version, found.places) == ("v2", dict.fromkeys(["memory", "pids", "cpu"], str(place)))
    assert found.names == ("cgroup-v2:memory", "cgroup-v2:pids", "cgroup-v2:cpu")
    assert (place / "cgroup.subtree_control").read_text() == "+cpu"
    assert (v2.root / OWN.strip("/") / "cgroup.subtree_control").read_text() == "memory pids"  # our own: untouched


def test_v2_limits_usage_and_removal(v2):
    found = v2.probe("user.slice")
    group = cgroup.Group.create(found, "s1", memory_bytes=64 * MIB, processes=9, cpus=1.5)
    (folder,) = (path for path in (v2.root / "user.slice" / f"onetrip-{os.geteuid()}").iterdir() if path.is_dir())
    read = {name: (folder / name).read_text() for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.max")}
    assert read == {"memory.max": str(64 * MIB), "memory.swap.max": "0", "pids.max": "9", "cpu.max": "150000 100000"}
    assert group.usage() == cgroup.Usage(1000, 3000, 1234, 2, 5)
    assert group.renew()
    (folder / "cpu.stat").write_text("usage_usec 2000\n")
    assert group.usage()[2:] == (766, 0, 0)
    (fd,) = group.procs_fds
    os.write(fd, b"0")
    assert (folder / "cgroup.procs").read_text() == "0"
    group.remove()
    assert not folder.exists()
    cgroup.sweep(found)
    assert not folder.parent.exists()


def test_v2_unchanged_limits_are_not_written_again(v2):
    group = cgroup.Group.create(v2.probe("user.slice"), "s1", memory_bytes=64 * MIB, processes=9)
    (folder,) = (path for path in (v2.root / "user.slice" / f"onetrip-{os.geteuid()}").iterdir() if path.is_dir())
    (folder / "memory.max").write_text("untouched")
    group.set_limits(memory_bytes=64 * MIB, processes=10)
    assert ((folder / "memory.max").read_text(), (folder / "pids.max").read_text()) == ("untouched", "10")
    group.remove()


def test_v2_without_cpu_still_counts_and_says_what_is_missing(tmp_path):
    found = FakeKernel(tmp_path, OWN, "memory pids\n").probe()
    assert (found.version, list(found.places), list(found.reasons)) == ("v2", ["memory", "pids"], ["cpu"])


def test_v2_without_memory_is_none_with_reason_and_remedy(tmp_path):
    found = FakeKernel(tmp_path, OWN, "hugetlb\n").probe()
    assert found.version == "none"
    assert set(found.reasons) >= {"memory", "pids", "cpu"}
    assert found.remedy is not None


@pytest.mark.parametrize(
    "number", [pytest.param(EINVAL, id="opened by root"), pytest.param(ESPIPE, id="opened by others, for reading only")]
)
def test_v2_whose_peak_cannot_be_reset_tells_a_higher_one_from_an_old_one(v2, monkeypatch, number):
    group = cgroup.Group.create(v2.probe("user.slice"), "s1", memory_bytes=64 * MIB, processes=9)
    (folder,) = (path for path in (v2.root / "user.slice" / f"onetrip-{os.geteuid()}").iterdir() if path.is_dir())

    def refuse(fd: int, data: bytes, offset: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", refuse)  # Linux < 6.12
    assert group.renew()
    assert group.usage().peak_memory_bytes == 1000  # what is in use: the 3000 are from before
    (folder / "memory.peak").write_text("4000")
    assert group.usage().peak_memory_bytes == 4000
    monkeypatch.undo()
    group.remove()


def test_v2_before_the_kernel_had_a_peak_takes_the_highest_reading(v2):
    found = v2.probe("user.slice")
    without = cgroup.Hierarchy(
        found.version, found.places, {}, None, lambda path: (v2.make(path), os.unlink(f"{path}/memory.peak")), v2.drop
    )
    group = cgroup.Group.create(without, "s1", memory_bytes=64 * MIB, processes=9)
    (folder,) = (path for path in (v2.root / "user.slice" / f"onetrip-{os.geteuid()}").iterdir() if path.is_dir())
    peaks = []
    for used in (5000, 2000):
        (folder / "memory.current").write_text(f"{used}")
        peaks.append(group.usage().peak_memory_bytes)
    group.reset_peak()
    assert [*peaks, group.usage().peak_memory_bytes] == [5000, 5000, 2000]
    group.remove()


def test_v2_controllers_that_were_switched_off_are_switched_on_again(v2):
    found = v2.probe("user.slice")
    place = v2.root / "user.slice"
    (place / "cgroup.subtree_control").write_text("memory pids")  # as systemd does with what no unit of its own needs

    def make(path: str) -> None:
        there = os.path.isdir(path)
        if not there:
            v2.make(path)
        if os.path.dirname(path) == str(place):
            passed_on = v2.controllers if "cpu" in (place / "cgroup.subtree_control").read_text() else "memory pids"
            Path(path, "cgroup.controllers").write_text(passed_on)
        if there:
            raise FileExistsError(path)

    hierarchy = cgroup.Hierarchy(found.version, found.places, {}, None, make, v2.drop)
    group = cgroup.Group.create(hierarchy, "s1", memory_bytes=64 * MIB, processes=9, cpus=1.0)
    assert (place / "cgroup.subtree_control").read_text() == "+cpu"
    group.remove()


def test_v2_controllers_that_are_gone_altogether_are_named(v2):
    found = v2.probe("user.slice")
    for folder, _, _ in os.walk(v2.root):
        Path(folder, "cgroup.controllers").write_text("memory pids")
    v2.controllers = "memory pids"
    with pytest.raises(FileNotFoundError, match=r"no such controller: cpu: .*/user.slice/onetrip-"):
        cgroup.Group.create(found, "s1", memory_bytes=MIB, processes=1)


def test_v2_switches_a_controller_on_from_the_top_where_our_place_lacks_it(v2):
    # At boot systemd gives a slice only memory and pids.
    lacking = v2.root / "user.slice/user@1000.service/app.slice"
    (lacking / "cgroup.controllers").write_text("memory pids")
    assert v2.probe().reasons == {"cpu": f"no such controller in {lacking}"}  # a plain file does not change by itself
    assert (lacking.parent / "cgroup.subtree_control").read_text() == "+cpu"


def test_v2_place_with_processes_in_it_is_left_as_it_is(tmp_path, monkeypatch):
    # A container's root. Switching on pids, which the kernel would allow, spoils it for the remedy: moving into a group below.
    kernel = FakeKernel(tmp_path, "/", "cpu io memory pids\n")
    (kernel.root / "cgroup.subtree_control").write_text("")
    written = []

    def write(path: str, value: str) -> None:
        written.append(value)
        if "memory" in value:
            raise OSError(EBUSY, os.strerror(EBUSY), path)

    monkeypatch.setattr(cgroup_place, "write", write)
    found = kernel.probe()
    assert (found.version, written) == ("none", ["+memory +pids"])
    assert set(found.reasons.values()) == {f"{kernel.root} does not pass it on: there are processes in it"}


def test_v2_our_own_group_outside_of_our_view_is_no_obstacle(tmp_path):
    # Moved out of its namespace, a process sees its own group above the root (cgroup_namespaces(7)).
    kernel = FakeKernel(tmp_path, "/", "cpu io memory pids\n")
    (kernel.proc / "cgroup").write_text("0::/../elsewhere\n")
    assert kernel.probe().places["memory"] == str(kernel.root)


def test_v2_place_that_is_a_folder_and_no_group_does_not_exist(v2):
    os.mkdir(v2.root / "plain")
    assert v2.probe("plain").reasons["memory"].endswith("plain does not exist")


@pytest.mark.skipif(os.geteuid() == 0, reason="needs an ordinary user: root may write everywhere")
def test_v2_delegated_apart_from_our_own_group_is_refused_because_nothing_may_move_there(v2):
    v2.make(str(v2.root / "apart"))
    assert v2.probe("apart").version == "v2"
    os.chmod(v2.root / "cgroup.procs", 0o444)
    found = v2.probe("apart")
    assert (found.version, found.reasons["memory"].startswith(f"no process may move there from {OWN}: ")) == ("none", True)
    assert v2.probe("user.slice").version == "v2"  # above our own: the root has no say in it


@pytest.mark.skipif(os.geteuid() == 0, reason="needs an ordinary user: root may write everywhere")
def test_v2_that_is_not_delegated_says_so(v2):
    for folder, _, _ in os.walk(v2.root):
        os.chmod(f"{folder}/cgroup.procs", 0o444)
    found = v2.probe()
    assert (found.version, found.reasons["memory"].rpartition(" is ")[2]) == ("none", "not delegated to this user")


def test_group_that_cannot_be_made_leaves_nothing(v2):
    found = v2.probe("user.slice")

    def broken(path: str) -> None:
        v2.make(path)
        if path.endswith("-s1"):
            os.unlink(f"{path}/memory.max")
            os.mkdir(f"{path}/memory.max")  # cannot be opened for writing

    hierarchy = cgroup.Hierarchy(
        found.version, found.places, {}, None, broken, lambda path: (os.rmdir(f"{path}/memory.max"), v2.drop(path))
    )
    with pytest.raises(IsADirectoryError):
        cgroup.Group.create(hierarchy, "s1", memory_bytes=MIB, processes=1)
    base = v2.root / "user.slice" / f"onetrip-{os.geteuid()}"
    assert [path for path in base.iterdir() if path.is_dir()] == []
