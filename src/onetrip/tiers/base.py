"""What a tier has to bring: a place for the guest and a duplex channel to it, plus facts that come from the kernel.

Guest and protocol are the same in every tier; nothing above this file knows how a sandbox is isolated.
"""

import os
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from onetrip.errors import SandboxFailed
from onetrip.model import Isolation, Limits, Support


class SandboxDied(SandboxFailed):
    """Nothing was refused: its processes, or the zygote that was to fork them, ended before it was ready. Another attempt may do."""


class LaunchSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What one sandbox is launched with. `meta` is opaque to the tier and comes back when a restarted host adopts the sandbox."""

    id: str
    environment: str
    node: str  # the zygote node wanted; a nearer ancestor may serve while it is still importing
    limits: Limits
    asleep: int = 0  # processes of ours that may be there beside the program's (checkpoints)
    meta: Mapping[str, Any] = {}


class Exit(msgspec.Struct, frozen=True):
    """How the session's process ended, from the kernel. `code` or `signal` is set, unless the tier was `lost` or nobody knows."""

    code: int | None = None
    signal: int | None = None
    lost: str | None = None  # why the tier can no longer tell: the sandbox ended through no fault of the program


class Reading(msgspec.Struct, frozen=True):
    """What the whole process tree uses and used so far, from the kernel. `oom_kills` and `refused_forks` count since the launch."""

    memory_bytes: int
    peak_memory_bytes: int
    cpu_us: int
    oom_kills: int = 0
    refused_forks: int = 0


class Sandbox(Protocol):
    """One live sandbox. Every method may be called after the end and then does no harm."""

    id: str
    node: str
    meta: Mapping[str, Any]
    channel: socket.socket  # SOCK_SEQPACKET, non-blocking; packets of `wire`
    stdout: int  # read ends of pipes, non-blocking
    stderr: int
    workspace: int  # directory descriptor; paths below it are the guest's to play with, so open beneath it only

    @property
    def hard_memory(self) -> bool:
        """Whether the kernel itself stops the tree at its memory limit; else the worker samples and kills."""
        ...

    def isolation(self, held: tuple[str, ...]) -> Isolation:
        """What holds around this sandbox; `held` is what the guest's own process applied."""
        ...

    def look(self) -> object:
        """Find out now what `apply` needs to know, while nobody waits. Optional."""
        ...

    def apply(self, limits: Limits, *, asleep: int = 0, cpus: int = 1) -> None:
        """Set the limits, from outside, of a sandbox that has not run user code yet. Raises OSError; it is then unusable.

        `asleep`: so many processes of ours may be there beside the program's (checkpoints). `cpus`: how many it may use at once.
        """
        ...

    @property
    def live(self) -> int:
        """The session's process, by its number inside of the sandbox."""
        ...

    @property
    def checkpoint_obstacle(self) -> str | None:
        """Why no checkpoints can be made in this sandbox; None where they can."""
        ...

    def follow(self, live: int, sender: Sequence[tuple[int, int, bytes]]) -> None:
        """From now on this process is the session's: interrupts are for it, and its end is what `on_exit` tells.

        `sender` is the ancillary data that came with its first message: who it is comes from the kernel, not from the message.
        The process that was live before is a checkpoint now. Raises SandboxFailed when the two do not agree.
        """
        ...

    def has_others(self) -> bool:
        """Whether processes run in it beside the live one and checkpoints: such as the program gave away, so that they are nobody's children."""
        ...

    def mapped(self) -> Collection[str]:
        """Files of the workspace that the session's process has mapped, so that its stores leave no trace in their times."""
        ...

    def kill_live(self) -> None:
        """End the session's process only, at once; `on_exit` tells."""
        ...

    async def clear(self, timeout_s: float) -> bool:
        """End every process of the sandbox but pinned ones, the live one included, of which nothing more is told. False: some are left."""
        ...

    def pin(self, pid: int) -> None:
        """A checkpoint that is needed; `release` as often as `pin`."""
        ...

    async def suspend(self, pid: int, timeout_s: float) -> bool:
        """Stop a checkpoint that is not to run for now, and wait until it does nothing any more. False: it was not still in time."""
        ...

    def resume(self, pid: int) -> None:
        """Let it go on."""
        ...

    def release(self, pid: int) -> None:
        """A checkpoint that is needed by one less; by nobody: end it."""
        ...

    def interrupt(self, *, again: bool = False) -> None:
        """Like Ctrl-C, for the session's process only. `again`: no second one, but if the first came as a system call began, wake that."""
        ...

    def kill(self) -> None:
        """End every process of the sandbox, at once and surely. Returns before they are gone; `aclose` waits."""
        ...

    def on_exit(self, callback: Callable[[Exit], None]) -> None:
        """Call back once when the runner has ended, or at once if it has."""
        ...

    def read_usage(self, *, exact: bool = False) -> Reading: ...

    def read_disk(self) -> int:
        """Bytes in files, where the kernel does not bound them itself; else 0. May take a walk over all of them."""
        ...

    def reset_peak(self) -> None: ...

    async def aclose(self) -> None:
        """Kill, wait until every process is gone, and give back what the sandbox held. Nothing is left."""
        ...


class Donation(msgspec.Struct, frozen=True):
    """What a branch's or a sibling's process is spawned with: descriptors of channel, stdout, stderr and a Landlock ruleset, and its folder."""

    fds: tuple[int, int, int, int]
    workspace: str

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


class Tier(Protocol):
    name: str

    def probe(self) -> Support:
        """What this host gives, by trying it. Blocking, some 10 ms; starts nothing that stays."""
        ...

    async def wait_ready(self, environment: str, node: str) -> None:
        """Until sandboxes of this kind start with their imports done, or never will."""
        ...

    async def launch(self, spec: LaunchSpec) -> Sandbox:
        """A new sandbox, whose guest will say `Ready`. Raises SandboxFailed naming the step; nothing is left then."""
        ...

    async def branch(self, origin: Sandbox, spec: LaunchSpec) -> tuple[Sandbox, Donation]:
        """A sandbox for a branch of a session, without a process yet: a checkpoint of `origin` spawns it with the donation.

        Raises SandboxFailed; nothing is left then.
        """
        ...

    async def open_to_siblings(self, origin: Sandbox) -> None:
        """Make a sandbox ready for `sibling`, before its program's first line: its home folder becomes its workspace.

        Raises Unavailable where a sandbox holds one interpreter only, SandboxFailed; the sandbox is then to be closed.
        """
        ...

    def sibling(self, origin: Sandbox, spec: LaunchSpec, *, spawner: int) -> tuple[Sandbox, Donation]:
        """A sandbox for one more interpreter on the files, and within the limits, of `origin`; the checkpoint `spawner` spawns it."""
        ...

    async def aclose(self) -> None: ...
