"""Endpoints about the server itself: health, capabilities, metrics, tools."""

from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from onetrip import __version__, environments
from onetrip.api.requests import caller, service, whole_number
from onetrip.api.runs import JSON
from onetrip.errors import BadRequest
from onetrip.observing import snapshot
from onetrip.schema import Capabilities, Health, ToolInfo, ToolList
from onetrip.service import specs
from onetrip.telemetry import Telemetry
from onetrip.tools.stubs import render

DEFAULT_BUDGET_TOKENS: Final = 2000


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
        tools=True,
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
    """The server tools that this key may use."""
    who = caller(request, "reader")
    found = ToolList(
        tuple(msgspec.convert(tool, ToolInfo, from_attributes=True) for tool in service(request).tools.tools(who.tools))
    )
    return Response(msgspec.json.encode(found), media_type=JSON)


async def stubs(request: Request) -> Response:
    """The same as text for a prompt; the same bytes as long as the tools are the same."""
    who = caller(request, "reader")
    query = request.query_params
    budget = whole_number(query.get("budget"), "budget", low=100, high=1_000_000, default=DEFAULT_BUDGET_TOKENS)
    style = query.get("style", "async")
    if style != "async" and style != "blocking":  # noqa: PLR1714 -- so that its type is known
        raise BadRequest("style: async or blocking", field="style")
    found = render(service(request).tools.tools(who.tools, query.getlist("tools") or None), style=style, budget_tokens=budget)
    return Response(found.text, media_type="text/plain")
