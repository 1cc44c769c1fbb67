"""The demo's second half: the same analysis over HTTP, from a server on a free port that is killed in the middle and started again."""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onetrip import remote
from onetrip.demo import script
from onetrip.demo.screen import Screen
from onetrip.errors import OnetripError, PlatformError
from onetrip.model import Result

START_S = 60.0
KILL_BEFORE = 4  # which cell, counted from 1


@dataclass(slots=True)
class Served:
    """What came of it."""

    results: list[tuple[script.Step, Result]] = field(default_factory=list[tuple[script.Step, Result]])
    problems: list[str] = field(default_factory=list[str])
    adopted: int = 0
    restarted_s: float = 0.0


def run(steps: Sequence[script.Step], screen: Screen) -> Served:
    """Run the steps in a session of a server. Whatever is promised and does not hold is in `problems`."""
    served = Served()
    with tempfile.TemporaryDirectory(prefix="onetrip-demo-") as folder:
        config = Path(folder) / "onetrip.toml"
        (Path(folder) / "data").mkdir(mode=0o700)
        config.write_text(f'port = 0\ndata_dir = "{folder}/data"\nlog_level = "error"\n', encoding="utf-8")
        try:
            with (
                contextlib.ExitStack() as servers,
                contextlib.ExitStack() as held,
            ):  # clients end before the server that came last
                with screen.waiting("starting a server on a free port"):
                    server, url, token, _ = servers.enter_context(_server(config))
                    config.write_text(config.read_text(encoding="utf-8").replace("port = 0", f"port = {url.rpartition(':')[2]}"))
                    ot = held.enter_context(remote.connect(url, token=token))
                    session = held.enter_context(ot.session(files={script.DATA_FILE: script.data()}, limits=script.LIMITS))
                screen.serving(url)
                for number, step in enumerate(steps, 1):
                    if number == KILL_BEFORE:
                        began = time.monotonic()
                        server.kill()
                        server.wait()
                        _, _, _, served.adopted = servers.enter_context(_server(config))
                        served.restarted_s = time.monotonic() - began
                        screen.restarted(served.adopted, served.restarted_s)
                    with screen.working(number, step.title):
                        result = session.run(step.code, inputs=step.inputs, timeout_s=step.timeout_s)
                    served.results.append((step, result))
                    served.problems += [f"over HTTP, {step.title}: {problem}" for problem in step.problems(result)]
                    screen.served(step, result)
                if served.adopted < 1:
                    served.problems.append("the server that came after the killed one found no session")
        except OnetripError as err:
            served.problems.append(f"over HTTP: {err}")
    return served


@contextlib.contextmanager
def _server(config: Path) -> Generator[tuple["subprocess.Popen[str]", str, str, int]]:
    """A server process, its address, its token, and how many sessions it found. Ended, with its sessions, unless it was killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "onetrip", "serve", "--config", str(config), "--json"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        if not line:
            raise PlatformError(f"the server did not start: {process.stderr.read()[-500:]}")
        told = json.loads(line)
        yield process, told["url"], told["token"], told["adopted"]
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=START_S)
