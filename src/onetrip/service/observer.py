"""Who wants to know what happens to sessions and runs, such as telemetry."""

from typing import Protocol

from onetrip.errors import OnetripError
from onetrip.service.records import Facts, Run, Session


class Observer(Protocol):
    """Called on the event loop; must be quick, and not raise."""

    def run_finished(self, run: Run, facts: Facts) -> None: ...
    def run_failed(self, run: Run, error: OnetripError) -> None: ...
    def session_opened(self, session: Session) -> None: ...
    def session_ended(self, session: Session, reason: str) -> None: ...


class Nobody:
    """Does not want to know."""

    def run_finished(self, run: Run, facts: Facts) -> None:
        pass

    def run_failed(self, run: Run, error: OnetripError) -> None:
        pass

    def session_opened(self, session: Session) -> None:
        pass

    def session_ended(self, session: Session, reason: str) -> None:
        pass
