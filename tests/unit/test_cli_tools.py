"""`onetrip tools`: the same text as the library's, and a table that no tool can spoil."""

import json
from contextlib import asynccontextmanager
from types import ModuleType, SimpleNamespace

import pytest
from click.testing import CliRunner

from onetrip.cli import main
from onetrip.model import Tool
from onetrip.settings import Settings
from onetrip.tools.stubs import render

TOOLS = (
    Tool(name="shop.find", description="Finds [bold]goods[/bold].\n\x1b[31mred", effect="read", side="server"),
    Tool(name="add", input_schema={"properties": {"a": {"type": "integer"}}}, approval="required", side="server"),
)


@pytest.fixture
def configured(monkeypatch):
    """Stands for the module that makes the toolbox; notes what it was asked."""
    asked = []

    @asynccontextmanager
    async def load_toolbox(settings):
        asked.append(settings)
        yield SimpleNamespace(tools=TOOLS)
        asked.append("closed")

    module = ModuleType("onetrip.tools.loading")
    module.load_toolbox = load_toolbox
    monkeypatch.setitem(__import__("sys").modules, "onetrip.tools.loading", module)
    return asked


def call(*arguments):
    return CliRunner().invoke(main, ["tools", *arguments], catch_exceptions=False)


@pytest.mark.spec("TOL-26")
def test_stubs_prints_the_text_for_a_prompt_and_nothing_else_on_stdout(configured, tmp_path):
    (tmp_path / "onetrip.toml").write_text("port = 8401\n")
    made = call("stubs", "--config", str(tmp_path / "onetrip.toml"), "--budget", "3000", "--style", "blocking")
    assert (made.exit_code, made.stdout, made.stderr) == (0, render(TOOLS, style="blocking", budget_tokens=3000).text, "")
    assert configured == [Settings(port=8401), "closed"]


@pytest.mark.spec("TOL-26")
def test_what_has_no_stub_is_said_on_stderr_and_in_json(configured):
    made = call("stubs", "--budget", "0")
    assert "2 tools have no stub" in made.stderr
    found = json.loads(call("stubs", "--budget", "0", "--json").stdout)
    assert (found["included"], sorted(found["omitted"])) == ([], ["add", "shop.find"])
    assert found["text"] == made.stdout
    assert found["tokens"] > 100


@pytest.mark.spec("TOL-26")
def test_list_shows_every_tool_on_a_line_of_its_own(configured):
    lines = call("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "add", "shop.find"]
    assert "Finds [bold]goods[/bold]. [31mred" in lines[2]
    assert "\x1b" not in "".join(lines)
    assert [tool["name"] for tool in json.loads(call("list", "--json").stdout)] == ["add", "shop.find"]


@pytest.mark.spec("TOL-26")
def test_a_configuration_that_is_none_is_the_callers_mistake(configured, tmp_path):
    made = call("list", "--config", str(tmp_path / "missing.toml"))
    assert made.exit_code == 2
    assert "cannot be read" in made.stderr
