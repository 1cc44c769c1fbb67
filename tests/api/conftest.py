"""A real `onetrip serve` as a process of its own, on a data folder of its own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def shared_server():
    """One server for all tests that leave it as it was."""
    with tempfile.TemporaryDirectory(prefix="ot-", dir="/tmp") as folder:  # a socket's name has at most 108 bytes
        data = Path(folder) / "data"
        with open(Path(folder) / "log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "onetrip", "serve", "--port", "0", "--json"],
                env={**os.environ, "ONETRIP_DATA": str(data)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        told = json.loads(process.stdout.readline())
        yield SimpleNamespace(url=told["url"], token=told["token"], pid=told["pid"], data=data)
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stdout.close()
