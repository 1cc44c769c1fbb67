"""What a user would pick instead, as far as it is installed here: plain Python, bubblewrap, Docker, a Jupyter kernel.

Each does the same tasks in the same run. Nothing is fetched or installed; what is missing is named with the reason.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from onetrip import environments
from onetrip.environments import Environment
from onetrip.errors import OnetripError

from . import ours
from .peers import THREADS, end

JUPYTER: Final = "bench-jupyter"  # the environment to look for; `make bench` does not need it
JUPYTER_PACKAGES: Final = ("ipykernel", "jupyter_client", "numpy", "pandas")
ANSWER_S: Final = 10
RUN_S: Final = 120
DRIVER: Final = Path(__file__).parent / "jupyter_driver.py"

# task → what it is, in the order of the table's columns
TASKS: Final[Mapping[str, str]] = {
    "fresh": "fresh one-shot, `1 + 1`",
    "pandas": "fresh one-shot, numpy and pandas imported",
    "start": "start a session, first result",
    "warm": "warm cell, `x += 1`",
    "memory": "private memory of an idle session with pandas",
}


@dataclass(frozen=True, slots=True)
class Alternative:
    """`measures[task]()` brings one batch of samples: milliseconds, or MB for memory. `every`: in each how many-th round."""

    name: str
    note: str
    measures: Mapping[str, Callable[[], list[float]]]
    every: int = 1
    pids: tuple[int, ...] = ()  # of what lives through the whole run


@dataclass(frozen=True, slots=True)
class Skipped:
    name: str
    reason: str


@contextlib.contextmanager
def found(environment: Environment) -> Generator[tuple[list[Alternative], list[Skipped]]]:
    """The alternatives of this machine, started where they need to be; ended with the block."""
    there, missing = [_plain(environment)], list[Skipped]()
    with contextlib.ExitStack() as stack:
        for name, look in (("bwrap + python", _bwrap), ("docker", _docker), ("Jupyter kernel", _jupyter)):
            try:
                there += look(environment, stack)
            except _Missing as why:
                missing.append(Skipped(name, str(why)))
        yield there, missing


class _Missing(Exception):
    """Why an alternative cannot be measured here."""


class Gone(Exception):
    """An alternative that was there ended on the way."""


def _timed(argv: Sequence[str], env: Mapping[str, str]) -> Callable[[], list[float]]:
    def once() -> list[float]:
        start = time.perf_counter()
        done = subprocess.run(argv, env=dict(env), stdin=subprocess.DEVNULL, capture_output=True, timeout=RUN_S, check=False)
        taken = (time.perf_counter() - start) * 1e3
        if done.returncode != 0:
            raise ChildProcessError(f"{argv[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-500:]}")
        return [taken]

    return once


def _tried(argv: Sequence[str], env: Mapping[str, str], seconds: float = RUN_S) -> str:
    """Its output. Raises _Missing with what it said."""
    try:
        done = subprocess.run(
            argv, env=dict(env), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise _Missing(str(err)) from err
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise _Missing(said[-1][:200] if said else f"status {done.returncode}")
    return done.stdout


# ---------------------------------------------------------------------------------------------------- plain python, bubblewrap


def _python_env(environment: Environment) -> dict[str, str]:
    return {**THREADS, "PYTHONPATH": environment.site_packages, "PYTHONDONTWRITEBYTECODE": "1", "PATH": "/usr/bin:/bin"}


def _plain(environment: Environment) -> Alternative:
    python, env = environment.python.executable, _python_env(environment)
    measures = {"fresh": _timed([python, "-c", ours.BARE], env), "pandas": _timed([python, "-c", ours.PANDAS], env)}
    return Alternative("python -c", "no isolation at all", measures)


def _bwrap(environment: Environment, _stack: contextlib.ExitStack) -> list[Alternative]:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise _Missing("`bwrap` is not installed (Debian, Ubuntu: apt install bubblewrap)")
    box = [
        bwrap,
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--clearenv",
        "--ro-bind",
        "/",
        "/",
        "--dev",
        "/dev",
        "--proc",
        "/proc",
    ]
    for name, value in _python_env(environment).items():
        box += ["--setenv", name, value]
    python = environment.python.executable
    _tried([*box, python, "-c", ours.BARE], {}, ANSWER_S)
    measures = {"fresh": _timed([*box, python, "-c", ours.BARE], {}), "pandas": _timed([*box, python, "-c", ours.PANDAS], {})}
    return [Alternative("bwrap + python", "namespaces; no system call filter, no limits", measures)]


# ---------------------------------------------------------------------------------------------------- docker


def _docker(_environment: Environment, stack: contextlib.ExitStack) -> list[Alternative]:
    docker = shutil.which("docker")
    if docker is None:
        raise _Missing("`docker` is not installed")
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent"}
    _tried([docker, "version", "--format", "{{.Server.Version}}"], env, ANSWER_S)
    image = _python_image(docker, env)
    run = [docker, "run", "--rm", "--pull", "never", "--network", "none", image, "python3", "-c"]
    measures = {"fresh": _timed([*run, ours.BARE], env)}
    with contextlib.suppress(_Missing):
        _tried([*run, ours.PANDAS], env)
        measures["pandas"] = _timed([*run, ours.PANDAS], env)
    name = _tried([docker, "run", "--rm", "-d", "--pull", "never", "--network", "none", image, "sleep", "infinity"], env).strip()
    stack.callback(_tried, [docker, "kill", name], env)
    inside = [docker, "exec", name, "python3", "-c"]
    again = {"fresh": _timed([*inside, ours.BARE], env)}
    if "pandas" in measures:
        again["pandas"] = _timed([*inside, ours.PANDAS], env)
    return [
        Alternative("docker run", image, measures, every=3),
        Alternative("docker exec", f"{image}; all programs share one container", again, every=3),
    ]


def _python_image(docker: str, env: Mapping[str, str]) -> str:
    """An image that is here and has Python, one with pandas first."""
    images = [
        line for line in _tried([docker, "images", "--format", "{{.Repository}}:{{.Tag}}"], env).split() if "<none>" not in line
    ]
    for code in (ours.PANDAS, ours.BARE):
        for image in images:
            with contextlib.suppress(_Missing):
                _tried([docker, "run", "--rm", "--pull", "never", "--network", "none", image, "python3", "-c", code], env)
                return image
    raise _Missing(f"none of the {len(images)} images that are here has Python, and none is pulled")


# ---------------------------------------------------------------------------------------------------- a Jupyter kernel


def _jupyter(_environment: Environment, stack: contextlib.ExitStack) -> list[Alternative]:
    try:
        environment = environments.find(JUPYTER)
    except OnetripError as err:
        wanted = " ".join(f"--package {package}" for package in JUPYTER_PACKAGES)
        raise _Missing(f"no environment for it (make one: onetrip env build {JUPYTER} {wanted})") from err
    home = stack.enter_context(tempfile.TemporaryDirectory(prefix="onetrip-bench-"))
    # A kernel's Python finds its packages only through this variable.
    env = {**_python_env(environment), "HOME": home, "PATH": os.defpath}
    try:
        driver = subprocess.Popen(
            [environment.python.executable, str(DRIVER)],
            env=env,
            cwd=home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as err:
        raise _Missing(str(err)) from err
    stack.callback(end, driver)

    def ask(command: str) -> Any:
        assert driver.stdin is not None
        assert driver.stdout is not None
        driver.stdin.write(command.encode() + b"\n")
        driver.stdin.flush()
        return _answer(driver)

    try:
        _answer(driver)
    except Gone as err:
        raise _Missing(str(err)) from err
    measures: dict[str, Callable[[], list[float]]] = {
        "start": lambda: ask("start"),
        "pandas": lambda: ask("pandas"),
        "warm": lambda: ask("warm 10"),
        "memory": lambda: ask("memory"),
    }
    return [Alternative("Jupyter kernel", "no isolation at all", measures, every=4, pids=(driver.pid,))]


def _answer(driver: "subprocess.Popen[bytes]") -> Any:
    assert driver.stdout is not None
    line = driver.stdout.readline()
    if not line:
        raise Gone(f"its driver ended with status {driver.wait()}")
    return json.loads(line)
