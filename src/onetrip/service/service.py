"""The application as one object: what starts, serves, drains and ends together."""

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from onetrip.admission import Admission
from onetrip.errors import OnetripError, Unauthorized, Unavailable
from onetrip.model import Support
from onetrip.node import messages
from onetrip.node.client import SOCKET
from onetrip.node.daemon import Config
from onetrip.service.audit import Audit
from onetrip.service.batches import Batches
from onetrip.service.janitor import Janitor
from onetrip.service.nodes import Nodes
from onetrip.service.observer import Observer
from onetrip.service.owned import Owned
from onetrip.service.runs import Runs
from onetrip.service.sessions import Sessions
from onetrip.service.siblings import Siblings
from onetrip.service.toolcalls import ToolCalls
from onetrip.settings import Role, Settings
from onetrip.store import Store
from onetrip.tenants import Caller, Tenants
from onetrip.tools import Toolbox

LOST: Final = "the process that held it died"


class Service:
    """`start` before anything else; `drain` and `aclose` at the end. Everything is used on one event loop."""

    def __init__(
        self, settings: Settings, store: Store, tenants: Tenants, folder: Path, environ: Mapping[str, str], observer: Observer,
        *, toolbox: Toolbox | None = None, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.settings, self.store, self.tenants = settings, store, tenants
        self.admission = Admission(settings, tenants.quota, store.cpu_s_today)
        config = Config(str(folder / SOCKET), settings.lease_s, settings.warm, settings.max_sessions + 64)
        self.nodes = Nodes(folder, config, environ, settings.environment, settings.isolation_floor)
        self.nodes.on_lost = self._node_lost
        self._owned = Owned()
        self._observer = observer
        self.audit = Audit(store, observer.not_saved)
        self.tools = ToolCalls(toolbox, store, self.nodes, self._owned, observer)
        self.nodes.on_asked = self.tools.heard
        self.sessions = Sessions(
            settings, store, self.admission, self.nodes, observer, self.audit, self._owned, self.tools, clock
        )
        self.runs = Runs(
            settings, store, self.admission, self.nodes, observer, self.audit, self._owned, self.sessions, self.tools, clock
        )
        self.batches = Batches(self.runs, self.tools, store)
        self.siblings = Siblings(store, self.admission, self.nodes, self._owned, self.sessions)
        self._janitor = Janitor(settings, store, self.sessions, self.runs, clock)
        self._support: Support | None = None
        self.draining = False

    async def start(self) -> bool:
        """Take over what a server before us left, or begin anew; True if there was something. Raises Unavailable."""
        described = await self.nodes.start()
        self.sessions.adopt(described)
        self.runs.adopt(described)
        self.tools.adopt(described)
        self._owned.spawn(self.nodes.warm_up())
        self._owned.spawn(self._janitor.work())
        return bool(described.sessions or described.runs)

    @property
    def not_ready(self) -> str | None:
        """Why nothing new can be begun now; None when it can."""
        return "the server is being stopped" if self.draining else self.nodes.ready

    def refuse_when_draining(self) -> None:
        """Before anything new is begun. Raises Unavailable."""
        if self.draining:
            raise Unavailable(
                "the server is being stopped", hint="Ask another one, or this one when it is back.", retry_after_s=5.0
            )

    def admit(self, token: str | None, role: Role, action: str) -> Caller:
        """Who calls, with at least this role; counts the request. Raises Unauthorized, Forbidden, QuotaExceeded, which are audited."""
        caller = None
        try:
            if token is None:
                raise Unauthorized("there is no key in this request")
            caller = self.tenants.authenticate(token)
            self.admission.request(caller)
            self.tenants.require(caller, role)
        except OnetripError as err:
            self.audit.refused(caller, action, "", err)
            raise
        return caller

    def count(self, caller: Caller, *, bytes_in: int = 0, bytes_out: int = 0) -> None:
        """Bytes of files that went over the network; on a full disk they are not counted."""
        try:
            self.store.add_usage(caller.tenant, bytes_in=bytes_in, bytes_out=bytes_out)
        except Unavailable as err:
            self._observer.not_saved(err)

    async def support(self) -> Support:
        """What isolation this host gives; found once."""
        if self._support is None:
            self._support = msgspec.convert(await self.nodes.client.call(messages.Support()), Support)
        return self._support

    async def statistics(self) -> messages.Statistics | None:
        """Of the node; None while there is none."""
        try:
            return msgspec.convert(await self.nodes.client.call(messages.Stats()), messages.Statistics)
        except OnetripError:
            return None

    async def drain(self, timeout_s: float) -> int:
        """Refuse what is new, and wait for what is on its way; whoever waits for more than that is told. How many runs were not done in time."""
        self.draining = True
        waiting = [
            run.outcome for run in self.runs.unfinished() if run.so_far is None
        ]  # who waits for its caller may do so for hours
        if not waiting:
            return 0
        try:
            _, late = await asyncio.wait(waiting, timeout=timeout_s)
        finally:
            self.runs.give_up()
        return len(late)

    async def aclose(self, *, leave: bool = False) -> None:
        """End every session, or (`leave`) let them live on for the next server."""
        self.draining = True
        if not leave:
            for session in self.sessions.all():
                self.sessions.forget(session, "drained", "the server was stopped")
        await self.nodes.aclose(leave=leave)
        await self._owned.aclose()
        await self.runs.flush()

    def _node_lost(self) -> None:
        for session in self.sessions.all():
            self.sessions.forget(session, "lost", LOST)
