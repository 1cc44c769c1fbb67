"""Whether and when to ask again: pure arithmetic over what happened. No I/O, no clock.

Asked again is only what can do no harm: a request that never reached the server, one that it refused before it began, and one that is the
same when done twice. Everything that creates or runs carries an idempotency key, which makes it so.
"""

from typing import Final

import msgspec

from onetrip.errors import OnetripError, Overloaded, QuotaExceeded, Unavailable

FIRST_S: Final = 0.05
LONGEST_S: Final = 2.0
_REFUSED: Final = frozenset({Unavailable.code, Overloaded.code, QuotaExceeded.code})


class Retries(msgspec.Struct):
    """For one request. `budget_s`: how long after its beginning it may begin again."""

    budget_s: float
    made: int = 0

    def after_break(self, spent_s: float, *, was_reached: bool) -> float | None:
        """Seconds to wait after a connection that failed or broke; None: give up.

        `was_reached`: this server has answered before. One that never did is more likely a wrong address than one that is being
        started again.
        """
        if not was_reached:
            return None
        return self._next(min(FIRST_S * 2**self.made, LONGEST_S), spent_s)

    def after_refusal(self, error: OnetripError, spent_s: float) -> float | None:
        """The same after an answer that says to come back."""
        if error.code not in _REFUSED or error.retry_after_s is None:
            return None
        return self._next(max(error.retry_after_s, FIRST_S), spent_s)

    def progressed(self) -> None:
        """What comes after counts as new, as long as it is the same request's budget."""
        self.made = 0

    def _next(self, pause_s: float, spent_s: float) -> float | None:
        if spent_s + pause_s > self.budget_s:
            return None
        self.made += 1
        return pause_s
