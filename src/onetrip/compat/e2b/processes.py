"""Commands of one sandbox: each runs in an interpreter of its own (`programs/command.py`), is known by its process id, and has readers.

A reader that is slow slows the command; one that leaves does not end it. A command whose end leaves processes that still print keeps
its interpreter, so that what they print is not taken for another command's.
"""

import asyncio
import base64
import contextlib
import secrets
import signal
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

import msgspec

from onetrip.compat.e2b.connect import RpcError
from onetrip.compat.e2b.interpreters import Helper, Interpreter, answer
from onetrip.compat.e2b.shapes import PROCESS, ProcessConfig, Selector, Start, Started
from onetrip.errors import OnetripError
from onetrip.model import Displayed, Done, Stderr, Stdout

QUEUED: Final = 64  # events that a reader may be behind
FRAME_BYTES: Final = 1 << 20  # of input in one message to a command
MAX_IDLE: Final = 4  # interpreters that wait for the next command
SIGNALS: Final = {"SIGNAL_SIGTERM": signal.SIGTERM, "SIGNAL_SIGKILL": signal.SIGKILL, 15: signal.SIGTERM, 9: signal.SIGKILL}
Update = dict[str, Any]


class Reader:
    """What is still to be told to one client. `None` in the queue: it is over."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Update | None] = asyncio.Queue(QUEUED)
        self.gone = False

    async def put(self, update: Update | None) -> None:
        if not self.gone:
            await self.queue.put(update)

    def leave(self) -> None:
        self.gone = True
        while not self.queue.empty():  # whoever waits to put something in can go on
            self.queue.get_nowait()


class Process:
    def __init__(self, config: ProcessConfig, tag: str | None, *, has_stdin: bool) -> None:
        self.config, self.tag, self.has_stdin = config, tag, has_stdin
        self.pid = 0  # until it runs
        self.pipe = f".e2b-{secrets.token_hex(8)}"
        self.readers: set[Reader] = set()
        self.started = asyncio.get_running_loop().create_future()  # None, or why it did not
        self.started.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.end: Update | None = None
        self.failure: RpcError | None = None
        self.is_late = False  # its client's deadline has passed
        self.task: asyncio.Task[None] | None = None

    async def tell(self, update: Update) -> None:
        for reader in list(self.readers):
            await reader.put(update)


class Processes:
    """`environ` is the sandbox's own, for every command."""

    def __init__(self, make: Callable[[], Any], helper: Helper, environ: dict[str, str]) -> None:
        self._make, self._helper, self._environ = make, helper, environ
        self._live: dict[int, Process] = {}
        self._starting: set[Process] = set()
        self._idle: list[Interpreter] = []
        self._ending: set[asyncio.Task[None]] = set()

    def list(self) -> list[Update]:
        return [
            {
                "pid": one.pid,
                "config": {"cmd": one.config.cmd, "args": one.config.args, "envs": one.config.envs, "cwd": one.config.cwd},
                **({} if one.tag is None else {"tag": one.tag}),
            }
            for one in self._live.values()
        ]

    def find(self, selector: Selector) -> Process:
        """Raises RpcError."""
        found = self._live.get(selector.pid or 0)
        if selector.pid is None and selector.tag is not None:
            found = next((one for one in self._live.values() if one.tag == selector.tag), None)
        if found is None:
            raise RpcError("not_found", f"process with pid {selector.pid or selector.tag} not found")
        return found

    # ------------------------------------------------------------------ running

    async def start(self, asked: Start, timeout_s: float | None) -> tuple[Process, Reader]:
        """Start a command, with its first reader. It is killed after `timeout_s`. Raises RpcError, OnetripError."""
        if asked.pty is not None:
            raise RpcError("unimplemented", "sandboxes have no terminals (pty); use commands.run")
        process = Process(asked.process, asked.tag, has_stdin=asked.stdin is not False)
        reader = Reader()
        process.readers.add(reader)
        self._starting.add(process)
        process.task = asyncio.create_task(self._run(process))
        try:
            await asyncio.shield(process.started)
        except asyncio.CancelledError:
            process.task.cancel()
            raise
        finally:
            self._starting.discard(process)
        if timeout_s is not None:
            timer = asyncio.get_running_loop().call_later(timeout_s, self._too_late, process)
            process.task.add_done_callback(lambda _: timer.cancel())
        return process, reader

    async def _run(self, process: Process) -> None:
        try:
            interpreter = self._idle.pop() if self._idle else await self._make()
            try:
                is_clean = await self._follow(process, interpreter)
            except BaseException:
                self._end_soon(interpreter)
                raise
            if is_clean and len(self._idle) < MAX_IDLE:
                self._idle.append(interpreter)
            elif is_clean:
                self._end_soon(interpreter)
        except RpcError as err:
            process.failure = err
        except OnetripError as err:
            process.failure = RpcError.of(err)
        finally:
            self._live.pop(process.pid, None)
            if not process.started.done():
                process.started.set_exception(process.failure or RpcError("canceled", "the command was not started"))
            for reader in list(process.readers):
                if not reader.gone:
                    with contextlib.suppress(asyncio.CancelledError):
                        await reader.put(None)

    def _end_soon(self, interpreter: Interpreter) -> None:
        task = asyncio.create_task(interpreter.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _follow(self, process: Process, interpreter: Interpreter) -> bool:
        """Run it to its end; whether its interpreter can run another one."""
        config = process.config
        request = {
            "cmd": config.cmd, "args": config.args, "environ": {**self._environ, **config.envs}, "cwd": config.cwd,
            "stdin": process.has_stdin, "pipe": process.pipe,
        }  # fmt: skip
        events = interpreter.start("command", request, in_background=True)
        async with contextlib.aclosing(events):
            async for event in events:
                match event:
                    case Displayed(display) if (told := display.data.get(PROCESS)) and not process.started.done():
                        self._started(process, told)
                    case Stdout(text):  # a quick command's may come before its number does
                        await process.tell({"data": {"stdout": _base64(text)}})
                    case Stderr(text):
                        await process.tell({"data": {"stderr": _base64(text)}})
                    case Done(result):
                        told = answer(result)
                        if not process.started.done():
                            raise RpcError("internal", "a helper in the sandbox ended without an answer")
                        process.end = _end(told.code)
                        await process.tell({"end": process.end})
                        return not told.left
                    case _:
                        pass
        raise RpcError("internal", "a helper in the sandbox ended without an answer")

    def _started(self, process: Process, told: str) -> None:
        """The number is a stranger's word: it only has to be nobody else's here."""
        try:
            pid = msgspec.json.decode(told, type=Started).pid
        except msgspec.DecodeError as err:
            raise RpcError("internal", "a helper in the sandbox was meddled with") from err
        if not 0 < pid < 1 << 31 or pid in self._live:
            raise RpcError("internal", "a helper in the sandbox was meddled with")
        process.pid = pid
        self._live[pid] = process
        process.started.set_result(None)

    def _too_late(self, process: Process) -> None:
        process.is_late = True
        if process.task is not None:
            process.task.cancel()  # interrupts the helper, which kills the command

    # ------------------------------------------------------------------ reading and writing

    async def updates(self, process: Process, reader: Reader) -> AsyncGenerator[Update]:
        """`start` first, `end` last. Raises RpcError where there is no end."""
        process.readers.add(reader)
        try:
            yield {"start": {"pid": process.pid}}
            while (update := await reader.queue.get()) is not None:
                yield update
            if process.is_late:
                raise RpcError("deadline_exceeded", "the command took longer than its timeout, and was killed")
            if process.end is None:
                raise process.failure or RpcError("unavailable", "the sandbox was not found")
        finally:
            process.readers.discard(reader)
            reader.leave()

    async def send(self, process: Process, data: bytes) -> None:
        """To its standard input. Raises RpcError."""
        if not process.has_stdin:
            raise RpcError("failed_precondition", "stdin is not enabled for this process")
        for at in range(0, len(data), FRAME_BYTES):
            await self._frame(process, b"i", data[at : at + FRAME_BYTES])

    async def close_stdin(self, process: Process) -> None:
        await self._frame(process, b"c", b"")

    async def signal(self, process: Process, which: str | int) -> None:
        """Raises RpcError."""
        number = SIGNALS.get(which)
        if number is None:
            raise RpcError("invalid_argument", f"unknown signal {which!r}"[:100])
        await self._frame(process, b"s", int(number).to_bytes(1))

    async def _frame(self, process: Process, kind: bytes, content: bytes) -> None:
        frame = kind + len(content).to_bytes(4) + content
        await self._helper.ask("courier", {"pipe": process.pipe, "data": base64.b64encode(frame).decode()})

    async def aclose(self) -> None:
        """The sandbox ends: nobody waits for its commands any more."""
        tasks = [one.task for one in {*self._live.values(), *self._starting} if one.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._ending:
            await asyncio.wait(self._ending)


def _end(code: int | None) -> Update:
    """As Go's os/exec tells it: a process that a signal ended has no exit code."""
    if code is None or code < 0:
        name = _signal_name(-(code or 0))
        return {"exitCode": -1, "exited": False, "status": f"signal: {name}", "error": f"signal: {name}"}
    told = {"exitCode": code, "exited": True, "status": f"exit status {code}"}
    return {**told, "error": f"exit status {code}"} if code else told


def _signal_name(number: int) -> str:
    try:
        return {9: "killed", 15: "terminated", 2: "interrupt", 11: "segmentation fault", 6: "aborted"}.get(
            number, signal.Signals(number).name
        )
    except ValueError:
        return str(number)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode("ascii")
