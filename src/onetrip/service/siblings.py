"""Siblings of sessions (`onetrip.sessions`) and cells in them, for dialects whose sandboxes hold several interpreters.

A cell here is bound to its reader: when the reader leaves, it is interrupted, and its result is not saved.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

import msgspec

from onetrip import model
from onetrip.admission import Admission
from onetrip.engine import new_run_id, new_session_id
from onetrip.errors import OnetripError
from onetrip.model import Cell, Done, Event, Result
from onetrip.node import messages
from onetrip.node.client import NodeClient
from onetrip.service.nodes import Nodes
from onetrip.service.owned import Owned
from onetrip.service.records import Session
from onetrip.service.sessions import Sessions
from onetrip.store import Store
from onetrip.tenants import Caller

_event: Final = msgspec.json.Decoder(model.Started | model.Stdout | model.Stderr | model.Displayed)
_result: Final = msgspec.json.Decoder(Result)


class Siblings:
    def __init__(self, store: Store, admission: Admission, nodes: Nodes, owned: Owned, sessions: Sessions) -> None:
        self._store, self._admission, self._nodes, self._owned, self._sessions = store, admission, nodes, owned, sessions

    async def add(self, session: Session) -> str:
        """One more interpreter; its id. Raises BadRequest, Unavailable, SessionGone, PlatformError."""
        sibling_id = new_session_id()
        async with self._sessions.using(session):
            await self._owned.do(self._nodes.client.call(messages.Sibling(session.id, sibling_id)))
        return sibling_id

    async def of(self, session: Session) -> list[str]:
        """Those that were not closed."""
        found: list[str] = await self._nodes.client.call(messages.Siblings(session.id))
        return found

    async def close(self, sibling_id: str) -> None:
        with contextlib.suppress(OnetripError):  # a node that is gone has closed it
            await self._owned.do(self._nodes.client.call(messages.Close(sibling_id)))

    def keep(self, session: Session) -> None:
        """A later server is to find what is in `session.dialect` now."""
        self._owned.spawn(self._keep(session))

    async def _keep(self, session: Session) -> None:
        with contextlib.suppress(OnetripError):
            await self._nodes.client.call(messages.Keep(session.id, {**session.meta.told(), **session.dialect}))

    async def execute(
        self, caller: Caller, session: Session, sibling_id: str, cell: Cell, *, in_background: bool = False, counts: bool = False
    ) -> AsyncGenerator[Event]:
        """Run a cell in a sibling; closing early interrupts it. A slow reader slows the program.

        `in_background`: it holds no slot, as it may take as long as the session. `counts`: as a run, in the figures of usage.
        """
        session.running += 1
        try:
            slot = contextlib.nullcontext() if in_background else self._admission.run(caller, None)
            async with slot:
                client, run_id = self._nodes.client, new_run_id()
                inputs = msgspec.json.encode(cell.inputs)
                bare = msgspec.structs.replace(cell, inputs={})
                body = messages.Run(run_id, sibling_id, None, bare, {}, session.meta.told(), 0.0, inputs, followed=True)
                running = self._owned.spawn(client.run(body))
                await asyncio.sleep(0)  # so that it is on its way before anybody follows it
                done = False
                try:
                    items = client.items(messages.Follow(run_id))
                    async with contextlib.aclosing(items):
                        async for item in items:
                            if item.name == "done":
                                done = True
                                result = _result.decode(item.data)
                                self._charge(caller, result, counts=counts)
                                yield Done(result)
                            else:
                                yield _event.decode(item.data)
                finally:
                    self._owned.spawn(self._leave(client, run_id, interrupt=not done and not running.done()))
        finally:
            session.running -= 1
            self._sessions.touch(session)

    def _charge(self, caller: Caller, result: Result, *, counts: bool) -> None:
        usage = result.usage
        self._admission.charge(caller.tenant, usage.cpu_ms / 1e3)
        with contextlib.suppress(OnetripError):  # a full disk
            self._store.add_usage(
                caller.tenant, runs=int(counts), failed=int(counts and result.status != "completed"), cpu_ms=usage.cpu_ms,
                wall_ms=usage.wall_ms, output_bytes=usage.output_bytes,
            )  # fmt: skip

    async def _leave(self, client: NodeClient, run_id: str, *, interrupt: bool) -> None:
        with contextlib.suppress(OnetripError):
            if interrupt:
                await client.call(messages.Interrupt(run_id))
            client.saved([run_id])
