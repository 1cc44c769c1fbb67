"""A real `onetrip serve` for tests: its process, its address and key, and the ways in which it ends."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

START_S = 60.0
END_S = 90.0


class Server:
    """One data folder and the server on it. `restart` keeps the port, so that clients find it again."""

    def __init__(self, *, config: str = "", arguments: tuple[str, ...] = ()) -> None:
        # Not pytest's folder: the socket in it has a name of at most 108 bytes, and a test's process needs no right to others' folders.
        self.folder = Path(tempfile.mkdtemp(prefix="ot-", dir="/tmp"))
        self.data = self.folder / "data"
        self._config, self._arguments = config, arguments
        self.port, self.url, self.token, self.adopted = 0, "", "", 0
        self.process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8", errors="replace")

    def start(self) -> Self:
        arguments = ["serve", "--port", str(self.port), "--json", *self._arguments]
        if self._config:
            (self.folder / "onetrip.toml").write_text(self._config, encoding="utf-8")
            arguments += ["--config", str(self.folder / "onetrip.toml")]
        with open(self.folder / "log", "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "onetrip", *arguments],
                env={**os.environ, "ONETRIP_DATA": str(self.data)}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # or its end of file, if it could not start
        assert line, f"the server ended with {self.process.wait(END_S)}: {self.log[-2000:]}"
        told = json.loads(line)
        self.url, self.token, self.adopted = told["url"], told["token"] or self.token, told["adopted"]
        self.port = int(self.url.rpartition(":")[2])
        return self

    def end(self, number: signal.Signals) -> int:
        """Send the signal, wait for the end of the server, and return its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        status = self.process.wait(END_S)
        self.process.stdout.close()
        return status

    def stop(self) -> int:
        """Drained."""
        return self.end(signal.SIGTERM)

    def kill(self) -> None:
        """As a crash does: its sandboxes live on for the lease."""
        self.end(signal.SIGKILL)

    def restart(self) -> Self:
        if self.process is not None and self.process.poll() is None:
            self.stop()
        return self.start()

    def close(self) -> None:
        """Whatever was done to it: nothing is left."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            if self.process is not None and self.process.poll() is not None:
                self.start()  # adopts what a killed one left, so that it ends with it
            self.end(signal.SIGINT)
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def serving(*, config: str = "", arguments: tuple[str, ...] = ()) -> Iterator[Server]:
    server = Server(config=config, arguments=arguments)
    try:
        yield server.start()
    finally:
        server.close()
