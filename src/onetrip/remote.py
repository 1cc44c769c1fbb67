"""`connect()` and `aconnect()`: the objects of `local()` and `alocal()`, on a server."""

import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from onetrip import config
from onetrip.asynchronous import AsyncLocal
from onetrip.blocking import Local
from onetrip.errors import BadRequest, PlatformError

if TYPE_CHECKING:
    from onetrip.client.engine import RemoteEngine

DEFAULT_URL = "http://127.0.0.1:8400"


def aconnect(
    url: str | None = None,
    token: str | None = None,
    *,
    retry_s: float = 30.0,
    connect_s: float = 5.0,
    verify: ssl.SSLContext | bool = True,
    proxy: str | None = None,
) -> AsyncLocal:
    """The same as `connect`, awaited: `async with onetrip.aconnect() as ot: await ot.run("1 + 1")`."""
    return AsyncLocal(_engine(url, token, retry_s=retry_s, connect_s=connect_s, verify=verify, proxy=proxy))


def connect(
    url: str | None = None,
    token: str | None = None,
    *,
    retry_s: float = 30.0,
    connect_s: float = 5.0,
    verify: ssl.SSLContext | bool = True,
    proxy: str | None = None,
) -> Local:
    """A server: `with onetrip.connect("http://127.0.0.1:8400", token="…") as ot: ot.run("1 + 1").text`.

    `url` and `token` are those of `ONETRIP_URL` and `ONETRIP_TOKEN` if they are not given. Connects at the first call. `retry_s`: how
    long a call goes on while a server that was there is away or busy; nothing is ever run twice for it. Sessions that were opened
    without `with` live on when the client is closed; `ot.attach(id)` finds them again. Raises BadRequest.
    """
    return Local(AsyncLocal(_engine(url, token, retry_s=retry_s, connect_s=connect_s, verify=verify, proxy=proxy)))


def _engine(
    url: str | None, token: str | None, *, retry_s: float, connect_s: float, verify: ssl.SSLContext | bool, proxy: str | None
) -> "RemoteEngine":
    try:
        from onetrip.client.engine import RemoteEngine  # noqa: PLC0415 -- httpx is there only with the extra `client`
        from onetrip.client.http import Options  # noqa: PLC0415
    except ModuleNotFoundError as err:
        raise PlatformError(
            f"connect() needs the package {err.name}", hint="Install Onetrip with its extra: `pip install 'onetrip[client]'`."
        ) from err
    named_url, named_token = config.client()
    options = Options(retry_s=retry_s, connect_s=connect_s, verify=verify, proxy=proxy)
    return RemoteEngine(_checked_url(url or named_url or DEFAULT_URL), _checked_token(token or named_token), options)


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, is_good = None, False
    if parts is None or not is_good or parts.query or parts.fragment or parts.username is not None or not url.isprintable():
        raise BadRequest(
            f"url: {url[:200]!r} is not the address of a server", field="url", hint="For example http://127.0.0.1:8400."
        )
    return url.rstrip("/")


def _checked_token(token: str | None) -> str | None:
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise BadRequest("token: a key has neither spaces nor other characters than printable ASCII", field="token")
    return token
