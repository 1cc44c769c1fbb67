"""Landlock on the real kernel: what a rule allows works, what none allows is refused; in a forked child, for it is for good."""

import errno
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onetrip.jail import landlock, syscalls

ABI = landlock.abi()
pytestmark = pytest.mark.skipif(not ABI, reason="this kernel has no Landlock")
needs_scopes = pytest.mark.skipif(ABI < 6, reason=f"scopes need Landlock ABI 6, this kernel has {ABI}")
needs_network = pytest.mark.skipif(ABI < 4, reason=f"TCP rules need Landlock ABI 4, this kernel has {ABI}")


def attempt(action: Callable[[], Any]) -> str:
    try:
        action()
    except OSError as err:
        return errno.errorcode[err.errno]
    return "OK"


def in_domain(body: Callable[[], Any], **rules: Any) -> Any:
    """What `body` returned in a fork that is restricted by `rules`."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.set_no_new_privs()
            landlock.restrict(**{"readonly": (), "writable": (), **rules})
            answer = body()
        except BaseException as err:
            answer = repr(err)
        os.write(write_end, json.dumps(answer).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as answers:
        raw = answers.read()
    os.waitpid(pid, 0)
    return json.loads(raw)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("ro", "rw", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return tmp_path


def each(tree: Path, action: Callable[[Path], Any]) -> dict[str, str]:
    return {name: attempt(lambda name=name: action(tree / name)) for name in ("ro", "rw", "other")}


ACTIONS: dict[str, tuple[Callable[[Path], Any], dict[str, str]]] = {
    "read": (lambda at: (at / "file").read_text(), {"ro": "OK", "rw": "OK", "other": "EACCES"}),
    "list": (os.listdir, {"ro": "OK", "rw": "OK", "other": "EACCES"}),
    "write": (lambda at: os.open(at / "file", os.O_WRONLY), {"ro": "EACCES", "rw": "OK", "other": "EACCES"}),
    "create": (lambda at: (at / "new").write_text("x"), {"ro": "EACCES", "rw": "OK", "other": "EACCES"}),
    "remove": (lambda at: os.unlink(at / "file"), {"ro": "EACCES", "rw": "OK", "other": "EACCES"}),
    "make a folder": (lambda at: os.mkdir(at / "new"), {"ro": "EACCES", "rw": "OK", "other": "EACCES"}),
    "link": (lambda at: os.symlink("/etc", at / "new"), {"ro": "EACCES", "rw": "OK", "other": "EACCES"}),
    "make a FIFO": (lambda at: os.mkfifo(at / "new"), {"ro": "EACCES", "rw": "OK", "other": "EACCES"}),
    "move out": (lambda at: os.rename(at / "file", at.parent / "rw" / "moved"), {"ro": "EACCES", "rw": "OK", "other": "EACCES"}),
}


@pytest.mark.spec("ISO-06")
@pytest.mark.parametrize(("action", "answers"), ACTIONS.values(), ids=ACTIONS.keys())
def test_paths_allow_what_they_say_and_nothing_else(tree: Path, action: Callable[[Path], Any], answers: dict[str, str]) -> None:
    rules = {"readonly": [str(tree / "ro")], "writable": [str(tree / "rw")]}
    assert in_domain(lambda: each(tree, action), **rules) == answers


@pytest.mark.skipif(ABI < 3, reason=f"truncation needs Landlock ABI 3, this kernel has {ABI}")
def test_truncation_needs_a_writable_path(tree: Path) -> None:
    rules = {"readonly": [str(tree / "ro")], "writable": [str(tree / "rw")]}
    answers = in_domain(lambda: each(tree, lambda at: os.truncate(at / "file", 0)), **rules)
    assert answers == {"ro": "EACCES", "rw": "OK", "other": "EACCES"}


def test_moving_between_writable_paths_works(tree: Path) -> None:
    def move() -> str:
        return attempt(lambda: os.rename(tree / "rw/file", tree / "other/moved"))

    assert in_domain(move, writable=[str(tree / "rw"), str(tree / "other")]) == "OK"


def test_programs_run_from_readonly_paths_only_where_allowed(tree: Path) -> None:
    def run(path: str) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                os.execv(path, [path])
            except OSError as err:
                os._exit(err.errno)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert in_domain(lambda: run("/bin/true"), readonly=["/"]) == 0
    assert in_domain(lambda: run("/bin/true"), readonly=[str(tree)]) == errno.EACCES


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: others may not make device nodes anyway")
def test_device_nodes_cannot_be_made_even_in_a_writable_path(tree: Path) -> None:
    def make() -> list[str]:
        kinds = (0o020600, 0o060600)
        return [attempt(lambda kind=kind: os.mknod(tree / "rw/node", kind, os.makedev(1, 3))) for kind in kinds]

    assert in_domain(make, writable=[str(tree / "rw")]) == ["EACCES", "EACCES"]


def test_a_node_can_be_read_and_written_and_its_neighbours_cannot() -> None:
    def use() -> list[str]:
        modes = (("/dev/null", os.O_RDWR), ("/dev/null", os.O_WRONLY | os.O_TRUNC), ("/dev/zero", os.O_RDONLY))
        return [attempt(lambda path=path, mode=mode: os.open(path, mode)) for path, mode in modes]

    assert in_domain(use, nodes=["/dev/null"]) == ["OK", "OK", "EACCES"]


def test_a_missing_path_is_named_and_nothing_is_enforced(tree: Path) -> None:
    missing = str(tree / "missing")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError) as caught:
        landlock.restrict(readonly=[], writable=[missing])
    assert caught.value.filename == missing
    assert len(os.listdir("/proc/self/fd")) == before
    assert (tree / "ro/file").read_text() == "ro"


@pytest.mark.spec("ISO-06")
@needs_scopes
def test_processes_outside_the_domain_cannot_be_signalled_and_those_inside_can() -> None:
    def body() -> list[str]:
        child = os.fork()
        if child == 0:
            signal.pause()
        answers = [attempt(lambda: os.kill(os.getppid(), 0)), attempt(lambda: os.kill(child, signal.SIGKILL))]
        os.waitpid(child, 0)
        return answers

    assert in_domain(body, readonly=["/"]) == ["EPERM", "OK"]


@needs_scopes
def test_abstract_sockets_of_others_are_out_of_reach() -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0onetrip-test-{os.getpid()}")
        server.listen()
        address = server.getsockname()

        def connect() -> str:
            with socket.socket(socket.AF_UNIX) as client:
                return attempt(lambda: client.connect(address))

        assert connect() == "OK"
        assert in_domain(connect, readonly=["/"]) == "EPERM"


@needs_network
@pytest.mark.parametrize(("tcp", "answer"), [(True, "EACCES"), (False, "OK")])
def test_tcp_is_refused_when_asked_for(tcp: bool, answer: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()

        def body() -> list[str]:
            return [
                attempt(lambda: socket.create_connection(address)),
                attempt(lambda: socket.socket().bind(("127.0.0.1", 0))),
            ]

        assert in_domain(body, readonly=["/"], tcp=tcp) == [answer, answer]


def test_says_what_holds() -> None:
    held = landlock.rules(readonly=["/"], writable=[], tcp=True).held
    known = min(ABI, 9)
    expected = [f"landlock-abi{known}"]
    expected += ["landlock-tcp"] if known >= 4 else []
    expected += ["landlock-abstract-unix", "landlock-signals"] if known >= 6 else []
    assert held == tuple(expected)
