"""`e2b_app`: everything that E2B's clients ask of one address, as an application to be mounted."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from onetrip.compat.e2b import commands, control, envd, execute, filesystem
from onetrip.compat.e2b.connect import RpcError
from onetrip.compat.e2b.requests import Gone, gone, json, refused, rpc_refused
from onetrip.compat.e2b.sandboxes import Sandboxes
from onetrip.errors import OnetripError
from onetrip.service.service import Service

Endpoint = Callable[[Request], Awaitable[Response]]
ROUTES: Final[tuple[tuple[str, str, Endpoint], ...]] = (
    ("POST", "/sandboxes", control.create),
    ("POST", "/v2/sandboxes", control.create),
    ("GET", "/sandboxes", control.listed),
    ("GET", "/v2/sandboxes", control.listed),
    ("GET", "/sandboxes/metrics", control.unsupported),
    ("GET", "/sandboxes/{id}", control.inspect),
    ("DELETE", "/sandboxes/{id}", control.kill),
    ("POST", "/sandboxes/{id}/timeout", control.set_timeout),
    ("POST", "/sandboxes/{id}/refreshes", control.refresh),
    ("POST", "/sandboxes/{id}/connect", control.connect),
    ("POST", "/v2/sandboxes/{id}/connect", control.connect),
    ("POST", "/sandboxes/{id}/resume", control.connect),
    ("POST", "/sandboxes/{id}/pause", control.pause),
    ("POST", "/sandboxes/{id}/snapshots", control.snapshot),
    ("POST", "/sandboxes/{id}/fork", control.fork),
    ("GET", "/snapshots", control.snapshots),
    ("DELETE", "/templates/{id}", control.delete_snapshot),
    ("GET", "/sandboxes/{id}/metrics", control.unsupported),
    ("GET", "/sandboxes/{id}/logs", control.unsupported),
    ("GET", "/v2/sandboxes/{id}/logs", control.unsupported),
    ("PUT", "/sandboxes/{id}/network", control.unsupported),
    ("POST", "/execute", execute.execute),
    ("POST", "/contexts", execute.create_context),
    ("GET", "/contexts", execute.contexts),
    ("POST", "/contexts/{id}/restart", execute.restart_context),
    ("DELETE", "/contexts/{id}", execute.remove_context),
    ("GET", "/health", envd.health),
    ("GET", "/files", envd.read),
    ("POST", "/files", envd.write),
    ("POST", "/filesystem.Filesystem/ListDir", filesystem.list_dir),
    ("POST", "/filesystem.Filesystem/Stat", filesystem.stat),
    ("POST", "/filesystem.Filesystem/MakeDir", filesystem.make_dir),
    ("POST", "/filesystem.Filesystem/Move", filesystem.move),
    ("POST", "/filesystem.Filesystem/Remove", filesystem.remove),
    ("POST", "/filesystem.Filesystem/CreateWatcher", filesystem.create_watcher),
    ("POST", "/filesystem.Filesystem/GetWatcherEvents", filesystem.get_watcher_events),
    ("POST", "/filesystem.Filesystem/RemoveWatcher", filesystem.remove_watcher),
    ("POST", "/filesystem.Filesystem/WatchDir", commands.watch_dir),
    ("POST", "/process.Process/Start", commands.start),
    ("POST", "/process.Process/Connect", commands.connect_to),
    ("POST", "/process.Process/List", commands.list_all),
    ("POST", "/process.Process/SendInput", commands.send_input),
    ("POST", "/process.Process/StreamInput", commands.stream_input),
    ("POST", "/process.Process/SendSignal", commands.send_signal),
    ("POST", "/process.Process/CloseStdin", commands.close_stdin),
    ("POST", "/process.Process/Update", commands.update),
)


def e2b_app(service: Service) -> Starlette:
    """Mount it where `E2B_API_URL` and `E2B_SANDBOX_URL` point. Its owner calls `app.state.sandboxes.aclose()` before the service ends."""
    handlers = {OnetripError: _refused, RpcError: _rpc_refused, Gone: _gone, HTTPException: _http}
    app = Starlette(
        routes=[Route(path, endpoint, methods=[method]) for method, path, endpoint in ROUTES], exception_handlers=handlers
    )
    app.router.redirect_slashes = False
    app.state.service = service
    app.state.sandboxes = Sandboxes(service)
    return app


@contextlib.asynccontextmanager
async def mounted(service: Service, path: str = "/e2b") -> AsyncGenerator[Mount]:
    """The application at `path`, as long as the server lives; afterwards its commands have ended."""
    app = e2b_app(service)
    try:
        yield Mount(path, app=app)
    finally:
        await app.state.sandboxes.aclose()


def _is_rpc(request: Request) -> bool:
    return ".Filesystem/" in request.url.path or ".Process/" in request.url.path


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, OnetripError)  # registered for these only
    return rpc_refused(RpcError.of(error)) if _is_rpc(request) else refused(error)


async def _rpc_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RpcError)
    return rpc_refused(error) if _is_rpc(request) else json({"code": error.status, "message": str(error)}, error.status)


async def _gone(_: Request, error: Exception) -> Response:
    assert isinstance(error, Gone)
    return gone(error)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return json({"code": error.status_code, "message": error.detail}, error.status_code, dict(error.headers or {}))
