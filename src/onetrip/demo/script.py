"""The demo's steps: cells of the two programs, what each is run with, and what must come of it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Final

from onetrip.model import Limits, Result

_MARKER: Final = re.compile(r"^# %% (.+)\n", re.MULTILINE)  # the cells of Jupyter's and editors' percent format

DATA_FILE: Final = "penguins.csv"
CHART: Final = "penguins.png"
PENGUINS: Final = 344
COMPLETE: Final = 333  # of them without a gap
ADELIE: Final = 146  # of those
GENTOO: Final = 119
BRANCHES: Final = 2
ANALYSIS: Final = 5  # the first steps, which stand by themselves
LIMITS: Final = Limits(wall_s=30, memory_mb=512)
HOG_BYTES: Final = LIMITS.memory_mb * 2**20 // 4  # must have been counted at least; where memory is sampled, samples miss the top
LOOP_S: Final = 1.0  # what the runaway loop gets

Check = Callable[[Result], str | None]  # what is wrong with a result, or None


@dataclass(frozen=True, slots=True)
class Step:
    """One cell. `problems` of its result says what broke a promise; nothing, if all is well."""

    title: str
    code: str
    checks: tuple[Check, ...]
    timeout_s: float | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_after: bool = False  # it looks at what is left after the step before it
    undo: int = 0  # so many cells are undone before it runs
    branch: int = 0  # it runs in this branch of the session, counted from 1; 0: in the session itself

    def problems(self, result: Result) -> list[str]:
        return [problem for check in self.checks if (problem := check(result))]


def data() -> bytes:
    return (files("onetrip.demo") / "data" / DATA_FILE).read_bytes()


def steps(host: Mapping[str, Any]) -> list[Step]:
    """In order. `host` are the variables of the cell that looks for a way out: what it would reach if it could."""
    read, compare, bills, draw, tell = cells("analysis.py")
    mistake, loop, hog, ways_out = cells("trouble.py")
    end, deaf_loop, change, adelie, gentoo = cells("going_back.py")
    return [
        Step(*read, (_completed, _printed(f"{PENGUINS} penguins"), _used("wall_ms", "output_bytes"))),
        Step(*compare, (_completed, _made("means.csv"))),
        Step(*bills, (_completed, _printed("all together  -0.23"), _printed("Gentoo        +0.65"))),
        Step(*draw, (_completed, _made(CHART), _showed_a_picture)),
        Step(*tell, (_completed, _value({"right": 327, "of": COMPLETE}))),
        Step(*mistake, (_failed("KeyError", line=3), _survived)),
        _still_there(
            "the data and the chart's file are still there",
            "import os\nlen(penguins), os.path.exists('penguins.png')",
            "(333, True)",
        ),
        Step(*loop, (_hit("wall", LOOP_S), _survived, _used("cpu_ms", at_least=LOOP_S * 50)), timeout_s=LOOP_S),
        _still_there("it has counted, and the data is still there", "rounds > 1000, len(penguins)", "(True, 333)"),
        Step(
            *hog,
            (_hit("memory", LIMITS.memory_mb), _told_or_taken_back, _survived, _used("peak_memory_bytes", at_least=HOG_BYTES)),
        ),
        _still_there(
            "its memory is free again, and the data is still there",
            "bytearray(300_000_000).count(0), len(penguins)",
            "(300000000, 333)",
        ),
        Step(*end, (_ended_itself, _taken_back)),
        _still_there(
            "the data and the file are as they were before",
            "len(penguins), os.path.getsize('means.csv') > 0",
            "(333, True)",
        ),
        Step(*deaf_loop, (_hit("wall", LOOP_S), _taken_back), timeout_s=LOOP_S),
        _still_there(
            "the data and the file are as they were before",
            "len(penguins), os.path.exists('penguins.csv')",
            "(333, True)",
        ),
        Step(*change, (_completed, _deleted(CHART))),
        _still_there(
            "session.undo(), and what was deleted is there again",
            "len(penguins), len(means), os.path.exists('penguins.png')",
            "(333, 3, True)",
            undo=1,
        ),
        Step(*adelie, (_completed, _value(0.39)), branch=1),
        Step(*gentoo, (_completed, _value(0.65)), branch=2),
        *(
            _still_there(
                f"{where} has its own data and file",
                "len(penguins), len(pd.read_csv('penguins.csv'))",
                f"({rows}, {lines})",
                branch=branch,
            )
            for branch, where, rows, lines in (
                (1, "branch 1", ADELIE, ADELIE),
                (2, "branch 2", GENTOO, GENTOO),
                (0, "the session that they came from", COMPLETE, PENGUINS),
            )
        ),
        Step(*ways_out, (_completed, _value(0)), inputs=host),
    ]


def cells(name: str) -> list[tuple[str, str]]:
    """Titles and sources of a program in percent format."""
    _, *parts = _MARKER.split((files("onetrip.demo") / "programs" / name).read_text("utf-8"))
    return [(title, code.strip() + "\n") for title, code in zip(parts[::2], parts[1::2], strict=True)]


def _still_there(title: str, code: str, text: str, *, undo: int = 0, branch: int = 0) -> Step:
    return Step(title, code, (_completed, _text(text)), is_after=True, undo=undo, branch=branch)


# ---------------------------------------------------------------------------------------------------- checks


def _completed(result: Result) -> str | None:
    if result.status == "completed":
        return None
    why = result.error.type if result.error else result.limit.name if result.limit else "?"
    return f"it should have completed, but is “{result.status}” ({why})"


def _survived(result: Result) -> str | None:
    return None if result.session.survived else f"the session should have survived ({result.session.note})"


def _taken_back(result: Result) -> str | None:
    if result.session.survived and result.session.rolled_back:
        return None
    return f"it should have been taken back ({result.session.note})"


def _told_or_taken_back(result: Result) -> str | None:
    told = result.error is not None and result.error.type == "MemoryError"
    return (
        None if told or result.session.rolled_back else f"it should have seen a MemoryError, or been taken back: {result.error}"
    )


def _ended_itself(result: Result) -> str | None:
    if result.status == "failed" and result.error is not None and result.error.type == "ProcessDied":
        return None
    return f"its process should have ended, but it is “{result.status}” ({result.error})"


def _showed_a_picture(result: Result) -> str | None:
    return None if any("image/png" in display.data for display in result.displays) else "no picture was shown"


def _used(*names: str, at_least: float = 1) -> Check:
    """Whether what the cell must have used was counted."""

    def check(result: Result) -> str | None:
        missing = [f"{name} is {getattr(result.usage, name)}" for name in names if getattr(result.usage, name) < at_least]
        return f"not counted: {', '.join(missing)} (at least {at_least:,.0f})" if missing else None

    return check


def _printed(text: str) -> Check:
    return lambda result: None if text in result.stdout else f"it should have printed {text!r}"


def _text(text: str) -> Check:
    return lambda result: None if result.text == text else f"the value should be {text}, but is {result.text}"


def _value(value: object) -> Check:
    return lambda result: None if result.value == value else f"the value should be {value!r}, but is {result.value!r}"


def _made(path: str) -> Check:
    return lambda result: (
        None
        if any(file.path == path and file.change == "created" and file.size > 0 for file in result.files)
        else f"the file {path} should have been listed as created"
    )


def _deleted(path: str) -> Check:
    return lambda result: (
        None
        if any(file.path == path and file.change == "deleted" for file in result.files)
        else f"the file {path} should have been listed as deleted"
    )


def _failed(error: str, *, line: int) -> Check:
    def check(result: Result) -> str | None:
        if result.status != "failed" or result.error is None or result.error.type != error:
            return f"it should have failed with {error}, but is “{result.status}”"
        shows = f"line {line}, in describe" in result.error.traceback
        return None if shows else "the traceback does not name the line that failed"

    return check


def _hit(name: str, limit: float) -> Check:
    def check(result: Result) -> str | None:
        hit = result.limit
        if result.status == "limit_exceeded" and hit is not None and hit.name == name and hit.limit == limit:
            return None
        return f"the {name} limit should have ended it, but it is “{result.status}” ({hit})"

    return check
