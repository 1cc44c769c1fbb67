"""Every cell is a checkpoint: what ends a cell costs that cell, and `undo` goes back further."""

import asyncio
import os
import textwrap

import msgspec
import pytest

import onetrip
from onetrip import Limits
from onetrip.errors import BadRequest, SessionGone
from onetrip.model import Rewound, SessionState


@pytest.fixture(scope="module")
def ot(anywhere):
    return anywhere


ROLLED_BACK = SessionState(survived=True, rolled_back=True, checkpoint=True)
WENT_ON = SessionState(survived=True, rolled_back=False, checkpoint=True)


def without_names(state: SessionState) -> SessionState:
    """Without the variables that a failed cell tells."""
    return msgspec.structs.replace(state, variables=())


BEFORE = """
import collections
kept = ["one"]
open("file", "w").write("one")
"""
STATE = (
    "kept, open('file').read(), sorted(__import__('os').listdir()), 'later' in globals(), 'colorsys' in __import__('sys').modules"
)
IS_BEFORE = [["one"], "one", ["file"], False, False]
# What every cell below does first: all of it has to be gone afterwards.
CHANGE = """
import colorsys, ctypes, os, signal, time
kept.append("two")
later = "two"
open("file", "w").write("two, and longer")
open("new", "w").write("new")
"""
DEAF = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"


def prepared(session):
    assert session.run(BEFORE).session == WENT_ON
    return session


def is_as_before(session) -> bool:
    """In the next cell, which has a checkpoint again."""
    result = session.run(STATE)
    assert (result.value, result.session) == (IS_BEFORE, WENT_ON)
    return True


# ---------------------------------------------------------------------------------------------------- each kind of end


@pytest.mark.slow
@pytest.mark.spec("UND-01", "LIM-01", "LIM-08")
def test_a_cell_over_its_wall_time_is_taken_back(session):
    result = prepared(session).run(CHANGE + DEAF + "while True: pass", timeout_s=0.2)
    assert (result.status, result.limit.name, result.session) == ("limit_exceeded", "wall", ROLLED_BACK)
    assert is_as_before(session)


@pytest.mark.slow
@pytest.mark.spec("UND-02", "LIM-02", "LIM-08")
def test_a_cell_over_its_cpu_time_is_taken_back(ot):
    with ot.session(limits=Limits(cpu_s=0.2)) as session:
        result = prepared(session).run(CHANGE + DEAF + "while True: pass")
        assert (result.status, result.limit.name, result.session) == ("limit_exceeded", "cpu", ROLLED_BACK)
        assert is_as_before(session)


@pytest.mark.slow
@pytest.mark.spec("UND-03", "LIM-03", "LIM-08")
def test_a_cell_that_is_killed_for_its_memory_is_taken_back(ot):
    # Shared memory, which no limit of a single process counts: only the group's limit, or the samples, can end it.
    program = CHANGE + "import mmap\nshared = mmap.mmap(-1, 1 << 30)\nfor at in range(0, 1 << 30, 4096): shared[at] = 1"
    with ot.session(limits=Limits(memory_mb=256)) as session:
        result = prepared(session).run(program)
        assert (result.status, result.limit.name, result.session) == ("limit_exceeded", "memory", ROLLED_BACK)
        assert is_as_before(session)


@pytest.mark.slow
@pytest.mark.spec("UND-04", "LIM-06", "LIM-08")
def test_a_cell_over_its_output_is_taken_back_and_what_fits_is_delivered(ot):
    with ot.session(limits=Limits(output_mb=1)) as session:
        result = prepared(session).run(CHANGE + DEAF + "while True: print('x' * 99)")
        assert (result.status, result.limit.name, result.session) == ("limit_exceeded", "output", ROLLED_BACK)
        assert len(result.stdout) == 1 << 20
        assert is_as_before(session)
        assert session.run("print('own')").stdout == "own\n"  # nothing of the killed cell is left in the pipe


@pytest.mark.slow
@pytest.mark.spec("UND-05", "LIM-04", "LIM-08")
def test_a_fork_bomb_is_taken_back_with_all_of_its_processes(ot):
    bomb = "def bomb():\n    while True:\n        try: os.fork()\n        except OSError: pass\n"
    with ot.session(limits=Limits(processes=20)) as session:
        result = prepared(session).run(CHANGE + DEAF + bomb + "bomb()", timeout_s=0.3)
        assert (result.status, result.session) == ("limit_exceeded", ROLLED_BACK)
        assert is_as_before(session)


@pytest.mark.spec("UND-06")
@pytest.mark.parametrize(
    ("crash", "name"),
    [("ctypes.string_at(0)", "SIGSEGV"), ("os.abort()", "SIGABRT"), ("os.kill(os.getpid(), signal.SIGBUS)", "SIGBUS")],
)
def test_a_crash_is_taken_back(session, crash, name):
    result = prepared(session).run(CHANGE + crash)
    assert (result.status, result.error.type, result.session) == ("failed", "ProcessDied", ROLLED_BACK)
    assert result.error.message == f"the interpreter was killed by {name}"
    assert is_as_before(session)


@pytest.mark.spec("UND-07")
@pytest.mark.parametrize(
    "leave",
    ["os._exit(3)", "ctypes.CDLL(None)._exit(3)", "os.execv('/bin/sh', ['sh', '-c', 'exit 3'])"],
)
def test_a_cell_that_leaves_is_taken_back(session, leave):
    result = prepared(session).run(CHANGE + leave)
    assert (result.status, result.error.type, result.session) == ("failed", "ProcessDied", ROLLED_BACK)
    assert result.error.message == "the interpreter ended with status 3 in the middle of the cell"
    assert is_as_before(session)


@pytest.mark.spec("UND-07")
def test_the_exit_status_is_known_also_where_the_program_ignores_the_ends_of_its_children(session):
    assert session.run("import os, signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)").ok
    result = session.run("os._exit(3)")
    assert result.error.message == "the interpreter ended with status 3 in the middle of the cell"
    # It is the program's own setting, which goes on to hold.
    assert session.run("signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN").value is True


@pytest.mark.spec("UND-08")
def test_a_cell_that_kills_itself_is_taken_back(session):
    result = prepared(session).run(CHANGE + "os.kill(os.getpid(), signal.SIGKILL)")
    assert (result.status, result.error.type, result.session) == ("failed", "ProcessDied", ROLLED_BACK)
    assert result.error.message == "the interpreter was killed by SIGKILL"
    assert is_as_before(session)


@pytest.mark.slow
@pytest.mark.spec("UND-08", "LIM-01")
def test_a_cell_that_stops_itself_is_taken_back(session):
    result = prepared(session).run(CHANGE + "os.kill(os.getpid(), signal.SIGSTOP)", timeout_s=0.2)
    assert (result.status, result.limit.name, result.session) == ("limit_exceeded", "wall", ROLLED_BACK)
    assert is_as_before(session)


@pytest.mark.slow
@pytest.mark.spec("UND-01", "UND-07")
def test_cell_after_cell_may_be_lost_and_the_state_stays(session):
    prepared(session)
    for _ in range(5):
        assert session.run(CHANGE + "os._exit(1)").session == ROLLED_BACK
        assert is_as_before(session)
        assert session.undo() == Rewound(1)


# ---------------------------------------------------------------------------------------------------- ordinary exceptions


@pytest.mark.spec("UND-09")
def test_an_exception_keeps_the_state_as_in_a_notebook(session):
    result = prepared(session).run(CHANGE + "1 / 0")
    assert (result.status, result.error.type, without_names(result.session)) == ("failed", "ZeroDivisionError", WENT_ON)
    assert session.run(STATE).value == [["one", "two"], "two, and longer", ["file", "new"], True, True]


@pytest.mark.spec("UND-09")
def test_an_exception_leaves_nothing_behind_where_the_session_asks_for_it(ot):
    with ot.session(on_error="rollback") as session:
        result = prepared(session).run(CHANGE + "1 / 0")
        assert (result.status, result.error.type, result.files) == ("failed", "ZeroDivisionError", ())
        assert result.session == ROLLED_BACK
        assert is_as_before(session)
        assert session.run("1 +").session.rolled_back is True  # a cell that does not even compile


@pytest.mark.spec("UND-09")
def test_what_else_becomes_of_errors_is_refused(ot):
    with pytest.raises(BadRequest, match=r"^on_error: 'retry' is not “keep” or “rollback”$"):
        ot.session(on_error="retry")


# ---------------------------------------------------------------------------------------------------- undo, redo


@pytest.mark.spec("UND-10")
def test_undo_goes_back_cell_by_cell(session):
    for number in range(4):
        assert session.run(f"n = {number}; open('n', 'w').write(str(n))").ok
    assert session.undo() == Rewound(3)
    assert session.run("n, open('n').read()").value == [2, "2"]
    assert session.undo(3) == Rewound(1)  # the cell that asked, and two more
    assert session.run("n, open('n').read()").value == [0, "0"]
    assert session.undo(2) == Rewound(0)
    assert session.run("'n' in globals(), __import__('os').listdir()").value == [False, []]


@pytest.mark.slow
@pytest.mark.spec("UND-10")
def test_the_last_eight_cells_can_be_undone_and_the_oldest_go_first(session):
    for number in range(10):
        assert session.run(f"n = {number}").ok
    with pytest.raises(BadRequest) as refused:
        session.undo(9)
    assert str(refused.value) == "cells: 9 cells cannot be undone; checkpoints are 1, 2, 3, 4, 5, 6, 7, 8 cells back"
    assert session.undo(8) == Rewound(2)
    assert session.run("n").value == 1


@pytest.mark.spec("UND-10")
def test_a_session_says_how_many_cells_can_be_undone(ot):
    with ot.session(checkpoints=1) as session:
        assert [session.run(f"n = {number}").ok for number in range(3)] == [True] * 3
        with pytest.raises(BadRequest) as refused:
            session.undo(2)
        assert str(refused.value) == "cells: 2 cells cannot be undone; checkpoints are 1 cells back"
        assert session.run("n").value == 2  # refused, so nothing has changed
        assert session.undo() == Rewound(3)


@pytest.mark.spec("UND-10")
@pytest.mark.parametrize("cells", [0, -1, 1.5, "1", True, None, 10**9])
def test_undo_of_what_is_no_number_of_cells_is_refused(session, cells):
    assert session.run("n = 1").ok
    for move in (session.undo, session.redo):
        with pytest.raises(BadRequest, match=r"^cells: "):
            move(cells)
    assert session.run("n").value == 1


@pytest.mark.spec("UND-11")
def test_redo_takes_an_undo_back_while_nothing_new_has_run(session):
    for number in range(4):
        assert session.run(f"n = {number}; open('n', 'w').write(str(n))").ok
    assert session.undo(3) == Rewound(1)
    assert session.redo() == Rewound(2)
    assert session.redo(2) == Rewound(4)
    with pytest.raises(BadRequest) as nothing:
        session.redo()
    assert str(nothing.value) == "cells: 1 cells cannot be done again; 0 were undone and nothing new has run since"
    assert session.run("n, open('n').read()").value == [3, "3"]


@pytest.mark.spec("UND-11")
def test_a_new_cell_ends_what_could_be_done_again(session):
    for number in range(3):
        assert session.run(f"n = {number}").ok
    assert session.undo(2) == Rewound(1)
    assert session.run("n").value == 0
    with pytest.raises(BadRequest):
        session.redo()
    assert session.run("n").value == 0


@pytest.mark.spec("UND-10", "UND-07")
def test_a_cell_that_was_taken_back_is_not_one_that_can_be_undone(session):
    assert session.run("n = 1").ok
    assert session.run("n = 2").ok
    assert session.run("import os; os._exit(1)").session == ROLLED_BACK
    assert session.undo() == Rewound(1)
    assert session.run("n").value == 1


@pytest.mark.spec("UND-21")
def test_a_session_without_checkpoints_ends_with_its_process(ot):
    with ot.session(checkpoints=0) as session:
        assert session.run("n = 1").session == SessionState(survived=True)
        with pytest.raises(BadRequest, match=r"^this session keeps no checkpoints$"):
            session.undo()
        assert session.run("import os; os._exit(1)").session.survived is False
        with pytest.raises(SessionGone):
            session.run("1")


@pytest.mark.spec("UND-22", "API-02")
def test_the_awaited_interface_takes_back_and_undoes_too():
    async def scenario():
        async with onetrip.alocal(warm=0) as ot, ot.session() as session:
            await session.run(BEFORE)
            results = [without_names((await session.run(CHANGE + end)).session) for end in ("os._exit(1)", "1 / 0")]
            moves = [await session.undo(), await session.redo(), await session.undo()]
            return results, moves, (await session.run(STATE)).value

    assert asyncio.run(scenario()) == ([ROLLED_BACK, WENT_ON], [Rewound(1), Rewound(2), Rewound(1)], IS_BEFORE)


@pytest.mark.spec("UND-22", "API-06")
def test_cells_and_undo_that_are_asked_for_at_once_come_in_turn():
    async def scenario():
        async with onetrip.alocal(warm=0) as ot, ot.session() as session:
            await session.run("n = []")
            asked = [session.run("n.append(1)"), session.undo(), session.run("n.append(2)"), session.undo(), session.run("n")]
            return [getattr(done, "value", done) for done in await asyncio.gather(*asked)]

    assert asyncio.run(scenario()) == [None, Rewound(1), None, Rewound(1), []]


@pytest.mark.spec("UND-22", "END-03")
def test_a_call_that_is_cancelled_while_a_checkpoint_is_made_does_not_disturb_it():
    async def scenario():
        async with onetrip.alocal(warm=0) as ot, ot.session() as session:
            for _ in range(5):
                await session.run("n = 1")
                for call in (session.run("n = 2"), session.undo()):
                    waiting = asyncio.create_task(call)
                    await asyncio.sleep(0)  # it waits for the checkpoint now
                    waiting.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await waiting
            return (await session.run("n")).value, (await session.run("n")).session

    assert asyncio.run(scenario()) == (1, WENT_ON)


# ---------------------------------------------------------------------------------------------------- files


@pytest.mark.spec("UND-12")
def test_files_of_every_kind_come_back(session):
    before = """
        import os
        os.makedirs("deep/er"); open("deep/er/file", "w").write("deep")
        open("mode", "w").write("x"); os.chmod("mode", 0o640); os.utime("mode", (1000, 2000))
        os.symlink("mode", "link"); open("gone", "w").write("gone"); open("empty", "w").close()
    """
    look = """
        import stat
        [(n, stat.filemode(os.lstat(n).st_mode), os.readlink(n) if os.path.islink(n) else os.path.isdir(n) or open(n).read())
         for n in ("deep", "deep/er", "deep/er/file", "mode", "link", "gone", "empty")], os.stat("mode").st_mtime, sorted(os.listdir())
    """
    assert session.run(textwrap.dedent(before)).ok
    was = session.run(textwrap.dedent(look)).value
    spoil = "import shutil; shutil.rmtree('deep'); os.remove('gone'); os.remove('link'); os.mkdir('link'); os.truncate('mode', 9)"
    assert session.run(f"{spoil}; os.chmod('mode', 0o777); open('new', 'w').close(); os._exit(1)").session == ROLLED_BACK
    assert session.run(textwrap.dedent(look)).value == was


@pytest.mark.spec("UND-12")
def test_files_that_the_caller_wrote_between_cells_stay_with_the_cell_that_comes_after(session):
    """A file is put there, then a cell is killed: the file was there before the cell, so it is there after."""
    assert session.run("1").ok
    session.files.write("given", b"mine")
    assert session.run("import os; os.remove('given'); os._exit(1)").session == ROLLED_BACK
    assert session.files.read("given") == b"mine"
    assert session.run("open('given').read()").value == "mine"


@pytest.mark.spec("UND-12")
def test_a_file_changed_through_a_mapping_comes_back(session):
    assert session.run(
        "import mmap, os; f = open('m', 'wb+'); f.write(bytes(8192)); f.flush(); m = mmap.mmap(f.fileno(), 8192)"
    ).ok
    # Read first: then the pages are mapped, and no store leaves a trace in the file's times.
    assert session.run("m[0] + m[5000]; m[0] = m[5000] = 1").ok
    assert session.run("m[0] + m[5000]; m[0] = m[5000] = 2; os._exit(1)").session == ROLLED_BACK
    look = "d = open('m', 'rb').read(); m[0], m[5000], d[0], d[5000]"
    assert session.run(look).value == [1, 1, 1, 1]
    assert session.undo(2) == Rewound(1)
    assert session.run(look).value == [0, 0, 0, 0]


@pytest.mark.spec("UND-12", "CEL-11")
def test_a_mapping_that_was_made_and_closed_in_one_cell_leaves_its_trace(session):
    """Read before it is written, so that the kernel moves no time of the file."""
    assert session.run("import mmap, os; _ = open('m', 'wb').write(bytes(8192))").ok
    change = "with open('m', 'rb+') as f, mmap.mmap(f.fileno(), 0) as m: m[0] += 1"
    assert [change.path for change in session.run(change).files] == ["m"]
    assert session.run(f"{change}\n{change}\nos._exit(1)").session == ROLLED_BACK
    assert session.run("open('m', 'rb').read(1)").text == "b'\\x01'"
    assert session.undo(2) == Rewound(1)
    assert session.run("open('m', 'rb').read(1)").text == "b'\\x00'"


@pytest.mark.spec("UND-12")
def test_what_is_not_brought_back_is_named(session):
    assert session.run("import os; os.mkfifo('fifo')").ok
    result = session.run("os.remove('fifo'); os._exit(1)")
    assert result.session == SessionState(
        survived=True, rolled_back=True, checkpoint=True,
        note="files that are not as they were: fifo (is a pipe, socket or device, which is not kept)",
    )  # fmt: skip


@pytest.mark.spec("UND-12")
def test_only_the_workspace_comes_back(session):
    """Temporary folders, home and shared memory are the sandbox's scratch: what a lost cell did there stays done."""
    assert session.run("import os\nfor d in ('/tmp', '/dev/shm', '/home/user'): open(f'{d}/file', 'w').write('one')").ok
    assert (
        session.run("for d in ('/tmp', '/dev/shm', '/home/user'): open(f'{d}/file', 'w').write('two')\nos._exit(1)").session
        == ROLLED_BACK
    )
    assert session.run("[open(f'{d}/file').read() for d in ('/tmp', '/dev/shm', '/home/user')]").value == ["two"] * 3


@pytest.mark.spec("UND-12", "CEL-11")
def test_files_of_a_cell_that_was_taken_back_are_not_listed_as_changes(session):
    assert session.run("open('a', 'w').write('1')").files[0].path == "a"
    lost = session.run("open('a', 'w').write('22'); open('b', 'w').close(); import os; os._exit(1)")
    assert (lost.session, lost.files) == (ROLLED_BACK, ())
    assert session.run("1").files == ()


# ---------------------------------------------------------------------------------------------------- no checkpoint


WHY = {
    "threads": (
        "import threading; end = threading.Event(); t = threading.Thread(target=end.wait, daemon=True); t.start()",
        "no checkpoint: 1 more threads are alive",
        "end.set(); t.join()",
    ),
    "children": (
        "import subprocess; p = subprocess.Popen(['cat'], stdin=subprocess.PIPE)",
        "no checkpoint: other processes of the program are alive",
        "p.communicate()",
    ),
    "a child that nobody waited for": (
        "import os\nif os.fork() == 0: os._exit(0)\nos.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT).si_pid > 0",
        "no checkpoint: child processes are alive, or have not been waited for",
        "_ = os.wait()",
    ),
    "children that were given away": (
        "import os; r, w = os.pipe()\nif os.fork() == 0:\n    os.close(w)\n    if os.fork() == 0: os.read(r, 1)\n    os._exit(0)\n_ = os.wait()",
        "no checkpoint: other processes of the program are alive",
        "os.close(w)\nwhile len([p for p in os.listdir('/proc') if p.isdigit() and int(p) > os.getpid()]): pass",
    ),
}


@pytest.mark.spec("UND-13")
@pytest.mark.parametrize("why", WHY)
def test_where_there_can_be_no_checkpoint_the_cell_runs_and_the_note_says_why(session, why):
    start, note, end = WHY[why]
    assert session.run(start).session == WENT_ON
    result = session.run("n = 1; n")
    assert (result.value, result.session) == (1, SessionState(survived=True, checkpoint=False, note=note))
    assert session.run(end).session == SessionState(survived=True, checkpoint=False, note=note)
    assert session.run("n").session == WENT_ON  # and now there are checkpoints again


@pytest.mark.slow
@pytest.mark.spec("UND-13", "UND-20")
def test_where_memory_is_short_there_is_no_checkpoint_and_the_note_says_so(ot):
    with ot.session(limits=Limits(memory_mb=256)) as session:
        assert session.run("import os; big = bytearray(os.urandom(1 << 20)) * 140").session == WENT_ON
        result = session.run("len(big)")
        assert (result.value, result.session.checkpoint, result.session.survived) == (140 << 20, False, True)
        assert result.session.note.startswith("no checkpoint: memory is short (")
        assert session.run("del big").session.checkpoint is False
        assert session.run("1").session == WENT_ON


@pytest.mark.spec("UND-14")
def test_a_cell_lost_without_a_checkpoint_takes_those_along_that_had_none(session):
    assert session.run("n = 1").ok
    assert session.run("n = 2; import threading, os; threading.Thread(target=threading.Event().wait, daemon=True).start()").ok
    assert session.run("n = 3").session.checkpoint is False
    result = session.run("os._exit(1)")
    note = "2 cells before it are lost, too: they had no checkpoint"
    assert result.session == SessionState(survived=True, rolled_back=True, checkpoint=False, note=note)
    assert session.run("n").value == 1
    assert session.undo() == Rewound(1)


@pytest.mark.spec("UND-14", "UND-10")
def test_undo_reaches_over_cells_that_have_no_checkpoint(session):
    assert session.run("n = 1").ok
    assert session.run("n = 2; import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()").ok
    assert session.run("n = 3").ok
    with pytest.raises(BadRequest) as refused:
        session.undo()
    assert str(refused.value) == "cells: 1 cells cannot be undone; checkpoints are 2, 3 cells back"
    assert session.undo(2) == Rewound(1)
    assert session.run("n, threading.active_count() if 'threading' in globals() else 1").value == [1, 1]


# ---------------------------------------------------------------------------------------------------- what goes on


@pytest.mark.spec("UND-15", "ISO-14")
def test_random_numbers_go_on_as_if_there_were_no_checkpoints(session):
    """A seeded sequence is that of a plain interpreter, over cells, a cell that is lost, and an undo."""
    import random

    plain = random.Random(7)
    expected = [plain.random() for _ in range(4)]
    assert session.run("import os, random; random.seed(7)").ok
    drawn = [session.run("random.random()").value]
    assert session.run("random.random(); os._exit(1)").session == ROLLED_BACK
    drawn.append(session.run("random.random()").value)
    drawn.append(session.run("random.random()").value)
    assert session.undo() == Rewound(3)
    drawn[-1:] = [session.run("random.random()").value, session.run("random.random()").value]
    assert drawn == expected


@pytest.mark.slow
@pytest.mark.spec("UND-15")
def test_numpys_random_numbers_go_on_too(session):
    script = "import numpy as np; np.random.seed(3); g = np.random.default_rng(3)"
    draw = "[float(np.random.random()), float(g.random())]"
    assert session.run(script).ok
    in_cells = [session.run(draw).value for _ in range(3)]
    assert session.run(f"{script}; [{draw} for _ in range(3)]").value == in_cells


@pytest.mark.spec("UND-15")
def test_the_process_id_is_that_of_the_process_wherever_it_is_looked_at(session):
    look = "import os, threading; os.getpid() == threading.get_native_id() == int(os.readlink('/proc/self'))"
    assert session.run(look).value is True
    assert session.run("os._exit(1)").session == ROLLED_BACK
    assert session.run(look).value is True


@pytest.mark.spec("UND-16")
def test_a_transaction_that_is_open_between_cells_can_be_committed(session):
    """Record locks belong to a process; the one that goes on has to hold them."""
    assert session.run("import os, sqlite3; con = sqlite3.connect('db', timeout=0); con.execute('create table t (x)')").ok
    assert session.run("con.execute('insert into t values (1)')").ok
    assert session.run("con.execute('insert into t values (2)'); con.commit()").ok
    assert session.run("con.execute('insert into t values (3)'); os._exit(1)").session == ROLLED_BACK
    assert session.run("con.execute('insert into t values (4)')").ok
    assert session.run("con.execute('insert into t values (5)'); os._exit(1)").session == ROLLED_BACK
    # Another process sees that the transaction holds the database.
    other = "import sqlite3\ntry:\n    sqlite3.connect('db', timeout=0).execute('begin immediate')\nexcept sqlite3.OperationalError as e:\n    print(e)"
    assert session.run(f"import subprocess, sys; subprocess.run(['python3', '-c', {other!r}], capture_output=True, text=True)").ok
    assert session.run("_.stdout").value == "database is locked\n"
    assert session.run("con.commit(); [x for x, in con.execute('select x from t')]").value == [1, 2, 4]


@pytest.mark.spec("UND-16")
def test_open_files_and_generators_stand_where_they_stood(session):
    assert session.run("import os; open('n', 'w').writelines(f'{i}\\n' for i in range(9)); f = open('n'); g = iter(range(9))").ok
    assert session.run("next(f), next(g)").ok
    assert session.run("f.read(), list(g), f.close(), os._exit(1)").session == ROLLED_BACK
    assert session.run("next(f), next(g)").value == ["1\n", 1]


@pytest.mark.spec("UND-16")
def test_tasks_of_the_event_loop_go_on(session):
    start = "import asyncio, os; q = asyncio.Queue(); go = asyncio.Event()\nasync def wait():\n    await go.wait(); return await q.get()\nt = asyncio.create_task(wait()); await q.put('first')"
    assert session.run(start).ok
    assert session.run("go.set(); await t; os._exit(1)").session == ROLLED_BACK
    assert session.run("t.done(), q.qsize()").value == [False, 1]
    assert session.run("go.set(); await asyncio.wait_for(t, 5)").value == "first"


# ---------------------------------------------------------------------------------------------------- ends, memory


@pytest.mark.spec("UND-20", "LIM-03")
def test_the_oldest_checkpoints_go_when_memory_is_short(ot):
    """Cells that rewrite 60 MB each: what checkpoints hold counts, so at 256 MB not all of them can stay."""
    with ot.session(limits=Limits(memory_mb=256)) as session:
        for number in range(6):
            assert session.run(f"big = bytearray(b'{number}') * (60 << 20)").session.survived is True
        assert session.run("big[:1]").text == "bytearray(b'5')"
        with pytest.raises(BadRequest):
            session.undo(6)
        assert session.run("len(big)").value == 60 << 20


@pytest.mark.spec("END-01", "END-03", "UND-18")
def test_a_session_that_is_closed_leaves_no_checkpoint(embedded_ot):
    with embedded_ot.session() as session:
        assert session.run("n = 1").ok
        assert session.run("n = 2").ok
        worker = session._async.engine._sessions[session.id].worker  # to see the processes from outside
        proc = os.dup(worker.sandbox.room.proc)
        alive = sorted(int(name) for name in os.listdir(proc) if name.isdigit())
        assert len(alive) >= 3
    assert [name for name in os.listdir(proc) if name.isdigit() and name != "1"] == []  # init may wait for the zygote to reap it
    os.close(proc)
