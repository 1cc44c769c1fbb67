"""The wall clock of one run: it stands still while the program waits for its caller."""

import asyncio
from collections.abc import Callable


class WallClock:
    """`start` with the seconds that there are; `stand` and `go_on` in between; `on_end` when they are over; `stop` in any case."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._timer: asyncio.TimerHandle | None = None
        self._left_s = 0.0

    def start(self, seconds: float) -> None:
        self.stop()
        self._timer = self._loop.call_later(seconds, self._on_end)

    def stand(self) -> None:
        if self._timer is not None:
            self._left_s = max(0.0, self._timer.when() - self._loop.time())
            self.stop()

    def go_on(self) -> None:
        if self._timer is None:
            self.start(self._left_s)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
