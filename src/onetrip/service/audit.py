"""Who did what: lines of the audit log for what is made, ended and refused, with the request that asked for it.

What is done is written each time. Refusals are written at a bounded rate, for whoever floods us with requests could else fill the disk;
how many are missing is said in the next line.
"""

import contextlib
import time
from collections.abc import Callable, Generator
from typing import Final

from onetrip.errors import OnetripError, Unavailable
from onetrip.store import Store
from onetrip.telemetry import current
from onetrip.tenants import Caller

BURST: Final = 50.0  # refusals of one kind and tenant that are written at once,
PER_S: Final = 1.0  # and in the long run
STRANGER: Final = ""  # tenant and key of who has none


class Audit:
    """`on_missed` is told of a line that could not be written, as on a full disk; what it was about goes on."""

    def __init__(
        self, store: Store, on_missed: Callable[[OnetripError], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._on_missed, self._clock = store, on_missed, clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def done(self, tenant: str, key: str, action: str, target: str, *, outcome: str = "ok", detail: str = "") -> None:
        request = current()
        try:
            self._store.record(
                action, tenant=tenant, key=key, target=target, outcome=outcome, detail=detail,
                request_id="" if request is None else request.request_id,
            )  # fmt: skip
        except Unavailable as err:
            self._on_missed(err)

    def refused(self, caller: Caller | None, action: str, target: str, error: OnetripError) -> None:
        tenant, key = (STRANGER, STRANGER) if caller is None else (caller.tenant, caller.key_id)
        missing = self._buckets.setdefault((tenant, error.code), _Bucket()).take(self._clock())
        if missing is not None:
            detail = f"{error} (and {missing} more like it before, which were not written)" if missing else str(error)
            self.done(tenant, key, action, target, outcome=error.code, detail=detail)

    @contextlib.contextmanager
    def action(self, caller: Caller, action: str, target: str) -> Generator[None]:
        """What is done inside is written, with how it ended."""
        try:
            yield
        except OnetripError as err:
            self.refused(caller, action, target, err)
            raise
        self.done(caller.tenant, caller.key_id, action, target)


class _Bucket:
    def __init__(self) -> None:
        self._tokens, self._filled_at = BURST, 0.0
        self._missing = 0

    def take(self, now: float) -> int | None:
        """How many were not written before this one; None: nor is this one."""
        self._tokens = min(BURST, self._tokens + max(0.0, now - self._filled_at) * PER_S)
        self._filled_at = now
        if self._tokens < 1:
            self._missing += 1
            return None
        self._tokens -= 1
        missing, self._missing = self._missing, 0
        return missing
