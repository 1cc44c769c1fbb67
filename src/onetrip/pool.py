"""Warm sandboxes: launched and ready before anybody asks, so that a run does not wait for a fork.

A sandbox from the pool has run no user code; once handed out it never comes back. What is handed out is replaced in the
background; how many are kept follows how fast they were asked for lately.
"""

import asyncio
import collections
import os
import secrets
import time
from collections.abc import Coroutine
from typing import Any, Final

from onetrip.errors import OnetripError, Overloaded, SandboxFailed
from onetrip.model import Limits
from onetrip.tiers.base import Donation, LaunchSpec, SandboxDied, Tier
from onetrip.worker import Worker

Key = tuple[str, str]  # environment, node
MAX_WARM: Final = 16  # per key
LOOK_AHEAD_S: Final = 0.02  # keep as many as were asked for in this time: about what a refill takes
REFILL_DELAY_S: Final = 0.003
FORGET_S: Final = 60.0  # a key nobody asked for in this long keeps only its base number


class Pool:
    """`acquire` hands out a ready worker, which the caller then owns and closes."""

    def __init__(self, tier: Tier, *, warm: int, max_live: int) -> None:
        self._tier = tier
        self._warm, self._max_live = warm, max_live
        self._idle: dict[Key, collections.deque[Worker]] = {}
        self._wanted: dict[Key, int] = {}
        self._asked: dict[Key, collections.deque[float]] = {}
        self._filling: collections.Counter[Key] = collections.Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.live = 0
        # As many launches at once as there are CPUs to make them; more only wait on each other inside the kernel.
        self._launching = asyncio.Semaphore(max(2, os.cpu_count() or 2))
        self._defaults = Limits()

    async def acquire(self, key: Key, limits: Limits) -> Worker:
        """A worker that is ready and not yet greeted. Raises Overloaded, SandboxFailed, UnknownEnvironment.

        From the pool when one is there and the size of the disk, which is fixed at the launch, is the default one.
        """
        if limits.disk_mb == self._defaults.disk_mb:
            self._note_demand(key)
            idle = self._idle.get(key)
            worker: Worker | None = None
            while idle and worker is None:
                worker = idle.popleft()
                if worker.ended is not None:
                    self._spawn(self.discard(worker))
                    worker = None
            if worker is not None:
                # Its successor is made a moment later, so that the run which waits now has the CPUs to itself.
                asyncio.get_running_loop().call_later(REFILL_DELAY_S, self._refill, key)
                return worker
        if self.live >= self._max_live and not await self._give_up_idle():
            raise Overloaded(f"{self.live} sandboxes are live, which is the limit")
        worker = await self._launch(key, limits)
        self._refill(key)
        return worker

    async def branch(self, origin: Worker, limits: Limits, *, asleep: int) -> tuple[Worker, Donation]:
        """A worker beside another one's, for a branch of its session; the caller owns both. Raises Overloaded, SandboxFailed."""
        if self.live >= self._max_live and not await self._give_up_idle():
            raise Overloaded(f"{self.live} sandboxes are live, which is the limit")
        spec = LaunchSpec(id=secrets.token_hex(8), environment="", node=origin.sandbox.node, limits=limits, asleep=asleep)
        sandbox, donation = await self._tier.branch(origin.sandbox, spec)
        self.live += 1
        return Worker(sandbox), donation

    def sibling(self, origin: Worker, limits: Limits, *, spawner: int) -> tuple[Worker, Donation]:
        """A worker for one more interpreter in another one's sandbox; the caller owns both. Raises Overloaded."""
        if self.live >= self._max_live:
            raise Overloaded(f"{self.live} sandboxes are live, which is the limit")
        spec = LaunchSpec(id=secrets.token_hex(8), environment="", node=origin.sandbox.node, limits=limits)
        sandbox, donation = self._tier.sibling(origin.sandbox, spec, spawner=spawner)
        self.live += 1
        return Worker(sandbox), donation

    async def open_to_siblings(self, worker: Worker) -> None:
        """See `Tier.open_to_siblings`."""
        await self._tier.open_to_siblings(worker.sandbox)

    @property
    def idle(self) -> int:
        """Sandboxes that are ready and wait for a program."""
        return sum(map(len, self._idle.values()))

    def prepare(self, key: Key) -> None:
        """Keep the base number of this kind from now on."""
        self._wanted.setdefault(key, self._warm)
        self._refill(key)

    async def discard(self, worker: Worker) -> None:
        """Close a worker that came from here, whatever state it is in."""
        try:
            await worker.aclose()
        finally:
            self.live -= 1

    def discard_soon(self, worker: Worker) -> None:
        """The same, without waiting for it. `aclose` of the pool waits."""
        self._spawn(self.discard(worker))

    async def _launch(self, key: Key, limits: Limits) -> Worker:
        self.live += 1
        try:
            async with self._launching:
                spec = LaunchSpec(id=secrets.token_hex(8), environment=key[0], node=key[1], limits=limits)
                worker = Worker(await self._tier.launch(spec))
                try:
                    await worker.start()
                except OSError as err:
                    await worker.aclose()
                    if isinstance(err, ProcessLookupError | FileNotFoundError):
                        raise SandboxDied("its process ended before it was looked at") from err
                    raise SandboxFailed(
                        f"a new sandbox cannot be looked at: {err.strerror}",
                        hint="Raise the limit (`ulimit -n`), or close sessions.",
                    ) from err
                except BaseException:
                    await worker.aclose()
                    raise
                return worker
        except BaseException:
            self.live -= 1
            raise

    async def _give_up_idle(self) -> bool:
        """Close one sandbox that waits for a program of another kind. False when there is none."""
        for idle in self._idle.values():
            if idle:
                await self.discard(idle.popleft())
                return True
        return False

    def _note_demand(self, key: Key) -> None:
        now = time.monotonic()
        asked = self._asked.setdefault(key, collections.deque(maxlen=64))
        asked.append(now)
        rate = (len(asked) - 1) / max(now - asked[0], 0.001) if len(asked) > 1 else 0.0
        recent = now - asked[0] < FORGET_S
        ahead = int(rate * LOOK_AHEAD_S) if recent else 0
        self._wanted[key] = min(MAX_WARM, self._warm + ahead)

    def _refill(self, key: Key) -> None:
        missing = self._wanted.get(key, 0) - len(self._idle.get(key, ())) - self._filling[key]
        for _ in range(missing):
            if self._closed or self.live >= self._max_live:
                return
            self._filling[key] += 1
            self._spawn(self._fill(key))

    async def _fill(self, key: Key) -> None:
        try:
            await self._tier.wait_ready(*key)
            if self.live >= self._max_live:  # others came first meanwhile
                return
            worker = await self._launch(key, self._defaults)
        except OnetripError:
            return  # whoever asks next launches for himself and gets the reason
        finally:
            self._filling[key] -= 1
        if self._closed:
            await self.discard(worker)
        else:
            self._idle.setdefault(key, collections.deque()).append(worker)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Close every idle sandbox and wait for those that are being closed."""
        self._closed = True
        for idle in self._idle.values():
            while idle:
                self._spawn(self.discard(idle.popleft()))
        while self._tasks:
            await asyncio.wait(self._tasks)
