"""One room of the jail as the host holds it: its init, its /proc, and handles of processes in it. A session and its branches share it.

Numbers are those of the room's own PID namespace, seen through its own /proc, so a number that a guest names can only ever mean a
process of this room. A handle (pidfd) is opened for the process that the kernel says has sent a message.
"""

import asyncio
import collections
import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from socket import SCM_CREDENTIALS, SOL_SOCKET
from typing import Final

from onetrip.errors import PlatformError, SandboxFailed
from onetrip.jail import usage
from onetrip.tiers.base import Exit

FIRST: Final = 2  # init is the first process of the namespace, the runner the second
CLOSE_S: Final = 10  # killing a process tree takes milliseconds; longer means that the kernel is stuck on it
FRESH_S: Final = 0.02
_INIT: Final = 1
# proc_pid_stat(5), counted from behind the command's name
_STATE, _PARENT, _SESSION, _FLAGS, _THREADS, _START_TIME, _EXIT_CODE = 0, 1, 3, 6, 17, 19, 49
_PF_EXITING: Final = 0x4  # linux/sched.h
_FIRST_VICTIM, _LAST_VICTIM = b"500", b"0"  # proc_pid_oom_score_adj(5): a live process goes before checkpoints
ZYGOTE_DIED: Final = Exit(lost="the zygote that it was forked from died")
_MAPPED_BYTES: Final = 4 << 20  # of a list of mappings; a process has at most 65,530 of them (vm.max_map_count)


class Room:
    """`users` sandboxes live in it; when the last one has left (`leave`), init is killed, and with it everything else.

    Without namespaces (level reduced) there is no init: then `init` is -1, and the room is the runner alone.
    """

    def __init__(self, init: int, runner: int, proc: int) -> None:
        self.init, self.runner, self.proc = init, runner, proc
        self.users = 1
        self.sampler: usage.Sampler | None = None  # where no control group counts
        self._sampled: tuple[float, usage.Sample] | None = None
        self._loop = asyncio.get_running_loop()
        self._handles: dict[int, int] = {FIRST: runner}
        self._pinned: collections.Counter[int] = collections.Counter()
        self._leaving: set[int] = set()  # that we have killed, and nobody has looked for since
        self._at_end: list[Callable[[], None]] = []
        self._lost_when_killed: bool | None = None  # whether the zygote was ending when we killed init; None: we have not

    def sample(self, sampler: usage.Sampler, *, exact: bool) -> usage.Sample:
        """What all processes of the room use. Where branches share it, who asks again within `FRESH_S` gets the same answer."""
        last = self._sampled
        if last is None or self.users == 1 or time.monotonic() - last[0] > FRESH_S or (exact and not last[1].exact):
            last = self._sampled = time.monotonic(), sampler.sample(exact=exact)
        return last[1]

    # ------------------------------------------------------------------ handles

    def handle(self, pid: int) -> int:
        """The pidfd of a process that we know; -1 for others."""
        return self._handles.get(pid, -1)

    def get_to_know(self, pid: int, sender: Sequence[tuple[int, int, bytes]], on_end: Callable[[int], None]) -> bool:
        """Open a handle for the sender of a message, who says that it is `pid`; False when it was known. Raises SandboxFailed."""
        outside = _sender(sender)
        if pid in self._handles:
            return False
        try:
            handle = os.pidfd_open(outside)
        except ProcessLookupError as err:
            raise SandboxFailed("the session's process ended as it began") from err
        here, there = self.fields(pid), _fields(f"/proc/{outside}/stat", None)
        # Both numbers mean one process, this room's: it began at the same moment.
        if not here or not there or here[_START_TIME] != there[_START_TIME]:
            os.close(handle)
            raise SandboxFailed("a process gave a number that is not its own")
        self._handles[pid] = handle
        self._loop.add_reader(handle, self._ended, pid, on_end)
        self._weigh(pid, _FIRST_VICTIM)
        return True

    def _weigh(self, pid: int, score: bytes) -> None:
        """For the kernel's choice when memory is at its limit; what the process starts inherits it."""
        with contextlib.suppress(OSError):
            fd = os.open(f"{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.proc)
            try:
                os.write(fd, score)
            finally:
                os.close(fd)

    def _ended(self, pid: int, on_end: Callable[[int], None]) -> None:
        self._loop.remove_reader(self._handles[pid])
        on_end(pid)

    def pin(self, pid: int) -> None:
        """A checkpoint that somebody may go back to: `mine` of no sandbox is to end it."""
        self._pinned[pid] += 1
        self._weigh(pid, _LAST_VICTIM)

    def release(self, pid: int) -> None:
        """End a process and forget it, unless it is pinned more than once."""
        if self._pinned[pid] > 1:
            self._pinned[pid] -= 1
            return
        self._pinned.pop(pid, None)
        handle = self._handles.pop(pid, -1)
        if handle >= 0:
            self._leaving.add(pid)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            self._forget(handle)

    def _forget(self, handle: int) -> None:
        if handle != self.runner:
            self._loop.remove_reader(handle)
            os.close(handle)

    # ------------------------------------------------------------------ what /proc shows

    def fields(self, pid: int) -> list[bytes]:
        """Fields of the process's stat file from the third on; none when it is gone."""
        return _fields(f"{pid}/stat", self.proc)

    def is_still(self, pid: int) -> bool:
        """Whether every thread of it is stopped or gone: until then it may finish what it does in the kernel, such as emptying a file."""
        try:
            folder = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.proc)
        except OSError:
            return True
        try:
            states = [fields[0] for tid in os.listdir(folder) if (fields := _fields(f"{tid}/stat", folder))]
        except OSError:
            return True
        finally:
            os.close(folder)
        return all(state in b"TtZX" for state in states)

    def how_it_ended(self, pid: int) -> Exit:
        """Of a process that nobody has waited for yet: its parent, a checkpoint, sleeps."""
        if self._has_lost_zygote():
            return ZYGOTE_DIED
        fields = self.fields(pid)
        if len(fields) <= _EXIT_CODE:
            return Exit()
        status = int(fields[_EXIT_CODE])
        return Exit(signal=status & 0x7F) if status & 0x7F else Exit(code=status >> 8)

    def _has_lost_zygote(self) -> bool:
        """Whether the zygote, init's parent, is ending, and with it, by no doing of theirs, all that lives here.

        The news of it may come later: its control socket is open for as long as an init that it was about to start has a copy.
        """
        if self._lost_when_killed is not None:
            return self._lost_when_killed
        if self.init < 0 or not self._handles.keys() - {FIRST}:  # of the first process the zygote itself tells
            return False
        try:
            init = _fields(f"/proc/{outside_of(self.init)}/stat", None)
            zygote = _fields(f"/proc/{int(init[_PARENT])}/stat", None) if init else []
            # The zygote's children end before it does, and have no other parent until then; init ends with it, if not by us.
            return bool(int(zygote[_FLAGS]) & _PF_EXITING) if zygote else outside_of(self.init) < 0
        except OSError:  # no more descriptors: nothing is known, and who kills must go on
            return False

    def running(self, among: Iterable[int] | None = None) -> dict[int, tuple[int, int]]:
        """Processes, all or some, that are neither init, nor dead, nor pinned: number → (parent, session)."""
        found: dict[int, tuple[int, int]] = {}
        for pid in map(int, filter(str.isdigit, os.listdir(self.proc))) if among is None else among:
            if pid != _INIT and pid not in self._pinned:
                fields = self.fields(pid)
                # The first thread may have ended before the others: it shows as a zombie, and the process lives.
                if fields and (fields[_STATE] not in (b"Z", b"X") or int(fields[_THREADS]) > 1):
                    found[pid] = int(fields[_PARENT]), int(fields[_SESSION])
        return found

    def are_leaving(self, running: set[int]) -> set[int]:
        """Those of them that we have killed just now."""
        self._leaving &= running
        return set(self._leaving)

    def mapped(self, pid: int, folder: str) -> set[str]:
        """Files below `folder` to which a process can write through a mapping, which leaves no trace in their times."""
        try:
            fd = os.open(f"{pid}/maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
        except OSError:
            return set()
        with open(fd, "rb") as file:
            lines = file.read(_MAPPED_BYTES).splitlines()
        return set(_shared(lines, f"{folder}/".encode()))

    def kill(self, pid: int) -> None:
        """Kill any process of the room, by a descriptor of its folder in /proc: a handle like a pidfd (pidfd_send_signal(2))."""
        with contextlib.suppress(OSError):
            folder = os.open(str(pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.proc)
            try:
                signal.pidfd_send_signal(folder, signal.SIGKILL)
            finally:
                os.close(folder)

    # ------------------------------------------------------------------ the end

    def kill_all(self) -> None:
        if self._lost_when_killed is None:  # afterwards init is gone by our own doing, and says nothing
            self._lost_when_killed = self._has_lost_zygote()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.init if self.init >= 0 else self.runner, signal.SIGKILL)

    def at_end(self, action: Callable[[], None]) -> None:
        """What can be given back only when everything in the room is gone."""
        self._at_end.append(action)

    async def leave(self, name: str) -> None:
        """One sandbox less. After the last one nothing is left of the room. Raises PlatformError when the kernel does not end it."""
        self.users -= 1
        if self.users:
            return
        self.kill_all()
        try:
            # init is gone only when everything in its PID namespace is (pid_namespaces(7)).
            await wait_readable(self.init if self.init >= 0 else self.runner, CLOSE_S)
        except TimeoutError as err:
            raise PlatformError(f"sandbox {name} did not end within {CLOSE_S} s after SIGKILL") from err
        finally:
            for handle in self._handles.values():
                self._forget(handle)
            self._handles.clear()
            for fd in (self.init, self.runner, self.proc):
                if fd >= 0:
                    os.close(fd)
            while self._at_end:
                self._at_end.pop()()


def _fields(path: str, dir_fd: int | None) -> list[bytes]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError:
        return []
    try:
        return os.read(fd, 4096).rpartition(b")")[2].split()
    except ProcessLookupError:
        return []
    finally:
        os.close(fd)


def outside_of(pidfd: int) -> int:
    """The number that a process has here, by its handle; -1 when it is gone."""
    fd = os.open(f"/proc/self/fdinfo/{pidfd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 1024).partition(b"\nPid:")[2].split(None, 1)[0])
    finally:
        os.close(fd)


def _shared(lines: list[bytes], below: bytes) -> Iterator[str]:
    """From proc_pid_maps(5): `7f… rw-s 00000000 00:2f 7 /workspace/name`. A mapping that is for reading may be made one for writing."""
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[1].endswith(b"s") and fields[5].startswith(below):
            yield os.fsdecode(fields[5].removeprefix(below).replace(b"\\012", b"\n"))


def _sender(ancillary: Sequence[tuple[int, int, bytes]]) -> int:
    """The process that sent a message, as the kernel adds it (unix(7), SCM_CREDENTIALS)."""
    for level, kind, data in ancillary:
        if level == SOL_SOCKET and kind == SCM_CREDENTIALS:
            return struct.unpack("3i", data[:12])[0]
    raise SandboxFailed("the kernel did not say who sent a message")


async def wait_readable(fd: int, timeout_s: float) -> None:
    """Until the descriptor is readable; for a pidfd that is the end of the process. Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, lambda: ready.done() or ready.set_result(None))
    try:
        await asyncio.wait_for(ready, timeout_s)
    finally:
        loop.remove_reader(fd)


def channel_ends(workspace: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Channel, stdout and stderr of a process to come, in a room that there is: the host's ends, and its own."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    (stdout, out), (stderr, err) = os.pipe(), os.pipe()
    if os.geteuid() == 0:
        owner = os.fstat(workspace)
        for pipe in (out, err):
            os.fchown(pipe, owner.st_uid, owner.st_gid)  # programs open /dev/stdout, which asks for the permission of the pipe
    return (ours.detach(), stdout, stderr), (theirs.detach(), out, err)
