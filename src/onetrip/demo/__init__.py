"""`onetrip demo`: the main job on real data, with what each cell cost, and cells that go wrong while the session lives on.

What it shows it also verifies, so that it is a smoke test of an installation as well: its status is 0 only if every step did
what is promised. The steps are in `script`, how they look in `screen`; `served` runs the analysis again over HTTP,
`comparison` does a task of seven tool calls by a loop of calls and by one program.
"""

import contextlib
import dataclasses
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from onetrip import embedded
from onetrip.demo import comparison, script, served
from onetrip.demo.screen import Screen
from onetrip.errors import OnetripError
from onetrip.model import Result

__all__ = ["main"]

ONE_SHOTS = 20
_ONE_SHOT = "import pandas as pd\nint(pd.Series([1, 2, 3]).sum())"


def main(*, as_json: bool = False) -> int:
    """Run the demo; returns the exit status. Raises OnetripError when nothing can be run here at all.

    The report goes to stdout (with `as_json` one object and nothing else), progress to stderr, the chart to ./demo-output, or
    to a temporary folder where that cannot be written.
    """
    done: list[tuple[script.Step, Result, list[str]]] = []
    chart: Path | None = None
    with contextlib.ExitStack() as held:
        host = held.enter_context(_bait())
        steps = script.steps(host)
        screen = Screen(quiet=as_json, total=len(steps))
        screen.begin()
        began = time.monotonic()
        with screen.waiting("starting the sandboxes and importing the libraries, once"):
            ot = held.enter_context(embedded.local())
            ot.start()
        started_s = time.monotonic() - began
        with screen.waiting("opening a session"):
            began = time.monotonic()
            session = held.enter_context(ot.session(files={script.DATA_FILE: script.data()}, limits=script.LIMITS))
            opened_s = time.monotonic() - began
        screen.opened(started_s, opened_s, ot.support())
        places = [session]  # the session, and then its branches
        for number, step in enumerate(steps, 1):
            problems: list[str] = []
            with screen.working(number, step.title):
                try:
                    if step.undo:
                        session.undo(step.undo)
                    if step.branch >= len(places):
                        began = time.monotonic()
                        places += [held.enter_context(branch) for branch in session.fork(count=script.BRANCHES)]
                        screen.forked(script.BRANCHES, time.monotonic() - began)
                except OnetripError as err:
                    problems.append(str(err))
                place = places[step.branch] if step.branch < len(places) else session
                result = place.run(step.code, inputs=step.inputs, timeout_s=step.timeout_s)
            problems += step.problems(result)
            done.append((step, result, problems))
            screen.step(step, result, problems)
            if not result.session.survived:
                break  # nothing more can run in it; the steps that are missing count as failed
            if any(file.path == script.CHART and file.change == "created" for file in result.files):
                chart = _save(session.files.read(script.CHART))
        with screen.waiting(f"{ONE_SHOTS} programs, each in a new sandbox"):
            one_shots = [_timed(ot) for _ in range(ONE_SHOTS)]
        with screen.waiting("a task of seven tool calls, in three ways; the model is simulated"):
            compared = comparison.run(ot)
    over_http = served.run(steps[: script.ANALYSIS], screen)
    problems = [f"{step.title}: {problem}" for step, _, found in done for problem in found]
    problems += [f"{step.title}: it was not run" for step in steps[len(done) :]]
    problems += [] if chart else ["there is no chart"]
    problems += [] if all(right for _, right in one_shots) else ["a one-shot gave a wrong answer"]
    problems += over_http.problems + compared.problems
    times_ms = sorted(ms for ms, _ in one_shots)
    if as_json:
        sys.stdout.write(_json(done, problems, chart, times_ms, started_s, opened_s, over_http, compared) + "\n")
    else:
        screen.summary(done, chart, times_ms)
        screen.paste(_executable())
        screen.compared(compared)
        screen.verdict(len(done), len(over_http.results), problems)
    return 1 if problems else 0


@contextlib.contextmanager
def _bait() -> Generator[Mapping[str, Any]]:
    """Things of the host that are in reach of an ordinary program: a file, a port, a process."""
    with tempfile.NamedTemporaryFile("w", prefix="onetrip-demo-") as secret, socket.create_server(("127.0.0.1", 0)) as listener:
        secret.write(secrets.token_hex(8))
        secret.flush()
        os.chmod(secret.name, 0o644)  # not its mode is to protect it
        yield {"host_file": secret.name, "host_port": listener.getsockname()[1], "host_pid": os.getpid()}


def _executable() -> str:
    """How this program is called, as short as it can be copied."""
    return os.path.relpath(sys.argv[0]) if os.path.basename(sys.argv[0]) == "onetrip" else f"{sys.executable} -m onetrip"


def _timed(ot: embedded.Local) -> tuple[float, bool]:
    """Milliseconds until the answer of a one-shot is here, and whether it is right."""
    began = time.perf_counter()
    result = ot.run(_ONE_SHOT)
    return (time.perf_counter() - began) * 1e3, result.value == 6


def _save(picture: bytes) -> Path:
    """Write the chart where the user will look for it, else where it can be written."""
    folder = Path("demo-output")
    try:
        folder.mkdir(exist_ok=True)
        path = folder / script.CHART
        path.write_bytes(picture)
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="onetrip-demo-")) / script.CHART
        path.write_bytes(picture)
    return path.absolute()


def _json(
    done: list[tuple[script.Step, Result, list[str]]],
    problems: list[str],
    chart: Path | None,
    times_ms: list[float],
    started_s: float,
    opened_s: float,
    over_http: served.Served,
    compared: comparison.Comparison,
) -> str:
    report = {
        "ok": not problems,
        "problems": problems,
        "chart": str(chart) if chart else None,
        "started_ms": round(started_s * 1e3, 1),
        "opened_ms": round(opened_s * 1e3, 1),
        "one_shot_ms": {
            "count": len(times_ms),
            "median": round(times_ms[len(times_ms) // 2], 3),
            "slowest": round(times_ms[-1], 3),
        },
        "over_http": {
            "adopted": over_http.adopted,
            "restarted_ms": round(over_http.restarted_s * 1e3, 1),
            "statuses": [result.status for _, result in over_http.results],
        },
        "comparison": {
            "simulated_model": True,
            "assumptions": dataclasses.asdict(comparison.ASSUMED),
            "ways": [
                {"name": way.name, "time_s": round(way.cost.time_s, 3), **dataclasses.asdict(way.cost)} for way in compared.ways
            ],
            "calls": msgspec.to_builtins(compared.calls),
        },
        "steps": [
            {
                "title": step.title,
                "ok": not found,
                "problems": found,
                "code": step.code,
                # the picture is in the file that `chart` names
                "result": {name: value for name, value in msgspec.to_builtins(result).items() if name != "displays"},
            }
            for step, result, found in done
        ],
    }
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()
