"""The jail: `HouseSpec`, `RoomSpec` and the ordered lists of steps. The only caller of the mechanisms.

Theory of operation
-------------------
Three processes enter, one after the other, and each gives up what the next must not have:

    house    once per zygote      new namespaces, the read-only root, then `exec` with an empty environment
    room     once per sandbox     the sandbox's own namespaces, its writable mounts; becomes init, PID 1
    runner   once per sandbox     joins init's namespaces; cgroup, rlimits, capabilities, Landlock, seccomp; then user code

Every step either holds or raises `StepFailed` with its name and errno, and the process that tried it ends: there is no sandbox
with a step missing. The order inside a list is part of the design; each line says why it stands where it does.

At level `reduced` there are no namespaces: `house` only opens, `room` does not exist, and the runner relies on Landlock, on the
stricter filter (no child processes, no sockets but AF_UNIX), and on rlimits.
"""

import contextlib
import importlib
import os
import resource
import signal
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn

from . import landlock, mounts, seccomp, syscalls

# The C functions: the wrappers in `signal` touch memory that a freshly forked process shares until then.
_c_signal: Any = importlib.import_module("_signal")

Level = Literal["strict", "reduced"]
GUEST_UID: Final = 1000  # what the program sees; which uid it is outside depends on who started the zygote
_JOINED: Final = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS
ROOM_NAMESPACES: Final = _JOINED | syscalls.CLONE_NEWPID
_HOUSE_NAMESPACES: Final = ROOM_NAMESPACES | syscalls.CLONE_NEWUSER

NOFILE: Final = 1024  # also bounds memory hidden in socket buffers: 512 pairs x 208 KiB, net.core.wmem_default
STACK_BYTES: Final = 8 << 20
WRITABLE: Final = (mounts.WORKSPACE, "/tmp", mounts.HOME, "/dev/shm")
DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


class StepFailed(Exception):
    """A step of the jail could not be done; the process that raised this must end. `step` names it, `errno` is the kernel's."""

    def __init__(self, step: str, errno: int, detail: str) -> None:
        super().__init__(f"{step}: {detail}")
        self.step, self.errno, self.detail = step, errno, detail


class step:  # noqa: N801 - reads as a statement: `with step("…"):`
    """Name what is done; an OSError inside becomes StepFailed. A class, not a generator: each page that a runner touches first
    costs it a copy."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise StepFailed(self._name, error.errno or 0, str(error)) from error


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
    """One sandbox. `uid` is its owner as the zygote's user namespace counts it: 0 where only one id is mapped."""

    disk_bytes: int
    inodes: int
    uid: int
    landlock: bool


@dataclass(frozen=True, slots=True)
class RoomKeys:
    """Descriptors that init leaves behind: the workspace and the sandbox's /proc for the host, a Landlock ruleset for the
    runner (-1: none), and the names of what that ruleset holds."""

    workspace: int
    proc: int
    ruleset: int
    held: tuple[str, ...]


def room(spec: RoomSpec) -> RoomKeys:
    """Turn this first process of new namespaces (`ROOM_NAMESPACES`) into the sandbox's init. Afterwards it may only wait."""
    with step("mount the workspace, scratch and /proc"):
        mounts.mount_room(disk_bytes=spec.disk_bytes, inodes=spec.inodes, uid=spec.uid)
    with step("bring up loopback"):
        syscalls.bring_loopback_up()  # the program's own servers and clients work; there is nothing else to reach
    with step("open the workspace"):
        workspace = os.open(mounts.WORKSPACE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    ruleset, held = -1, ()
    if spec.landlock:
        rules = landlock.ruleset(readonly=["/"], writable=WRITABLE, nodes=DEVICES)
        # Here, where nobody waits: the runner only has to put itself under them.
        with step("write the Landlock rules"), rules as (fd, held):
            ruleset = os.dup(fd)
    with step("give up the zygote's identity"):
        if spec.uid:
            os.setresgid(spec.uid, spec.uid, spec.uid)
            os.setresuid(spec.uid, spec.uid, spec.uid)
    with step("unshare the user namespace"):
        # Last, so that the mounts belong to the zygote's namespace and the sandbox has no power over them, whatever it regains.
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        syscalls.set_dumpable(True)  # changing ids made us undumpable, and then /proc/self is not ours to write
        write_maps("/proc/self", f"{GUEST_UID} {spec.uid} 1", f"{GUEST_UID} {spec.uid} 1", deny_setgroups=True)
    with step("die with the zygote"):
        syscalls.set_pdeathsig(signal.SIGKILL)
    with step("be out of reach of ptrace"):
        syscalls.set_dumpable(False)
    # Orphans are reaped by the kernel (wait(2), SIGCHLD ignored), and no signal from inside the namespace reaches a first process
    # without handlers (pid_namespaces(7)).
    _c_signal.signal(signal.SIGCHLD.value, signal.SIG_IGN.value)
    return RoomKeys(workspace, proc, ruleset, held)


def wait_for_ever() -> NoReturn:
    """What init does from then on. Its death is the death of everything in its PID namespace."""
    while True:
        signal.pause()


# ---------------------------------------------------------------------------------------------------- runner


@dataclass(frozen=True, slots=True)
class RunnerSpec:
    """What the runner takes with it: descriptors by name, donated, and where it may go."""

    level: Level
    channel: int
    stdout: int
    stderr: int
    cgroup_procs: Sequence[int]
    init_pidfd: int  # -1 without a room
    ruleset: int  # Landlock rules made in the room; -1 without them
    workspace: str
    readonly: Sequence[str]  # without a room, as is all from here on: what the runner may read
    scratch: str | None  # its place for temporary files
    uid: int | None  # the id to become, when the zygote is root
    cpu: int | None  # pin to this CPU: where no cgroup bounds the share


def runner(spec: RunnerSpec) -> tuple[str, ...]:
    """Close the jail around this process; afterwards it may run user code. Returns the mechanisms that hold.

    Preconditions: just forked into init's PID namespace, single-threaded. Ends with descriptors 0 to 3 only: /dev/null, the two
    output pipes, the channel.
    """
    held = ["rlimits"]  # `bound_node` set them
    reduced = spec.level == "reduced"
    if spec.cgroup_procs:
        with step("join the control groups"):
            for fd in spec.cgroup_procs:
                os.write(fd, b"0")  # cgroup v1 and v2: "0" is the writing process
    if not reduced:
        with step("join the room's namespaces"):
            # In this order: joining the user namespace gives up what the others need.
            syscalls.setns(spec.init_pidfd, _JOINED)
            syscalls.setns(spec.init_pidfd, syscalls.CLONE_NEWUSER)
        if spec.cgroup_procs:
            with step("unshare the cgroup namespace"):
                syscalls.unshare(syscalls.CLONE_NEWCGROUP)
            held.append("cgroupns")
        with step("become the guest's user"):
            os.setresgid(GUEST_UID, GUEST_UID, GUEST_UID)
            os.setresuid(GUEST_UID, GUEST_UID, GUEST_UID)
            syscalls.set_dumpable(True)  # /proc/self belongs to the program again, as ordinary programs expect
        held += ["userns", "pidns", "mountns", "netns", "ipcns", "utsns"]
    else:
        with step("die with the zygote node"):
            syscalls.set_pdeathsig(signal.SIGKILL)
        if spec.scratch is not None:
            os.environ.update(TMPDIR=spec.scratch, HOME=spec.scratch, MPLCONFIGDIR=spec.scratch, XDG_CACHE_HOME=spec.scratch)
    with step("start a session of its own"):
        os.setsid()
    if spec.cpu is not None:
        with step("pin to one CPU"):
            os.sched_setaffinity(0, {spec.cpu})
        held.append("affinity")
    with step("enter the workspace"):
        os.chdir(spec.workspace)
        os.umask(0o022)
    with step("bound the number of descriptors"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (NOFILE, NOFILE))  # here: a node needs one per runner of its own
    with step("forbid new privileges"):
        syscalls.set_no_new_privs()
    held += ["no_new_privs", "no_caps"]
    if spec.ruleset >= 0:
        with step("enter the Landlock domain"):
            landlock.enforce(spec.ruleset)
    elif reduced:
        with step("enter the Landlock domain"):
            writable = [spec.workspace, spec.scratch or spec.workspace]
            held += landlock.restrict(readonly=spec.readonly, writable=writable, nodes=DEVICES, tcp=True)
        if spec.uid is not None:
            with step("become another user than root"):
                os.setgroups([])
                os.setresgid(spec.uid, spec.uid, spec.uid)
                os.setresuid(spec.uid, spec.uid, spec.uid)
    with step("put the descriptors in place"):
        _arrange_descriptors(spec)
    with step("drop every capability"):
        syscalls.drop_capabilities()
    with step("install the system call filter"):
        program = seccomp.program(reduced=reduced)
        seccomp.install(seccomp.bind_own_pid(program, os.getpid()) if reduced else program)
    held.append("seccomp")
    return tuple(held)


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


def _arrange_descriptors(spec: RunnerSpec) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    # Copies above the range first, so that no target is overwritten before it was moved.
    moved = [os.dup2(fd, 512 + at, inheritable=False) for at, fd in enumerate((null, spec.stdout, spec.stderr, spec.channel))]
    for at, fd in enumerate(moved):
        os.dup2(fd, at, inheritable=at < 3)
    os.closerange(4, NOFILE * 64)
