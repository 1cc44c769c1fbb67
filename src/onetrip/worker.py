"""One live sandbox as the host drives it: the channel, the output, deadlines, and one result per run.

Theory of operation
-------------------
Three descriptors of the sandbox are read by callbacks of the event loop: the channel (`conversation`), stdout and stderr. What they
bring is queued as events; `execute` yields them and ends with exactly one `Done`. When the consumer is slow, reading the
pipes stops (`outputs.BUFFER_BYTES`), the pipes fill, and the program waits: that is the back-pressure.

The guest's own account of a run is merged with facts (`outcomes`): time by our clock, CPU and memory by the kernel, output by the
bytes we counted, files by a walk of our own, and the end of the process by its exit status. A limit is first answered by an
interrupt, so that an honest program keeps its session; what has not ended `GRACE_S` later is killed. A worker with a timeline
(`remember`) then goes back to the state before the cell; without one the session is gone.
"""

import asyncio
import json
import secrets
import signal
import time
from collections.abc import AsyncGenerator, Awaitable
from typing import Final

import msgspec

from onetrip import files, model, outcomes, reports, wire
from onetrip.bindings import Binding
from onetrip.calls import Calls
from onetrip.conversation import Conversation
from onetrip.errors import BadRequest, Conflict, PlatformError, SandboxFailed
from onetrip.insistence import Insistence
from onetrip.model import Cell, Event, Limits, Policy, Result
from onetrip.outcomes import Run, Stopped
from onetrip.outputs import Backlog, Name, Outputs
from onetrip.tiers.base import Exit, Sandbox, SandboxDied
from onetrip.timeline import Moved, Timeline
from onetrip.wall import WallClock
from onetrip.watchdog import Watchdog

READY_S: Final = 30.0  # from the fork to the guest's first word
EXIT_S: Final = 10.0  # from the end of the channel to the news of the exit status
TELL_S: Final = 0.005  # until events of calls are passed on
GRACE_S: Final = 1.0  # between the interrupt and the kill
_MIB: Final = 1 << 20


class Worker:
    """Drives one `sandbox`, whose files are `workspace`. `start` first; then any number of `execute`, one at a time; `aclose` in any case.

    After `ended` is set nothing more can run; the reason is in it.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.talk = Conversation(sandbox, before_packet=self._drain, on_message=self._received, on_end=self._channel_ended)
        self.timeline: Timeline | None = None
        self.note: str | None = None  # why there is none, if there should be
        self.workspace = files.Workspace(sandbox.workspace)
        self.outputs = Outputs(sandbox.stdout, sandbox.stderr, self._printed, lambda: self._stop("output", False))
        self._events = Backlog(self.outputs.pause, self.outputs.resume)
        self._wall = WallClock(lambda: self._stop("wall", False))
        self._insistence = Insistence(sandbox, self._kill)
        self._run: Run | None = None
        self._calls: Calls | None = None  # of that run
        self._cells = 0
        self.held: tuple[str, ...] = ()
        self.changes = files.Changes(self.workspace)
        self.watchdog = Watchdog(sandbox, on_limit=self._stop, on_idle=self._end)
        self.exit: Exit | None = None
        self.violation: str | None = None
        self._greeted = self._refused = self._closed = False

    @property
    def ended(self) -> str | None:
        return self.talk.ended

    @property
    def silent(self) -> str | None:
        return self.talk.silent

    @property
    def waiting(self) -> bool:
        """Whether the run that is open waits for its caller; one that is being stopped does not."""
        return self._calls is not None and self._calls.waiting and self._run is not None and self._run.stopped is None

    def isolation(self) -> model.Isolation:
        return self.sandbox.isolation(self.held)

    async def start(self) -> None:
        """Wait until the guest is ready. Raises SandboxFailed naming the step of the jail, SandboxDied; the sandbox is then to be closed."""
        self.talk.listen()
        self.sandbox.on_exit(self._on_exit)
        if not await self.talk.wait_until(lambda: self.talk.protocol.state != "starting" or self.ended is not None, READY_S):
            raise SandboxFailed(f"the guest was not ready within {READY_S:.0f} s")
        if self.ended is not None:
            raise (SandboxFailed if self._refused or self.violation is not None else SandboxDied)(self.ended)
        for prepare in (self.changes.begin, self.sandbox.look, self.outputs.resume):  # while nobody waits
            prepare()

    def greet(self, limits: Limits, policy: Policy, *, asleep: int = 0, threads: int = 1, at_home: bool = False) -> None:
        """Set the limits, and tell the guest what is unusual about its session, before any user code. Once.

        Raises SandboxFailed, SandboxDied; the sandbox is then to be closed. `asleep`: how many checkpoints there may be, see `remember`. `threads`: of OpenMP and BLAS. `at_home`: it works in its home folder.
        """
        modules = policy.modules
        try:
            self.sandbox.apply(limits, asleep=asleep, cpus=threads)
            if modules.allow is not None or modules.deny or threads > 1 or at_home:
                told = {"allow": None if modules.allow is None else list(modules.allow), "deny": list(modules.deny)}
                for packet in wire.packets(wire.Hello({"modules": told, "threads": threads, "at_home": at_home})):
                    self.sandbox.channel.send(packet)  # a guest that waits for it, so there is room
        except OSError as err:  # also when it died while it waited in the pool
            is_gone = isinstance(err, ProcessLookupError | FileNotFoundError | ConnectionError)
            raise (SandboxDied if is_gone else SandboxFailed)(f"the limits could not be set: {err}") from err
        self._greeted = True

    def note_files(self) -> None:
        """Files that we put into the workspace, or took from it, are not the program's changes."""
        self.changes.note()
        if self.timeline is not None:
            self.timeline.files_changed = True

    async def come_to_life(self, origin: "Worker", spawning: Awaitable[object], timeline: Timeline | None = None) -> None:
        """In place of `start`, `greet` and `remember`: a branch of another worker's session, or a sibling of it. Raises SandboxFailed."""
        self.timeline, self.held = timeline, origin.held
        self.talk.knows_as(origin.talk)
        self.talk.listen()
        self.sandbox.on_exit(self._on_exit)
        await spawning
        self._greeted = True
        self.note_files()

    def remember(self, timeline: Timeline) -> None:
        """Keep checkpoints from now on, the first of them at once. Once, after `greet` and the first files."""
        self.timeline = timeline
        timeline.keep_soon()

    async def kept(self) -> None:
        """Until the present is kept as it is, or cannot be. Afterwards the worker may have ended."""
        if self.timeline is not None:
            try:
                await self.timeline.kept()
                await self.timeline.settle()
            except SandboxFailed as err:
                if self.ended is None and self.timeline.past:
                    self.talk.fall(str(err))  # the next cell finds it so, and the session goes back
                    self.sandbox.kill_live()
                else:
                    self._end(str(err))

    # ------------------------------------------------------------------ running

    async def execute(
        self, cell: Cell, limits: Limits, run_id: str, *, session_id: str | None, queue_ms: float, start_ms: float,
        undo_errors: bool = False, binding: Binding | None = None,
    ) -> AsyncGenerator[Event]:  # fmt: skip
        """Run one cell and yield its events; exactly one `Done` comes last, and others before it each time that the run begins to wait.

        Never raises for what the program does. After a `Done` with `session.survived` false the sandbox is gone. Closing the
        generator early interrupts the cell; if it does not end within `GRACE_S`, it is killed. `undo_errors`: a cell that raises
        leaves nothing behind.
        """
        await self.kept()
        if self.ended is not None or self._run is not None or not self._greeted:
            raise PlatformError(f"the worker cannot run a cell: {self.ended or 'busy or not greeted'}")
        self._cells += 1
        run = self._begin(cell, limits, run_id)
        binding = binding or Binding((), None, wait_s=0.0)
        calls = self._calls = Calls(
            run_id, session_id, binding, limits.tool_calls, send=self.talk.answer, tell=self._tell_call,
            over_limit=lambda: self._stop("tool_calls", False), on_waiting=self._waits,
        )  # fmt: skip
        if self.timeline is not None:
            run.has_checkpoint = self.timeline.present is not None
            self.timeline.advance()
        try:
            yield model.Started(run_id)
            source, inputs = cell.code.encode(), json.dumps(cell.inputs).encode()
            message = wire.Execute(secrets.token_hex(8), self._cells, cell.final, (source, inputs), run.late_interrupt)
            if self.talk.silent is None:  # else it ended between two cells
                await self.talk.tell_tools(binding.catalogue())
                await self.talk.send(self.talk.protocol.execute(message))
            told = 0
            while run.account is None and self.talk.silent is None:
                while self._events:
                    yield self._events.take()
                if calls.waiting and told != calls.waits:
                    told = calls.waits
                    yield model.Done(reports.waiting(self, run, calls, session_id, queue_ms, start_ms))
                elif run.account is None and self.talk.silent is None:
                    await self.talk.wait()
            if self.talk.silent is not None:
                if not await self.talk.wait_until(lambda: self.exit is not None, EXIT_S):
                    self.exit = Exit(lost="its end was not reported in time")
                self.outputs.drain()
            await calls.aclose()
            while self._events:
                yield self._events.take()
            result = reports.judged(reports.final(self, run, calls, session_id, queue_ms, start_ms), binding.guard, cell.code)
            yield model.Done(await self._after(run, result, undo_errors=undo_errors))
        finally:
            if run.account is None and self.ended is None and not run.went_back:
                await self._settle(run)
            await calls.aclose()
            self.talk.unpost()
            self.outputs.end()
            self._wall.stop()
            self._insistence.end()
            self.watchdog.stop()
            if self.ended is None and not cell.final:
                self.watchdog.rest(limits)
            self._run = self._calls = None
            self._events.clear()
            if self.timeline is not None and self.ended is None and not cell.final:
                self.timeline.keep_soon()

    async def _after(self, run: Run, result: Result, *, undo_errors: bool) -> Result:
        """Go back to the state before the cell where it did not leave one, or is not to; and say so."""
        timeline = self.timeline
        if timeline is None or self.ended is not None:
            return reports.with_state(result, result.session.survived, note=result.session.note or self.note)
        unwanted = undo_errors and result.status == "failed"
        if not (timeline.past and (self.talk.fallen is not None or unwanted)):
            note = result.session.note or (None if run.has_checkpoint else timeline.note)
            return reports.with_state(result, result.session.survived, checkpoint=run.has_checkpoint, note=note)
        try:
            moved = await self._move(timeline.go_back())
            run.went_back = True
            result = reports.with_state(result, True, rolled_back=True, checkpoint=run.has_checkpoint, note=moved.note)
        except SandboxFailed as err:
            self._end(str(err))
            result = reports.with_state(result, False, note=str(err))
        return msgspec.structs.replace(result, files=())

    async def _move(self, moving: Awaitable[Moved]) -> Moved:
        """Let the timeline go to another point; afterwards the workspace and the guest are as they were there."""
        moved = await moving
        self.exit = None
        self.outputs.discard()
        self.changes.note()
        return moved

    async def rewind(self, cells: int, *, forward: bool = False) -> Moved:
        """Undo so many cells, or with `forward` take back as much of an undo. Raises BadRequest, SandboxFailed (the session is lost)."""
        if self.timeline is None:
            raise BadRequest("this session keeps no checkpoints", hint="Open one with `checkpoints` above 0.", field="cells")
        self.watchdog.stop()
        try:
            return await self._move(self.timeline.redo(cells) if forward else self.timeline.undo(cells))
        except SandboxFailed as err:
            self._end(str(err))
            raise

    def _begin(self, cell: Cell, limits: Limits, run_id: str) -> Run:
        wall_s = min(limits.wall_s, cell.timeout_s or limits.wall_s)
        run = self._run = Run(run_id, limits, wall_s, time.monotonic(), late_interrupt=self._insistence.may_be_late())
        self._wall.start(wall_s)
        self.watchdog.begin(limits)
        self.outputs.begin(limits.output_mb * _MIB)
        return run

    def interrupt(self) -> None:
        """Like Ctrl-C; kill when it goes on for longer than the grace period. Does nothing while no cell runs."""
        self._stop("interrupt", False)

    # ------------------------------------------------------------------ tools

    def _waits(self, waiting: bool) -> None:
        if self._run is not None and self._run.stopped is None:
            (self._wall.stand if waiting else self._wall.go_on)()
            self.watchdog.wait(self._run.limits, waiting=waiting)
            self.talk.wake()

    def _tell_call(self, event: Event, size: int) -> None:
        """Like `_queue`, but to wake the consumer for each costs as much as the call."""
        if not self._events:
            asyncio.get_running_loop().call_later(TELL_S, self.talk.wake)
        self._events.add(event, size)

    @property
    def calls(self) -> Calls:
        """Those of the open run. Raises Conflict when there is none, or it is being stopped."""
        if self._calls is None or (self._run is not None and self._run.stopped is not None):
            raise Conflict("this run does not wait for answers any more")
        return self._calls

    async def aclose(self) -> None:
        """End the sandbox and everything in it. Blocks until that is certain."""
        if self._closed:
            return
        if self._run is not None and self._run.stopped is None:
            self._run.stopped = "interrupt"  # the caller's wish and no fault of the program's
        self._end("closed")
        self._closed = True
        if self.timeline is not None:
            await self.timeline.aclose()
        self.outputs.close()
        self.changes.forget()  # callbacks and what they call refer to each other: it is a while until the collector finds us
        await self.sandbox.aclose()
        if self.exit is None:  # a sandbox that was given back is no longer told about
            self._on_exit(Exit(signal=signal.SIGKILL))

    def _stop(self, why: Stopped, at_once: bool) -> None:
        """Interrupt the cell because of a limit or the caller; the first reason counts."""
        run = self._run
        if run is None or run.account is not None or run.stopped is not None:
            return
        run.stopped = why
        if at_once:
            self._kill()
        else:
            self._insistence.begin(GRACE_S)

    def _kill(self) -> None:
        """End the cell for certain: its process where there is a state to go back to, else everything."""
        if self.timeline is not None and self.timeline.past:
            self.sandbox.kill_live()
        else:
            self.sandbox.kill()

    # ------------------------------------------------------------------ reading

    def _drain(self) -> None:
        """What was printed before a message is in the pipes already; what is printed after a display comes only when the guest
        sees that we have taken it. So the order is: pipes, then packet."""
        if self._run is not None:
            self.outputs.drain()

    def _channel_ended(self, reason: str, is_violation: bool) -> None:
        if is_violation:
            self.violation = reason.partition(": ")[2]
        self._end(reason)

    def _received(self, message: wire.GuestMessage) -> None:
        run = self._run
        match message:
            case wire.Ready():
                self.held = message.held
            case wire.Refused():
                self._refused = True
                self._end(f"the jail's step “{message.step}” failed: {message.detail}")
            case wire.Goodbye():
                self._end("the guest left")
            case wire.Display() if run is not None:
                size = outcomes.display_size(message)
                if self.outputs.count(size):
                    display = outcomes.read_display(message)
                    run.displays.append(display)
                    self._queue(model.Displayed(display), size)
            case wire.Done() if run is not None:
                run.account = outcomes.read_account(message)
            case wire.ToolCall() | wire.ToolDrop() | wire.Blocked() if self._calls is not None:
                self._calls.hear(message)
            case _:
                pass  # `HostProtocol` lets the others through in a run only

    def _printed(self, name: Name, text: str, size: int) -> None:
        self._queue(model.Stdout(text) if name == "stdout" else model.Stderr(text), size)

    def _queue(self, event: Event, size: int) -> None:
        self._events.add(event, size)
        self.talk.wake()

    # ------------------------------------------------------------------ ends

    def _end(self, reason: str) -> None:
        """Nothing more will come. The run that is open, if any, ends with what is known."""
        if self.ended is None:
            self.watchdog.stop()
            self.talk.end(reason)
            self.sandbox.kill()  # a closed channel does not mean that every process is gone
        self.talk.wake()

    def _on_exit(self, how: Exit) -> None:
        self.exit = how
        if how.lost is None:
            self.talk.hear_out()
        if how.lost is None and self.ended is None and self.timeline is not None and self.timeline.past:
            self.talk.fall("the guest's process ended")
        else:
            self._end(how.lost or "the guest's process ended")

    async def _settle(self, run: Run) -> None:
        """The consumer left in the middle of a run: bring the sandbox back to rest, or kill it."""
        self._stop("interrupt", False)
        self.outputs.resume()

        def over() -> bool:
            self._events.clear()
            self.outputs.resume()
            return run.account is not None or self.talk.silent is not None

        if not await self.talk.wait_until(over, 2 * GRACE_S):
            self._end("killed: the cell did not end after an interrupt")
        if self.talk.fallen is not None and self.ended is None and self.timeline is not None:
            try:
                await self._move(self.timeline.go_back())
            except SandboxFailed as err:
                self._end(str(err))
