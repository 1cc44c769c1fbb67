"""`onetrip demo` with real sandboxes: everything it shows is verified by itself, so its status is the test."""

import json
import subprocess
import sys

import pytest

from onetrip import environments
from onetrip.errors import OnetripError


@pytest.fixture(scope="module", autouse=True)
def _default_environment():
    try:
        environments.find("default")
    except OnetripError as err:
        pytest.skip(f"there is no default environment here: {err}")


@pytest.mark.slow
def test_the_demo_runs_and_every_step_behaves_as_promised(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "onetrip", "demo", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["problems"] == []
    assert done.returncode == 0
    assert [step["result"]["status"] for step in report["steps"]] == [
        "completed", "completed", "completed", "completed", "completed",
        "failed", "completed", "limit_exceeded", "completed", "limit_exceeded", "completed",
        "failed", "completed", "limit_exceeded", "completed", "completed", "completed",
        "completed", "completed", "completed", "completed", "completed", "completed",
    ]  # fmt: skip
    assert report["over_http"]["statuses"] == ["completed"] * 5
    assert report["over_http"]["adopted"] == 1
    taken_back = [step["title"] for step in report["steps"] if step["result"]["session"]["rolled_back"]]
    assert taken_back[-2:] == ["The process ends", "A deaf loop"]  # before them the memory hog, where the kernel was first
    assert {step["result"]["isolation"]["level"] for step in report["steps"]} == {"strict"}
    assert [way["inferences"] for way in report["comparison"]["ways"]] == [8, 4, 2]
    assert [call["status"] for call in report["comparison"]["calls"]] == ["ok"] * 7
    picture = (tmp_path / "demo-output" / "penguins.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 20_000  # not an empty canvas, which has 9 kB at this size
    assert [path.name for path in tmp_path.iterdir()] == ["demo-output"]
