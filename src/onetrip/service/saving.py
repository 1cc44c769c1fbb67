"""Results on their way to the database: many in one transaction, a moment after they were given to whoever waited.

Nothing is lost meanwhile: the node keeps a result until it hears that it is saved, and the next server finds it there. A disk that is
full only makes the moment longer.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from onetrip.errors import Unavailable
from onetrip.store import Store
from onetrip.store_schema import RunRow, Used

FLUSH_S: Final = 0.05
FLUSH_BYTES: Final = 8 << 20
MAX_ROWS: Final = 500  # of one transaction, during which nobody else writes


class Saver:
    """`put` results; `on_saved` gets the ids of those that are in the database, `on_failure` why they are not, once per attempt."""

    def __init__(
        self, store: Store, on_saved: Callable[[Sequence[str]], None], on_failure: Callable[[Unavailable], None]
    ) -> None:
        self._store, self._on_saved, self._on_failure = store, on_saved, on_failure
        self._waiting: list[tuple[RunRow, Used]] = []
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._saving = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def put(self, row: RunRow, used: Used) -> None:
        """Save it soon."""
        self._waiting.append((row, used))
        self._bytes += len(row.result or b"")
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._begin)
        elif self._bytes > FLUSH_BYTES:
            self._begin()

    async def flush(self) -> None:
        """Save all that is here; what a full disk does not take stays. To be called now and then, and at the end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        async with self._saving:
            while self._waiting:
                batch = self._waiting[:MAX_ROWS]
                try:
                    await asyncio.to_thread(self._store.save_runs, batch)
                except Unavailable as err:
                    self._on_failure(err)
                    return
                del self._waiting[: len(batch)]
                self._bytes = sum(len(row.result or b"") for row, _ in self._waiting)
                self._on_saved([row.id for row, _ in batch])

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self.flush())
