"""Branches of a live session in the real kernel: what they share with it, what they do not, and how everything ends."""

import contextlib
import errno
import os
import re
import textwrap
from pathlib import Path

import pytest

import onetrip
from onetrip.errors import BadRequest, NotFound, Overloaded, SandboxFailed, Unavailable
from onetrip.jail import cgroup
from onetrip.jail.zygote import SPARE_ROOMS
from onetrip.tiers.jail import SPARE_GROUPS

GROUP_FDS = 9  # that a control group of version 1 is held by


def has_groups(result: onetrip.Result) -> bool:
    return any(name.startswith("cgroup-v") for name in result.isolation.mechanisms)


@pytest.fixture
def branch(session):
    session.run("import os, random\nx = {'kept': [1, 2, 3]}\nopen('a.txt', 'w').write('origin')\nreader = open('a.txt')")
    with session.fork() as forked:
        yield forked


@pytest.mark.spec("FRK-01")
def test_a_branch_begins_with_the_variables_files_and_open_files_of_its_origin(session, branch, value):
    assert value(branch, "[x, open('a.txt').read(), reader.read(), os.listdir('.')]") == [
        {"kept": [1, 2, 3]},
        "origin",
        "origin",
        ["a.txt"],
    ]
    assert branch.id != session.id
    assert value(session, "reader.read()") == "origin"  # the branch's reading moved nothing here


@pytest.mark.spec("FRK-02")
def test_what_a_branch_does_its_origin_does_not_see_and_the_other_way_round(session, branch, value):
    branch.run("x['kept'].append(4)\nopen('a.txt', 'w').write('branch')\nopen('b.txt', 'w').write('new')\nos.mkdir('folder')")
    session.run("x['mine'] = True\nos.remove('a.txt')")
    assert value(branch, "[x, open('a.txt').read(), sorted(os.listdir('.'))]") == [
        {"kept": [1, 2, 3, 4]},
        "branch",
        ["a.txt", "b.txt", "folder"],
    ]
    assert value(session, "[x, os.listdir('.')]") == [{"kept": [1, 2, 3], "mine": True}, []]
    assert [file.path for file in branch.files.list()] == ["a.txt", "b.txt"]
    assert session.files.list() == []


@pytest.mark.spec("FRK-02")
def test_files_of_the_caller_go_to_the_session_that_they_were_given_to(session, branch, value):
    branch.files.write("given.txt", "to the branch")
    session.files.write("given.txt", "to the origin")
    assert value(branch, "open('given.txt').read()") == "to the branch"
    assert value(session, "open('given.txt').read()") == "to the origin"


@pytest.mark.spec("FRK-02")
def test_a_branch_reaches_its_origins_files_by_no_path(session, branch):
    for path in (
        "/workspace/a.txt",
        "/tmp",
        "/home/user",
        "/branches",
        "/branches/all",
        "/proc/2/cwd/a.txt",
        "/proc/2/root/workspace",
    ):
        result = branch.run(f"import os\nos.listdir({path!r}) if os.path.isdir({path!r}) else open({path!r}).read()")
        assert result.error is not None, path
        assert result.error.type in ("PermissionError", "FileNotFoundError"), (path, result.error)


@pytest.mark.spec("FRK-02")
def test_temporary_files_of_a_branch_are_its_own(branch, value):
    made = value(branch, "import tempfile\nwith tempfile.NamedTemporaryFile() as f:\n    made = f.name\nmade")
    assert made.startswith(value(branch, "os.path.dirname(os.getcwd())"))
    assert value(branch, "os.path.expanduser('~').startswith(os.path.dirname(os.getcwd()))") is True


@pytest.mark.spec("FRK-03")
def test_a_cell_of_a_branch_that_is_killed_costs_that_cell_of_that_branch(session, branch, value):
    for source in ("os._exit(3)", "os.kill(os.getpid(), 9)", "import ctypes\nctypes.string_at(0)"):
        result = branch.run("x = None\nopen('a.txt', 'w').write('lost')\n" + source)
        assert (result.session.survived, result.session.rolled_back) == (True, True), result
        assert value(branch, "[x, open('a.txt').read()]") == [{"kept": [1, 2, 3]}, "origin"]
    assert value(session, "x") == {"kept": [1, 2, 3]}


@pytest.mark.spec("FRK-03", "UND-07")
def test_a_branch_undoes_its_own_cells_up_to_where_it_began(branch, value):
    for number in range(3):
        branch.run(f"x = {number}\nopen('a.txt', 'w').write('{number}')")
    branch.undo(2)
    assert value(branch, "[x, open('a.txt').read()]") == [0, "0"]
    branch.undo(2)
    assert value(branch, "[x, open('a.txt').read()]") == [{"kept": [1, 2, 3]}, "origin"]
    with pytest.raises(BadRequest, match="cannot be undone"):
        branch.undo(3)


@pytest.mark.spec("FRK-04")
def test_each_ends_by_itself_in_any_order(ot, value):
    with ot.session() as session:
        session.run("x = 1")
        first, second = session.fork(count=2)
    with pytest.raises(NotFound):
        session.run("x")
    assert value(first, "x") == 1
    third = first.fork()
    first.close()
    assert first.id != third.id
    for alive in (second, third):
        assert alive.run("import os\nos._exit(1)").session.rolled_back is True
        assert value(alive, "x") == 1
    second.close()
    assert value(third, "x + 1") == 2
    third.close()


@pytest.mark.slow
@pytest.mark.spec("FRK-04", "END-01")
def test_nothing_is_left_of_a_family_when_the_last_of_it_has_gone(descendants, wait_until):
    def live_and_end() -> None:
        with ot.session() as session:
            session.run("x = bytearray(1 << 20)\nopen('f', 'wb').write(x)")
            family = [session, *session.fork(count=4)]
            family += family[1].fork(count=2)
            for member in family[1:]:
                member.run("y = 1")
            for member in family[1:]:
                member.close()

    others = descendants(os.getpid())  # of the engine that the other tests use: its reserves come and go by themselves

    def own() -> set[int]:
        return descendants(os.getpid()) - others.union(*map(descendants, others))

    def processes() -> int:
        return len(own())

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def spare_rooms() -> int:
        """Each has an init, the PID 1 of a namespace below the zygote's."""
        inits = 0
        for pid in own():
            with contextlib.suppress(OSError):
                inits += re.search(r"^NSpid:(\t\d+){2,}\t1$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE) is not None
        return inits

    with onetrip.local(warm=0) as ot:  # what the first engine of a process makes for good
        ot.run("1")
    before = processes(), descriptors()
    # Idle it holds reserves: a node for each set of imports, rooms, and up to so many control groups. No pool: it would be filling.
    with onetrip.local(warm=0) as ot:
        ot.start()
        live_and_end()
        assert wait_until(lambda: spare_rooms() == SPARE_ROOMS)
        most, held = processes(), descriptors()
        for _ in range(4):
            live_and_end()
        assert wait_until(lambda: processes() <= most), (processes(), most)
        assert wait_until(lambda: descriptors() <= held + SPARE_GROUPS * GROUP_FDS), (descriptors(), held)
    assert wait_until(lambda: (processes(), descriptors()) == before), ((processes(), descriptors()), before)


@pytest.mark.slow
@pytest.mark.spec("FRK-01")
def test_a_hundred_branches_at_once(ot, value):
    with ot.session() as session:
        grouped = has_groups(session.run("x = 20"))
        if not grouped:  # a session and its branches share one limit of processes (docs/limits, shared-processes)
            with pytest.raises(SandboxFailed, match="could not begin: .*fork the checkpoint") as caught:
                session.fork(count=100)
            assert "`processes`" in caught.value.hint
            assert value(session, "x") == 20
    with ot.session(limits=None if grouped else {"processes": 256}) as session:
        session.run("x = 20")
        branches = session.fork(count=100)
        assert len({branch.id for branch in branches}) == 100
        assert [value(branch, f"x + {number}") for number, branch in enumerate(branches)] == [
            20 + number for number in range(100)
        ]
        for branch in branches:
            branch.close()
        assert value(session, "x") == 20


@pytest.mark.spec("FRK-05")
def test_branches_do_not_repeat_each_others_random_numbers_or_keys(session):
    session.run("import random, uuid, os, numpy\nmade = numpy.random.default_rng()")
    draw = "[random.random(), numpy.random.rand(), made.random(), str(uuid.uuid1()), str(uuid.uuid4()), os.urandom(4).hex()]"
    branches = session.fork(count=3)
    drawn = [branch.run(draw).value for branch in branches] + [session.run(draw).value]
    for kind in zip(*drawn, strict=True):
        assert len(set(kind)) == 4, kind
    for branch in branches:
        branch.close()


@pytest.mark.spec("FRK-05")
def test_a_seed_that_the_program_set_holds_in_every_branch(session):
    session.run("import random, numpy\nrandom.seed(7)\nnumpy.random.seed(8)\nmade = numpy.random.default_rng(9)")
    draw = "[random.random(), numpy.random.rand(), made.random()]"
    branches = session.fork(count=2)
    drawn = [branch.run(draw).value for branch in branches] + [session.run(draw).value]
    assert drawn[0] == drawn[1] == drawn[2]
    for branch in branches:
        branch.close()


@pytest.mark.spec("FRK-06")
def test_a_session_that_has_no_checkpoint_says_why_it_cannot_branch(ot, session):
    session.run("import threading, time\nend = threading.Event()\nthread = threading.Thread(target=end.wait)\nthread.start()")
    with pytest.raises(Unavailable, match="1 more threads are alive"):
        session.fork()
    session.run("end.set()\nthread.join()")
    session.fork().close()
    with ot.session(checkpoints=0) as plain, pytest.raises(BadRequest, match="keeps no checkpoints"):
        plain.fork()
    for count in (0, 1001, True, "2"):
        with pytest.raises(BadRequest, match="count"):
            session.fork(count=count)


@pytest.mark.spec("FRK-06")
def test_branches_that_are_too_many_are_all_taken_back():
    with onetrip.local(warm=0, max_live=4) as ot, ot.session() as session:
        session.run("x = 1")
        with pytest.raises(Overloaded):
            session.fork(count=10)
        branches = session.fork(count=3)
        assert [branch.run("x").value for branch in branches] == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.spec("FRK-06")
def test_branches_of_branches_go_as_deep_as_the_kernel_lets_them_and_then_say_so(ot, value):
    line = [ot.session()]
    line[0].run("open('a.txt', 'w').write('')")
    with pytest.raises(SandboxFailed, match="Landlock domain"):  # noqa: PT012 - how deep depends on the kernel
        while len(line) < 20:
            line.append(line[-1].fork())
            line[-1].run(f"text = open('a.txt').read() + '{len(line) % 10}'\nopen('a.txt', 'w').write(text)")
    assert len(line) > 10
    assert [len(one.files.read("a.txt")) for one in line] == list(range(len(line)))
    for one in line:
        one.close()


# ---------------------------------------------------------------------------------------------------- attacks

ATTACK = """
    import os, signal, ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    reached = []
    for pid in range(2, 400):
        if pid == os.getpid():
            continue
        for call, arguments in ((os.kill, (pid, 0)), (os.kill, (pid, signal.SIGSTOP)), (os.kill, (-pid, signal.SIGKILL))):
            try:
                call(*arguments)
                reached.append((pid, arguments[1]))
            except (PermissionError, ProcessLookupError):
                pass
    for everybody in (-1,):
        try:
            os.kill(everybody, signal.SIGKILL)
            reached.append(everybody)
        except (PermissionError, ProcessLookupError):
            pass
    reached
"""


@pytest.mark.spec("FRK-07")
def test_a_branch_can_signal_neither_its_origin_nor_its_siblings(session, value):
    session.run("x = 1")
    attacker, sibling = session.fork(count=2)
    assert value(attacker, textwrap.dedent(ATTACK)) == []
    assert [value(session, "x"), value(sibling, "x")] == [1, 1]
    attacker.close()
    sibling.close()


@pytest.mark.spec("FRK-07")
def test_a_branch_can_neither_read_nor_write_memory_or_descriptors_of_its_family(session, value):
    session.run("secret = 'of the origin'")
    attacker, sibling = session.fork(count=2)
    sibling.run("secret = 'of the sibling'")
    program = """
        import os
        opened = []
        for name in os.listdir('/proc'):
            if name.isdigit() and int(name) != os.getpid():
                for what, mode in (('mem', 'rb'), ('mem', 'r+b'), ('environ', 'rb'), ('maps', 'rb'), ('fd/3', 'rb'), ('cwd/x', 'wb')):
                    try:
                        open(f'/proc/{name}/{what}', mode).close()
                        opened.append((name, what, mode))
                    except OSError:
                        pass
        opened
    """
    assert value(attacker, program) == []
    attacker.close()
    sibling.close()


@pytest.mark.spec("FRK-07", "LIM-04")
def test_a_fork_bomb_in_a_branch_leaves_the_others_alone(ot, value):
    with ot.session(limits={"processes": 16, "wall_s": 5}) as session:
        grouped = has_groups(session.run("x = 1"))
        bomb, other = session.fork(count=2)
        result = bomb.run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass")
        assert result.session.survived is True, result
        if not grouped:  # what it has, the others lack, until it ends (docs/limits, shared-processes)
            bomb.close()
        assert value(other, "import subprocess\nsubprocess.run(['true']).returncode") == 0
        assert value(session, "x") == 1
        bomb.close()
        other.close()


@pytest.mark.spec("FRK-07", "LIM-05")
def test_a_branch_that_fills_its_disk_fills_nobody_elses(ot, value):
    with ot.session(limits={"disk_mb": 4}) as session:
        session.run("x = 1")
        greedy, other = session.fork(count=2)
        result = greedy.run("open('big', 'wb').write(bytes(16 << 20))")
        assert result.limit is not None
        assert result.limit.name == "disk"
        assert value(other, "open('fits', 'wb').write(bytes(1 << 20))") == 1 << 20
        assert value(session, "open('fits', 'wb').write(bytes(1 << 20))") == 1 << 20
        greedy.close()
        other.close()


@pytest.mark.spec("FRK-02")
def test_a_branch_is_in_a_control_group_of_its_own_and_has_no_way_to_another(session, value, monkeypatch):
    if not has_groups(session.run("None")):
        pytest.skip("no control groups for this user")
    group = "open('/proc/self/cgroup').read()"
    held = "import os\n[os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if os.path.lexists(f'/proc/self/fd/{n}')]"
    moved: list[int] = []
    adopt = cgroup.Group.adopt
    monkeypatch.setattr(cgroup.Group, "adopt", lambda group, pid: (moved.append(pid), adopt(group, pid)))
    with session.fork() as branch:
        for _ in range(3):  # each cell goes on in another process
            assert value(branch, group) != value(session, group)
        assert len(moved) == 1
        # By a file of a control group a program could move others, with the rights of who opened it.
        assert not [path for path in value(branch, held) if path.endswith(("tasks", "cgroup.procs"))]


@pytest.mark.spec("FRK-02")
def test_a_branch_that_cannot_be_moved_to_its_group_does_not_run(session, value, monkeypatch):
    if not has_groups(session.run("kept = 1")):
        pytest.skip("no control groups for this user")

    def out_of_files(_group, _pid):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(cgroup.Group, "adopt", out_of_files)
        with pytest.raises(SandboxFailed, match="Too many open files"):
            session.fork()
    assert value(session, "kept") == 1
    with session.fork() as branch:
        assert value(branch, "kept") == 1
