"""A small soak: a quarter of a minute of load and faults, and nothing is lost or left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "soak.py"


@pytest.mark.slow
@pytest.mark.spec("CRS-01", "CRS-03")
def test_nothing_is_lost_and_nothing_is_left(needs_environment):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--minutes", "0.25", "--calibrate", "2", "--json"],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["wrong_count"], told["left"]) == (0, [])
    assert told["answers"]["session judged whole and closed"] > 0
