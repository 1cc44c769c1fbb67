"""The application as ASGI: routes, errors, guards, and whatever other dialects are mounted beside them."""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp

from onetrip.api.docs import PAGE_HEADERS, page
from onetrip.api.guard import LOCAL, Guard, is_loopback
from onetrip.api.openapi import document
from onetrip.api.problems import plain, problem, request_id
from onetrip.api.routes import ROUTES
from onetrip.errors import OnetripError, PlatformError
from onetrip.service.service import Service
from onetrip.telemetry import Telemetry, note


class _Any(Convertor[str]):
    """The rest of a path, line breaks included: names of files may have them, and are refused with a reason."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any", _Any())


def create_app(service: Service, telemetry: Telemetry, *, mounts: Sequence[BaseRoute] = ()) -> Starlette:
    """The native interface and what is mounted beside it, without guard and telemetry. The service is started and ended by its owner."""
    routes: list[BaseRoute] = [
        StarletteRoute(route.path.replace("{path}", "{path:any}"), route.endpoint, methods=[route.method]) for route in ROUTES
    ]
    routes += [StarletteRoute("/openapi.json", openapi), StarletteRoute("/docs", docs), *mounts]
    answers = {OnetripError: answer_error, HTTPException: answer_http, Exception: answer_fault}
    app = Starlette(routes=routes, exception_handlers=answers)
    app.router.redirect_slashes = False
    app.state.service = service
    app.state.telemetry = telemetry
    return app


def guarded(app: ASGIApp, service: Service) -> ASGIApp:
    """The application as it may face a network."""
    settings = service.settings
    hosts = LOCAL | {settings.host.lower()} | {name.lower() for name in settings.allowed_hosts}
    any_host = not is_loopback(settings.host) and not settings.allowed_hosts
    return Guard(app, hosts=hosts, origins=frozenset(settings.allowed_origins), any_host=any_host)


async def openapi(_: Request) -> Response:
    return Response(document(), media_type="application/json")


async def docs(_: Request) -> Response:
    return Response(page(), media_type="text/html", headers=PAGE_HEADERS)


async def answer_fault(request: Request, error: Exception) -> Response:
    """What nobody expected. The middleware logs it with the id of the request; who asked gets that id and no more."""
    del error
    return problem(PlatformError("the server failed at this request"), request_id(request.scope))


async def answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OnetripError)  # registered for these only
    telemetry: Telemetry = request.app.state.telemetry
    telemetry.refused(error.code)
    note(code=error.code)
    return problem(error, request_id(request.scope))


async def answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # registered for these only
    return plain(error.status_code, error.detail, request_id(request.scope), error.headers)
