"""The processes of one sandbox among those of its room: the live one, its checkpoints, and what the program has started."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from typing import Final

from onetrip.errors import SandboxFailed
from onetrip.jail import cgroup
from onetrip.tiers.base import Exit
from onetrip.tiers.jail_room import FIRST, Room

_STEP_S: Final = 0.001


class Processes:
    """`on_end` is called when the live process has ended; for the first one of a room, whose parent tells, the caller does that.

    `group` is the sandbox's control group, if it has one: what is in it is the sandbox's, whatever became of its parents.
    """

    def __init__(self, room: Room, group: cgroup.Group | None, on_end: Callable[[Exit], None], *, live: int = FIRST) -> None:
        self._room, self._group, self._on_end = room, group, on_end
        self.asleep = 0  # how many checkpoints of it there are
        self._sessions: set[int] = {live} if live else set()  # of processes (setsid(2)): each live one begins its own
        self.live = live  # 0: none
        self.siblings: set[Processes] = set()  # in the same control group; what is theirs is not this sandbox's
        self.spawner = 0  # the checkpoint that siblings come from: who has just been spawned by it is not known yet

    @property
    def handle(self) -> int:
        """The live process's pidfd; -1 when there is none."""
        return self._room.handle(self.live)

    def follow(self, pid: int, sender: Sequence[tuple[int, int, bytes]]) -> None:
        """See `Sandbox.follow`."""
        if self._room.get_to_know(pid, sender, self._ended):
            self._sessions.add(pid)
            self.live = pid
        elif pid != self.live:
            raise SandboxFailed("a checkpoint says that it is the session's process")

    def has_others(self) -> bool:
        """Whether processes of the sandbox run beside the live one; those that were killed just now do not count."""
        others = self._mine() - {self.live}
        return bool(others - self._room.are_leaving(others))

    def _ended(self, pid: int) -> None:
        if pid == self.live:
            self._on_end(self._room.how_it_ended(pid))

    def kill_live(self) -> None:
        if (handle := self.handle) >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)

    def kill_all(self) -> None:
        """End what is the sandbox's, at once; what forks meanwhile may be left, see `clear`."""
        for pid in self._mine():
            self._room.kill(pid)

    async def clear(self, timeout_s: float) -> bool:
        """End every process of the sandbox but its checkpoints; nothing is told of it. False: some are left after `timeout_s`."""
        live, self.live = self.live, 0
        if live:
            self._room.release(live)
        give_up = time.monotonic() + timeout_s
        while left := self._mine():
            if time.monotonic() > give_up:
                return False
            for pid in left:
                self._room.kill(pid)
            await asyncio.sleep(_STEP_S)
        return True

    def _mine(self) -> set[int]:
        """Processes of this sandbox that run. Those that left their family and session behind count as the origin's, not as a sibling's."""
        mine = self._family()
        if not self.siblings and not self.spawner:
            return mine
        for sibling in self.siblings:
            mine -= sibling._family()  # noqa: SLF001 - one of our own kind
        coming = {pid for pid, (parent, _session) in self._room.running(mine).items() if parent == self.spawner}
        return mine - (coming - {self.live})

    def _family(self) -> set[int]:
        """In a room of its own that is all there are."""
        if self._room.users == 1:
            return set(self._room.running())
        if self._group is not None:  # asked for each branch: a look at its own processes, not at those of all
            return set(self._room.running({_inside(outside) for outside in self._group.members()} - {0}))
        running = self._room.running()
        # No group says whose they are: descendants of what is known to be ours. One that left both its family and its session
        # behind is nobody's, and ended by whoever clears up next.
        mine = {pid for pid, (_parent, session) in running.items() if session in self._sessions}
        grown = True
        while grown:
            more = {pid for pid, (parent, _session) in running.items() if parent in mine} - mine
            mine |= more
            grown = bool(more)
        return mine


def _inside(outside: int) -> int:
    """The number that a process has in its own PID namespace (proc_pid_status(5), NSpid); 0 when it is gone."""
    with contextlib.suppress(OSError, StopIteration), open(f"/proc/{outside}/status", "rb") as status:
        return int(next(line for line in status if line.startswith(b"NSpid:")).split()[-1])
    return 0
