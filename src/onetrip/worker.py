"""One live sandbox as the host drives it: the channel, the output, deadlines, and one result per run.

Theory of operation
-------------------
Three descriptors of the sandbox are read by callbacks of the event loop: the channel (packets of `wire`), stdout and stderr. What
they bring is queued as events; `execute` yields them and ends with exactly one `Done`. When the consumer is slow, reading the
pipes stops at `BUFFER_BYTES`, the pipes fill, and the program waits: that is the back-pressure.

The guest's own account of a run is merged with facts (`outcomes`): time by our clock, CPU and memory by the kernel, output by the
bytes we counted, files by a walk of our own, and the end of the process by its exit status. A limit is first answered by an
interrupt, so that an honest program keeps its session; what has not ended `GRACE_S` later is killed, and the session with it.
"""

import asyncio
import collections
import json
import secrets
import signal
import time
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Final

from onetrip import files, model, outcomes, wire
from onetrip.errors import PlatformError, SandboxFailed
from onetrip.model import Cell, Event, Limits, Policy, Result
from onetrip.outcomes import Account, Stopped
from onetrip.outputs import Name, Outputs
from onetrip.tiers.base import Exit, Sandbox
from onetrip.watchdog import Watchdog

READY_S: Final = 30.0  # from the fork to the guest's first word
EXIT_S: Final = 10.0  # from the end of the channel to the news of the exit status
GRACE_S: Final = 1.0  # between the interrupt and the kill
PACKETS_AT_ONCE: Final = 16  # at most 1 MiB; decoding them takes about a millisecond
MAX_LAST_PACKETS: Final = 512  # more than fit into the socket's buffer, net.core.rmem_default
BUFFER_BYTES: Final = 1 << 20  # output that waits for a slow consumer
_MIB: Final = 1 << 20


@dataclass(slots=True)
class _Run:
    """What is known of the open run. `stopped` is the first reason for which it was interrupted."""

    id: str
    limits: Limits
    wall_s: float
    started: float
    stopped: Stopped | None = None
    account: Account | None = None
    displays: list[model.DisplayData] = field(default_factory=list[model.DisplayData])


class Worker:
    """Drives one sandbox. `start` first; then any number of `execute`, one at a time; `aclose` in any case.

    After `ended` is set nothing more can run; the reason is in it.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._loop = asyncio.get_running_loop()
        self._protocol = wire.HostProtocol()
        self._workspace = files.Workspace(sandbox.workspace)
        self._outputs = Outputs(sandbox.stdout, sandbox.stderr, self._printed, lambda: self._stop("output", False))
        self._events: collections.deque[Event] = collections.deque()
        self._queued_bytes = 0
        self._wakeup: asyncio.Future[None] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._run: _Run | None = None
        self._cells = 0
        self._greeted = False
        self._held: tuple[str, ...] = ()
        self._snapshot: files.Snapshot = {}
        self._top_moment = (0, 0)
        self._watchdog = Watchdog(sandbox, on_limit=self._stop, on_idle=self._end)
        self._exit: Exit | None = None
        self._violation: str | None = None
        self._closed = False
        self.ended: str | None = None

    @property
    def sandbox(self) -> Sandbox:
        return self._sandbox

    @property
    def workspace(self) -> files.Workspace:
        return self._workspace

    async def start(self) -> None:
        """Wait until the guest is ready. Raises SandboxFailed naming the step of the jail; the sandbox is then to be closed."""
        self._loop.add_reader(self._sandbox.channel.fileno(), self._channel_readable)
        self._sandbox.on_exit(self._on_exit)
        try:
            async with asyncio.timeout(READY_S):
                while self._protocol.state == "starting" and self.ended is None:
                    await self._wait()
        except TimeoutError as err:
            raise SandboxFailed(f"the guest was not ready within {READY_S:.0f} s") from err
        if self.ended is not None:
            raise SandboxFailed(self.ended)
        self._top_moment = self._workspace.top_moment()

    def greet(self, limits: Limits, policy: Policy) -> None:
        """Set the limits, and tell the guest its policy if there is one, before any user code. Once; raises SandboxFailed."""
        modules = policy.modules
        try:
            self._sandbox.apply(limits)
            if modules.allow is not None or modules.deny:
                told = {"allow": None if modules.allow is None else list(modules.allow), "deny": list(modules.deny)}
                for packet in wire.packets(wire.Hello({"modules": told})):
                    self._sandbox.channel.send(packet)  # a guest that waits for it, so there is room
        except OSError as err:  # also when it died while it waited in the pool
            raise SandboxFailed(f"the limits could not be set: {err}") from err
        self._greeted = True

    def note_files(self) -> None:
        """Take the workspace as it is now as the state before the next cell: files we put there are not the program's."""
        self._top_moment = self._workspace.top_moment()
        self._snapshot = self._workspace.snapshot()

    # ------------------------------------------------------------------ running

    async def execute(
        self, cell: Cell, limits: Limits, run_id: str, *, session_id: str | None, queue_ms: float, start_ms: float
    ) -> AsyncGenerator[Event]:
        """Run one cell and yield its events; exactly one `Done` comes last.

        Never raises for what the program does. After a `Done` with `session.survived` false the sandbox is gone. Closing the
        generator early interrupts the cell; if it does not end within `GRACE_S`, the sandbox is killed.
        """
        if self.ended is not None or self._run is not None or not self._greeted:
            raise PlatformError(f"the worker cannot run a cell: {self.ended or 'busy or not greeted'}")
        self._cells += 1
        run = self._begin(cell, limits, run_id)
        try:
            yield model.Started(run_id)
            source, inputs = cell.code.encode(), json.dumps(cell.inputs).encode()
            message = wire.Execute(secrets.token_hex(8), self._cells, cell.final, (source, inputs))
            await self._send(self._protocol.execute(message))
            while run.account is None and self.ended is None:
                while self._events:
                    yield self._next_event()
                if run.account is None and self.ended is None:
                    await self._wait()
            if self.ended is not None:
                await self._wait_for_exit()
                self._outputs.drain()
            while self._events:
                yield self._next_event()
            yield model.Done(self._result(run, session_id, queue_ms, start_ms))
        finally:
            if run.account is None and self.ended is None:
                await self._settle(run)
            self._outputs.end()
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()
            self._watchdog.stop()
            if self.ended is None and not cell.final:
                self._watchdog.rest(limits)
            self._run = None
            self._events.clear()
            self._queued_bytes = 0

    def _begin(self, cell: Cell, limits: Limits, run_id: str) -> _Run:
        wall_s = min(limits.wall_s, cell.timeout_s or limits.wall_s)
        run = self._run = _Run(run_id, limits, wall_s, time.monotonic())
        self._timers["wall"] = self._loop.call_later(wall_s, self._stop, "wall", False)
        self._watchdog.begin(limits)
        self._outputs.begin(limits.output_mb * _MIB)
        return run

    def interrupt(self) -> None:
        """Like Ctrl-C; kill when the cell has not ended after the grace period. Does nothing while no cell runs."""
        self._stop("interrupt", False)

    async def aclose(self) -> None:
        """End the sandbox and everything in it. Blocks until that is certain."""
        if self._closed:
            return
        if self._run is not None:
            self._run.stopped = self._run.stopped or "interrupt"  # the caller's wish and no fault of the program's
        self._end("closed")
        self._closed = True
        self._outputs.pause()
        await self._sandbox.aclose()
        if self._exit is None:  # a sandbox that was given back is no longer told about
            self._on_exit(Exit(signal=signal.SIGKILL))

    # ------------------------------------------------------------------ limits

    def _stop(self, why: Stopped, at_once: bool) -> None:
        """Interrupt the cell because of a limit or the caller; the first reason counts."""
        run = self._run
        if run is None or run.account is not None or run.stopped is not None:
            return
        run.stopped = why
        if at_once:
            self._sandbox.kill()
        else:
            self._sandbox.interrupt()
            self._timers["kill"] = self._loop.call_later(GRACE_S, self._sandbox.kill)

    # ------------------------------------------------------------------ reading

    def _channel_readable(self) -> None:
        for _ in range(PACKETS_AT_ONCE):  # then it is the others' turn: a guest can send faster than we decode
            if self._run is not None:
                # What was printed before a message is in the pipes already; what is printed after a display comes only when
                # the guest sees that we have taken it. So the order is: pipes, then packet.
                self._outputs.drain()
            try:
                packet = self._sandbox.channel.recv(wire.PACKET_BYTES + 1)
                if not packet:
                    self._end("the guest's process ended")
                elif (message := self._protocol.receive(packet)) is not None:
                    self._received(message)
            except BlockingIOError:
                return
            except OSError as err:
                self._end(f"the channel broke: {err}")
            except wire.Violation as err:
                self._violation = str(err)
                self._end(f"the guest broke the protocol: {err}")
            if self.ended is not None:
                return

    def _received(self, message: wire.GuestMessage) -> None:
        run = self._run
        match message:
            case wire.Ready():
                self._held = message.held
            case wire.Refused():
                self._end(f"the jail's step “{message.step}” failed: {message.detail}")
            case wire.Goodbye():
                self._end("the guest left")
            case wire.Display() if run is not None:
                size = outcomes.display_size(message)
                if self._outputs.count(size):
                    display = outcomes.read_display(message)
                    run.displays.append(display)
                    self._queue(model.Displayed(display), size)
            case wire.Done() if run is not None:
                run.account = outcomes.read_account(message)
            case wire.Display() | wire.Done():
                pass  # `HostProtocol` lets them through in a run only
        self._wake()

    def _printed(self, name: Name, text: str, size: int) -> None:
        self._queue(model.Stdout(text) if name == "stdout" else model.Stderr(text), size)

    def _queue(self, event: Event, size: int) -> None:
        self._events.append(event)
        self._queued_bytes += size
        if self._queued_bytes > BUFFER_BYTES:
            self._outputs.pause()
        self._wake()

    def _next_event(self) -> Event:
        event = self._events.popleft()
        if not self._events:
            if self._queued_bytes > BUFFER_BYTES:
                self._outputs.resume()
            self._queued_bytes = 0
        return event

    # ------------------------------------------------------------------ waiting and sending

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    async def _wait(self) -> None:
        """Until something happens. No deadline of its own: the wall limit's timer ends every run, and the rest has a timeout."""
        self._wakeup = self._loop.create_future()
        try:
            await self._wakeup
        finally:
            self._wakeup = None

    async def _send(self, packets: Iterable[bytes]) -> None:
        channel = self._sandbox.channel
        for packet in packets:
            while self.ended is None:
                try:
                    channel.send(packet)
                    break
                except BlockingIOError:
                    # A guest that does not read; the wall limit is already running and will end it.
                    self._loop.add_writer(channel.fileno(), self._wake)
                    try:
                        await self._wait()
                    finally:
                        if self.ended is None:
                            self._loop.remove_writer(channel.fileno())
                except OSError as err:
                    self._end(f"the channel broke: {err}")

    def _end(self, reason: str) -> None:
        """Nothing more will come. The run that is open, if any, ends with what is known."""
        if self.ended is None:
            self.ended = reason
            self._watchdog.stop()
            self._loop.remove_reader(self._sandbox.channel.fileno())
            self._loop.remove_writer(self._sandbox.channel.fileno())
            self._sandbox.kill()  # a closed channel does not mean that every process is gone
        self._wake()

    def _on_exit(self, how: Exit) -> None:
        self._exit = how
        # Its last words are in the channel already. The end of file need not come: a child may hold the other end.
        for _ in range(MAX_LAST_PACKETS // PACKETS_AT_ONCE if how.lost is None else 0):
            if self.ended is None:
                self._channel_readable()
        self._end(how.lost or "the guest's process ended")

    async def _wait_for_exit(self) -> None:
        try:
            async with asyncio.timeout(EXIT_S):
                while self._exit is None:
                    await self._wait()
        except TimeoutError:
            self._exit = Exit(lost="its end was not reported in time")

    async def _settle(self, run: _Run) -> None:
        """The consumer left in the middle of a run: bring the sandbox back to rest, or kill it."""
        self._stop("interrupt", False)
        self._outputs.resume()
        try:
            async with asyncio.timeout(2 * GRACE_S):
                while run.account is None and self.ended is None:
                    self._events.clear()
                    self._queued_bytes = 0
                    self._outputs.resume()
                    await self._wait()
        except TimeoutError:
            self._end("killed: the cell did not end after an interrupt")

    # ------------------------------------------------------------------ the result

    def _result(self, run: _Run, session_id: str | None, queue_ms: float, start_ms: float) -> Result:
        after, before = self._watchdog.end(), self._watchdog.before
        account = run.account
        survived = account is not None and self.ended is None
        if run.stopped is None and after.oom_kills > before.oom_kills:
            run.stopped = "memory"
        if self._violation is not None:
            status, error, limit = outcomes.from_violation(self._violation)
        elif account is not None:
            status, error, limit = outcomes.from_account(account, run.limits, run.wall_s, run.stopped)
        else:
            how = self._exit or Exit(lost="its end is unknown")
            status, error, limit = outcomes.from_exit(how, run.limits, run.wall_s, run.stopped)
        told = account if account is not None and status == "completed" else None
        return Result(
            id=run.id,
            session_id=session_id,
            status=status,
            text=told.text if told else None,
            value=told.value if told else None,
            stdout=self._outputs.text("stdout"),
            stderr=self._outputs.text("stderr"),
            truncated=model.Truncated(self._outputs.truncated("stdout"), self._outputs.truncated("stderr")),
            displays=tuple(run.displays),
            error=error,
            limit=limit,
            files=self._file_changes() if survived else (),
            session=model.SessionState(survived=survived, note=None if survived else self.ended),
            usage=model.Usage(
                queue_ms=round(queue_ms, 3),
                start_ms=round(start_ms, 3),
                wall_ms=round((time.monotonic() - run.started) * 1e3, 3),
                cpu_ms=round(max(0, after.cpu_us - before.cpu_us) / 1e3, 3),
                peak_memory_bytes=self._watchdog.peak_bytes,
                output_bytes=self._outputs.bytes,
            ),
            isolation=self._sandbox.isolation(self._held),
        )

    def _file_changes(self) -> tuple[model.FileChange, ...]:
        top_moment = self._workspace.top_moment()
        if not self._snapshot and top_moment == self._top_moment:
            return ()  # an empty file system does not get a file without its top folder changing
        now = self._workspace.snapshot()
        changes = files.diff(self._snapshot, now)
        self._snapshot, self._top_moment = now, top_moment
        return changes
