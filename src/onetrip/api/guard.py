"""Keeps web pages out: refuses requests whose `Host` or `Origin` is not ours, before anything else looks at them.

A page that a user visits can send requests to a server on their machine (DNS rebinding, cross-site requests). Its `Host` is then a
name that is not ours, or its `Origin` is the page's. Programs send neither a foreign `Host` nor an `Origin`.
"""

import ipaddress
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from onetrip.api.problems import problem, request_id
from onetrip.errors import Forbidden

LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """`hosts`: names under which clients may reach us; with `any_host` all of them, for a server that listens to a network on purpose."""

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str], origins: frozenset[str], any_host: bool) -> None:
        self._app, self._hosts, self._origins, self._any_host = app, hosts, origins, any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (why := self._why_not(scope)) is not None:
            refusal = Forbidden(
                why, hint="Name it in `allowed_hosts` or `allowed_origins` of the server's configuration if it is meant to."
            )
            await problem(refusal, request_id(scope))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _why_not(self, scope: Scope) -> str | None:
        host = origin = ""
        for name, value in scope["headers"]:
            if name == b"host":
                host = value.decode("latin-1")
            elif name == b"origin":
                origin = value.decode("latin-1")
        if not self._any_host and _name(host) not in self._hosts:
            return f"this server is not reached under the name {host[:100]!r}"
        if origin and origin not in self._origins and origin.partition("://")[2] != host:
            return f"pages of {origin[:100]!r} may not call this server"
        return None


def _name(host: str) -> str:
    """The name in a `Host` header, without port and brackets."""
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    return name.lower().rstrip(".")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
