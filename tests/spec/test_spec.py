"""SPEC.md and the tests agree: each promise is claimed by a test, and each claim is of a promise that exists."""

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROMISE = re.compile(r"^\|\s*([A-Z]{3}-\d{2})\s*\|", re.MULTILINE)


def promises() -> list[str]:
    return PROMISE.findall((ROOT / "SPEC.md").read_text("utf-8"))


def claims() -> dict[str, list[str]]:
    """Id → the tests that claim it, from the source: a test that is skipped on this machine claims nonetheless."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.spec":
                for argument in node.args:
                    assert isinstance(argument, ast.Constant), f"{path}:{node.lineno}: an id must be written out"
                    assert isinstance(argument.value, str), f"{path}:{node.lineno}: an id is a text"
                    found.setdefault(argument.value, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def test_every_promise_is_claimed_by_a_test():
    claimed = claims()
    unclaimed = [promise for promise in promises() if promise not in claimed]
    assert unclaimed == [], f"{len(unclaimed)} promises of SPEC.md that no test claims: {', '.join(unclaimed)}"


def test_every_claim_is_of_a_promise():
    known = set(promises())
    assert {claim: where for claim, where in claims().items() if claim not in known} == {}


def test_no_id_is_used_twice():
    assert [promise for promise, count in Counter(promises()).items() if count > 1] == []
