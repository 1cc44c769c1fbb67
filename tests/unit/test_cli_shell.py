"""`onetrip shell` without a terminal: the same cells from stdin, and its commands."""

import pytest
from click.testing import CliRunner

from onetrip import config
from onetrip.cli import main
from onetrip.cli.seam import Seam
from onetrip.cli.shell import Shell, complete, split_cells
from onetrip.model import Done, ProgramError, SessionState, Stdout


def shell(fake, text, *options):
    return CliRunner().invoke(main, ["shell", *options], input=text, obj=Seam(fake), catch_exceptions=False)


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


@pytest.mark.spec("CLI-09", "CLI-14")
def test_undo_and_redo_say_where_the_session_is_now(Fake, result):
    fake = Fake(Done(result()))

    done = shell(fake, "/undo\n/undo 3\n/redo 1\n/undo x\n")

    assert fake.moves == [-1, -3, 1]
    assert done.stderr == (
        "variables and files are as they were after 2 cells\nvariables and files are as they were before the first cell\n"
        "variables and files are as they were after 1 cell\nfiles that are not as they were: big.bin (too large)\n"
        "error: /undo: 'x' is not a number.\nhint: /help shows how it is used.\n"
    )


@pytest.mark.spec("CLI-09")
def test_a_cell_that_was_taken_back_is_said_and_why_there_is_no_checkpoint_is_said_once(Fake, result):
    back = result(status="failed", error=ProgramError("E", "why"), session=SessionState(survived=True, rolled_back=True))
    none = result(session=SessionState(survived=True, note="no checkpoint: 1 more threads are alive"))
    fake = Fake(runs=[[Done(one)] for one in (back, back, none, none, result(), none)])

    done = shell(fake, "a\n\nb\n\nc\n\nd\n\ne\n\nf\n", "--on-error", "rollback", "--checkpoints", "3")

    assert done.stderr.splitlines() == [
        *["E: why", "rolled back: variables and files are as they were before"] * 2,
        *["no checkpoint: 1 more threads are alive"] * 2,
    ]
    assert [(asked["checkpoints"], asked["on_error"]) for asked in fake.asked] == [(3, "rollback")]


@pytest.mark.spec("BAD-04")
def test_a_number_of_checkpoints_out_of_range_is_refused(Fake):
    fake = Fake()
    done = shell(fake, "a\n", "--checkpoints", "65")
    assert (done.exit_code, fake.asked) == (2, [])
    assert done.stderr == (
        "error: --checkpoints: 65 is out of range; it must be from 0 to 64 checkpoints.\n"
        "hint: Give --checkpoints a value in that range.\n"
    )


@pytest.mark.spec("CLI-09", "CLI-14")
def test_a_fork_is_entered_and_left_and_closed_at_the_end(Fake, result):
    one, two = Fake(Done(result())), Fake(Done(result()))
    fake = Fake(Done(result()), branches=[one, two])

    done = shell(fake, "a\n/fork\nb\n/branch 0\nc\n/fork\nd\n/branch\n/branch 7\n/branch 1\ne\n")

    assert [[code for code, _, _ in each.cells] for each in (fake, one, two)] == [["a", "c"], ["b", "e"], ["d"]]
    assert (one.closed, two.closed, done.exit_code) == (1, 1, 0)
    assert done.stdout == "  0  the first\n  1  from 0\n* 2  from 0\n"
    assert done.stderr == (
        "this is branch 1; /branch 0 goes back to where it came from\nthis is branch 0\n"
        "this is branch 2; /branch 0 goes back to where it came from\n"
        "error: There is no branch 7.\nhint: /branch lists them.\nthis is branch 1\n"
    )


@pytest.mark.spec("CLI-09", "CLI-14")
def test_a_branch_that_is_lost_leaves_the_session_that_it_came_from(Fake, result):
    lost = Done(result(session=SessionState(survived=False)))
    two = Fake(lost)
    one = Fake(Done(result()), branches=[two])
    fake = Fake(Done(result()), branches=[one])

    done = shell(fake, "/fork\n/fork\na\n/branch 2\nb\n")

    assert [[code for code, _, _ in each.cells] for each in (fake, one, two)] == [[], ["b"], ["a"]]
    assert (one.closed, two.closed, len(fake.asked)) == (1, 1, 1)
    assert "branch 2 is gone; this is branch 1\nerror: There is no branch 2.\n" in done.stderr


@pytest.mark.spec("CLI-09", "CLI-14")
def test_when_the_first_session_is_lost_its_branch_goes_on(Fake, result):
    one = Fake(Done(result()))
    fake = Fake(Done(result(session=SessionState(survived=False))), branches=[one])

    done = shell(fake, "/fork\n/branch 0\na\n\nb\n/reset\n")

    assert [[code for code, _, _ in each.cells] for each in (fake, one)] == [["a"], ["b"]]
    assert done.stderr.endswith("branch 0 is gone; this is branch 1\na new session: variables and files are gone\n")


@pytest.mark.spec("CLI-09", "CLI-14")
def test_the_prompt_names_the_branch(Fake):
    typed = Shell(Fake(branches=[Fake()]), interactive=True)
    prompts = [typed.prompt]
    for command in ("/fork", "/branch 0"):
        assert typed.take(command)
        prompts.append(typed.prompt)
    assert prompts == [">>> ", "branch 1 >>> ", ">>> "]


@pytest.mark.spec("CLI-09")
def test_the_history_is_for_its_user_alone_and_a_read_only_home_has_none(tmp_path):
    file = config.history_file({"XDG_DATA_HOME": str(tmp_path)})
    assert file == tmp_path / "onetrip" / "shell-history"
    assert file.stat().st_mode & 0o777 == 0o600
    assert config.history_file({"HOME": "/proc/nobody"}) is None
    assert config.history_file({}) is None
