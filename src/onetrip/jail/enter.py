"""The jail: `HouseSpec`, `RoomSpec` and the ordered lists of steps. The only caller of the mechanisms.

Theory of operation
-------------------
Three processes enter, one after the other, and each gives up what the next must not have:

    house    once per zygote      new namespaces, the read-only root, then `exec` with an empty environment
    room     once per sandbox     the sandbox's own namespaces, its writable mounts; becomes init, PID 1
    runner   once per sandbox     joins init's namespaces; cgroup, rlimits, capabilities, Landlock, seccomp; then user code

Every step either holds or raises `StepFailed` with its name and errno, and the process that tried it ends: there is no sandbox
with a step missing. The order inside a list is part of the design; each line says why it stands where it does.
Room and runner are lists of system calls made ready beforehand, which run with nothing of Python between them (`calls`).

At level `reduced` there are no namespaces: `house` only opens, `room` does not exist, and the runner relies on Landlock, on the
stricter filter (no child processes, no sockets but AF_UNIX), and on rlimits.
"""

import contextlib
import os
import resource
import signal
import socket
import struct
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from . import calls, landlock, mounts, seccomp, syscalls
from .steps import step

Level = Literal["strict", "reduced"]
GUEST_UID: Final = 1000  # what the program sees; which uid it is outside depends on who started the zygote
_JOINED: Final = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS
ROOM_NAMESPACES: Final = _JOINED | syscalls.CLONE_NEWPID
_HOUSE_NAMESPACES: Final = ROOM_NAMESPACES | syscalls.CLONE_NEWUSER

NOFILE: Final = 1024  # also bounds memory hidden in socket buffers: 512 pairs x 208 KiB, net.core.wmem_default
STACK_BYTES: Final = 8 << 20
CPU_SET_BYTES: Final = 128  # cpu_set_t
UID_TEXT: Final = "99999"  # stands for an id of the same length: see `room`
WRITABLE: Final = (mounts.WORKSPACE, "/tmp", mounts.HOME, "/dev/shm", mounts.ABOVE_BRANCHES)
DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


# ---------------------------------------------------------------------------------------------------- house


@dataclass(frozen=True, slots=True)
class HouseSpec:
    """What one zygote is made of. `ids` is (first host uid, count) where we may map a range, else None: only our own id."""

    level: Level
    tree: mounts.Tree
    ids: tuple[int, int] | None
    argv: Sequence[str]  # executed inside the house
    environ: Mapping[str, str]

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "HouseSpec":
        ids = raw["ids"]
        return cls(raw["level"], mounts.Tree.from_json(raw["tree"]), tuple(ids) if ids else None, raw["argv"], raw["environ"])


def house(spec: HouseSpec) -> int:
    """Build the house and start `spec.argv` in it as the first process of a PID namespace; returns its pid here.

    The child reports a failure of its own steps by exiting through `StepFailed`, which the caller passes on.
    Descriptors that are inheritable stay open across the `exec`.
    """
    os.umask(0o022)
    with step("drop supplementary groups"):
        if spec.ids:
            os.setgroups([])
    with _id_mapper(spec.ids) as map_ids, step("unshare the house's namespaces"):
        uid, gid = os.geteuid(), os.getegid()
        syscalls.unshare(_HOUSE_NAMESPACES)
        map_ids(uid, gid)
    with step("make mounts private"):
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE, None)
    with step("open what the root is made of"):
        # Still with the caller's host uid, so that an interpreter below a directory which only it may enter can be opened.
        sources = mounts.open_sources(spec.tree)
    with step("become root of the user namespace"):
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    pid = os.fork()
    if pid:
        return pid
    with step("start a session of its own"):
        os.setsid()  # no controlling terminal: Ctrl-C there is not for us, and nobody can type into it (TIOCSTI)
    with step("name the host"):
        syscalls.sethostname("sandbox")
    with step("build the root"):
        mounts.build(spec.tree, sources)
    with step("start the zygote"):
        os.execve(spec.argv[0], list(spec.argv), dict(spec.environ))  # noqa: S606 - no shell is wanted
    raise AssertionError  # exec does not return


@contextlib.contextmanager
def _id_mapper(ids: tuple[int, int] | None) -> Generator[Any, None, None]:
    """A function that maps this process's new user namespace: itself to root, or a whole range by a helper that stays outside.

    Writing more than one's own id needs a capability in the parent namespace (user_namespaces(7)), hence the helper, which is
    forked before and waits for the word.
    """
    if ids is None:

        def map_own(uid: int, gid: int) -> None:
            write_maps("/proc/self", f"0 {uid} 1", f"0 {gid} 1", deny_setgroups=True)

        yield map_own
        return
    first, count = ids
    target = os.getpid()
    read_end, write_end = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(write_end)
        if os.read(read_end, 1):
            try:
                write_maps(f"/proc/{target}", f"0 {first} {count}", f"0 {first} {count}", deny_setgroups=False)
            except OSError as err:
                os._exit(err.errno or 255)
        os._exit(0)
    os.close(read_end)

    def map_range(_uid: int, _gid: int) -> None:
        os.write(write_end, b"1")
        status = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
        if status:
            raise OSError(status, os.strerror(status), "uid_map")

    try:
        yield map_range
    finally:
        os.close(write_end)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(helper, 0)


def write_maps(folder: str, uids: str, gids: str, *, deny_setgroups: bool) -> None:
    lines = [("uid_map", uids), ("setgroups", "deny"), ("gid_map", gids)]
    for name, line in lines:
        if name == "setgroups" and not deny_setgroups:
            continue
        fd = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)


# ---------------------------------------------------------------------------------------------------- room


@dataclass(frozen=True, slots=True)
class RoomSpec:
    """What the rooms of one kind have in common. `has_own_uid`: each has an owner of its own, else all have the zygote's."""

    disk_bytes: int
    inodes: int
    has_own_uid: bool


def room(spec: RoomSpec, rules: landlock.Rules | None) -> calls.CallList:
    """What init does, as the first process of new namespaces (`ROOM_NAMESPACES`), to make its room. Afterwards it only waits.

    The owner's id, as the zygote's user namespace counts, is `Later("uid")` among numbers and `UID_TEXT` within texts, so that
    one list serves all rooms: see `init.Image`. Its message, on descriptor 1, is one byte with the descriptors of the workspace, of /proc and, with `rules`, of a Landlock
    ruleset for the runner.
    """
    steps = calls.CallList()
    uid: calls.Argument = calls.Later("uid") if spec.has_own_uid else 0
    text = UID_TEXT if spec.has_own_uid else "0"
    mounts.add_room(steps, disk_bytes=spec.disk_bytes, inodes=spec.inodes, uid=uid, uid_text=text)
    syscalls.add_loopback(steps)  # the program's own servers and clients work; there is nothing else to reach
    folder = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    size = 16 + 4 * (2 if rules is None else 3)  # cmsg(3): a header, and the descriptors
    sent = calls.Data(struct.pack("=QiiiiiQ", size, socket.SOL_SOCKET, socket.SCM_RIGHTS, -1, -1, -1, 0))
    steps.add("open the workspace", "openat", syscalls.AT_FDCWD, mounts.WORKSPACE.encode(), folder, store=sent.at(16))
    steps.add("open the workspace", "openat", syscalls.AT_FDCWD, b"/proc", folder, store=sent.at(20))
    if rules is not None:
        # Here, where nobody waits: the runner only has to put itself under them.
        ruleset = rules.add_to(steps, "write the Landlock rules")
        steps.add("write the Landlock rules", "dup", ruleset, store=sent.at(24))
    if spec.has_own_uid:
        steps.add("give up the zygote's identity", "setresgid", uid, uid, uid)
        steps.add("give up the zygote's identity", "setresuid", uid, uid, uid)
    # Last, so that the mounts belong to the zygote's namespace and the sandbox has no power over them, whatever it regains.
    steps.add("unshare the user namespace", "unshare", syscalls.CLONE_NEWUSER)
    # Changing ids made us undumpable, and then /proc/self is not ours to write.
    steps.add("unshare the user namespace", "prctl", syscalls.PR_SET_DUMPABLE, 1)
    for name, line in (("uid_map", f"{GUEST_UID} {text} 1"), ("setgroups", "deny"), ("gid_map", f"{GUEST_UID} {text} 1")):
        opened = steps.add("map the user", "openat", syscalls.AT_FDCWD, f"/proc/self/{name}".encode(), os.O_WRONLY | os.O_CLOEXEC)
        steps.add("map the user", "write", opened, line.encode(), len(line))
    steps.add("die with the zygote", "prctl", syscalls.PR_SET_PDEATHSIG, int(signal.SIGKILL))
    steps.add("be out of reach of ptrace", "prctl", syscalls.PR_SET_DUMPABLE, 0)
    # Orphans are reaped by the kernel (wait(2), SIGCHLD ignored), and no signal from inside the namespace reaches a first process
    # without handlers (pid_namespaces(7)).
    ignore = calls.Data(struct.pack("QQQQ", int(signal.SIG_IGN), 0, 0, 0))
    steps.add("leave orphans to the kernel", "rt_sigaction", int(signal.SIGCHLD), ignore.at(0), 0, 8)
    said = calls.Data(b"." + bytes(7))
    parts = calls.Data(bytes(8) + struct.pack("Q", 1), {0: said.at(0)})
    message = calls.Data(struct.pack("QQQQQQQ", 0, 0, 0, 1, 0, size, 0), {16: parts.at(0), 32: sent.at(0)})
    steps.add("hand over the room", "sendmsg", 1, message.at(0), 0)
    steps.add("close everything", "close_range", 0, 0xFFFFFFFF, 0)
    return steps


# ---------------------------------------------------------------------------------------------------- branch


@contextlib.contextmanager
def inside(init_pidfd: int, own_mounts: int) -> Generator[None, None, None]:
    """Work in the mount namespace of a room for a moment. `own_mounts`: ours, to come back to; without a way back this process ends."""
    with step("enter the room's mount namespace"):
        syscalls.setns(init_pidfd, syscalls.CLONE_NEWNS)
    try:
        yield
    finally:
        try:
            syscalls.setns(own_mounts, syscalls.CLONE_NEWNS)
        except OSError:
            os._exit(1)


def join() -> int:
    """In a room's mount namespace: make it ready for several interpreters on one set of files; the Landlock ruleset of those to come.

    It allows what the room's first program may do, but a process under it can signal or look into none outside of it, such as
    the checkpoints of the others.
    """
    with step("make the home folder the workspace"):
        mounts.join_home()
    with step("write the siblings' Landlock rules"):
        return landlock.make(landlock.rules(readonly=["/"], writable=WRITABLE, nodes=DEVICES))


def branch(folder: str, *, disk_bytes: int, inodes: int, uid: int, at_home: bool) -> tuple[str, int, int]:
    """In a room's mount namespace: files of its own for one branch. Its workspace's path, a descriptor of it, a Landlock ruleset.

    The ruleset leaves a branch what any sandbox has, but for the files of the session that it comes from and of other branches,
    and keeps it from signalling them.
    """
    with step("mount the branch"):
        workspace = mounts.mount_branch(folder, disk_bytes=disk_bytes, inodes=inodes, uid=uid, at_home=at_home)
    with step("write the branch's Landlock rules"):
        foreign = (mounts.WORKSPACE, "/tmp", os.path.dirname(mounts.HOME), mounts.ABOVE_BRANCHES)
        readonly = [path for name in os.listdir("/") if (path := f"/{name}") not in foreign and os.path.exists(path)]
        writable = [workspace, f"{folder}/scratch", f"{folder}/home", f"{folder}/branches", "/dev/shm"]
        ruleset = landlock.make(landlock.rules(readonly=readonly, writable=writable, nodes=DEVICES))
    return workspace, os.open(workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), ruleset


# ---------------------------------------------------------------------------------------------------- runner


@dataclass(frozen=True, slots=True)
class RunnerKind:
    """What the steps of all runners of one node depend on."""

    level: Level
    groups: int  # how many control groups each joins
    is_bound: bool  # there is a Landlock ruleset to enter
    uid: int | None  # without a room: the id to become, when the zygote is root
    pins: bool  # to one CPU: where no control group bounds the share

    @property
    def donated(self) -> tuple[str, ...]:
        """The descriptors that a request for a runner brings, in their order."""
        groups = tuple(f"group{number}" for number in range(self.groups))
        place = ("init",) if self.level == "strict" else ("workspace",)
        return ("channel", "stdout", "stderr", *groups, *place, *(("ruleset",) if self.is_bound else ()))


def runner(
    kind: RunnerKind, fds: Mapping[str, calls.Place], cpus: calls.Place, seeds: Sequence[tuple[int, int]]
) -> calls.CallList:
    """Close the jail around a process that a node has just forked; afterwards it may run user code.

    `fds`: where the numbers of the donated descriptors are found. `cpus`: the set to be pinned to (`CPU_SET_BYTES`). `seeds`:
    places in this process's memory (address, bytes) that get random bytes.
    Preconditions: in init's PID namespace; one thread. Ends with descriptors 0 to 3 only: /dev/null, the two output pipes, the
    channel. At level `reduced` the last step is left to `finish_reduced`.
    """
    steps = calls.CallList()
    reduced = kind.level == "reduced"
    for number in range(kind.groups):
        # cgroup v1 and v2: "0" is the writing process
        steps.add_pointed("join the control groups", "write", fds[f"group{number}"], b"0", 1)
    if not reduced:
        # In this order: joining the user namespace gives up what the others need.
        steps.add_pointed("join the room's namespaces", "setns", fds["init"], _JOINED)
        steps.add_pointed("join the room's namespaces", "setns", fds["init"], syscalls.CLONE_NEWUSER)
        if kind.groups:
            steps.add("unshare the cgroup namespace", "unshare", syscalls.CLONE_NEWCGROUP)
        steps.add("become the guest's user", "setresgid", GUEST_UID, GUEST_UID, GUEST_UID)
        steps.add("become the guest's user", "setresuid", GUEST_UID, GUEST_UID, GUEST_UID)
        # /proc/self belongs to the program again, as ordinary programs expect
        steps.add("become the guest's user", "prctl", syscalls.PR_SET_DUMPABLE, 1)
        steps.add("enter the workspace", "chdir", mounts.WORKSPACE.encode())
    else:
        steps.add("die with the zygote", "prctl", syscalls.PR_SET_PDEATHSIG, int(signal.SIGKILL))
        steps.add_pointed("enter the workspace", "fchdir", fds["workspace"])
    steps.add("start a session of its own", "setsid")
    steps.add("enter the workspace", "umask", 0o022)
    if kind.pins:
        steps.add("pin to one CPU", "sched_setaffinity", 0, CPU_SET_BYTES, cpus)
    # here: a node may need more of them
    steps.add("bound the number of descriptors", "prlimit64", 0, resource.RLIMIT_NOFILE, _pair(NOFILE), 0)
    steps.add("forbid new privileges", "prctl", syscalls.PR_SET_NO_NEW_PRIVS, 1)
    if kind.is_bound:
        steps.add_pointed("enter the Landlock domain", "landlock_restrict_self", fds["ruleset"], 0)
    if reduced and kind.uid is not None:
        steps.add("become another user than root", "setgroups", 0, 0)
        steps.add("become another user than root", "setresgid", kind.uid, kind.uid, kind.uid)
        steps.add("become another user than root", "setresuid", kind.uid, kind.uid, kind.uid)
        # changing ids cleared it
        steps.add("die with the zygote", "prctl", syscalls.PR_SET_PDEATHSIG, int(signal.SIGKILL))
    _add_descriptors(steps, fds)
    syscalls.add_drop_capabilities(steps)
    for address, size in seeds:
        steps.add("draw random numbers", "getrandom", address, size, 0)
    if not reduced:  # there it names its own process, so it comes after the fork
        seccomp.add_to(steps, "install the system call filter")
    return steps


def held_by_runner(kind: RunnerKind) -> tuple[str, ...]:
    """The mechanisms that hold around a process that has done all steps of `runner`; the Landlock rules' own are not in it."""
    held = ["rlimits"]  # `bound_node` set most of them
    if kind.level == "strict":
        held += [*(["cgroupns"] if kind.groups else []), "userns", "pidns", "mountns", "netns", "ipcns", "utsns"]
    held += ["affinity"] if kind.pins else []
    return (*held, "no_new_privs", "no_caps", "seccomp")


def finish_reduced() -> None:
    """The last step of a runner at level `reduced`. The filter allows signals to the process itself, so it holds its pid."""
    with step("install the system call filter"):
        seccomp.install(seccomp.bind_own_pid(seccomp.program(reduced=True), os.getpid()))


def bound_node() -> None:
    """Lower this zygote node's own resource limits to what every runner forked from it shall have at most."""
    with step("set the resource limits"):
        for name, (soft, hard) in _BASE_RLIMITS.items():
            known = getattr(resource, f"RLIMIT_{name}")
            current = resource.getrlimit(known)[1]
            least = hard if current == resource.RLIM_INFINITY else min(hard, current)
            resource.setrlimit(known, (min(soft, least), least))


_BASE_RLIMITS: Final[Mapping[str, tuple[int, int]]] = {
    "CORE": (0, 0),  # no core dumps, and no call of the host's core_pattern helper
    "STACK": (STACK_BYTES, 8 * STACK_BYTES),
    "MSGQUEUE": (0, 0),
    "MEMLOCK": (0, 0),
    "SIGPENDING": (256, 256),
    "NICE": (0, 0),
    "RTPRIO": (0, 0),
}


def _add_descriptors(steps: calls.CallList, fds: Mapping[str, calls.Place]) -> None:
    step = "put the descriptors in place"
    null = steps.add(step, "openat", syscalls.AT_FDCWD, b"/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    # Copies above the range first, so that no target is overwritten before it was moved.
    steps.add(step, "dup3", null, 512, os.O_CLOEXEC)
    for at, name in enumerate(("stdout", "stderr", "channel"), 513):
        steps.add_pointed(step, "dup3", fds[name], at, os.O_CLOEXEC)
    for at in range(4):
        steps.add(step, "dup3", 512 + at, at, 0 if at < 3 else os.O_CLOEXEC)
    steps.add(step, "close_range", 4, 0xFFFFFFFF, 0)


def _pair(limit: int) -> calls.Place:
    return calls.Data(struct.pack("QQ", limit, limit)).at(0)  # struct rlimit: soft, hard
