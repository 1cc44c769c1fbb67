"""Servers for the tests of the HTTP interface: one that a file of tests shares, and a maker of others."""

import shutil
import tempfile
from pathlib import Path

import pytest
from serving_process import Server


@pytest.fixture
def folder():
    """Short, and on the disk: the data of a server."""
    made = Path(tempfile.mkdtemp(prefix="ot-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def make_server(folder):
    """Makes servers; at the end none of them is there any more. `make_server(settings, start=…, name=…)`."""
    made = []

    def make(settings: str = "", *, start: bool = True, name: str = "1", **environ: str) -> Server:
        server = Server(folder / name, settings, **environ)
        made.append(server)
        return server.start() if start else server

    yield make
    for server in made:
        server.end()


@pytest.fixture(scope="module")
def server():
    """One for all tests of a file, with its own token."""
    with tempfile.TemporaryDirectory(prefix="ot-") as made:
        here = Server(Path(made))
        try:
            yield here.start()
        finally:
            here.end()


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
