"""One worker with a scripted guest at the other end of a real socket and real pipes: order, limits, ends, back-pressure."""

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable

import pytest

from onetrip import insistence, outputs, wire, worker
from onetrip.errors import PlatformError, SandboxFailed
from onetrip.model import (
    Cell,
    Displayed,
    Done,
    FileChange,
    Isolation,
    LimitHit,
    Limits,
    ModulePolicy,
    Policy,
    Result,
    Started,
    Stderr,
    Stdout,
    Truncated,
)
from onetrip.tiers.base import Exit, Reading, SandboxDied
from onetrip.worker import Worker

FINE = {"text": None, "value": None, "has_value": False, "error": None, "interrupted": False, "limit": None}
ERROR = {"type": "ValueError", "message": "no", "traceback": "Traceback…", "line": 3}
INTERRUPTED = {"type": "KeyboardInterrupt", "message": "", "traceback": "", "line": 1}


class FakeSandbox:
    """A sandbox whose guest is played by the test. What the worker does to it is remembered."""

    id, node, meta = "one", "bare", {}
    hard_memory = True

    def __init__(self, folder) -> None:
        self.channel, self.guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.stdout, self.out = os.pipe()
        self.stderr, self.err = os.pipe()
        for end in (self.channel.fileno(), self.guest.fileno(), self.stdout, self.stderr):
            os.set_blocking(end, False)
        self.workspace = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.folder = folder
        self.reading = Reading(1000, 2000, 0)
        self.disk = 0
        self.interrupts, self.wakes, self.kills = 0, 0, 0
        self.interrupted = asyncio.Event()
        self.dies_when_killed = True
        self.applied: Limits | None = None
        self.ends_before_limits = False
        self._callback: Callable[[Exit], None] | None = None
        self._exit: Exit | None = None
        self.protocol = wire.GuestProtocol()
        self.closed = False

    # what the worker calls

    def isolation(self, held):
        return Isolation("fake", "strict", (*held, "more"))

    def look(self):
        pass

    def apply(self, limits, **_more):
        if self.ends_before_limits:
            raise ProcessLookupError("the guest's process has ended")
        self.applied = limits

    def interrupt(self, *, again=False):
        if again:
            self.wakes += 1
            return
        self.interrupts += 1
        self.interrupted.set()

    def kill(self):
        self.kills += 1
        if self.dies_when_killed:
            self.die(Exit(signal=9))

    def on_exit(self, callback):
        self._callback = callback
        if self._exit is not None:
            callback(self._exit)

    def read_usage(self, *, exact=False):
        return self.reading

    def read_disk(self):
        return self.disk

    def reset_peak(self):
        pass

    async def aclose(self):
        self.kill()
        if not self.closed:
            self.closed = True
            self.channel.close()
            for fd in (self.stdout, self.stderr, self.workspace):
                os.close(fd)

    # what the guest does

    def die(self, how: Exit) -> None:
        if self._exit is None:
            self._exit = how
            self.guest.close()
            for fd in (self.out, self.err):
                os.close(fd)
            if self._callback is not None:
                asyncio.get_running_loop().call_soon(self._callback, how)

    async def receive(self):
        """The next whole message of the host."""
        while True:
            packet = await asyncio.get_running_loop().sock_recv(self.guest, wire.PACKET_BYTES)
            if (message := self.protocol.receive(packet)) is not None:
                return message

    async def send(self, message) -> None:
        for packet in wire.packets(message):
            await asyncio.get_running_loop().sock_sendall(self.guest, packet)

    async def done(self, run: str, **account) -> None:
        await self.send(wire.Done(run, (json.dumps({**FINE, **account}).encode(),)))

    def print(self, text: str | bytes, fd: int | None = None) -> None:
        os.write(self.out if fd is None else fd, text.encode() if isinstance(text, str) else text)


Script = Callable[[FakeSandbox, wire.Execute], Awaitable[None]]


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Runs a test against a worker that is ready: `play(test)`, where `test(worker, sandbox)` is a coroutine function."""
    monkeypatch.setattr(worker, "GRACE_S", 0.1)

    def run(test, *, greet: bool = True) -> None:
        async def main() -> None:
            sandbox = FakeSandbox(tmp_path)
            one = Worker(sandbox)
            try:
                starting = asyncio.create_task(one.start())
                await sandbox.send(wire.Ready(wire.VERSION, "3.11", ("seccomp",)))
                await starting
                if greet:
                    one.greet(Limits(), Policy())
                async with asyncio.timeout(20):
                    await test(one, sandbox)
            finally:
                await one.aclose()
                sandbox.die(Exit(code=0))

        asyncio.run(main())

    return run


LIMITS = Limits()


async def wait_ended(one: Worker) -> str:
    while one.ended is None:  # noqa: ASYNC110 - the worker has no event for it
        await asyncio.sleep(0.001)
    return one.ended


def execute(one: Worker, code: str = "1", limits: Limits = LIMITS, **cell):
    return one.execute(Cell(code=code, **cell), limits, "run_1", session_id="ses_1", queue_ms=1.5, start_ms=2.5)


async def perform(one: Worker, sandbox: FakeSandbox, script: Script, **options) -> list:
    """One cell, with the guest playing `script`; the events."""

    async def guest() -> None:
        await script(sandbox, await sandbox.receive())

    playing = asyncio.create_task(guest())
    events = [event async for event in execute(one, **options)]
    await playing
    return events


def result_of(events) -> Result:
    assert isinstance(events[0], Started)
    assert [type(event) for event in events].count(Done) == 1
    return events[-1].result


# ---------------------------------------------------------------------------------------------------- start


def test_the_guest_is_told_limits_and_policy_once(play):
    async def test(one, sandbox):
        one.greet(Limits(memory_mb=64), Policy(modules=ModulePolicy(allow=("json",), deny=("os",))))
        hello = await sandbox.receive()
        assert hello == wire.Hello({"modules": {"allow": ["json"], "deny": ["os"]}, "threads": 1, "at_home": False})
        assert sandbox.applied == Limits(memory_mb=64)

    play(test, greet=False)


@pytest.mark.parametrize(
    ("first", "words", "died"),
    [
        (wire.Refused("mount /proc", 1, "Operation not permitted"), "step “mount /proc” failed: Operation not permitted", False),
        (wire.Goodbye(), "broke the protocol", False),
        (wire.Ready(99, "3", ()), "broke the protocol", False),
        (None, "the guest's process ended", True),
    ],
)
def test_a_guest_that_is_not_ready_is_a_failed_sandbox(tmp_path, first, words, died):
    async def main():
        sandbox = FakeSandbox(tmp_path)
        one = Worker(sandbox)
        starting = asyncio.create_task(one.start())
        if first is None:
            sandbox.die(Exit(code=1))
        else:
            await sandbox.send(first)
        with pytest.raises(SandboxFailed, match=words) as raised:
            await starting
        assert isinstance(raised.value, SandboxDied) == died  # what is refused would be refused again
        await one.aclose()
        sandbox.die(Exit(code=0))

    asyncio.run(main())


def test_a_guest_that_says_nothing_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "READY_S", 0.05)

    async def main():
        sandbox = FakeSandbox(tmp_path)
        one = Worker(sandbox)
        with pytest.raises(SandboxFailed, match="not ready within"):
            await one.start()
        await one.aclose()
        assert sandbox.kills

    asyncio.run(main())


def test_a_guest_that_died_in_the_pool_is_a_failed_sandbox(play):
    async def test(one, sandbox):
        sandbox.ends_before_limits = True
        with pytest.raises(SandboxDied, match="limits could not be set: the guest's process has ended"):
            one.greet(Limits(), Policy())

    play(test, greet=False)


@pytest.mark.parametrize("when", ["before it was greeted", "while another runs", "after the end"])
def test_no_cell_runs(play, when):
    async def test(one, sandbox):
        if when == "while another runs":
            first = execute(one)
            await anext(first)
        if when == "after the end":
            sandbox.die(Exit(code=0))
            await wait_ended(one)
        with pytest.raises(PlatformError, match="cannot run a cell"):
            await anext(execute(one))
        if when == "while another runs":
            sandbox.die(Exit(code=0))
            await first.aclose()

    play(test, greet=when != "before it was greeted")


# ---------------------------------------------------------------------------------------------------- events


@pytest.mark.spec("CEL-02", "API-04")
def test_events_come_in_order_and_while_the_cell_runs(play):
    async def test(one, sandbox):
        events = execute(one, "print('x')", inputs={"a": 1}, final=True)
        assert await anext(events) == Started("run_1")
        following = asyncio.ensure_future(anext(events))
        message = await sandbox.receive()
        assert (message.cell, message.final, list(message.parts)) == (1, True, [b"print('x')", b'{"a": 1}'])
        sandbox.print("one")
        assert await following == Stdout("one")
        sandbox.print("oops", sandbox.err)
        assert await anext(events) == Stderr("oops")
        await sandbox.send(wire.Display(message.run, ("text/plain", "image/png"), True, (b"d", b"\x89PNG")))
        shown = await anext(events)
        assert isinstance(shown, Displayed)
        assert (shown.display.data, shown.display.is_result) == ({"text/plain": "d", "image/png": "iVBORw=="}, True)
        sandbox.print("last")
        await sandbox.done(message.run, text="2", value=2)
        rest = [event async for event in events]
        assert rest[0] == Stdout("last")
        result = rest[-1].result
        assert (result.id, result.session_id, result.status, result.text, result.value) == ("run_1", "ses_1", "completed", "2", 2)
        assert (result.stdout, result.stderr, result.displays) == ("onelast", "oops", (shown.display,))
        assert (result.usage.queue_ms, result.usage.start_ms, result.usage.output_bytes >= 11) == (1.5, 2.5, True)
        assert result.isolation == Isolation("fake", "strict", ("seccomp", "more"))
        assert result.session.survived

    play(test)


@pytest.mark.spec("CEL-02")
def test_what_was_printed_before_a_display_comes_before_it(play):
    async def test(one, sandbox):
        async def script(sandbox, message):
            for number in range(20):
                sandbox.print(f"{number} ")
                await sandbox.send(wire.Display(message.run, ("text/plain",), False, (str(number).encode(),)))
            await sandbox.done(message.run)

        events = await perform(one, sandbox, script)
        told = "".join(event.text if isinstance(event, Stdout) else "|" for event in events[1:-1])
        assert told.count("|") == 20
        for number in range(20):  # no display before its print
            assert f"{number} " in " ".join(told.split("|")[: number + 1])

    play(test)


@pytest.mark.spec("CEL-02", "CEL-10")
def test_characters_cut_by_the_pipe_are_whole_again_and_broken_ones_are_shown(play):
    async def test(one, sandbox):
        async def script(sandbox, message):
            for byte in "é🎉".encode():
                sandbox.print(bytes([byte]))
                await asyncio.sleep(0.005)
            sandbox.print(b"\xff")
            sandbox.print(b"\xc3")
            await sandbox.done(message.run)

        result = result_of(await perform(one, sandbox, script))
        assert result.stdout == "é🎉\ufffd\ufffd"

    play(test)


def test_each_run_has_its_own_output_and_number(play):
    async def test(one, sandbox):
        for number in (1, 2, 3):

            async def script(sandbox, message, number=number):
                assert message.cell == number
                sandbox.print(f"cell {number}")
                await sandbox.done(message.run, text=str(number))

            result = result_of(await perform(one, sandbox, script))
            assert (result.stdout, result.text) == (f"cell {number}", str(number))

    play(test)


def test_every_run_has_another_nonce(play):
    async def test(one, sandbox):
        seen = set()

        async def script(sandbox, message):
            seen.add(message.run)
            await sandbox.done(message.run)

        for _ in range(5):
            await perform(one, sandbox, script)
        assert len(seen) == 5
        assert min(map(len, seen)) >= 16

    play(test)


@pytest.mark.spec("API-04", "ISO-13")
def test_a_reader_that_does_not_read_stops_the_program(play):
    async def test(one, sandbox):
        written = 0
        events = execute(one, limits=Limits(output_mb=100))
        await anext(events)
        following = asyncio.ensure_future(anext(events))
        message = await sandbox.receive()
        os.set_blocking(sandbox.out, False)
        sandbox.print("x")
        await following  # and now nobody asks for the next event
        idle = 0
        while idle < 50:
            try:
                written += os.write(sandbox.out, bytes(65536))
                idle = 0
            except BlockingIOError:
                idle += 1
            await asyncio.sleep(0.001)
        assert outputs.BUFFER_BYTES < written < outputs.BUFFER_BYTES + (1 << 20)
        await sandbox.done(message.run)
        read = sum([len(event.text) async for event in events if isinstance(event, Stdout)])
        assert read == written  # and all of it is there when he reads on

    play(test)


# ---------------------------------------------------------------------------------------------------- outcomes


@pytest.mark.spec("API-03", "CEL-10")
@pytest.mark.parametrize(
    ("account", "status", "error", "limit"),
    [
        ({"text": "2"}, "completed", None, None),
        ({"error": ERROR}, "failed", "ValueError", None),
        ({"error": {**ERROR, "type": "MemoryError"}, "limit": "memory"}, "limit_exceeded", "MemoryError", "memory"),
        ({"error": {**ERROR, "type": "OSError"}, "limit": "disk"}, "limit_exceeded", "OSError", "disk"),
        ({"error": {**ERROR, "type": "BlockingIOError"}, "limit": "processes"}, "limit_exceeded", "BlockingIOError", "processes"),
        ({"error": INTERRUPTED, "interrupted": True}, "failed", "KeyboardInterrupt", None),  # the program raised it itself
    ],
)
def test_what_the_guest_says_becomes_the_outcome(play, account, status, error, limit):
    async def test(one, sandbox):
        async def script(sandbox, message):
            await sandbox.done(message.run, **account)

        result = result_of(await perform(one, sandbox, script))
        assert (result.status, result.error and result.error.type, result.limit and result.limit.name) == (status, error, limit)
        assert result.session.survived
        assert result.text == account.get("text")

    play(test)


@pytest.mark.spec("API-03")
@pytest.mark.parametrize(
    ("how", "status", "kind", "words"),
    [
        (Exit(code=3), "failed", "ProcessDied", "status 3"),
        (Exit(code=0), "failed", "ProcessDied", "status 0"),
        (Exit(signal=11), "failed", "ProcessDied", "SIGSEGV"),
        (Exit(signal=63), "failed", "ProcessDied", "signal 63"),
        (Exit(lost="the zygote died"), "lost", "SandboxLost", "the zygote died"),
    ],
)
def test_how_the_process_ended_becomes_the_outcome(play, how, status, kind, words):
    async def test(one, sandbox):
        async def script(sandbox, message):
            sandbox.print("last words")
            sandbox.die(how)

        result = result_of(await perform(one, sandbox, script))
        assert (result.status, result.error.type, result.stdout, result.session.survived) == (status, kind, "last words", False)
        assert words in result.error.message
        assert result.session.note

    play(test)


@pytest.mark.spec("CEL-10")
@pytest.mark.parametrize(
    ("raw", "text", "value"),
    [
        (r'{"text": "a\ud800b", "value": null, "error": null}', "a?b", None),
        (r'{"text": null, "value": ["\udfff"], "error": null}', None, ["?"]),
        ('{"text": null, "value": [NaN, Infinity, -Infinity], "error": null}', None, [None, None, None]),
        ('{"text": "é\U0001f389", "value": {"ü": 1.5}, "error": null}', "é🎉", {"ü": 1.5}),
    ],
)
def test_text_that_is_no_text_and_numbers_that_are_none_are_shown(play, raw, text, value):
    async def test(one, sandbox):
        async def script(sandbox, message):
            await sandbox.send(wire.Done(message.run, (raw.encode(),)))

        result = result_of(await perform(one, sandbox, script))
        assert (result.status, result.text, result.value) == ("completed", text, value)

    play(test)


@pytest.mark.spec("ISO-13")
@pytest.mark.parametrize("lie", [wire.Done("wrong", (b"{}",)), wire.Goodbye(), wire.Ready(wire.VERSION, "3", ())])
def test_a_broken_protocol_ends_the_sandbox(play, lie):
    async def test(one, sandbox):
        async def script(sandbox, message):
            await sandbox.send(lie)

        result = result_of(await perform(one, sandbox, script))
        assert (result.status, result.error.type, result.session.survived) == ("failed", "ProtocolViolation", False)
        assert sandbox.kills

    play(test)


@pytest.mark.spec("ISO-13")
def test_a_message_between_two_cells_ends_the_sandbox(play):
    async def test(one, sandbox):
        async def script(sandbox, message):
            await sandbox.done(message.run)

        await perform(one, sandbox, script)
        await sandbox.send(wire.Display("any", (), False))
        await wait_ended(one)
        assert "broke the protocol" in one.ended

    play(test)


# ---------------------------------------------------------------------------------------------------- limits


async def honest(sandbox, message):
    """Answers an interrupt as Python does."""
    await sandbox.interrupted.wait()
    await sandbox.done(message.run, error=INTERRUPTED, interrupted=True)


async def deaf(sandbox, message):
    """Does not hear an interrupt."""


@pytest.mark.spec("LIM-01", "LIM-08")
def test_the_wall_limit_interrupts_and_the_session_goes_on(play):
    async def test(one, sandbox):
        result = result_of(await perform(one, sandbox, honest, timeout_s=0.05))
        assert (result.status, result.limit, result.session.survived) == ("limit_exceeded", LimitHit("wall", 0.05, "s"), True)
        assert (sandbox.interrupts, sandbox.kills) == (1, 0)

    play(test)


@pytest.mark.spec("LIM-01", "LIM-09")
def test_what_does_not_hear_the_interrupt_is_killed(play):
    async def test(one, sandbox):
        result = result_of(await perform(one, sandbox, deaf, timeout_s=0.05))
        assert (result.status, result.limit.name, result.session.survived) == ("limit_exceeded", "wall", False)
        assert result.error.type == "LimitExceeded"
        assert (sandbox.interrupts, sandbox.wakes) == (1, insistence.WAKES - 1)
        assert sandbox.kills >= 1

    play(test)


@pytest.mark.spec("LIM-01")
def test_a_cell_cannot_have_more_time_than_its_session(play):
    async def test(one, sandbox):
        result = result_of(await perform(one, sandbox, honest, limits=Limits(wall_s=0.05), timeout_s=60))
        assert result.limit == LimitHit("wall", 0.05, "s")

    play(test)


@pytest.mark.spec("LIM-09")
@pytest.mark.parametrize("script", [honest, deaf])
def test_an_interrupt_of_the_caller_is_no_limit(play, script):
    async def test(one, sandbox):
        asyncio.get_running_loop().call_later(0.05, one.interrupt)
        result = result_of(await perform(one, sandbox, script))
        assert (result.status, result.limit, result.session.survived) == ("interrupted", None, script is honest)
        assert result.error.type == "KeyboardInterrupt"

    play(test)


@pytest.mark.spec("LIM-02", "LIM-03", "LIM-05", "LIM-07")
@pytest.mark.parametrize(
    ("name", "hard", "reading", "disk", "survives"),
    [
        ("cpu", True, Reading(0, 0, 61_000_000), 0, True),
        ("memory", False, Reading(2 << 30, 2 << 30, 0), 0, False),
        ("memory", True, Reading(0, 0, 0, oom_kills=1), 0, True),
        ("disk", False, Reading(0, 0, 0), 1 << 30, False),
    ],
)
def test_the_watchdog_names_the_limit(play, name, hard, reading, disk, survives):
    async def test(one, sandbox):
        sandbox.hard_memory = hard

        async def script(sandbox, message):
            sandbox.reading, sandbox.disk = reading, disk
            if survives:
                await honest(sandbox, message)

        result = result_of(await perform(one, sandbox, script))
        assert (result.status, result.limit.name, result.session.survived) == ("limit_exceeded", name, survives)

    play(test)


@pytest.mark.spec("LIM-03")
def test_the_kernels_word_on_memory_counts_more_than_the_guests(play):
    async def test(one, sandbox):
        async def script(sandbox, message):
            sandbox.reading = Reading(0, 0, 0, oom_kills=1)
            sandbox.die(Exit(signal=9))

        result = result_of(await perform(one, sandbox, script))
        assert (result.status, result.limit.name, result.error.type) == ("limit_exceeded", "memory", "LimitExceeded")

    play(test)


@pytest.mark.spec("LIM-02", "LIM-03")
def test_use_is_counted_from_the_start_of_the_cell(play):
    async def test(one, sandbox):
        sandbox.reading = Reading(1 << 20, 3 << 20, 59_000_000)
        await asyncio.sleep(0.01)

        async def script(sandbox, message):
            sandbox.reading = Reading(2 << 20, 4 << 20, 59_500_000)
            await sandbox.done(message.run)

        result = result_of(await perform(one, sandbox, script))
        assert (result.status, result.usage.cpu_ms, result.usage.peak_memory_bytes) == ("completed", 500.0, 4 << 20)

    play(test)


@pytest.mark.spec("LIM-02", "LIM-03")
def test_what_goes_on_between_cells_is_bounded_too(play):
    async def test(one, sandbox):
        async def script(sandbox, message):
            await sandbox.done(message.run)

        await perform(one, sandbox, script, limits=Limits(cpu_s=1))
        sandbox.reading = Reading(0, 0, 2_000_000)
        await wait_ended(one)
        assert "cpu limit of 1 s" in one.ended
        assert sandbox.kills

    play(test)


@pytest.mark.spec("LIM-06", "LIM-08")
def test_output_is_cut_at_the_limit_and_the_program_interrupted(play):
    async def test(one, sandbox):
        async def script(sandbox, message):
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, lambda: [os.write(sandbox.out, b"o" * 60_000) for _ in range(40)])
            sandbox.print("e" * 1000, sandbox.err)
            await honest(sandbox, message)

        result = result_of(await perform(one, sandbox, script, limits=Limits(output_mb=1)))
        assert (result.status, result.limit) == ("limit_exceeded", LimitHit("output", 1, "MB"))
        assert (len(result.stdout), result.stderr) == (1 << 20, "")
        assert result.truncated == Truncated(stdout=True, stderr=True)
        assert result.session.survived

    play(test)


@pytest.mark.spec("LIM-06")
def test_displays_count_as_output(play):
    async def test(one, sandbox):
        async def script(sandbox, message):
            for _ in range(30):
                await sandbox.send(wire.Display(message.run, ("text/plain",), False, (b"d" * 50_000,)))
            await honest(sandbox, message)

        result = result_of(await perform(one, sandbox, script, limits=Limits(output_mb=1)))
        assert (result.status, result.limit.name) == ("limit_exceeded", "output")
        assert 15 <= len(result.displays) <= 20

    play(test)


# ---------------------------------------------------------------------------------------------------- leaving


@pytest.mark.spec("END-03", "API-04")
def test_a_consumer_that_leaves_interrupts_and_the_next_cell_runs(play):
    async def test(one, sandbox):
        async with contextlib.aclosing(execute(one)) as events:
            await anext(events)
            following = asyncio.ensure_future(anext(events))
            message = await sandbox.receive()
            sandbox.print("x")
            await following
            answering = asyncio.create_task(honest(sandbox, message))
        await answering
        assert (sandbox.interrupts, sandbox.kills, one.ended) == (1, 0, None)

        async def script(sandbox, message):
            await sandbox.done(message.run, text="2")

        assert result_of(await perform(one, sandbox, script)).text == "2"

    play(test)


@pytest.mark.spec("END-03")
def test_a_consumer_that_leaves_a_deaf_program_ends_it(play):
    async def test(one, sandbox):
        async with contextlib.aclosing(execute(one)) as events:
            await anext(events)
            following = asyncio.ensure_future(anext(events))
            await sandbox.receive()
            sandbox.print("x")
            await following
        assert sandbox.kills
        assert one.ended is not None

    play(test)


@pytest.mark.spec("END-03")
def test_a_cancelled_consumer_ends_the_cell(play):
    async def test(one, sandbox):
        async def consume():
            async with contextlib.aclosing(execute(one)) as events:
                async for _ in events:
                    pass

        task = asyncio.create_task(consume())
        message = await sandbox.receive()
        answering = asyncio.create_task(honest(sandbox, message))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await answering
        assert (sandbox.interrupts, one.ended) == (1, None)

    play(test)


@pytest.mark.spec("END-03")
def test_closing_in_the_middle_of_a_run_ends_it(play):
    async def test(one, sandbox):
        events = execute(one)
        await anext(events)
        following = asyncio.ensure_future(anext(events))
        await sandbox.receive()
        await one.aclose()
        await one.aclose()
        result = (await following).result
        assert (result.status, result.session.survived, result.session.note) == ("interrupted", False, "closed")

    play(test)


@pytest.mark.spec("ISO-13", "LIM-01")
def test_a_guest_that_does_not_read_its_channel_is_ended_by_the_wall_limit(play):
    async def test(one, sandbox):
        events = [event async for event in execute(one, "#" * 9_000_000, timeout_s=0.2)]
        result = result_of(events)
        assert (result.status, result.limit.name, result.session.survived) == ("limit_exceeded", "wall", False)

    play(test)


# ---------------------------------------------------------------------------------------------------- files


@pytest.mark.spec("CEL-11")
def test_only_the_cells_own_changes_are_listed(play):
    async def test(one, sandbox):
        (sandbox.folder / "given").write_text("by us")
        one.note_files()

        async def script(sandbox, message):
            (sandbox.folder / "made").write_text("12345")
            await sandbox.done(message.run)

        assert result_of(await perform(one, sandbox, script)).files == (FileChange("made", 5, "created"),)

        async def again(sandbox, message):
            (sandbox.folder / "made").write_text("123456")
            (sandbox.folder / "given").unlink()
            await sandbox.done(message.run)

        assert result_of(await perform(one, sandbox, again)).files == (
            FileChange("given", 0, "deleted"),
            FileChange("made", 6, "modified"),
        )

        async def quiet(sandbox, message):
            await sandbox.done(message.run)

        assert result_of(await perform(one, sandbox, quiet)).files == ()

    play(test)


def test_a_worker_that_was_closed_holds_neither_the_text_nor_the_list_of_files(play):
    async def test(one, sandbox):
        async def script(sandbox, message):
            for number in range(2000):
                (sandbox.folder / f"file {number}").touch()
            sandbox.print("text")
            await sandbox.done(message.run)

        before = sys.getallocatedblocks()
        result = result_of(await perform(one, sandbox, script, final=True))
        assert (result.stdout, len(result.files)) == ("text", 2000)
        del result
        assert one.outputs.text("stdout") == ""
        await one.aclose()
        # As long as the garbage collector does not find the worker, whose parts refer to each other.
        assert len(one.changes._snapshot) == 0
        assert sys.getallocatedblocks() - before < 2000

    play(test)


@pytest.mark.spec("ISO-03")
def test_a_run_that_ends_while_its_sandbox_is_closed_reads_no_descriptor_that_is_anothers_by_now():
    async def test() -> None:
        pipes = [os.pipe(), os.pipe()]
        heard: list[str] = []
        streams = outputs.Outputs(pipes[0][0], pipes[1][0], lambda name, text, size: heard.append(text), lambda: None)
        streams.begin(1 << 20)
        streams.close()
        for pair in pipes:
            for fd in pair:
                os.close(fd)
        other = [os.pipe(), os.pipe()]  # takes the same numbers
        assert {pipes[0][0], pipes[1][0]} & {fd for pair in other for fd in pair}
        for _, write_end in other:
            os.write(write_end, b"of another sandbox")
        streams.drain()
        streams.discard()
        streams.resume()
        await asyncio.sleep(0)
        assert heard == []
        assert [os.read(read_end, 100) for read_end, _ in other] == [b"of another sandbox"] * 2
        for pair in other:
            for fd in pair:
                os.close(fd)

    asyncio.run(test())
