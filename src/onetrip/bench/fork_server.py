"""A warmed interpreter that only forks: the physical limit beside which one-shots are measured.

Executed by the environment's own interpreter as `python -I -S -B fork_server.py SITE_PACKAGES IMPORTS SOURCE`, with an empty
environment but for the thread counts; stands alone, so it imports nothing of ours. One command per line on stdin, one JSON object per
line on stdout: `latency N`, `rate SECONDS`, `once BYTES` and `lines BYTES` (these two print, for the speed of a plain pipe).
"""

import gc
import importlib
import json
import os
import resource
import sys
import time
from types import CodeType
from typing import Any

LINE_BYTES = 100


def main(site_packages: str, imports: str, source: str) -> None:
    sys.path.append(site_packages)
    for name in filter(None, imports.split(",")):
        importlib.import_module(name)
    cell = compile(source, "<cell>", "exec")
    gc.collect()
    gc.freeze()
    _answer({"ready": True})
    for line in sys.stdin:
        command, _, argument = line.partition(" ")
        if command == "latency":
            _answer(_latency(cell, int(argument)))
        elif command == "rate":
            _answer(_rate(cell, float(argument)))
        elif command == "once":
            sys.stdout.write("x" * int(argument))
            sys.stdout.flush()
        elif command == "lines":
            text = "x" * (LINE_BYTES - 1)
            for _ in range(int(argument) // LINE_BYTES):
                print(text)
            sys.stdout.flush()


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _once(cell: CodeType) -> None:
    pid = os.fork()
    if pid == 0:
        exec(cell, {"__name__": "__main__"})  # noqa: S102 - the same program that the sandboxes run
        os._exit(0)
    os.waitpid(pid, 0)


def _cpu_s() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def _latency(cell: CodeType, count: int) -> dict[str, Any]:
    wall_ms: list[float] = []
    cpu = _cpu_s()
    for _ in range(count):
        start = time.perf_counter()
        _once(cell)
        wall_ms.append((time.perf_counter() - start) * 1e3)
    return {"wall_ms": wall_ms, "cpu_ms": (_cpu_s() - cpu) * 1e3}


def _rate(cell: CodeType, seconds: float) -> dict[str, Any]:
    count, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        _once(cell)
        count += 1
    return {"count": count, "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    main(*sys.argv[1:])
