"""The contract suite: what every tier must do, through the public interface, blocking and awaited."""

import asyncio
from collections.abc import Iterator

import pytest

import onetrip
from onetrip import embedded, environments
from onetrip.errors import OnetripError


@pytest.fixture(scope="session")
def embedded_ot() -> Iterator[embedded.Local]:
    try:
        environments.find("default")
    except OnetripError as missing:
        pytest.skip(f"needs the default environment: {missing}")
    with onetrip.local(warm=1) as engine:
        yield engine


@pytest.fixture(scope="session")
def ot(embedded_ot):
    return embedded_ot


@pytest.fixture(scope="module", params=["embedded", "connected"])
def anywhere(request):
    """What `ot` is in files whose promises hold on a server, too."""
    if request.param == "embedded":
        yield request.getfixturevalue("embedded_ot")
    else:
        server = request.getfixturevalue("shared_server")
        with onetrip.connect(server.url, server.token) as connected:
            yield connected


@pytest.fixture
def session(ot):
    with ot.session() as live:
        yield live


class Awaited:
    """The asynchronous interface with the blocking one's calls, so that one test serves both."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._engine = onetrip.alocal(warm=0)

    def run(self, code, **options):
        return self._runner.run(self._engine.run(code, **options))

    def stream(self, code, **options):
        async def collect():
            return [event async for event in self._engine.stream(code, **options)]

        return self._runner.run(collect())

    def close(self) -> None:
        self._runner.run(self._engine.aclose())
        self._runner.close()


@pytest.fixture(scope="session")
def awaited():
    engine = Awaited()
    yield engine
    engine.close()


@pytest.fixture(params=["local", "alocal"])
def either(request, ot, awaited):
    """`local()` and `alocal()` in turn."""
    return ot if request.param == "local" else awaited
