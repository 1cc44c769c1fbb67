"""What the documents list of the code is what the code has: links, options, limits, variables, promises, numbers."""

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest

from onetrip import cli, config, watchdog, wire, worker
from onetrip.cli.report import EXIT_STATUS
from onetrip.jail import enter, policy
from onetrip.model import Limits
from onetrip.tiers import jail

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(document):
    text = document.read_text("utf-8")
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        to = (document.parent / path) if path else document
        if not to.exists() or (anchor and anchor not in anchors(to.read_text("utf-8"))):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_promise_that_is_named_exists(document):
    promised = set(re.findall(r"^\| ([A-Z]{3}-\d{2}) \|", (ROOT / "SPEC.md").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"\b((?:CEL|ISO|UND|FRK|LIM|END|ENV|CLI|API|POL|BAD)-\d{2})\b", document.read_text("utf-8")))
    assert named - promised == set()


def test_every_command_and_option_of_the_readme_exists():
    unknown = []
    lines = [line for block in blocks(README, "sh") for line in block.splitlines() if line.startswith("onetrip ")]
    assert len(lines) >= 5
    for line in lines:
        _, name, *rest = shlex.split(line, comments=True)
        command = importlib.import_module(f"onetrip.cli.{name}").command
        if isinstance(command, click.Group):
            command = command.commands[rest[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        unknown += [word for word in rest if re.fullmatch(r"-c|--[a-z-]+", word) and word not in options]
    assert unknown == []


def test_every_command_is_in_the_readme():
    assert [name for name in cli._COMMANDS if not re.search(rf"\b(onetrip|make) {name}\b", README)] == []


def test_the_limits_of_the_readme_are_the_defaults():
    header, values = re.search(r"^\| (`wall_s`.*) \|\n\|[-|]+\|\n\| (.*) \|$", README, re.MULTILINE).groups()
    listed = dict(zip([name.strip(" `") for name in header.split("|")], map(float, values.split("|")), strict=True))
    assert listed == {name: getattr(Limits(), name) for name in Limits.__struct_fields__}


def test_the_exit_statuses_of_the_readme_are_those_of_run():
    listed = re.search(r"^Exit status of `run`: (.*)$", README, re.MULTILINE)[1]
    assert listed == "0 completed, 1 the program failed, 2 a mistake in the command, 3 a limit, 4 the platform."
    assert (EXIT_STATUS["completed"], EXIT_STATUS["failed"], EXIT_STATUS["limit_exceeded"], EXIT_STATUS["lost"]) == (0, 1, 3, 4)
    assert (cli.USAGE, cli.PLATFORM) == (2, 4)


def test_the_number_of_system_calls_in_the_readme_is_that_of_the_filter():
    reached = sum(1 for call in policy.ALLOW if call.x86_64 is not None and call.rule != policy.NO_XATTR)
    assert re.search(r"^\| Onetrip, level `strict` \|.*\| (\d+) \|$", README, re.MULTILINE)[1] == str(reached)


def test_the_readme_has_a_place_for_the_numbers_of_bench():
    assert re.findall(r"^<!-- bench:\w+ -->$", README, re.MULTILINE) == ["<!-- bench:start -->", "<!-- bench:end -->"]


def test_the_honest_limit_is_on_the_first_page_of_the_readme():
    assert README.index("programs share it") < README.index("## Install")


def test_the_variables_of_the_design_are_those_that_are_read():
    text = (ROOT / "docs" / "design.md").read_text("utf-8")
    assert dict(re.findall(r"^\| `([A-Z_]+)` \| (.*) \|$", text, re.MULTILINE)) == dict(config.VARIABLES)


def test_the_numbers_in_the_documents_are_those_of_the_code():
    design = (ROOT / "docs" / "design.md").read_text("utf-8")
    threats = (ROOT / "docs" / "threat-model.md").read_text("utf-8")
    assert (worker.GRACE_S, watchdog.TICK_S, worker.READY_S) == (1, 0.05, 30)
    assert (wire.PACKET_BYTES, wire.MAX_PAYLOAD_BYTES) == (64 << 10, 64 << 20)
    for said in (
        "1 s between interrupt and kill",
        "50 ms between samples",
        "30 s to be ready",
        "64 KiB a packet, 64 MiB a frame",
    ):
        assert f"| {said} |" in design
    assert f"| {enter.NOFILE:,} descriptors |" in design
    assert f"| {jail.INODES:,} inodes |" in design
    assert f"maps {jail.UID_COUNT:,} host ids" in design
    for text in (design, threats):
        assert f"after {jail.ROTATE_AFTER:,} launches" in text


def test_every_decision_has_its_parts_and_is_listed():
    index = (ROOT / "docs" / "decisions" / "README.md").read_text("utf-8")
    assert [path.name[:3] for path in DECISIONS] == [f"{number:03}" for number in range(1, len(DECISIONS) + 1)]
    for path in DECISIONS:
        text = path.read_text("utf-8")
        missing = [
            part
            for part in ("**Question.**", "**Decision.**", "**Refused.**", "**Measured.**", "**Would change our mind.**")
            if part not in text
        ]
        assert missing == [], path.name
        title = text.splitlines()[0].removeprefix(f"# {path.name[:3]} ")
        assert f"- [{path.name[:3]}]({path.name}) {title}\n" in index + "\n"
