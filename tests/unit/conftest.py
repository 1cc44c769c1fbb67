"""A stand-in for the Python interface, through the seam that the commands have."""

import contextlib
import threading
import time

import pytest
from workspaces import OWNERS, PLACES, rooms

from onetrip import errors
from onetrip.copies import Copies
from onetrip.model import FileChange, Isolation, Result, Rewound, Started, Usage


def result(**changes) -> Result:
    fields = {
        "id": "run_1",
        "session_id": None,
        "status": "completed",
        "usage": Usage(wall_ms=12.34, cpu_ms=4.5, peak_memory_bytes=64 * 2**20),
        "isolation": Isolation("jail", "strict", ("userns", "seccomp")),
    }
    return Result(**{**fields, **changes})


class Fake:
    """Stands where `onetrip.embedded` stands; remembers what it was asked for and gives the events it was made with.

    `runs`: the events of each cell, one after the other, where they are not always the same. `branches`: stand-ins that `fork` gives.
    """

    def __init__(self, *events, runs=(), files=None, error=None, branches=()):
        self.events, self.runs, self.error = events, list(runs), error
        self.branches, self.moves, self.closed = list(branches), [], 0
        self.asked, self.cells, self.interrupted = [], [], threading.Event()
        self.stored = dict(files or {})
        self.files = self

    @contextlib.contextmanager
    def local(self):
        yield self

    @contextlib.contextmanager
    def session(self, **asked):
        if self.error:
            raise self.error
        self.asked.append(asked)
        yield self

    def stream(self, code, *, inputs=None, timeout_s=None, final=False):
        self.cells.append((code, inputs, final))
        yield Started("run_1")
        yield from self.runs.pop(0) if self.runs else self.events

    def undo(self, cells=1):
        self.moves.append(-cells)
        return Rewound(max(0, 3 - cells))

    def redo(self, cells=1):
        self.moves.append(cells)
        return Rewound(cells, note="files that are not as they were: big.bin (too large)")

    def fork(self):
        return self.branches.pop(0)

    def close(self):
        self.closed += 1

    def interrupt(self):
        self.interrupted.set()

    def read(self, path):
        try:
            return self.stored[path]
        except KeyError:
            raise errors.NotFound(f"There is no file {path!r}.") from None

    def write(self, path, data):
        self.stored[path] = data

    def list(self):
        return [FileChange(path, len(data), "created") for path, data in self.stored.items()]


@pytest.fixture(name="Fake")
def fake_class():
    return Fake


@pytest.fixture(name="result")
def result_function():
    return result


@pytest.fixture(params=OWNERS)
def owner(request):
    """Whose the workspace is: the host's own user's, or a guest's that root acts for."""
    return request.param


@pytest.fixture(params=PLACES)
def room(request, owner):
    with rooms(request.param, owner) as made:
        yield made


@pytest.fixture
def settled(monkeypatch):
    """The clock is far ahead of every stamp: what is looked at now cannot change later and keep its stamp."""
    real = time.clock_gettime_ns
    monkeypatch.setattr(time, "clock_gettime_ns", lambda clock: real(clock) + 10**10)


@pytest.fixture
def work(monkeypatch):
    """Counts files that are copied, compared and written back."""
    counts = {"add": 0, "equals": 0, "write": 0}
    for name in counts:
        real = getattr(Copies, name)

        def counted(*arguments, real=real, name=name):
            counts[name] += 1
            return real(*arguments)

        monkeypatch.setattr(Copies, name, counted)
    return counts
