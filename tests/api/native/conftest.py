"""Servers for the tests of the HTTP interface: one that a file of tests shares, and a maker of others."""

import pytest
from serving_process import Server
from tool_house import SECRET, House


@pytest.fixture
def make_server(needs_environment):
    """Makes servers; at the end none of them is there any more. `make_server(settings, start=…)`."""
    made = []

    def make(settings: str = "", *, start: bool = True) -> Server:
        server = Server(settings)
        made.append(server)
        return server.start() if start else server

    yield make
    for server in made:
        server.close()


@pytest.fixture(scope="module")
def server(needs_environment):
    """One for all tests of a file, with its own token."""
    here = Server()
    try:
        yield here.start()
    finally:
        here.close()


@pytest.fixture
def api(server):
    with server.client() as client:
        yield client


@pytest.fixture
def session(api):
    """Path of a session of its own."""
    path = "/v1/sessions/" + api.post("/v1/sessions", json={}).raise_for_status().json()["id"]
    yield path
    api.delete(path)


@pytest.fixture
def make_house(needs_environment, monkeypatch):
    """Like `make_server`, for servers with tools."""
    monkeypatch.setenv("HOUSE_SECRET", SECRET)
    made = []

    def make(settings: str = "", *, start: bool = True) -> House:
        house = House(settings)
        made.append(house)
        return house.start() if start else house

    yield make
    for house in made:
        house.close()


@pytest.fixture(scope="module")
def house(needs_environment):
    """One with tools for all tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOUSE_SECRET", SECRET)
        here = House("warm = 1")
        try:
            yield here.start()
        finally:
            here.close()


@pytest.fixture(scope="module")
def key(house):
    """Of a user of it; from now on its own token is no longer one."""
    return house.cli_key("acme")


@pytest.fixture
def user(house, key):
    """That user."""
    with house.client(key) as api:
        yield api


@pytest.fixture
def place(user):
    """Path of a session of that user."""
    path = "/v1/sessions/" + user.post("/v1/sessions", json={}).raise_for_status().json()["id"]
    yield path
    user.delete(path)
