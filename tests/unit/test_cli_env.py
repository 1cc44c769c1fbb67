"""`onetrip env`, `doctor` and the bare command: data to stdout, words to stderr, a status that a script can use."""

import json
import os
import subprocess
import sys

import msgspec
import pytest
from click.testing import CliRunner

import onetrip
from onetrip import environments
from onetrip.cli import main
from onetrip.cli.seam import Seam
from onetrip.model import Mechanism, Support


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ONETRIP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def env(*arguments):
    return CliRunner().invoke(main, ["env", *arguments], catch_exceptions=False)


@pytest.mark.spec("CLI-10")
def test_env_build_list_and_remove(home, wheel):
    built = env("build", "mine", "--package", wheel("answer"), "--preload", "answer,json", "--json")
    assert (built.exit_code, json.loads(built.stdout)["nodes"][1]) == (
        0,
        {"name": "preload", "parent": "bare", "imports": ["answer", "json"]},
    )

    listed = env("list", "--json")
    assert json.loads(listed.stdout) == json.loads(msgspec.json.encode(environments.list_all()))
    table = env("list")
    assert [line.split()[0] for line in table.stdout.splitlines()] == ["name", "mine"]

    removed = env("remove", "mine")
    assert (removed.exit_code, removed.stdout, removed.stderr) == (0, "", "")
    nothing = env("list")
    assert (nothing.stdout, nothing.stderr) == (
        "",
        "There are no environments yet.\nhint: `onetrip env build default` builds the default one.\n",
    )


@pytest.mark.spec("CLI-10")
def test_env_build_says_where_the_build_is(home, wheel, tmp_path):
    listed = tmp_path / "requirements.txt"
    listed.write_text(wheel("answer") + "\n")
    built = env("build", "mine", "--requirements", str(listed))
    assert built.stdout == environments.find("mine").path + "\n"
    assert "mine: 1 packages for CPython " in built.stderr


@pytest.mark.spec("CLI-10", "ENV-05")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "../x", "--package", "y"], "error: name: '../x' is not a name for an environment.\n"),
        (["build", "mine"], "error: packages: an environment 'mine' of no packages.\n"),
        (["build", "mine", "--requirements", "/nowhere"], "error: requirements: /nowhere: No such file or directory.\n"),
        (
            ["build", "mine", "--package", "x", "--python", "/nowhere/python"],
            "error: python: there is no interpreter '/nowhere/python'.\n",
        ),
        (["build", "mine", "--package", "x", "--preload", "a b"], "error: preload: 'a b' is not the name of a module.\n"),
        (["remove", "mine"], "error: There is no environment 'mine'; there are: none.\n"),
    ],
)
def test_env_refuses_with_a_remedy(home, arguments, message):
    done = env(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert "\nhint: " in done.stderr
    assert not home.exists()


class Probe:
    def __init__(self, level):
        self.level = level

    def probe(self):
        missing = Mechanism(
            "userns",
            False,
            "strict",
            "unshare: EPERM [blocked by AppArmor]",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        )
        return Support("jail", self.level, (Mechanism("seccomp", True, "reduced", "138 calls"), missing))


@pytest.mark.spec("CLI-11")
@pytest.mark.parametrize(("level", "status"), [("strict", 0), ("reduced", 1), (None, 1)])
def test_doctor_lists_every_mechanism_with_its_remedy(home, level, status):
    done = CliRunner().invoke(main, ["doctor"], obj=Seam(Probe(level)), catch_exceptions=False, env={"COLUMNS": "200"})

    assert (done.exit_code, done.stderr) == (status, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"level {level or 'none'} · tier jail · kernel {os.uname().release} · ")
    assert [line.split() for line in lines[2:4]] == [
        ["seccomp", "works", "reduced", "138", "calls"],
        ["userns", "missing", "strict", "unshare:", "EPERM", "[blocked", "by", "AppArmor]"],
    ]
    assert lines[4:] == [
        "hint: userns: sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        "environments: none yet; `onetrip env build default` builds the default one",
    ]


@pytest.mark.spec("CLI-11")
def test_doctor_as_json_is_what_the_probe_found(home):
    done = CliRunner().invoke(main, ["doctor", "--json"], obj=Seam(Probe("reduced")), catch_exceptions=False)
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert msgspec.convert({name: found[name] for name in ("tier", "level", "mechanisms")}, Support) == Probe("reduced").probe()
    assert found["environments"] == []
    assert found["homes"] == [str(home)]


@pytest.mark.spec("CLI-12")
def test_help_needs_neither_the_engine_nor_an_environment():
    program = "import sys; sys.argv[1:] = ['--help']\ntry:\n    from onetrip.cli import main; main()\nfinally:\n    print(sorted(set(sys.modules) & {'asyncio', 'onetrip.embedded', 'rich', 'prompt_toolkit'}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("run", "shell", "serve", "mcp", "keys", "usage", "doctor", "env", "demo", "bench"):
        assert f"\n  {command} " in done.stdout


@pytest.mark.spec("CLI-12")
@pytest.mark.parametrize("arguments", [["nosuch"], ["run", "--nosuch"], ["run", "-c"], ["run", "-c", "1", "--wall-s", "x"]])
def test_a_mistake_in_the_command_is_status_2(arguments):
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.stdout) == (2, "")


@pytest.mark.spec("API-01")
def test_the_public_names_are_these_and_importing_them_is_lazy():
    assert onetrip.__all__ == [
        "BadRequest",
        "Conflict",
        "Forbidden",
        "IsolationUnavailable",
        "Limits",
        "ModulePolicy",
        "NotFound",
        "OnetripError",
        "Overloaded",
        "PlatformError",
        "Policy",
        "PreconditionFailed",
        "QuotaExceeded",
        "RangeUnsatisfiable",
        "Result",
        "SandboxFailed",
        "SessionGone",
        "TooLarge",
        "Tool",
        "Unauthorized",
        "Unavailable",
        "UnknownEnvironment",
        "WorkspaceFull",
        "aconnect",
        "alocal",
        "connect",
        "local",
        "tool",
    ]
    assert all(getattr(onetrip, name).__name__ == name for name in onetrip.__all__)
    assert all(
        issubclass(getattr(onetrip, name), onetrip.OnetripError)
        for name in onetrip.__all__
        if isinstance(getattr(onetrip, name), type) and issubclass(getattr(onetrip, name), Exception)
    )
    with pytest.raises(AttributeError, match="^module 'onetrip' has no attribute 'nosuch'$"):
        _ = onetrip.nosuch
