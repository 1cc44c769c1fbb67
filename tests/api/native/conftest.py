"""Servers for the tests of the HTTP interface: one that a file of tests shares, and a maker of others."""

import pytest
from serving_process import Server


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
