"""A small endurance run: every violent end at least once, as one-shot and as session, and nothing is left."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "endurance.py"


@pytest.mark.slow
@pytest.mark.spec("END-01", "END-03")
def test_nothing_is_left_after_every_kind_of_violent_end():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--one-shots", "48", "--sessions", "36", "--in-flight", "4"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "48 one-shots and 36 sessions" in done.stdout
    assert "nothing was left; 0 wrong results" in done.stdout
