"""A room, and a sandbox, as the zygote knows them: which descriptors it holds for each, and when it lets go of them."""

import contextlib
import os
import signal
from dataclasses import dataclass
from typing import Any

from . import control, enter, landlock


@dataclass(slots=True)
class Room:
    """An init and what it opened. `wanted_by` is the sandbox it is made for; None: whoever asks next."""

    size: tuple[int, int]  # bytes, inodes
    uid: int  # its owner, as this user namespace counts
    pid: int
    pidfd: int
    wanted_by: str | None
    workspace: int = -1
    proc: int = -1
    ruleset: int = -1

    def close(self) -> None:
        """Kill init, and with it whatever is in the room."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        control.close_all([fd for fd in (self.pidfd, self.workspace, self.proc, self.ruleset) if fd >= 0])


@dataclass(slots=True)
class Sandbox:
    """One sandbox as the zygote knows it."""

    node: str
    launch: dict[str, Any]
    host_fds: list[int]  # channel, stdout, stderr: duplicates of what the host got
    guest_fds: list[int]  # until they are handed to the node
    meta: dict[str, Any]
    room: Room | None = None
    runner_pid: int = 0
    runner_pidfd: int = -1

    def fds(self) -> list[int]:
        """In the order of `HOST_FDS`; without a room only up to the runner."""
        room = [] if self.room is None else [self.room.workspace, self.room.proc]
        init = [] if self.room is None else [self.room.pidfd]
        return [*self.host_fds, *init, self.runner_pidfd, *room]

    def let_go(self) -> None:
        """Close what only a host needs; init's handle stays, to end the sandbox."""
        control.close_all(self.host_fds)
        self.host_fds = []
        if self.room is not None:
            control.close_all([self.room.workspace, self.room.proc])
            self.room.workspace = self.room.proc = -1


def open_room(workspace: str, scratch: str | None, readonly: list[str]) -> list[int]:
    """Without a room: the workspace, and rules that leave a runner nothing else but its scratch to write to."""
    rules = landlock.rules(readonly=readonly, writable=[workspace, scratch or workspace], nodes=enter.DEVICES, tcp=True)
    folder = os.open(workspace, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return [folder, landlock.make(rules)]
    except BaseException:
        os.close(folder)
        raise
