"""MCP over streamable HTTP, at one URL for clients of both eras, with the keys of the native interface."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from onetrip.api.requests import caller
from onetrip.errors import OnetripError, PlatformError, Unavailable
from onetrip.mcp_server.backend import Backend
from onetrip.mcp_server.served import ServedBackend
from onetrip.mcp_server.server import Context, build
from onetrip.service.service import Service
from onetrip.telemetry import Telemetry, note
from onetrip.tenants import Caller

PATH: Final = "/mcp"
ANSWER_S: Final = 5.0  # at the end, for clients to take what they wait for
_CALLER: Final = "onetrip.caller"  # in a request's scope


@asynccontextmanager
async def mounted(service: Service, telemetry: Telemetry) -> AsyncGenerator[BaseRoute]:
    """The route. Leaving this refuses what is new, lets answers go out, and ends what clients hold open only to listen."""

    def backend_of(context: Context) -> Backend:
        """Of the request at hand, not of the handshake: a key may have been revoked since."""
        request: Any = context.request
        who: Any = request.scope.get(_CALLER) if isinstance(request, Request) else None
        if not isinstance(who, Caller):
            raise PlatformError("a request came without its caller")
        return ServedBackend(service, who)

    def on_error(error: OnetripError) -> None:
        telemetry.refused(error.code)
        note(code=error.code)

    manager = StreamableHTTPSessionManager(
        build(backend_of, on_error),
        # `api.guard` has looked at `Host` and `Origin` before, with the names that the configuration allows.
        security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        max_request_body_size=service.settings.max_body_mb << 20,
    )
    endpoint = _Endpoint(manager)
    async with manager.run():
        try:
            yield Route(PATH, endpoint)
        finally:
            await endpoint.close()


class _Endpoint:
    """Knows the caller before the SDK sees the request."""

    def __init__(self, manager: StreamableHTTPSessionManager) -> None:
        self._manager = manager
        self._is_closed = False
        self._asking = 0  # requests that wait for an answer
        self._answered = asyncio.Event()

    async def close(self) -> None:
        self._is_closed = True
        if self._asking:
            self._answered.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    await self._answered.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_closed:
            raise Unavailable("the server is being stopped", retry_after_s=5.0)
        who = caller(Request(scope), "reader")
        scope[_CALLER] = who
        # The SDK lets only the principal that began a handshake session go on with it.
        scope["user"] = AuthenticatedUser(AccessToken(token="", client_id=f"{who.tenant}/{who.key_id}", scopes=[]))
        if scope["method"] != "POST":
            await self._manager.handle_request(scope, receive, send)
            return
        self._asking += 1
        try:
            await self._manager.handle_request(scope, receive, send)
        finally:
            self._asking -= 1
            if not self._asking:
                self._answered.set()
