"""Engines and sessions in real sandboxes, and a census of what this process and its descendants hold on the host."""

import contextlib
import os
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

import onetrip

GONE_S = 10.0  # how long the end of a process tree may take on a busy machine


@pytest.fixture(scope="module")
def ot():
    """One engine per file, without warm sandboxes: a test sees no process but those it asked for, and spare rooms."""
    with onetrip.local(warm=0) as engine:
        yield engine


@pytest.fixture
def session(ot):
    with ot.session() as opened:
        yield opened


@pytest.fixture(scope="session")
def value() -> Callable[..., Any]:
    """Runs a cell that must succeed, and gives the value of its last expression."""

    def run(where: Any, source: str, **options: Any) -> Any:
        result = where.run(textwrap.dedent(source), **options)
        assert result.status == "completed", result
        return result.value

    return run


def wait_until(condition: Callable[[], bool], seconds: float = GONE_S) -> bool:
    """Poll for what gives no event: the end of processes of which we are not the parent."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@pytest.fixture(name="wait_until", scope="session")
def wait_until_fixture():
    return wait_until


@pytest.fixture(name="descendants", scope="session")
def descendants_fixture():
    return descendants


def descendants(root: int) -> set[int]:
    """Every living process below `root`, zombies included: they are something left, too."""
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            fields_ = Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()
            parents[int(name)] = int(fields_[1])
    found: set[int] = set()
    edge = {root}
    while edge:
        edge = {pid for pid, parent in parents.items() if parent in edge} - found
        found |= edge
    return found


def groups() -> frozenset[str]:
    """Control groups of ours, by path, this process's own: a colleague's engine may be at work beside."""
    found: set[str] = set()
    for folder, folders, _ in os.walk("/sys/fs/cgroup"):
        if os.path.basename(folder) == f"onetrip-{os.geteuid()}":
            found |= {f"{folder}/{name}" for name in folders if name.startswith(f"{os.getpid()}-")}
            folders.clear()
    return frozenset(found)


@dataclass(frozen=True)
class Census:
    """What is there. Two of them are compared whole."""

    processes: frozenset[int]
    descriptors: frozenset[tuple[str, str]]
    mounts: frozenset[str]
    groups: frozenset[str]
    temporary: frozenset[str]

    @classmethod
    def take(cls) -> "Census":
        descriptors: set[tuple[str, str]] = set()
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the descriptor of the listing itself
                descriptors.add((name, os.readlink(f"/proc/self/fd/{name}")))
        return cls(
            frozenset(descendants(os.getpid())),
            frozenset(descriptors),
            frozenset(Path("/proc/self/mountinfo").read_text().splitlines()),
            groups(),
            frozenset(os.listdir(tempfile.gettempdir())),
        )

    def more_than(self, before: "Census") -> dict[str, list[object]]:
        return {field.name: sorted(getattr(self, field.name) - getattr(before, field.name)) for field in fields(self)}

    def wait_for_it_again(self) -> None:
        """Until there is nothing that was not there; fails with what is left. What another engine took down meanwhile may be gone."""
        now = self

        def same() -> bool:
            nonlocal now
            now = Census.take()
            return not any(now.more_than(self).values())

        if not wait_until(same):
            left = now.more_than(self)
            raise AssertionError(f"not as before: { {name: what for name, what in left.items() if what} }")


@pytest.fixture
def census(monkeypatch) -> Iterator[type[Census]]:
    """With a temporary folder that nobody else uses, which has to be empty in the end."""
    with tempfile.TemporaryDirectory(prefix="census-") as folder:  # not `tmp_path`: names of sockets have to be short
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Census
        monkeypatch.undo()
        assert os.listdir(folder) == []
