"""The processes beside which Onetrip is measured: warmed interpreters that fork, and an echo."""

import asyncio
import json
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from onetrip.environments import Environment

_HERE: Final = Path(__file__).parent
THREADS: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # the whole environment, as in a sandbox's zygote
END_S: Final = 5


class ForkServer:
    """One interpreter of `environment` with `imports` done. `with` ends it."""

    def __init__(self, environment: Environment, imports: Sequence[str], source: str) -> None:
        script = [str(_HERE / "fork_server.py"), environment.site_packages, ",".join(imports), source]
        self._process = subprocess.Popen(
            [environment.python.executable, "-I", "-S", "-B", *script], env=THREADS, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            self._read()  # its imports are done
        except BaseException:
            end(self._process)
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def latency(self, count: int) -> tuple[list[float], float]:
        """Fork, run the program, reap, `count` times: (milliseconds of each, CPU milliseconds of all)."""
        self._ask(f"latency {count}")
        answer = self._read()
        return answer["wall_ms"], answer["cpu_ms"]

    def ask_rate(self, seconds: float) -> None:
        """Start forking as fast as it goes; `read_rate` brings the count. Apart, so that several can do it at once."""
        self._ask(f"rate {seconds}")

    def read_rate(self) -> float:
        answer = self._read()
        return answer["count"] / answer["seconds"]

    def print_mb_s(self, how: str, size: int) -> float:
        """Have it print `size` bytes `once` or in `lines` of 100 into a pipe that we read; MB per second."""
        assert self._process.stdout is not None
        start = time.perf_counter()
        self._ask(f"{how} {size}")
        left = size
        while left:
            data = os.read(self._process.stdout.fileno(), min(left, 1 << 18))
            if not data:
                raise EOFError("the fork server ended")
            left -= len(data)
        return size / 1e6 / (time.perf_counter() - start)

    def _ask(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = bytearray()
        while not line.endswith(b"\n"):  # unbuffered, because `print_mb_s` reads the same pipe past any buffer of Python's
            byte = os.read(self._process.stdout.fileno(), 65536)
            if not byte:
                raise EOFError(f"the fork server ended with status {self._process.wait()}")
            line += byte
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _exc: BaseException | None, _trace: TracebackType | None) -> None:
        end(self._process)


class Echo:
    """A process that sends packets back over a SOCK_SEQPACKET pair. `with` ends it."""

    def __init__(self, environment: Environment) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [environment.python.executable, "-I", "-S", "-B", str(_HERE / "echo_server.py"), str(theirs.fileno())],
                env={}, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),),
            )  # fmt: skip
        self.blocking(1, 1)  # it is up

    @property
    def pid(self) -> int:
        return self._process.pid

    def blocking(self, count: int, size: int) -> list[float]:
        """Milliseconds there and back between two plain processes."""
        self._channel.setblocking(True)
        packet, taken = b"x" * size, list[float]()
        for _ in range(count):
            start = time.perf_counter()
            self._channel.send(packet)
            self._channel.recv(65536)
            taken.append((time.perf_counter() - start) * 1e3)
        return taken

    async def asynchronous(self, count: int, size: int) -> list[float]:
        """The same with an event loop on our side, as our host has one."""
        loop = asyncio.get_running_loop()
        self._channel.setblocking(False)
        packet, taken = b"x" * size, list[float]()
        for _ in range(count):
            start = time.perf_counter()
            await loop.sock_sendall(self._channel, packet)
            await loop.sock_recv(self._channel, 65536)
            taken.append((time.perf_counter() - start) * 1e3)
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _exc: BaseException | None, _trace: TracebackType | None) -> None:
        self._channel.close()
        end(self._process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Close its stdin, and kill it if that does not end it."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
