"""The Python interface in its shapes, embedded and connected, blocking and awaited, behind one face: every test runs against each."""

import asyncio
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

import onetrip


class Blocking:
    """The asynchronous interface, called from a test that is not asynchronous."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target, self._runner = target, runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if name == "files":
            return Blocking(found, self._runner)
        if name == "stream":
            return lambda *given, **options: self._stream(found(*given, **options))
        if name in {"session", "attach"}:
            return lambda *given, **options: Opened(self._runner.run(_awaited(found(*given, **options))), self._runner)
        if not asyncio.iscoroutinefunction(found):
            return found
        return lambda *given, **options: self._runner.run(found(*given, **options))

    def _stream(self, events: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    event = self._runner.run(_awaited(anext(events)))
                except StopAsyncIteration:
                    return
                yield event
        finally:
            self._runner.run(_awaited(events.aclose()))


class Opened(Blocking):
    def __enter__(self):
        return self

    def __exit__(self, *exc: object) -> None:
        self._runner.run(self._target.__aexit__(*exc))


async def _awaited(thing: Any) -> Any:
    return await thing


@pytest.fixture(scope="module", params=["local", "alocal", "connect", "aconnect"])
def ot(request):
    """One engine per file and shape; the connected ones share one server."""
    if "connect" in request.param:
        server = request.getfixturevalue("shared_server")
        made = getattr(onetrip, request.param)(server.url, server.token)
    else:
        made = getattr(onetrip, request.param)(warm=1)
    if not request.param.startswith("a"):
        with made as engine:
            yield engine
    else:
        with asyncio.Runner() as runner:
            engine = runner.run(made.__aenter__())
            yield Blocking(engine, runner)
            runner.run(engine.aclose())


@pytest.fixture
def session(ot):
    with ot.session() as opened:
        yield opened


@pytest.fixture
def value(session):
    """Runs a cell that must succeed and gives its value."""

    def run(source: str, **options: Any) -> Any:
        result = session.run(textwrap.dedent(source), **options)
        assert result.status == "completed", result
        return result.value

    return run
