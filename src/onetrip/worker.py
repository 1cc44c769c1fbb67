"""One live sandbox as the host drives it: the channel, the two output pipes, deadlines, and one result per run.

Theory of operation
-------------------
Three descriptors of the sandbox are read by callbacks of the event loop: the channel (packets of `wire`), stdout and stderr. What
they bring is queued as events; `execute` yields them and ends with exactly one `Done`. When the consumer is slow, reading the
pipes stops at `BUFFER_BYTES`, the pipes fill, and the program waits: that is the back-pressure.

The guest's own account of a run (`wire.Done`) is merged with facts: time by our clock, CPU and memory by the kernel, output by the
bytes we counted, files by a walk of our own, and the end of the process by its exit status. A limit is first answered by an
interrupt, so that an honest program keeps its session; what has not ended `GRACE_S` later is killed, and the session with it.
"""

import asyncio
import base64
import codecs
import collections
import errno
import json
import os
import re
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from . import files, wire
from .errors import PlatformError, SandboxFailed
from .model import (
    Cell,
    Displayed,
    DisplayData,
    Done,
    Event,
    FileChange,
    LimitHit,
    LimitName,
    Limits,
    Policy,
    ProgramError,
    Result,
    SessionState,
    Started,
    Status,
    Stderr,
    Stdout,
    Truncated,
    Usage,
)
from .tiers.base import Exit, Reading, Sandbox

READY_S: Final = 30.0  # from the fork to the guest's first word
GRACE_S: Final = 1.0  # between the interrupt and the kill
TICK_S: Final = 0.05  # of the watchdog; a short cell never sees one
READ_BYTES: Final = 256 * 1024
BUFFER_BYTES: Final = 1 << 20  # output that waits for a slow consumer
MAX_DONE_BYTES: Final = 8 << 20
TEXT_MIMES: Final = ("text/", "application/json", "image/svg+xml", "application/javascript")
_MIB: Final = 1 << 20
_UNITS: Final[Mapping[LimitName, str]] = {
    "wall": "s", "cpu": "s", "memory": "MB", "processes": "processes", "disk": "MB", "output": "MB", "tool_calls": "calls",
}  # fmt: skip
_SURROGATE_ESCAPE: Final = re.compile(rb"\\u[dD][89abAB]")


@dataclass(slots=True)
class _Stream:
    """One output pipe of the current run."""

    fd: int
    event: Callable[[str], Event]
    decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))
    kept: list[str] = field(default_factory=list)
    truncated: bool = False
    open: bool = True


@dataclass(slots=True)
class _Run:
    """What is known of the open run. `stopped` is the limit that ended it, or "interrupt"."""

    id: str
    limits: Limits
    wall_s: float
    started: float
    usage_before: Reading
    streams: tuple[_Stream, _Stream]
    stopped: str | None = None
    killed: bool = False
    claim: Mapping[str, Any] | None = None
    output_bytes: int = 0
    displays: list[DisplayData] = field(default_factory=list)


class Worker:
    """Drives one sandbox. `start` first; then any number of `execute`, one at a time; `aclose` in any case.

    After `ended` is set nothing more can run; the reason is in it.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._loop = asyncio.get_running_loop()
        self._protocol = wire.HostProtocol()
        self._workspace = files.Workspace(sandbox.workspace)
        self._events: collections.deque[Event] = collections.deque()
        self._queued_bytes = 0
        self._wakeup: asyncio.Future[None] | None = None
        self._run: _Run | None = None
        self._cells = 0
        self._greeted = False
        self._held: tuple[str, ...] = ()
        self._snapshot: files.Snapshot = {}
        self._top_moment = (0, 0)
        self._exit: Exit | None = None
        self._violation: str | None = None
        self._closed = False
        self.ended: str | None = None
        self.usage_last: Reading | None = None

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

    def greet(self, limits: Limits, policy: Policy) -> None:
        """Give the guest its limits and policy, before any user code. Once; raises SandboxFailed when the kernel refuses."""
        try:
            self._sandbox.apply(limits)
        except OSError as err:
            raise SandboxFailed(f"the limits could not be set: {err}") from err
        modules = {"allow": None if policy.modules.allow is None else list(policy.modules.allow), "deny": list(policy.modules.deny)}
        rlimits = {name: list(value) for name, value in self._sandbox.rlimits(limits).items()}
        self._send_now(wire.packets(wire.Hello({"rlimits": rlimits, "modules": modules})))
        self._greeted = True

    def note_files(self) -> None:
        """Take the workspace as it is now as the state before the next cell: files we put there are not the program's."""
        self._snapshot = self._workspace.snapshot()
        self._top_moment = self._workspace.top_moment()

    # ------------------------------------------------------------------ running

    async def execute(self, cell: Cell, limits: Limits, run_id: str, *, session_id: str | None, queue_ms: float, start_ms: float) -> AsyncIterator[Event]:
        """Run one cell and yield its events; exactly one `Done` comes last.

        Never raises for what the program does. After a `Done` with `session.survived` false the sandbox is gone. Closing the
        generator early interrupts the cell; if it does not end within `GRACE_S`, the sandbox is killed.
        """
        if self.ended is not None or self._run is not None or not self._greeted:
            raise PlatformError(f"the worker cannot run a cell: {self.ended or 'busy or not greeted'}")
        self._cells += 1
        nonce = secrets.token_hex(8)
        wall_s = min(limits.wall_s, cell.timeout_s or limits.wall_s)
        run = self._run = _Run(
            id=run_id,
            limits=limits,
            wall_s=wall_s,
            started=time.monotonic(),
            usage_before=self._sandbox.read_usage(),
            streams=(_Stream(self._sandbox.stdout, Stdout), _Stream(self._sandbox.stderr, Stderr)),
        )
        self._sandbox.reset_peak()
        deadline = self._loop.call_later(wall_s, self._stop, "wall")
        tick = self._loop.call_later(TICK_S, self._watch)
        self._tick = tick
        self._killer: asyncio.TimerHandle | None = None
        try:
            yield Started(run_id)
            message = wire.Execute(nonce, self._cells, cell.final, (cell.code.encode(), json.dumps(cell.inputs).encode()))
            self._listen(run)
            await self._send(self._protocol.execute(message))
            while run.claim is None and self.ended is None:
                while self._events:
                    yield self._next_event(run)
                if run.claim is None and self.ended is None:
                    await self._wait()
            if self.ended is not None:
                await self._wait_for_exit()
            self._drain(run)
            while self._events:
                yield self._next_event(run)
            yield Done(self._result(run, session_id, queue_ms, start_ms))
        finally:
            deadline.cancel()
            self._tick.cancel()
            self._deafen(run)
            if run.claim is None and self.ended is None:
                await self._settle(run)
            if self._killer is not None:
                self._killer.cancel()
            self._run = None
            self._events.clear()
            self._queued_bytes = 0

    def interrupt(self) -> None:
        """Like Ctrl-C; kill when the cell has not ended after the grace period. Does nothing while no cell runs."""
        if self._run is not None:
            self._stop("interrupt")

    async def aclose(self) -> None:
        """End the sandbox and everything in it. Blocks until that is certain."""
        if self._closed:
            return
        self._closed = True
        self._end("closed")
        if not self._sandbox.channel._closed:  # noqa: SLF001
            self._loop.remove_reader(self._sandbox.channel.fileno())
        await self._sandbox.aclose()

    # ------------------------------------------------------------------ limits

    def _stop(self, why: str, *, at_once: bool = False) -> None:
        """Interrupt the cell because of a limit or the caller; the first reason counts."""
        run = self._run
        if run is None or run.claim is not None:
            return
        if run.stopped is None:
            run.stopped = why
            self._killer = self._loop.call_later(0 if at_once else GRACE_S, self._kill_run)
            if not at_once:
                self._sandbox.interrupt()

    def _kill_run(self) -> None:
        if self._run is not None and self._run.claim is None:
            self._run.killed = True
            self._sandbox.kill()

    def _watch(self) -> None:
        """Sample what no timer of the kernel tells us; runs every `TICK_S` while a cell runs."""
        run = self._run
        if run is None:
            return
        now = self._sandbox.read_usage()
        if now.cpu_us - run.usage_before.cpu_us > run.limits.cpu_s * 1e6:
            self._stop("cpu")
        if not self._sandbox.hard_memory and now.memory_bytes > run.limits.memory_mb * _MIB:
            self._stop("memory", at_once=True)
        self.usage_last = now
        self._tick = self._loop.call_later(TICK_S, self._watch)

    # ------------------------------------------------------------------ reading

    def _channel_readable(self) -> None:
        while True:
            try:
                packet = self._sandbox.channel.recv(wire.PACKET_BYTES + 1)
            except BlockingIOError:
                return
            except OSError as err:
                self._end(f"the channel broke: {err}")
                return
            if not packet:
                self._end("the guest's process ended")
                return
            try:
                message = self._protocol.receive(packet)
                if message is not None:
                    self._received(message)
            except wire.Violation as err:
                self._violation = str(err)
                self._sandbox.kill()
                self._end(f"the guest broke the protocol: {err}")
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
                run.output_bytes += sum(map(len, message.parts))
                if run.output_bytes > run.limits.output_mb * _MIB:
                    self._stop("output")
                    return
                self._drain(run)  # what was printed before comes before
                self._queue(Displayed(_display(message)), sum(map(len, message.parts)))
            case wire.Done() if run is not None:
                run.claim = _claim(message)
        self._wake()

    def _listen(self, run: _Run) -> None:
        for stream in run.streams:
            if stream.open:
                self._loop.add_reader(stream.fd, self._pipe_readable, run, stream)

    def _deafen(self, run: _Run) -> None:
        for stream in run.streams:
            self._loop.remove_reader(stream.fd)

    def _pipe_readable(self, run: _Run, stream: _Stream) -> None:
        if self._read(run, stream, READ_BYTES) is None:
            self._loop.remove_reader(stream.fd)
            stream.open = False
        if self._queued_bytes > BUFFER_BYTES:
            self._deafen(run)

    def _read(self, run: _Run, stream: _Stream, size: int) -> int | None:
        """Read once; the number of bytes, 0 when there is nothing now, None at the end of file."""
        try:
            data = os.read(stream.fd, size)
        except BlockingIOError:
            return 0
        except OSError as err:
            if err.errno != errno.EBADF:
                raise
            return None
        if not data:
            return None
        room = run.limits.output_mb * _MIB - run.output_bytes
        run.output_bytes += len(data)
        if len(data) > room:
            stream.truncated = True
            self._stop("output")
            data = data[: max(room, 0)]
        text = stream.decoder.decode(data)
        if text:
            stream.kept.append(text)
            self._queue(stream.event(text), len(data))
        return len(data)

    def _drain(self, run: _Run) -> None:
        """Take what was written up to now; at most what a pipe can hold, so that a writer cannot keep us here."""
        for stream in run.streams:
            left = 4 * _MIB
            while stream.open and left > 0:
                got = self._read(run, stream, READ_BYTES)
                if not got:
                    stream.open = stream.open and got is not None
                    break
                left -= got

    def _queue(self, event: Event, size: int) -> None:
        self._events.append(event)
        self._queued_bytes += size
        self._wake()

    def _next_event(self, run: _Run) -> Event:
        event = self._events.popleft()
        if isinstance(event, Displayed):
            run.displays.append(event.display)
        if not self._events:
            if self._queued_bytes > BUFFER_BYTES and run.claim is None and self.ended is None:
                self._listen(run)
            self._queued_bytes = 0
        return event

    # ------------------------------------------------------------------ waiting and sending

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    async def _wait(self) -> None:
        """Until something happens. No deadline of its own: the wall limit's timer ends every run, and `start` has a timeout."""
        self._wakeup = self._loop.create_future()
        try:
            await self._wakeup
        finally:
            self._wakeup = None

    def _send_now(self, packets: Iterable[bytes]) -> None:
        try:
            for packet in packets:
                self._sandbox.channel.send(packet)
        except OSError as err:
            self._end(f"the channel broke: {err}")

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
                        self._loop.remove_writer(channel.fileno())
                except OSError as err:
                    self._end(f"the channel broke: {err}")

    def _end(self, reason: str) -> None:
        """Nothing more will come. The run that is open, if any, ends with what is known."""
        if self.ended is None:
            self.ended = reason
            if not self._closed:
                self._loop.remove_reader(self._sandbox.channel.fileno())
                self._sandbox.kill()  # a closed channel does not mean that every process is gone
        self._wake()

    def _on_exit(self, how: Exit) -> None:
        self._exit = how
        self._end("the guest's process ended")

    async def _wait_for_exit(self) -> None:
        try:
            async with asyncio.timeout(READY_S):
                while self._exit is None:
                    await self._wait()
        except TimeoutError:
            self._exit = Exit(lost="its end was not reported in time")

    async def _settle(self, run: _Run) -> None:
        """The consumer left in the middle of a run: bring the sandbox back to rest, or kill it."""
        self._stop("interrupt")
        self._listen(run)
        try:
            async with asyncio.timeout(GRACE_S * 2):
                while run.claim is None and self.ended is None:
                    self._events.clear()
                    self._queued_bytes = 0
                    await self._wait()
        except TimeoutError:
            self._end("killed: the cell did not end after an interrupt")
        finally:
            self._deafen(run)

    # ------------------------------------------------------------------ the result

    def _result(self, run: _Run, session_id: str | None, queue_ms: float, start_ms: float) -> Result:
        after = self._sandbox.read_usage()
        claim = run.claim
        survived = claim is not None and self.ended is None
        if claim is not None:
            status, error, limit = self._from_claim(run, claim)
        else:
            status, error, limit = self._from_exit(run, after)
        out, err = run.streams
        return Result(
            id=run.id,
            session_id=session_id,
            status=status,
            text=claim["text"] if claim and status == "completed" else None,
            value=claim["value"] if claim and status == "completed" else None,
            stdout="".join(out.kept),
            stderr="".join(err.kept),
            truncated=Truncated(out.truncated, err.truncated),
            displays=tuple(run.displays),
            error=error,
            limit=limit,
            files=self._file_changes() if survived else (),
            session=SessionState(survived=survived, note=None if survived else self.ended),
            usage=Usage(
                queue_ms=round(queue_ms, 3),
                start_ms=round(start_ms, 3),
                wall_ms=round((time.monotonic() - run.started) * 1e3, 3),
                cpu_ms=round(max(0, after.cpu_us - run.usage_before.cpu_us) / 1e3, 3),
                peak_memory_bytes=max(after.peak_memory_bytes, self.usage_last.peak_memory_bytes if self.usage_last else 0),
                output_bytes=run.output_bytes,
            ),
            isolation=self._sandbox.isolation(self._held),
        )

    def _from_claim(self, run: _Run, claim: Mapping[str, Any]) -> tuple[Status, ProgramError | None, LimitHit | None]:
        error: ProgramError | None = claim["error"]
        if run.stopped == "interrupt" and (claim["interrupted"] or error is None):
            return "interrupted", error, None
        if run.stopped is not None and run.stopped != "interrupt":
            return "limit_exceeded", error, _limit_hit(run, run.stopped)
        if error is None:
            return "completed", None, None
        if claim["limit"] is not None:
            return "limit_exceeded", error, _limit_hit(run, claim["limit"])
        return "failed", error, None

    def _from_exit(self, run: _Run, after: Reading) -> tuple[Status, ProgramError | None, LimitHit | None]:
        how = self._exit or Exit(lost="its end is unknown")
        if self._violation is not None:
            return "failed", ProgramError("ProtocolViolation", f"the program interfered with the sandbox's own channel: {self._violation}"), None
        if run.stopped == "interrupt":
            return "interrupted", ProgramError("KeyboardInterrupt", "it did not end after the interrupt and was killed"), None
        if run.stopped is not None:
            return "limit_exceeded", _limit_error(run, run.stopped), _limit_hit(run, run.stopped)
        if after.oom_kills > run.usage_before.oom_kills:
            return "limit_exceeded", _limit_error(run, "memory"), _limit_hit(run, "memory")
        if how.lost is not None:
            return "lost", ProgramError("SandboxLost", how.lost), None
        if how.signal is not None:
            name = signal.Signals(how.signal).name if how.signal in {int(known) for known in signal.Signals} else str(how.signal)
            return "failed", ProgramError("ProcessDied", f"the interpreter was killed by {name}"), None
        return "failed", ProgramError("ProcessDied", f"the interpreter ended with status {how.code} in the middle of the cell"), None

    def _file_changes(self) -> tuple[FileChange, ...]:
        if not self._snapshot and not self._workspace.changed_since(self._top_moment):
            return ()
        now = self._workspace.snapshot()
        changes = files.diff(self._snapshot, now)
        self._snapshot, self._top_moment = now, self._workspace.top_moment()
        return changes


def _limit_hit(run: _Run, name: Any) -> LimitHit:
    value = {
        "wall": run.wall_s,
        "cpu": run.limits.cpu_s,
        "memory": run.limits.memory_mb,
        "processes": run.limits.processes,
        "disk": run.limits.disk_mb,
        "output": run.limits.output_mb,
    }[name]
    return LimitHit(name, value, _UNITS[name])


def _limit_error(run: _Run, name: str) -> ProgramError:
    hit = _limit_hit(run, name)
    return ProgramError("LimitExceeded", f"killed: over the {name} limit of {hit.limit:g} {hit.unit}")


def _claim(message: wire.Done) -> Mapping[str, Any]:
    """The guest's account of a run, checked. Raises Violation."""
    raw = message.parts[0]
    if len(raw) > MAX_DONE_BYTES:
        raise wire.Violation(f"an account of {len(raw)} bytes")
    try:
        claim = json.loads(raw, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as err:
        raise wire.Violation("an account that is not JSON") from err
    if _SURROGATE_ESCAPE.search(raw):
        claim = _without_surrogates(claim)
    if not isinstance(claim, dict):
        raise wire.Violation("an account that is not an object")
    text, error, limit = claim.get("text"), claim.get("error"), claim.get("limit")
    if not (text is None or isinstance(text, str)) or limit not in (None, "memory", "disk", "processes"):
        raise wire.Violation("an account with fields of the wrong type")
    return {
        "text": text,
        "value": claim.get("value"),
        "interrupted": claim.get("interrupted") is True,
        "limit": limit,
        "error": None if error is None else _program_error(error),
    }


def _program_error(raw: Any) -> ProgramError:
    if not isinstance(raw, dict):
        raise wire.Violation("an error that is not an object")
    kind, text, traceback, line = (raw.get(key) for key in ("type", "message", "traceback", "line"))
    if not (isinstance(kind, str) and isinstance(text, str) and isinstance(traceback, str) and (line is None or type(line) is int)):
        raise wire.Violation("an error with fields of the wrong type")
    return ProgramError(kind[:200], text, traceback, line)


def _without_surrogates(value: Any) -> Any:
    """Lone surrogates are legal in JSON's escapes but in no UTF-8; show them as the replacement character."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return value


def _display(message: wire.Display) -> DisplayData:
    data: dict[str, str] = {}
    for mime, part in zip(message.mimes, message.parts, strict=True):
        if mime.startswith(TEXT_MIMES):
            data[mime] = part.decode("utf-8", "replace")
        else:
            data[mime] = base64.b64encode(part).decode("ascii")
    return DisplayData(data, message.is_result)
