"""The attack suites that are kept outside of this repository, run against `onetrip.local()`: every case is contained.

They take minutes, so `make attacks` runs them and `make test` does not. The folder that holds them is named by ONETRIP_SHARED;
without it, the folder `shared` beside the checkout is tried.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("ONETRIP_SHARED") or HERE.parents[2] / "shared")
SUITE = SHARED / "security"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("ONETRIP_ATTACKS" not in os.environ, reason="takes minutes: make attacks"),
    pytest.mark.skipif(not SUITE.is_dir(), reason=f"the suites are not here: there is no {SUITE}; set ONETRIP_SHARED"),
]

# What is not contained, and why. docs/threat-model.md says the same in more words.
ANYWHERE = {
    "XTN-08": "forks of one zygote share the seed of the string hash; CPython can set it only at the start of a process",
    "XTN-10": "forks of one zygote share the stack protector's and pointer guard's secrets; they are set by execve",
}
_OWN_PAST = "the process is a checkpoint, the session's own past: its files can be listed and opened anew, not its sockets"
WITH_CHECKPOINTS = ANYWHERE | {"FSR-07": _OWN_PAST, "PRC-07": _OWN_PAST}


def run_suite(script: str, adapter: str, out: Path, *options: str) -> list[dict]:
    """Run one suite in a process of its own, as its README asks; returns its results."""
    subprocess.run(
        [sys.executable, str(SUITE / script), "--adapter", f"py:adapter:{adapter}", "--out", str(out), *options],
        cwd=HERE,
        stdin=subprocess.DEVNULL,
        timeout=1500,
        check=False,  # its status says only whether anything escaped, which is judged here
    )
    found = json.loads(out.read_text())
    return found["results"] if isinstance(found, dict) else found


def not_contained(results: list[dict]) -> dict[str, object]:
    fine = {"contained", "ok", "info:blocked"}
    return {
        result["id"]: result.get("escapes") or result.get("why") or result.get("note")
        for result in results
        if result["status"] not in fine
    }


@pytest.mark.parametrize(("adapter", "known"), [("Programs", WITH_CHECKPOINTS), ("ProgramsWithoutCheckpoints", ANYWHERE)])
def test_every_program_that_attacks_is_contained(tmp_path, adapter, known):
    with tempfile.TemporaryDirectory(prefix="att-") as base:  # the suite binds sockets below it: their paths end at 107 bytes
        results = run_suite("runner.py", adapter, tmp_path / "programs.json", "--server-pkg", "onetrip", "--base", base)
    assert not_contained(results).keys() == known.keys()  # a case that is contained by now leaves the list
    assert len(results) > 90


def test_every_abuse_of_the_file_interface_is_contained(tmp_path):
    results = run_suite("client_runner.py", "Folders", tmp_path / "folders.json")
    archives = {result["id"] for result in results if result["status"] == "skipped"}  # there are none in the interface
    assert archives <= {"CLI-50", "CLI-52", "CLI-53"}
    assert {case: why for case, why in not_contained(results).items() if case not in archives} == {}
    assert len(results) > 20
