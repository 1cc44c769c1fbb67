"""What has to be done from time to time: end idle sessions, make room when memory runs short, forget what is old."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from onetrip.errors import OnetripError
from onetrip.service.records import Session
from onetrip.service.runs import Runs
from onetrip.service.sessions import Sessions
from onetrip.settings import Settings
from onetrip.store import PRUNE_ROWS, Store

EVERY_S: Final = 1.0
PRUNE_EVERY_S: Final = 60.0
KEEP_ENDED_S: Final = 7 * 86_400.0  # how long we know why a session ended
KEEP_CLAIMS_S: Final = 86_400.0  # how long an idempotency key is remembered
KEEP_CALLS_S: Final = 31 * 86_400.0  # what tools answered: as long as a run may wait, and longer than a batch's idempotency key
AT_ONCE: Final = 8  # sessions ended for memory before we look again


class Janitor:
    def __init__(
        self, settings: Settings, store: Store, sessions: Sessions, runs: Runs, clock: Callable[[], float] = time.time,
        free_memory_mb: Callable[[], float] | None = None,
    ) -> None:  # fmt: skip
        self._settings, self._store, self._sessions, self._runs, self._clock = settings, store, sessions, runs, clock
        self._free_memory_mb = free_memory_mb or available_memory_mb
        self._pruned_at = 0.0

    async def work(self) -> None:
        """For ever, until it is cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self.round()

    async def round(self) -> None:
        """Once."""
        now = self._clock()
        for session in self._sessions.all():
            idle_s = now - session.last_used
            if not session.running and 0 < session.idle_timeout_s <= idle_s:
                await self._sessions.end(session, "idle", f"it was idle for {session.idle_timeout_s:g} s (idle_timeout_s)")
        if self._settings.min_free_memory_mb and self._free_memory_mb() < self._settings.min_free_memory_mb:
            for session in self._idle_longest(now)[:AT_ONCE]:
                await self._sessions.end(session, "memory", "memory ran short, and it had been idle for longest")
        await self._runs.flush()
        if now - self._pruned_at >= PRUNE_EVERY_S:
            self._pruned_at = now
            await asyncio.to_thread(self._prune, now)

    def _idle_longest(self, now: float) -> list[Session]:
        idle = [
            found for found in self._sessions.all() if not found.running and now - found.last_used >= self._settings.min_idle_s
        ]
        return sorted(idle, key=lambda found: found.last_used)

    def _prune(self, now: float) -> None:
        try:
            for prune, before in (
                (self._store.prune_runs, now - self._settings.keep_results_s),
                (self._store.prune_sessions, now - KEEP_ENDED_S),
                (self._store.prune_claims, now - KEEP_CLAIMS_S),
                (self._store.calls.prune, now - KEEP_CALLS_S),
            ):
                while prune(before) == PRUNE_ROWS:  # each takes its turn with who writes results
                    pass
        except OnetripError:
            pass  # a full disk; the next round tries again


def available_memory_mb() -> float:
    """What the kernel thinks can be had without swapping (proc_meminfo(5), MemAvailable)."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 1024
    return float("inf")
