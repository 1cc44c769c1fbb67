"""Keeps a node at hand: connects to the one that is there, starts one, and starts another when it died."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from onetrip.errors import OnetripError, Unavailable
from onetrip.model import Level
from onetrip.node import messages
from onetrip.node.client import NodeClient
from onetrip.node.daemon import Config

BACKOFF_S: Final = (0.0, 0.2, 1.0, 5.0)  # before each attempt to start a node; the last one again and again
START_S: Final = 120.0  # for the environment to be warmed up


class Nodes:
    """`client` speaks to the node of now. `on_lost` is called when it has died, before another one is started."""

    def __init__(self, folder: Path, config: Config, environ: Mapping[str, str], environment: str, floor: Level) -> None:
        self._folder, self._config, self._environ = folder, config, environ
        self._environment = environment
        self._floor: Level = floor
        self._client: NodeClient | None = None
        self._restarting: asyncio.Task[None] | None = None
        self.on_lost: Callable[[], None] = lambda: None
        self.on_asked: Callable[[messages.Asked | messages.Unasked], None] = lambda _: None
        self.restarts = 0
        self.ready: str | None = "the node is being started"  # None: it is ready to run; else why not

    @property
    def client(self) -> NodeClient:
        """Raises Unavailable while there is none."""
        if self._client is None:
            raise Unavailable("the sandboxes' process died and is being started again", retry_after_s=1.0)
        return self._client

    async def start(self) -> messages.Described:
        """Connect, or start one. What it holds already is what is to be adopted. Raises Unavailable."""
        client = self._client = await NodeClient.connect(self._folder, self._config, self._environ)
        client.on_lost = self._lost
        client.on_asked = self.on_asked  # what came before is in what it holds
        described = await client.describe()
        if described is None:
            raise Unavailable("the sandboxes' process does not answer", hint=f"{self._folder / 'node.log'} may say why.")
        return described

    async def warm_up(self) -> None:
        """Until the environment is ready. What stands in the way is in `ready`, and is told to each run."""
        try:
            await self.client.call(messages.Start(self._environment, self._floor), timeout_s=START_S)
            self.ready = None
        except OnetripError as err:
            self.ready = f"{err} ({err.hint})"

    async def aclose(self, *, leave: bool) -> None:
        """End the node and everything in it, or leave it to the next server."""
        if self._restarting is not None:
            self._restarting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._restarting
        client, self._client = self._client, None
        if client is None:
            return
        if leave:
            client.close()
        else:
            await client.quit()

    def _lost(self) -> None:
        self._client, self.ready = None, "the sandboxes' process died and is being started again"
        self.on_lost()
        self._restarting = asyncio.create_task(self._restart())

    async def _restart(self) -> None:
        attempt = 0
        while True:
            await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
            attempt += 1
            try:
                await self.start()
            except OnetripError as err:
                self.ready = f"{err} ({err.hint})"
                continue
            self.restarts += 1
            await self.warm_up()
            return
