"""`onetrip shell` without a terminal: the same cells from stdin, and its commands."""

import pytest
from click.testing import CliRunner

from onetrip import config
from onetrip.cli import main
from onetrip.cli.seam import Seam
from onetrip.cli.shell import complete, split_cells
from onetrip.model import Done, ProgramError, SessionState, Stdout


def shell(fake, text):
    return CliRunner().invoke(main, ["shell"], input=text, obj=Seam(fake), catch_exceptions=False)


@pytest.mark.spec("CLI-09")
def test_cells_are_separated_by_empty_lines_where_they_are_complete():
    text = """\
x = 1
y = 2

def f():
    a = 1

    return a

f()

if x:
    pass

else:
    pass

text = '''
not

a cell
'''

values = [
    1,

    2,
]

await something()
/files
"""
    assert list(split_cells(text.splitlines())) == [
        "x = 1\ny = 2",
        "def f():\n    a = 1\n\n    return a",
        "f()",
        "if x:\n    pass\n\nelse:\n    pass",
        "text = '''\nnot\n\na cell\n'''",
        "values = [\n    1,\n\n    2,\n]",
        "await something()",
        "/files",
    ]


@pytest.mark.spec("CLI-09")
@pytest.mark.parametrize(
    ("source", "whole"),
    [
        ("1 + 1", True),
        ("def f():", False),
        ("def f():\n    return 1", True),
        ("f(", False),
        ("'''a", False),
        ("x = = 1", True),
        ("await f()", True),
    ],
)
def test_an_incomplete_cell_waits_and_a_wrong_one_is_run_to_be_reported(source, whole):
    assert complete(source) is whole


@pytest.mark.spec("CLI-09")
def test_a_failing_cell_does_not_end_the_session_and_the_last_decides_the_status(Fake, result):
    failed = Done(result(status="failed", error=ProgramError("E", "why", "E: why\n")))
    fake = Fake(Stdout("out\n"), failed)

    done = shell(fake, "a\n\nb\n")

    assert [code for code, _, _ in fake.cells] == ["a", "b"]
    assert (done.exit_code, done.stdout, done.stderr, len(fake.asked)) == (1, "out\nout\n", "E: why\nE: why\n", 1)


@pytest.mark.spec("CLI-09")
def test_a_session_that_did_not_survive_is_said_and_another_begins(Fake, result):
    fake = Fake(Done(result(session=SessionState(survived=False))))

    done = shell(fake, "a\n\nb\n")

    assert [code for code, _, _ in fake.cells] == ["a", "b"]
    assert done.stderr.count("a new session: variables and files are gone\n") == 2
    assert len(fake.asked) == 3


@pytest.mark.spec("CLI-09")
def test_commands_list_put_save_and_reset(tmp_path, monkeypatch, Fake, result):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_bytes(b"1,2\n")
    fake = Fake(Done(result()))

    done = shell(
        fake, "/put in.csv\n/files\n/save in.csv copy.csv\n/save in.csv copy.csv\n/usage\n/nosuch\n/put\n/reset\n/quit\n"
    )

    assert (tmp_path / "copy.csv").read_bytes() == b"1,2\n"
    assert done.stdout == "           4  in.csv\n"
    assert done.stderr == (
        "in.csv: 4 bytes\nsaved copy.csv\nerror: /save: copy.csv: File exists.\nhint: Name another place: /save NAME TO.\n"
        "no cell has run yet\nerror: There is no command /nosuch.\nhint: /help lists the commands.\n"
        "error: /put needs a name.\nhint: /help shows how it is used.\na new session: variables and files are gone\n"
    )
    assert (done.exit_code, len(fake.asked)) == (0, 2)


@pytest.mark.spec("CLI-09")
def test_the_history_is_for_its_user_alone_and_a_read_only_home_has_none(tmp_path):
    file = config.history_file({"XDG_DATA_HOME": str(tmp_path)})
    assert file == tmp_path / "onetrip" / "shell-history"
    assert file.stat().st_mode & 0o777 == 0o600
    assert config.history_file({"HOME": "/proc/nobody"}) is None
    assert config.history_file({}) is None
