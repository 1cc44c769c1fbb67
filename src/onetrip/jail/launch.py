"""Starts one zygote: executed by the host with an empty environment, builds the house, and waits for it.

This process stays as the parent that reaps the zygote; it holds nothing and does nothing else. A failure is one JSON line on the
status pipe, naming the step; an empty pipe at end of file means that the zygote was started.
"""

import json
import os
import resource
import sys
from typing import Final

from . import enter
from .steps import StepFailed

# How our code is loaded where the package may not be imported as a whole: only the folder given as the first argument, under a
# name of its own, so that nothing called `onetrip` ever exists inside of a sandbox. A constant: no value is built into it.
BOOT: Final = (
    "import sys, types, importlib; package = types.ModuleType('island'); package.__path__ = [sys.argv[1]]; "
    "sys.modules['island'] = package; importlib.import_module('island.jail.' + sys.argv[2]).main(*sys.argv[3:])"
)


def main(spec_fd: str, status_fd: str, *donated: str) -> None:
    """Arguments are descriptor numbers: the spec (JSON), the status pipe, and those to hand on to the zygote."""
    status = int(status_fd)
    try:
        with open(int(spec_fd), "rb") as file:
            spec = enter.HouseSpec.from_json(json.load(file))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the zygote holds some descriptors of every sandbox
        os.set_inheritable(status, False)  # closes at the exec: end of file tells the host that it worked
        if spec.level == "strict":
            child = enter.house(spec)
        else:
            child = os.fork()
            if child == 0:
                os.setsid()
                os.execve(spec.argv[0], list(spec.argv), dict(spec.environ))  # noqa: S606 - no shell is wanted
    except StepFailed as err:
        _report(status, err.step, err.errno, err.detail)
        os._exit(1)
    except (OSError, ValueError, KeyError) as err:
        _report(status, "start the launcher", getattr(err, "errno", 0) or 0, repr(err))
        os._exit(1)
    os.close(status)
    for fd in donated:
        os.close(int(fd))
    _, ended = os.waitpid(child, 0)
    sys.exit(min(os.waitstatus_to_exitcode(ended) % 256, 255))


def _report(status: int, step: str, errno: int, detail: str) -> None:
    os.write(status, json.dumps({"step": step, "errno": errno, "detail": detail}).encode() + b"\n")
