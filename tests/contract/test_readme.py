"""The README's examples work: each is run as it is printed there, by a user who has nothing but Onetrip."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from onetrip import environments
from onetrip.errors import OnetripError

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
EXAMPLE, OUTPUT, TOOLS, TOOLS_OUTPUT, BACK, BACK_OUTPUT, STREAM, CONNECT = re.findall(
    r"^```(?:python|text)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL
)


@pytest.fixture(scope="module", autouse=True)
def _default_environment():
    try:
        environments.find("default")
    except OnetripError as err:
        pytest.skip(f"there is no default environment here: {err}")


def run(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", source], cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "output"), [(EXAMPLE, OUTPUT), (TOOLS, TOOLS_OUTPUT), (BACK, BACK_OUTPUT)], ids=["first", "tools", "going back"]
)
def test_the_first_examples_are_short_and_print_what_the_readme_says(tmp_path, example, output):
    assert len([line for line in example.splitlines() if line]) <= 10
    done = run(example, tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)


@pytest.mark.slow
def test_the_example_with_a_stream_yields_events_and_the_result_last(tmp_path):
    body = "".join(f"    {line}\n" for line in STREAM.splitlines())
    done = run(f"import asyncio, onetrip\nasync def main():\n{body}\nasyncio.run(main())", tmp_path)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Started(run_id='run_")
    assert "".join(re.findall(r"^Stdout\(text='(.*)'\)$", done.stdout, re.MULTILINE)) == "0\\n1\\n2\\n"
    assert lines[-1].startswith("Done(result=Result(id='run_")
    assert "status='completed'" in lines[-1]


@pytest.mark.slow
def test_the_example_over_http_needs_only_an_address_and_a_key(tmp_path, shared_server):
    example = CONNECT.replace("http://127.0.0.1:8400", shared_server.url).replace("TOKEN", repr(shared_server.token))
    done = run(f"import onetrip\n{example}", tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("7\n", "", 0)
