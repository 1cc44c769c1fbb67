"""Endpoints about the server itself: health, capabilities, metrics, tools."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from onetrip import __version__, environments
from onetrip.api.requests import caller, service
from onetrip.api.runs import JSON
from onetrip.observing import snapshot
from onetrip.schema import Capabilities, Health, ToolList
from onetrip.service import specs
from onetrip.telemetry import Telemetry


async def healthz(request: Request) -> Response:
    """The process lives. No key: who restarts us has none."""
    del request
    return Response(msgspec.json.encode(Health("ok")), media_type=JSON)


async def readyz(request: Request) -> Response:
    """Whether runs can begin now. No key."""
    app = service(request)
    why = app.not_ready
    if why is None:
        return Response(msgspec.json.encode(Health("ok")), media_type=JSON)
    health = Health("draining" if app.draining else "starting", why)
    return Response(msgspec.json.encode(health), 503, {"Retry-After": "1"}, JSON)


async def capabilities(request: Request) -> Response:
    caller(request, "reader")
    app = service(request)
    support = await app.support()
    found = Capabilities(
        version=__version__,
        level=support.level,
        isolation=support.mechanisms,
        limits=app.settings.limits,
        caps=specs.caps(app.settings),
        environments=tuple(environment.name for environment in environments.list_all()),
    )
    return Response(msgspec.json.encode(found), media_type=JSON)


async def metrics(request: Request) -> Response:
    """For Prometheus. Names of tenants are in it: with keys, one is needed, as everywhere."""
    app = service(request)
    if app.tenants.has_keys():
        caller(request, "reader")
    telemetry: Telemetry = request.app.state.telemetry
    telemetry.observe(snapshot(app, await app.statistics()))
    body, kind = telemetry.render(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": kind})


async def tools(request: Request) -> Response:
    caller(request, "reader")
    return Response(msgspec.json.encode(ToolList()), media_type=JSON)


async def stubs(request: Request) -> Response:
    caller(request, "reader")
    return Response("# This server has no tools.\n", media_type="text/plain")
