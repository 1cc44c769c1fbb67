"""Work that is not cut short when the SDK cancels a request: it is finished first, and the cancellation comes at the next await."""

from collections.abc import Generator
from contextlib import contextmanager

import anyio


@contextmanager
def whole() -> Generator[None]:
    """For work that has a deadline of its own."""
    with anyio.CancelScope(shield=True):
        yield
