"""The connections to a server: one request with its deadlines, or the same again where that can do no harm."""

import asyncio
import contextlib
import math
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final

import httpx
import msgspec

from onetrip.client import core
from onetrip.client.retries import Retries
from onetrip.errors import BadRequest, NotFound, OnetripError, PlatformError, Unavailable

CONNECT_S: Final = 5.0
ANSWER_S: Final = 90.0  # for an answer to begin, and for each next piece of it
WRITE_S: Final = 60.0  # for the server to take the next piece of a request
IDLE_S: Final = 30.0  # a kept connection is used again within this; the server keeps it for longer
PIECE_BYTES: Final = 1 << 20
Body = Callable[[], AsyncIterator[bytes]]  # from its beginning, each time it is called


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`retry_s`: how long a request is asked again while a server that was there is away, or says that it is busy."""

    retry_s: float = 30.0
    connect_s: float = CONNECT_S
    verify: ssl.SSLContext | bool = True
    proxy: str | None = None


class Broken(Exception):
    """The connection could not be made, broke, or was silent for too long (`was_silent`). Never leaves the client."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause) or type(cause).__name__)
        self.was_silent = isinstance(cause, httpx.ReadTimeout)


class Link:
    """A pool of connections to one server, with its key."""

    def __init__(self, url: str, token: str | None, options: Options) -> None:
        self._url, self._options = url, options
        self._was_reached = False
        self._closed = False
        headers = {"Accept-Encoding": "identity", "User-Agent": "onetrip-python"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._client = httpx.AsyncClient(
            headers=headers,
            # No ceiling: each running cell holds a connection, and an interrupt must not wait for one of them.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=IDLE_S),
            verify=options.verify if url.startswith("https:") else False,  # a context of certificates takes 20 ms
            proxy=options.proxy,
            trust_env=False,  # `config` is the only reader of variables; a proxy is an option of `connect`
        )

    async def ask(
        self,
        ask: core.Ask,
        *,
        answer_s: float = ANSWER_S,
        retry_s: float = math.inf,
        content: Body | None = None,
        is_repeatable: bool = True,
    ) -> bytes:
        """The body of the answer. Raises what the server says, or Unavailable. A repeated DELETE that finds nothing has succeeded."""
        retries, began = Retries(min(retry_s, self._options.retry_s)), time.monotonic()
        while True:
            try:
                async with self.begin(ask, answer_s=answer_s, content=content) as response:
                    return await response.aread()
            except Broken as err:
                pause = self.pause_after(err, retries, began) if is_repeatable else None
                if pause is None:
                    raise self.unreachable(err) from err
            except OnetripError as err:
                if isinstance(err, NotFound) and ask.method == "DELETE" and retries.made:
                    return b""
                pause = retries.after_refusal(err, time.monotonic() - began) if is_repeatable else None
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    def pause_after(self, _err: Broken, retries: Retries, since: float) -> float | None:
        return retries.after_break(time.monotonic() - since, was_reached=self._was_reached)

    def unreachable(self, err: Broken) -> Unavailable:
        return Unavailable(
            f"the server at {self._url} cannot be reached: {err}",
            hint="Is it running (`onetrip serve`), and is the address right? What was begun goes on there.",
        )

    @contextlib.asynccontextmanager
    async def begin(
        self, ask: core.Ask, *, answer_s: float = ANSWER_S, content: Body | None = None
    ) -> AsyncGenerator[httpx.Response]:
        """One attempt: the answer, its body still to come. Raises what the server says, and Broken also while the body is read."""
        if self._closed:
            raise PlatformError("this client is closed", hint="Open another with `onetrip.connect()`.")
        deadlines = httpx.Timeout(connect=self._options.connect_s, read=answer_s, write=WRITE_S, pool=None)
        headers = ask.all_headers()
        body: bytes | AsyncIterator[bytes] | None = content() if content is not None else ask.body
        if isinstance(body, bytes) and len(body) > PIECE_BYTES:  # the deadline is for a piece
            headers["Content-Length"] = str(len(body))
            body = _pieces(body)
        try:
            request = self._client.build_request(
                ask.method, f"{self._url}/{ask.path}", content=body, headers=headers, timeout=deadlines
            )
            response = await self._client.send(request, stream=True)
            try:
                self._was_reached = True
                if not response.is_success:
                    raise core.error(response.status_code, response.headers, await response.aread())
                yield response
            finally:
                await response.aclose()
        except httpx.TransportError as err:
            raise Broken(err) from err
        except httpx.InvalidURL as err:
            raise BadRequest(f"the request cannot be sent: {err}") from err

    async def aclose(self) -> None:
        self._closed = True
        await self._client.aclose()


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    view = memoryview(data)
    for at in range(0, len(view), PIECE_BYTES):
        yield bytes(view[at : at + PIECE_BYTES])
