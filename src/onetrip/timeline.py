"""The checkpoints of one session: made between cells, gone back to, dropped when they are too many or memory runs short.

Theory of operation
-------------------
The session's process, the *live* one, forks while the caller thinks: the parent stays behind, asleep, as a checkpoint, the child goes
on (`guest/checkpoint.py`). A `Point` is such a checkpoint together with a shot of the workspace. `past` holds them in order, the
present last, unless the present could not be kept; `future` holds what `undo` went back over, until something new runs.

    first ─ cell ─ 1 ─ cell ─ 2 ─ cell ─ 3 (present)        undo(2): past = [first, 1], future = [2, 3]

Going back is the same for a cell that was killed and for `undo`: end the live process and whatever else the program left running,
restore the files, have the point's checkpoint fork a new live process. The checkpoint itself stays, for the next time.

Which processes there are is known from the kernel: a checkpoint is the process that was live before it, and what it spawns names
itself by a message to which the kernel adds the sender (see `Sandbox.follow`). A point may belong to several sessions, branches of
each other (`users`).
"""

import asyncio
import contextlib
import functools
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from onetrip import wire
from onetrip.beneath import Owner
from onetrip.errors import BadRequest, SandboxFailed, Unavailable
from onetrip.shelf import Restored, Shelf, Shot
from onetrip.tiers.base import Donation, Sandbox

MOVE_S: Final = 10.0  # for a fork, or for all processes of a killed cell to be gone; milliseconds when nothing is wrong
MEMORY_SHARE: Final = 2  # a cell may rewrite all that the session holds: then there are two copies of it
FREED_STEPS, FREED_STEP_S = 20, 0.005
_MIB: Final = 1 << 20
_MAX_NAMED: Final = 5
BRANCH_HINT: Final = "End threads and child processes, or open the session with more memory; then run a cell, and branch."


class Link(Protocol):
    """What the worker does for its timeline: speak on the channel, on which only one of them speaks at a time."""

    async def ask(self, message: wire.Checkpoint, command: socket.socket) -> wire.Kept:
        """Send `Checkpoint` with a descriptor, and wait for the answer. Raises SandboxFailed."""
        ...

    async def start_over(self) -> None:
        """Throw away what the process that is gone left in the channel and in the pipes."""
        ...

    async def wait_live(self, gone: asyncio.Future[None]) -> wire.Live:
        """Wait for the first word of a process that a checkpoint was told to spawn, or for the checkpoint to be gone. Raises SandboxFailed."""
        ...


class CheckpointFailed(SandboxFailed):
    """Nothing can go on from this checkpoint; perhaps from another one."""


@dataclass(eq=False, slots=True)
class Sleeper:
    """One checkpoint process. Points of several sessions, branches of each other, may need it."""

    sandbox: Sandbox  # in which it was made
    pid: int  # as that sandbox counts
    command: socket.socket
    users: int = 1
    _gone: asyncio.Future[None] | None = None

    def gone(self) -> asyncio.Future[None]:
        """Done when the process has ended: it says nothing on its socket, and nobody else has the other end."""
        if self._gone is None:
            loop = asyncio.get_running_loop()
            gone = self._gone = loop.create_future()
            loop.add_reader(self.command.fileno(), lambda: gone.done() or gone.set_result(None))
        return self._gone

    def let_go(self) -> None:
        self.users -= 1
        if not self.users:
            if self._gone is not None:
                asyncio.get_running_loop().remove_reader(self.command.fileno())
            self.command.close()  # at its end the checkpoint ends
            self.sandbox.release(self.pid)


async def spawn(sleeper: Sleeper, link: Link, donation: Donation | None) -> wire.Live:
    """Have a checkpoint fork a process that goes on from it: in its own place, or as a branch or sibling. Raises CheckpointFailed."""
    workspace = "" if donation is None else donation.workspace
    try:
        for packet in wire.packets(wire.Spawn(donation is not None, workspace)):
            socket.send_fds(sleeper.command, [packet], () if donation is None else donation.fds)
        return await link.wait_live(sleeper.gone())
    except (BrokenPipeError, ConnectionResetError) as err:
        raise CheckpointFailed("the checkpoint is gone") from err
    except OSError as err:
        raise CheckpointFailed(f"the checkpoint cannot be told to go on: {err.strerror or err}") from err
    except SandboxFailed as err:
        raise CheckpointFailed(str(err)) from err


@dataclass(eq=False, slots=True)
class Point:
    """One state to which the session can go back: after `cells` cells of it had run."""

    cells: int
    sleeper: Sleeper
    shelf: Shelf
    shot: Shot

    def let_go(self) -> None:
        """The session does not need it any more."""
        self.sleeper.let_go()
        self.shelf.drop(self.shot)


@dataclass(slots=True)
class Moved:
    """What going back did. `cells`: how many cells of the session its state now has behind it."""

    cells: int
    note: str | None = None


@dataclass(slots=True)
class Timeline:
    """See the theory above. `keep` after each cell, `advance` before one; `go_back`, `undo` and `redo` while none runs."""

    link: Link
    sandbox: Sandbox
    shelf: Shelf
    owner: Owner | None
    depth: int  # how many cells can be undone
    memory_bytes: int
    donation: Donation | None = None  # of a branch: what a process that comes from a point of another sandbox is given
    past: list[Point] = field(default_factory=list[Point])
    future: list[Point] = field(default_factory=list[Point])
    cells: int = 0
    note: str | None = None  # why the present is not kept
    files_changed: bool = False  # by the caller or a sibling, since the present was kept
    pristine: Sleeper | None = None  # where siblings come from; it stays as long as the session
    at_work: int = 0  # siblings that run a cell
    siblings_wrote: bool = False  # perhaps, since the present was kept
    _numbers: int = 0
    _keeping: asyncio.Task[None] | None = None

    @property
    def present(self) -> Point | None:
        return self.past[-1] if self.past and self.past[-1].cells == self.cells else None

    def advance(self) -> None:
        """A cell begins: what was undone cannot be done again."""
        while self.future:
            self.future.pop().let_go()
        self.cells += 1

    def keep_soon(self) -> None:
        """Begin to make a checkpoint of the present, while the caller thinks."""
        self._keeping = asyncio.ensure_future(self.keep())

    async def kept(self) -> None:
        """Until that is done. Raises what `keep` raises. A caller that is cancelled does not end it: the guest would be left half-way."""
        if (keeping := self._keeping) is None:
            return
        try:
            await asyncio.shield(keeping)
        finally:
            if keeping.done():
                self._keeping = None

    async def keep(self) -> None:
        """Make a checkpoint of the present. What stands in the way is said in `note`. Raises SandboxFailed when the guest is lost."""
        if self.present is not None:
            return  # the cell was taken back
        try:
            await self._keep()
        except OSError as err:  # of the host, as when it may open no more files
            self.note = f"no checkpoint: {err.strerror}"

    async def _keep(self) -> None:
        self.note = await self._shortage()
        if self.note is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._numbers += 1
            before = self.sandbox.live
            try:
                kept = await self.link.ask(wire.Checkpoint(self._numbers), theirs)
            except BaseException:
                ours.close()
                raise
        if not kept.checkpoint or kept.why:
            ours.close()
            self.note = f"no checkpoint: {kept.why or 'the guest says that there is none'}"
            return
        if kept.checkpoint != before or kept.live <= kept.checkpoint:
            # Process ids went round: elders could be reached by signals (guest/forking.py).
            ours.close()
            self.note = "no checkpoint: its process could not be told apart"
            return
        self.sandbox.pin(kept.checkpoint)
        sleeper = Sleeper(self.sandbox, kept.checkpoint, ours)
        try:
            self.past.append(Point(self.cells, sleeper, self.shelf, await self._take()))
        except BaseException:
            sleeper.let_go()
            raise
        while len(self.past) > self.depth + 1 + self._fixed:
            self.past.pop(self._fixed).let_go()

    def keep_pristine(self) -> None:
        """The only point so far is where siblings begin. It is not given up: there is always something to go back to."""
        self.pristine = self.past[0].sleeper
        self.pristine.users += 1

    def share_pristine(self, origin: "Timeline") -> None:
        """Of a branch: its siblings begin where those of its origin do."""
        self.pristine = origin.pristine
        if self.pristine is not None:
            self.pristine.users += 1

    def sibling_works(self, more: int) -> None:
        """A sibling begins (1) or ends (-1) a cell: what it writes is not this session's to take back."""
        self.at_work += more
        self.siblings_wrote = self.files_changed = True

    async def _take(self) -> Shot:
        """The files as they are now."""
        self.files_changed, self.siblings_wrote = False, self.at_work > 0
        last = next((point.shot for point in reversed(self.past) if point.shelf is self.shelf), None)
        mapped = self.sandbox.mapped()
        return await asyncio.to_thread(self.shelf.take, self.sandbox.workspace, owner=self.owner, before=last, always=mapped)

    async def settle(self) -> None:
        """Before a cell: files that the caller wrote since belong to the state before it."""
        if self.files_changed and (present := self.present) is not None:
            shot = await self._take()
            present.shelf.drop(present.shot)
            present.shelf, present.shot = self.shelf, shot

    @property
    def _fixed(self) -> int:
        """How many points at the beginning of `past` stay."""
        return int(self.pristine is not None and bool(self.past) and self.past[0].sleeper is self.pristine)

    async def _shortage(self) -> str | None:
        """Drop the oldest checkpoints while memory is short; why there can be none at all."""
        if (why := self.sandbox.checkpoint_obstacle) is not None:
            return f"no checkpoint: {why}"
        if self.sandbox.has_others():
            # They could reach the checkpoint, and what it would go back to is not what they go on with.
            return "no checkpoint: other processes of the program are alive"
        while (used := self.sandbox.read_usage(exact=True).memory_bytes) * MEMORY_SHARE > self.memory_bytes:
            if len(self.past) == self._fixed:
                return (
                    f"no checkpoint: memory is short ({used / _MIB:.0f} MB are in use, and a checkpoint may need as much again; "
                    f"the limit is {self.memory_bytes / _MIB:.0f} MB)"
                )
            self.past.pop(self._fixed).let_go()
            await self._wait_freed(used)
        return None

    async def _wait_freed(self, used: int) -> None:
        """Until memory that a process had which was ended just now is free: milliseconds, unless it shared everything."""
        for _ in range(FREED_STEPS):
            if self.sandbox.read_usage(exact=True).memory_bytes < used - _MIB:
                return
            await asyncio.sleep(FREED_STEP_S)

    # ------------------------------------------------------------------ going back

    async def undo(self, cells: int) -> Moved:
        """Go back so many cells. Raises BadRequest, and nothing has changed; SandboxFailed, and the session is lost."""
        target = next((point for point in self.past if point.cells == self.cells - cells), None)
        if cells < 1 or target is None:
            reach = [self.cells - point.cells for point in self.past if point.cells < self.cells]
            raise BadRequest(
                f"cells: {cells} cells cannot be undone; checkpoints are {', '.join(map(str, sorted(reach))) or 'none'} cells back",
                hint="The number of checkpoints is bounded, by `checkpoints` and by memory.",
                field="cells",
            )
        while self.past[-1] is not target:
            point = self.past.pop()
            self.future.append(point)
            # Else it is some branch's past. Made of the state that is not wanted, by a program that may have seen to it that its
            # checkpoint does not sleep.
            is_ours_alone = point.sleeper.users == 1
            if is_ours_alone and not await point.sleeper.sandbox.suspend(point.sleeper.pid, MOVE_S):
                raise SandboxFailed("a checkpoint that was undone could not be stopped")
        return await self._go_to_latest(keep_files=self.at_work > 0)

    async def redo(self, cells: int) -> Moved:
        """Take back an `undo`. Raises BadRequest when something new has run since, or there is nothing."""
        if not cells >= 1 or not any(point.cells == self.cells + cells for point in self.future):
            raise BadRequest(
                f"cells: {cells} cells cannot be done again; {len(self.future)} were undone and nothing new has run since",
                field="cells",
            )
        target = self.cells + cells
        while self.future and self.future[-1].cells <= target:
            point = self.future.pop()
            point.sleeper.sandbox.resume(point.sleeper.pid)
            self.past.append(point)
        return await self._go_to_latest(keep_files=self.at_work > 0)

    async def go_back(self) -> Moved:
        """The live process is gone, or what it did is not wanted: back to the latest point. Raises SandboxFailed; the session is lost."""
        lost = self.cells - self.past[-1].cells
        # Where siblings work on the same files only those are taken back that this cell alone can have written.
        moved = await self._go_to_latest(keep_files=self.pristine is not None and (self.siblings_wrote or lost > 1))
        if lost > 1:
            more = f"{lost - 1} cells before it are lost, too: they had no checkpoint"
            moved.note = f"{more}; {moved.note}" if moved.note else more
        return moved

    async def _go_to_latest(self, *, keep_files: bool) -> Moved:
        """Go to the latest point in `past`, or, where its checkpoint fails, to the one before: programs can reach none but their own."""
        wanted, why = self.past[-1].cells, ""
        while True:
            try:
                moved = await self._go_to(self.past[-1], keep_files=keep_files)
                break
            except CheckpointFailed as err:
                if len(self.past) == 1:
                    raise
                why = str(err)
                self.past.pop().let_go()
        if moved.cells < wanted:
            more = f"{wanted - moved.cells} more cells are lost: {why}"
            moved.note = f"{more}; {moved.note}" if moved.note else more
        return moved

    async def _go_to(self, point: Point, *, keep_files: bool = False) -> Moved:
        if not await self.sandbox.clear(MOVE_S):
            raise SandboxFailed("a process that the program left behind could not be ended")
        await self.link.start_over()
        # None: a killed process may have stored through a mapping, which leaves no trace in a file's times.
        is_ours = point.shelf is self.shelf
        going_back = functools.partial(self.shelf.restore, always=None) if is_ours else point.shelf.copy_into
        notes: list[str] = []
        if keep_files:
            notes.append("files are as they were left: other interpreters of the session work on them")
            self.files_changed = True
        else:
            notes += _words_for(await asyncio.to_thread(going_back, self.sandbox.workspace, point.shot, owner=self.owner))
        live = await spawn(point.sleeper, self.link, self.donation if point.sleeper.sandbox is not self.sandbox else None)
        self.cells = point.cells
        self.note = None
        notes += [live.note] if live.note else []
        return Moved(self.cells, "; ".join(notes) or None)

    # ------------------------------------------------------------------ branches

    def share(self) -> Point:
        """The present, for a branch as well. Raises Unavailable where it is not kept."""
        present = self.present
        if present is None:
            raise Unavailable(f"the session cannot branch now: {self.note or 'it has no checkpoint'}", hint=BRANCH_HINT)
        present.sleeper.users += 1
        return Point(present.cells, present.sleeper, present.shelf, present.shelf.again(present.shot))

    async def begin(self) -> Moved:
        """A branch comes to life at its only point, which `share` gave. Raises SandboxFailed."""
        self.cells = self.past[-1].cells
        return await self._go_to(self.past[-1])

    # ------------------------------------------------------------------ letting go

    async def aclose(self) -> None:
        """Let go of every point. Precondition: the link has ended, so a checkpoint that is being made soon is, or never will be."""
        with contextlib.suppress(SandboxFailed):
            await self.kept()
        for points in (self.past, self.future):
            while points:
                points.pop().let_go()
        if self.pristine is not None:
            self.pristine.let_go()
        self.shelf.retire()
        if self.donation is not None:
            self.donation.close()


def _words_for(restored: Restored) -> Iterator[str]:
    if restored.failed_count:
        named = ", ".join(f"{path} ({why})" for path, why in restored.failed[:_MAX_NAMED])
        more = f" and {restored.failed_count - _MAX_NAMED} more" if restored.failed_count > _MAX_NAMED else ""
        yield f"files that are not as they were: {named}{more}"
