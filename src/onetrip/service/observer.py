"""Who wants to know what happens to sessions and runs, such as telemetry."""

from typing import Literal, Protocol

from onetrip.errors import OnetripError
from onetrip.model import ToolAnswer, ToolRequest
from onetrip.service.records import Facts, Run, Session

EndKind = Literal["closed", "idle", "memory", "lost", "drained"]


class Observer(Protocol):
    """Called on the event loop; must be quick, and not raise."""

    def run_began(self, run: Run, code: str) -> None:
        """In the context of the request that asked for it. One of the next two follows."""
        ...

    def run_finished(self, run: Run, facts: Facts, data: bytes) -> None: ...
    def tool_called(self, request: ToolRequest, answer: ToolAnswer, seconds: float) -> None:
        """A server tool answered, or failed to."""
        ...

    def answers_refused(self, run_id: str, error: OnetripError) -> None:
        """Somebody answered calls that do not wait, or in a way that cannot be."""
        ...

    def run_failed(self, run: Run, error: OnetripError) -> None: ...
    def not_saved(self, error: OnetripError) -> None:
        """A result could not be written to the database."""
        ...

    def session_opened(self, session: Session) -> None: ...
    def session_ended(self, session: Session, kind: "EndKind", reason: str) -> None: ...
