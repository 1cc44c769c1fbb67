"""The server's process: one data folder, one listening socket, one service; from the first bind to the last clean-up.

SIGTERM drains: what is new is refused, what is on its way is finished, then everything ends (or, with `keep_sessions`, sessions live on
for the next server). SIGINT does the same at once; a second signal does not wait. SIGKILL loses nothing either: see `node`.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Generator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn
from starlette.types import ASGIApp

from onetrip import store
from onetrip.api.app import create_app, guarded
from onetrip.api.guard import is_loopback
from onetrip.compat import e2b
from onetrip.errors import BadRequest, Unavailable
from onetrip.http_protocol import protocol
from onetrip.mcp_server import http as mcp
from onetrip.observing import Observing
from onetrip.service.service import Service
from onetrip.settings import Settings
from onetrip.store import Store
from onetrip.telemetry import Telemetry, TelemetryMiddleware, logs
from onetrip.tenants import Tenants
from onetrip.tools.loading import load_toolbox

CLOSE_S: Final = 5.0  # for connections to take what they were sent
BACKLOG: Final = 2048


class Listening(msgspec.Struct, frozen=True):
    """What is told when the server is there."""

    url: str
    token: str | None  # where nobody made a key: one that works until there is one
    adopted: int  # sessions of a server before this one
    pid: int


async def serve(
    settings: Settings, folder: Path, environ: Mapping[str, str], *, on_listening: Callable[[Listening], None]
) -> int:
    """Serve until a signal. Returns how many runs were given up. Raises BadRequest, Unavailable; nothing is left then."""
    async with contextlib.AsyncExitStack() as held:
        held.enter_context(_locked(folder))
        database = held.enter_context(Store.open(folder / store.FILE))
        tenants = Tenants(database, settings)
        listener = held.enter_context(_listen(settings, has_keys=tenants.has_keys()))
        token = None if tenants.has_keys() else _local_token(tenants, folder)
        handler = logs.configure(settings.log_level, content=settings.log_content)
        held.callback(logs.release, handler)
        telemetry = Telemetry.create(settings.otel)
        telemetry.logs_to(handler)
        held.push_async_callback(telemetry.aclose)
        observer = Observing(telemetry, content=settings.log_content or settings.otel.capture_content)
        toolbox = await held.enter_async_context(load_toolbox(settings))
        service = Service(settings, database, tenants, folder, environ, observer, toolbox=toolbox)
        stop = _Stop()
        leave = False
        try:
            async with contextlib.AsyncExitStack() as beside:
                await service.start()
                mounts = [
                    await beside.enter_async_context(mcp.mounted(service, telemetry)),
                    await beside.enter_async_context(e2b.mounted(service)),
                ]
                app = create_app(service, telemetry, mounts=mounts)
                server = _Server(TelemetryMiddleware(guarded(app, service), telemetry), settings)
                serving = asyncio.create_task(server.serve(sockets=[listener]))
                host, port = listener.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                with stop.on_signals():
                    on_listening(Listening(f"http://{shown}:{port}", token, len(service.sessions.all()), os.getpid()))
                    await asyncio.wait([serving, stop.first], return_when=asyncio.FIRST_COMPLETED)
                    given_up = await stop.unless_twice(service.drain(settings.drain_s if stop.is_gentle else 0.0)) or 0
                    await beside.aclose()  # before the server waits for connections that are open only to listen
                    server.should_exit = True
                    await serving
            leave = settings.keep_sessions and stop.is_gentle
        finally:
            await service.aclose(leave=leave)
        return given_up


class _Server(uvicorn.Server):
    """uvicorn, whose signals are ours."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app, http=protocol(settings.head_s, settings.stall_s), loop="none", lifespan="off", ws="none", log_config=None, access_log=False,
                server_header=False, proxy_headers=False, backlog=BACKLOG, timeout_keep_alive=75,
                timeout_graceful_shutdown=int(CLOSE_S),
            )
        )  # fmt: skip

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class _Stop:
    """Waits for signals."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[int] = loop.create_future()
        self.second: asyncio.Future[None] = loop.create_future()

    @property
    def is_gentle(self) -> bool:
        return self.first.done() and self.first.result() == signal.SIGTERM

    @contextlib.contextmanager
    def on_signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._came, number)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _came(self, number: int) -> None:
        if not self.first.done():
            self.first.set_result(number)
        elif not self.second.done():
            self.second.set_result(None)

    async def unless_twice(self, work: Coroutine[Any, Any, int]) -> int | None:
        """Do it, unless a second signal says not to wait."""
        task = asyncio.ensure_future(work)
        await asyncio.wait([task, self.second], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        return None


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None]:
    """One server at a time in a data folder. The lock ends with the process, however that ends."""
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise Unavailable(
                f"another server uses {os.fspath(folder)!r}", hint="Stop it, or give this one a `data_dir` of its own."
            ) from err
        yield
    finally:
        os.close(fd)


def _listen(settings: Settings, *, has_keys: bool) -> socket.socket:
    """Raises BadRequest, Unavailable."""
    if not has_keys and not is_loopback(settings.host):
        raise BadRequest(
            f"host: {settings.host} can be reached by others, and there is no key",
            hint="Make one with `onetrip keys create`, or listen on 127.0.0.1.",
            field="host",
        )
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as err:
        raise BadRequest(f"host: {settings.host!r} is no address of this machine: {err}", field="host") from err
    listener = socket.socket(found[0], found[1])
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(found[4])
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as err:
        listener.close()
        raise Unavailable(
            f"{settings.host}:{settings.port} cannot be listened on: {getattr(err, 'strerror', None) or err}",
            hint="Is another server running? `--port 0` takes a free port.",
            field="port",
        ) from err
    return listener


def _local_token(tenants: Tenants, folder: Path) -> str:
    """The token of a server that nobody gave a key. It lies in the data folder, for its owner alone, so that it survives a restart."""
    path = folder / "token"
    saved = None
    with contextlib.suppress(FileNotFoundError):
        saved = path.read_text(encoding="ascii", errors="replace").strip()
    token = tenants.temporary_key(saved)
    if token != saved:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="ascii") as file:
            file.write(token + "\n")
    return token


def run(settings: Settings, folder: Path, environ: Mapping[str, str], *, on_listening: Callable[[Listening], None]) -> int:
    """`serve` on an event loop of its own: uvloop, which with httptools takes less than half of the time per request (docs/decisions/017)."""
    import uvloop  # noqa: PLC0415 - only who serves needs it

    return uvloop.run(serve(settings, folder, environ, on_listening=on_listening), debug=bool(sys.flags.dev_mode))
