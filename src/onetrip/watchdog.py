"""Watches what a sandbox uses, while a cell runs and between cells: what no timer and no limit of the kernel's tells us.

Where control groups hold the memory, only CPU time is watched; elsewhere memory is sampled, too, and a burst between two samples
passes unseen. Between cells the program's threads and children go on; they get no more than a cell does.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from onetrip.model import LimitName, Limits
from onetrip.tiers.base import Reading, Sandbox

TICK_S: Final = 0.05  # a short cell never sees one
IDLE_TICK_S: Final = 0.1
WAITING_TICK_S: Final = (
    1.0  # while a program waits for the caller; what it may use in between is no more than CPU limit and quota give
)
FRESH_S: Final = 0.005  # a reading this young still says what was used before the next cell
PEAK_SLACK_BYTES: Final = 1 << 20  # a peak this near to what is in use now need not be reset
_MIB: Final = 1 << 20


class Watchdog:
    """One per worker. `on_limit` gets the limit and whether to kill at once, perhaps more than once; `on_idle` the reason, once."""

    def __init__(self, sandbox: Sandbox, *, on_limit: Callable[[LimitName, bool], None], on_idle: Callable[[str], None]) -> None:
        self._sandbox = sandbox
        self._loop = asyncio.get_running_loop()
        self._on_limit, self._on_idle = on_limit, on_idle
        self._timer: asyncio.TimerHandle | None = None
        self._last = Reading(0, 0, 0)
        self._read_at = 0.0
        self.before = self._last
        self.peak_bytes = 0
        self._tick_s = TICK_S

    def begin(self, limits: Limits) -> None:
        """A cell starts; `before` is what was used until now."""
        self.stop()
        if time.monotonic() - self._read_at > FRESH_S:
            self._read()
        if self._last.peak_memory_bytes > self._last.memory_bytes + PEAK_SLACK_BYTES:
            self._sandbox.reset_peak()
        self.before, self.peak_bytes = self._last, 0
        self._tick_s = TICK_S
        self._timer = self._loop.call_later(TICK_S, self._watch, limits)

    def look(self) -> Reading:
        """What was used until now, in the middle of a cell."""
        now = self._read()
        self.peak_bytes = max(self.peak_bytes, now.peak_memory_bytes)
        return now

    def wait(self, limits: Limits, *, waiting: bool) -> None:
        """The program begins, or ceases, to wait: one that does nothing need not be looked at as often."""
        self.stop()
        self._tick_s = WAITING_TICK_S if waiting else TICK_S
        self._timer = self._loop.call_later(self._tick_s, self._watch, limits)

    def end(self) -> Reading:
        """The cell is over; what was used until now."""
        self.stop()
        return self.look()

    def rest(self, limits: Limits) -> None:
        """From the end of a cell to the next."""
        self._timer = self._loop.call_later(IDLE_TICK_S, self._watch_idle, limits)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _read(self) -> Reading:
        self._last, self._read_at = self._sandbox.read_usage(), time.monotonic()
        return self._last

    def _watch(self, limits: Limits) -> None:
        now = self._sandbox.read_usage()
        self.peak_bytes = max(self.peak_bytes, now.peak_memory_bytes)
        self._timer = self._loop.call_later(self._tick_s, self._watch, limits)
        if now.cpu_us - self.before.cpu_us > limits.cpu_s * 1e6:
            self._on_limit("cpu", False)
        if now.oom_kills > self.before.oom_kills:
            self._on_limit("memory", False)  # the kernel chose one process of many; those that wait for it would wait for ever
        if self._over_memory(now, limits):
            self._on_limit("memory", True)
        if self._sandbox.read_disk() > limits.disk_mb * _MIB:
            self._on_limit("disk", True)

    def _watch_idle(self, limits: Limits) -> None:
        now = self._sandbox.read_usage()
        if now.cpu_us - self._last.cpu_us > limits.cpu_s * 1e6:
            self._on_idle(f"between cells it used more than the cpu limit of {limits.cpu_s:g} s")
        elif self._over_memory(now, limits):
            self._on_idle(f"between cells it went over the memory limit of {limits.memory_mb} MB")
        elif self._sandbox.read_disk() > limits.disk_mb * _MIB:
            self._on_idle(f"between cells it went over the disk limit of {limits.disk_mb} MB")
        else:
            self._timer = self._loop.call_later(IDLE_TICK_S, self._watch_idle, limits)

    def _over_memory(self, now: Reading, limits: Limits) -> bool:
        return not self._sandbox.hard_memory and now.memory_bytes > limits.memory_mb * _MIB
