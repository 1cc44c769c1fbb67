"""`local()` and `alocal()`: run programs in this machine's own sandboxes, without a server."""

from typing import Any

from onetrip.asynchronous import AsyncLocal, AsyncSession
from onetrip.blocking import Local, Session
from onetrip.engine import LocalEngine
from onetrip.errors import BadRequest
from onetrip.model import Support

__all__ = ["AsyncLocal", "AsyncSession", "Local", "Session", "alocal", "local", "probe"]


def probe() -> Support:
    """What isolation this host gives, found by trying each mechanism. Starts nothing that stays."""
    return LocalEngine().support()


def alocal(**options: Any) -> AsyncLocal:
    """An engine for asynchronous programs: `async with onetrip.alocal() as ot: await ot.run("1 + 1")`. Options as for `local`."""
    return AsyncLocal(_engine(options))


def local(**options: Any) -> Local:
    """An engine in this process: `with onetrip.local() as ot: ot.run("1 + 1").text`.

    Options: `warm` sandboxes kept ready per kind (default 2), `max_live` sandboxes at once (default 2000), `cgroup_parent` below
    which control groups are made (default: found).
    """
    return Local(AsyncLocal(_engine(options)))


def _engine(options: dict[str, Any]) -> LocalEngine:
    try:
        return LocalEngine(**options)
    except TypeError as err:
        raise BadRequest(str(err).replace("LocalEngine.__init__()", "local()")) from err
