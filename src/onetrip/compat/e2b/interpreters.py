"""One interpreter of a sandbox: cells of a client in it, and programs of ours (`programs`) with what they answer."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from onetrip import model
from onetrip.compat.e2b import programs
from onetrip.compat.e2b.connect import RpcError
from onetrip.compat.e2b.shapes import Answer
from onetrip.errors import OnetripError, SessionGone
from onetrip.model import Cell, Displayed, Done, Event, Result
from onetrip.schema import CellRequest
from onetrip.service.records import Session
from onetrip.service.service import Service
from onetrip.tenants import Caller

BYTES: Final = "application/octet-stream"  # what a program displays it as
ASK_S: Final = 60.0  # for a helper program; a deep listing of a full disk takes a second
_event: Final = msgspec.json.Decoder(model.Started | model.Stdout | model.Stderr | model.Displayed)
_result: Final = msgspec.json.Decoder(Result)


@dataclass(eq=False, slots=True)
class Interpreter:
    """`sibling_id` None: the session's own."""

    service: Service
    caller: Caller
    session: Session
    sibling_id: str | None

    @classmethod
    async def make(cls, service: Service, caller: Caller, session: Session) -> "Interpreter":
        """A new one beside the session's own. Raises OnetripError."""
        return cls(service, caller, session, await service.siblings.add(session))

    async def execute(self, code: str) -> AsyncGenerator[Event]:
        """Run a client's code; closing early interrupts it. Raises OnetripError; a program that fails is an event."""
        if self.sibling_id is not None:
            events = self.service.siblings.execute(self.caller, self.session, self.sibling_id, Cell(code=code), counts=True)
            async with contextlib.aclosing(events):
                async for event in events:
                    yield event
            return
        run = self.service.runs.begin_cell(self.caller, self.session.id, CellRequest(code=code, stream=True))
        done = False
        try:
            items = self.service.runs.events(self.caller, run.id)
            async with contextlib.aclosing(items):
                async for item in items:
                    done = item.name == "done"
                    yield Done(_result.decode(item.data)) if done else _event.decode(item.data)
        finally:
            if not done:
                await self._interrupt(run.id)

    async def _interrupt(self, run_id: str) -> None:
        with contextlib.suppress(OnetripError):
            await asyncio.shield(self.service.runs.interrupt(self.caller, run_id))

    def start(self, name: programs.Name, request: dict[str, Any], *, in_background: bool = False) -> AsyncGenerator[Event]:
        """Run a program of ours. Only in a sibling: no client's code is there."""
        assert self.sibling_id is not None
        variable = "__e2b_request__" if name == "setup" else "request"
        cell = Cell(code=programs.text(name), inputs={variable: request})
        return self.service.siblings.execute(self.caller, self.session, self.sibling_id, cell, in_background=in_background)

    async def ask(self, name: programs.Name, request: dict[str, Any]) -> tuple[Answer, bytes]:
        """Run a program of ours to its end: what it answers, and the bytes that it displayed. Raises RpcError for an error that it tells."""
        shown: list[bytes] = []
        if self.sibling_id is None:
            text = programs.text(name)
            events = _with_inputs(self, text, {"__e2b_request__": request})
        else:
            events = self.start(name, request)
        try:
            async with asyncio.timeout(ASK_S), contextlib.aclosing(events):
                async for event in events:
                    if isinstance(event, Displayed) and (content := event.display.data.get(BYTES)):
                        shown.append(base64.b64decode(content))
                    elif isinstance(event, Done):
                        return answer(event.result), b"".join(shown)
        except TimeoutError as err:
            raise RpcError("deadline_exceeded", f"a helper in the sandbox did not answer within {ASK_S:.0f} s") from err
        raise RpcError("internal", "a helper in the sandbox ended without an answer")

    async def close(self) -> None:
        if self.sibling_id is not None:
            await self.service.siblings.close(self.sibling_id)


async def _with_inputs(interpreter: Interpreter, code: str, inputs: dict[str, Any]) -> AsyncGenerator[Event]:
    run = interpreter.service.runs.begin_cell(interpreter.caller, interpreter.session.id, CellRequest(code=code, inputs=inputs))
    yield Done(_result.decode(await run.wait()))


def answer(result: Result) -> Answer:
    """What a program of ours answered. Raises RpcError when it says that it could not, SessionGone when it was killed."""
    if not result.session.survived:
        raise SessionGone(f"a helper in the sandbox ended: {result.session.note}")
    if result.status != "completed":
        told = result.error.message if result.error is not None else result.status
        code = "resource_exhausted" if result.limit is not None else "internal"
        raise RpcError(code, f"a helper in the sandbox failed: {told}")
    try:
        told = msgspec.convert(result.value, Answer)
    except msgspec.ValidationError as err:
        raise RpcError("internal", f"a helper in the sandbox was meddled with: {err}") from err
    if told.error is not None:
        raise RpcError(told.error, told.message)
    return told


class Helper:
    """The interpreter that does what a client asks of files, and carries input to commands. Made when first needed, and again when killed."""

    def __init__(self, service: Service, caller: Caller, session: Session) -> None:
        self._service, self._caller, self._session = service, caller, session
        self._made: Interpreter | None = None
        self._making = asyncio.Lock()

    async def ask(self, name: programs.Name, request: dict[str, Any]) -> tuple[Answer, bytes]:
        """See `Interpreter.ask`. One that was killed meanwhile is replaced, for the next who asks."""
        async with self._making:
            if self._made is None:
                self._made = await Interpreter.make(self._service, self._caller, self._session)
            interpreter = self._made
        try:
            return await interpreter.ask(name, request)
        except SessionGone as err:
            if self._made is interpreter:
                self._made = None
                await interpreter.close()
            raise RpcError("unavailable", f"a helper in the sandbox was killed: {err}") from err
