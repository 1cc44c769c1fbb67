"""The processes of one sandbox as the host knows them: the session's live one and its checkpoints, each by a handle.

Numbers are those of the sandbox's own PID namespace, seen through its own /proc, so a number that the guest names can only ever
mean a process of this sandbox. A handle (pidfd) is opened for the process that the kernel says has sent a message.
"""

import asyncio
import contextlib
import os
import signal
import struct
import time
from collections.abc import Callable, Collection, Sequence
from socket import SCM_CREDENTIALS, SOL_SOCKET
from typing import Final

from onetrip.errors import SandboxFailed
from onetrip.tiers.base import Exit

FIRST: Final = 2  # init is the first process of the namespace, the runner the second
_INIT: Final = 1
_STEP_S: Final = 0.001
_START_TIME, _EXIT_CODE = 19, 49  # fields of proc_pid_stat(5) behind the command's name: 22 and 52
_FIRST_VICTIM: Final = b"500"  # proc_pid_oom_score_adj(5): the live process goes before its checkpoints


class Processes:
    """`proc_fd` is the sandbox's /proc and stays the caller's; so does `runner`, the pidfd of the first live process.

    `on_end` is called when the live process has ended; for the first one, whose parent tells, the caller calls it himself.
    """

    def __init__(self, proc_fd: int, runner: int, on_end: Callable[[Exit], None]) -> None:
        self._proc, self._on_end = proc_fd, on_end
        self._loop = asyncio.get_running_loop()
        self._handles: dict[int, int] = {FIRST: runner}
        self._runner = runner
        self.live = FIRST

    @property
    def handle(self) -> int:
        """The live process's pidfd; -1 when there is none."""
        return self._handles.get(self.live, -1)

    def follow(self, pid: int, sender: Sequence[tuple[int, int, bytes]]) -> None:
        """See `Sandbox.follow`."""
        outside = _sender(sender)
        if pid in self._handles:
            if pid != self.live:
                raise SandboxFailed("a checkpoint says that it is the session's process")
            return
        try:
            handle = os.pidfd_open(outside)
        except ProcessLookupError as err:
            raise SandboxFailed("the session's process ended as it began") from err
        if not self._is_same(pid, outside):
            os.close(handle)
            raise SandboxFailed("a process gave a number that is not its own")
        self._handles[pid] = handle
        self.live = pid
        self._loop.add_reader(handle, self._ended, pid)
        with contextlib.suppress(OSError):
            fd = os.open(f"{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._proc)
            try:
                os.write(fd, _FIRST_VICTIM)
            finally:
                os.close(fd)

    def _is_same(self, inside: int, outside: int) -> bool:
        """Whether both numbers mean one process: it began at the same moment, and is the sandbox's."""
        here = self._fields(f"{inside}/stat", self._proc)
        there = self._fields(f"/proc/{outside}/stat", None)
        return bool(here and there) and here[_START_TIME] == there[_START_TIME]

    def _ended(self, pid: int) -> None:
        self._loop.remove_reader(self._handles[pid])
        if pid != self.live:
            return
        # Nobody has waited for it yet: its parent, a checkpoint, sleeps.
        fields = self._fields(f"{pid}/stat", self._proc)
        if len(fields) <= _EXIT_CODE:
            self._on_end(Exit())
            return
        status = int(fields[_EXIT_CODE])
        self._on_end(Exit(signal=status & 0x7F) if status & 0x7F else Exit(code=status >> 8))

    def kill(self) -> None:
        """The live one."""
        if (handle := self.handle) >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)

    async def clear(self, keep: Collection[int], timeout_s: float) -> bool:
        """See `Sandbox.clear`."""
        self.live = 0
        for pid in [pid for pid in self._handles if pid not in keep]:
            self.release(pid)
        give_up = time.monotonic() + timeout_s
        while left := self._others(keep):
            if time.monotonic() > give_up:
                return False
            for pid in left:
                self._kill_inside(pid)
            await asyncio.sleep(_STEP_S)
        return True

    def _others(self, keep: Collection[int]) -> list[int]:
        """Processes that are neither init nor to be kept, nor dead already."""
        found = [int(name) for name in os.listdir(self._proc) if name.isdigit()]
        return [pid for pid in found if pid != _INIT and pid not in keep and self._is_alive(pid)]

    def _is_alive(self, pid: int) -> bool:
        fields = self._fields(f"{pid}/stat", self._proc)
        return bool(fields) and fields[0] not in (b"Z", b"X")

    def _kill_inside(self, pid: int) -> None:
        """By a descriptor of its folder in /proc, which is a handle like a pidfd (pidfd_send_signal(2))."""
        with contextlib.suppress(OSError):
            folder = os.open(str(pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._proc)
            try:
                signal.pidfd_send_signal(folder, signal.SIGKILL)
            finally:
                os.close(folder)

    def release(self, pid: int) -> None:
        """End it and forget it."""
        handle = self._handles.pop(pid, -1)
        if handle < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        self._close(handle)

    def close(self) -> None:
        """Close every handle; ends nothing."""
        for handle in self._handles.values():
            self._close(handle)
        self._handles.clear()
        self.live = 0

    def _close(self, handle: int) -> None:
        if handle != self._runner:
            self._loop.remove_reader(handle)
            os.close(handle)

    @staticmethod
    def _fields(path: str, dir_fd: int | None) -> list[bytes]:
        """Fields of a stat file from the third on; none when the process is gone."""
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


def _sender(ancillary: Sequence[tuple[int, int, bytes]]) -> int:
    """The process that sent a message, as the kernel adds it (unix(7), SCM_CREDENTIALS). What else came along is closed."""
    for level, kind, data in ancillary:
        if level == SOL_SOCKET and kind == SCM_CREDENTIALS:
            return struct.unpack("3i", data[:12])[0]
    raise SandboxFailed("the kernel did not say who sent a message")
