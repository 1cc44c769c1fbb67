"""The Python interface in both its shapes behind one face, so that every test of the contract runs against both."""

import asyncio
import contextlib
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
        if name == "session":
            return lambda **options: contextlib.closing(Blocking(self._runner.run(_awaited(found(**options))), self._runner))
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


async def _awaited(thing: Any) -> Any:
    return await thing


@pytest.fixture(scope="module", params=["local", "alocal"])
def ot(request):
    """One engine per file and shape."""
    if request.param == "local":
        with onetrip.local(warm=1) as engine:
            yield engine
    else:
        with asyncio.Runner() as runner:
            engine = runner.run(_awaited(onetrip.alocal(warm=1).__aenter__()))
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
