"""Programs against the checkpoints of their own session, as root's guest and as an ordinary user's: none reaches a state before its own."""

import os
import textwrap
import time
from pathlib import Path

import pytest

from onetrip import Limits
from onetrip.errors import SessionGone
from onetrip.model import Rewound, SessionState

ROLLED_BACK = SessionState(survived=True, rolled_back=True, checkpoint=True)
GONE_ON = SessionState(survived=True, checkpoint=True)

# What the attacks below use: `elders` are the checkpoints, `attempt` gives the errno of what failed, 0 for what did not.
TOOLS = """
import ctypes, errno, json, os, platform, resource, signal, socket, struct, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
fork = ctypes.PyDLL(None, use_errno=True).fork  # with the interpreter's lock: a child of it without its owner waits for ever
X86 = platform.machine() == "x86_64"

def elders():
    return [int(p) for p in os.listdir("/proc") if p.isdigit() and int(p) < os.getpid()]

def attempt(action, *args):
    try:
        action(*args)
    except OSError as err:
        return err.errno
    return 0

def syscall(number, *args):
    if libc.syscall(number, *[ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]) < 0:
        raise OSError(ctypes.get_errno(), "syscall")

def install(*filters):
    code = b"".join(struct.pack("<HBBI", *one) for one in filters)
    held = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(filters), ctypes.addressof(held)), 16)
    return libc.prctl(22, ctypes.c_ulong(2), program, 0, 0)

def orphan(action):
    # a process that is nobody's child, in a session of its own; returns when it runs
    read, write = os.pipe()
    if fork() == 0:
        if fork() == 0:
            os.setsid()
            for number in range(1, 65):
                try: signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError): pass
            os.close(read)
            os.write(write, b".")
            try: action()
            finally: os._exit(0)
        os._exit(0)
    os.wait(); os.read(read, 1); os.close(read); os.close(write)

def packet(**header):
    raw = json.dumps({"parts": [], **header}).encode()
    return b"\\x03" + struct.pack(">II", len(raw), 0) + raw
"""


@pytest.fixture
def target(ot):
    """A session with three checkpoints; what the programs attack is the state `kept`, a file, and undo itself."""
    with ot.session(limits=Limits(wall_s=20)) as session:
        for source in ("kept = 1", TOOLS, "open('file', 'w').write('before'); 0"):
            assert session.run(source).session == GONE_ON
        yield session


def run(session, source: str, **options):
    return session.run(textwrap.dedent(source), **options)


def is_unharmed(session) -> bool:
    """The state of before is there, a lost cell is taken back, and every checkpoint works."""
    look = "kept, open('file').read(), os.listdir()"
    unharmed = [1, "before", ["file"]]
    assert session.run(look).value == unharmed
    assert session.run("kept = 2; open('file', 'w').write('lost'); os._exit(1)").session == ROLLED_BACK
    assert session.run(look).value == unharmed
    timeline = settled(session)
    expected = {point.sleeper.pid for point in timeline.past} | {session_of(session).worker.sandbox.live}
    give_up = time.monotonic() + 5
    while processes(session) != expected and time.monotonic() < give_up:
        pass  # a checkpoint that was dropped may still be dying
    assert processes(session) == expected
    return True


def session_of(session):
    return session._async.engine._sessions[session.id]  # from outside, because the program is not to be believed


def settled(session):
    """The session's checkpoints, when the latest one is made."""

    async def wait():
        await session_of(session).worker.kept()

    session._call(wait)
    return session_of(session).worker.timeline


def processes(session) -> set[int]:
    """All in the sandbox but init, by the host's view of its /proc."""
    proc = session_of(session).worker.sandbox.room.proc
    return {int(name) for name in os.listdir(proc) if name.isdigit() and name != "1" and not is_dead(proc, name)}


def is_dead(proc: int, pid: str) -> bool:
    try:
        fd = os.open(f"{pid}/stat", os.O_RDONLY, dir_fd=proc)
    except OSError:
        return True
    try:
        fields = os.read(fd, 4096).rpartition(b")")[2].split()
    except ProcessLookupError:
        return True
    finally:
        os.close(fd)
    return fields[0] in (b"Z", b"X") and int(fields[17]) <= 1


# ---------------------------------------------------------------------------------------------------- signals


SIGNALS = """
    PIDFD = lambda pid: syscall(434, pid, 0)
    WAYS = {
        "kill": lambda pid, number: os.kill(pid, number),
        "kill its group": lambda pid, number: os.kill(-pid, number),
        "kill with high bits set": lambda pid, number: syscall(62 if X86 else 129, pid | 1 << 32, number),
        "kill its group with high bits set": lambda pid, number: syscall(62 if X86 else 129, -pid & 0xFFFFFFFF, number),
        "kill everybody": lambda pid, number: os.kill(-1, number),
        "tkill": lambda pid, number: syscall(200 if X86 else 130, pid, number),
        "tgkill": lambda pid, number: syscall(234 if X86 else 131, pid, pid, number),
        "tgkill of any group": lambda pid, number: syscall(234 if X86 else 131, -1, pid, number),
        "sigqueue": lambda pid, number: syscall(129 if X86 else 138, pid, number, ctypes.create_string_buffer(128)),
        "sigqueue to a thread": lambda pid, number: syscall(297 if X86 else 240, pid, pid, number, ctypes.create_string_buffer(128)),
        "a handle": lambda pid, number: syscall(434, pid, 0),
        "a handle by its folder": lambda pid, number: syscall(424, os.open(f"/proc/{pid}", os.O_RDONLY), number, None, 0),
        "become its group": lambda pid, number: os.setpgid(0, pid),
        "move it into our group": lambda pid, number: os.setpgid(pid, os.getpgid(0)),
        "owner of a pipe": lambda pid, number: __import__("fcntl").fcntl(0, 8, pid),
    }
"""


@pytest.mark.spec("UND-17")
def test_no_signal_reaches_a_checkpoint(target):
    program = """
        found = {
            name: sorted({attempt(way, pid, number) for pid in elders() for number in (0, 9, 15, 18, 19)})
            for name, way in WAYS.items()
        }
        len(elders()), found
    """
    result = run(target, textwrap.dedent(SIGNALS) + textwrap.dedent(program))
    assert result.status == "completed", result.error
    count, found = result.value
    nobody, refused, unknown = [3], [1], [38]  # ESRCH, as where there is no process; EPERM; ENOSYS
    assert count == 4
    assert found == {
        **dict.fromkeys(found, nobody),
        **dict.fromkeys(("owner of a pipe", "sigqueue", "sigqueue to a thread", "become its group"), refused),
        "a handle": unknown,
        "a handle by its folder": unknown,
    }
    assert is_unharmed(target)


@pytest.mark.slow
@pytest.mark.spec("UND-17")
@pytest.mark.parametrize("helper", ["a child", "an orphan", "a thread", "another program", "a child of a thread"])
def test_no_signal_reaches_a_checkpoint_by(target, helper):
    program = """
        read, write = os.pipe()
        targets = elders()

        def attack(*_):
            errors = {attempt(way, pid, 9) for pid in targets for way in (os.kill, lambda p, n: os.kill(-p, n))}
            os.write(write, json.dumps(sorted(errors)).encode())

        def in_child():
            if fork() == 0:
                attack()
                os._exit(0)
            os.wait()

        def another():
            script = "for p in $@; do kill -9 $p && echo hit; kill -9 -$p && echo hit; done; true"
            done = subprocess.run(["sh", "-c", script, "sh", *map(str, targets)], capture_output=True, text=True)
            os.write(write, json.dumps([done.stdout, done.stderr.count("o such process") == 2 * len(targets)]).encode())

        def thread(action):
            one = threading.Thread(target=action)
            one.start()
            one.join()

        {"a child": in_child, "an orphan": lambda: orphan(attack), "a thread": lambda: thread(attack),
         "another program": another, "a child of a thread": lambda: thread(in_child)}[helper]()
        found = json.loads(os.read(read, 1000)); os.close(read); os.close(write)
        while max(int(p) for p in os.listdir("/proc") if p.isdigit()) > os.getpid(): pass  # the orphan is still ending
        found
    """
    result = run(target, program, inputs={"helper": helper})
    assert result.value == (["", True] if helper == "another program" else [3]), result
    assert is_unharmed(target)


@pytest.mark.spec("UND-17", "UND-08")
@pytest.mark.parametrize("way", ["os.kill(0, 9)", "os.killpg(0, 9)", "os.kill(-os.getpid(), 9)", "signal.raise_signal(9)"])
def test_what_a_cell_may_kill_is_itself(target, way):
    assert run(target, f"kept = 2\n{way}").session == ROLLED_BACK
    assert is_unharmed(target)


@pytest.mark.spec("UND-17")
def test_what_a_program_started_itself_it_can_still_end(target):
    program = "p = subprocess.Popen(['sleep', '60'], start_new_session=True); os.killpg(p.pid, 9); p.wait()"
    assert run(target, program).value == -9
    assert is_unharmed(target)


# ---------------------------------------------------------------------------------------------------- memory, descriptors, limits


@pytest.mark.spec("UND-17")
def test_no_memory_of_a_checkpoint_can_be_written(target):
    program = """
        word = ctypes.create_string_buffer(b"evil", 8)
        address = ctypes.addressof(word)  # it is at the same place in every fork
        vector = ctypes.create_string_buffer(struct.pack("QQ", address, 8), 16)
        WAYS = {
            "mem": lambda pid: os.open(f"/proc/{pid}/mem", os.O_RDWR),
            "mem of the thread": lambda pid: os.open(f"/proc/{pid}/task/{pid}/mem", os.O_WRONLY),
            "process_vm_writev": lambda pid: syscall(311 if X86 else 271, pid, vector, 1, vector, 1, 0),
            "ptrace attach": lambda pid: syscall(101 if X86 else 117, 16, pid, 0, 0),
            "ptrace seize": lambda pid: syscall(101 if X86 else 117, 0x4206, pid, 0, 0),
            "process_madvise": lambda pid: syscall(440, 3, vector, 1, 4, 0),
            "pidfd_getfd": lambda pid: syscall(438, 3, 4, 0),
            "kcmp": lambda pid: syscall(312 if X86 else 272, pid, os.getpid(), 0, 0, 0),
        }
        for name in ("clear_refs", "comm", "oom_score_adj", "oom_adj", "coredump_filter", "timerslack_ns", "uid_map", "gid_map",
                     "setgroups", "autogroup", "attr/current", "attr/exec", "loginuid", "sched", "timens_offsets"):
            WAYS[name] = lambda pid, name=name: os.open(f"/proc/{pid}/{name}", os.O_WRONLY)
        {name: sorted({attempt(way, pid) for pid in elders()}) for name, way in WAYS.items()}
    """
    result = run(target, program)
    assert result.status == "completed", result.error
    opened = {name for name, errors in result.value.items() if not set(errors) <= {1, 2, 13, 38}}  # EPERM, ENOENT, EACCES, ENOSYS
    assert opened == set()
    assert is_unharmed(target)


@pytest.mark.spec("UND-17")
def test_descriptors_of_a_checkpoint_give_nothing_that_the_program_does_not_have(target):
    """Its sockets, by which the host commands it, cannot be opened at all."""
    program = """
        own = {os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{n}")}
        sockets, opened, seen = 0, set(), 0
        for pid in elders():
            for n in os.listdir(f"/proc/{pid}/fd"):
                path = f"/proc/{pid}/fd/{n}"
                what, seen = os.readlink(path), seen + 1
                sockets += what.startswith("socket:")
                for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
                    if attempt(lambda: os.close(os.open(path, flags | os.O_NONBLOCK))) == 0:
                        opened.add(what)
        sockets, sorted(opened - own), any(o.startswith("socket:") for o in opened)
    """
    sockets, more, reached = run(target, program).value
    assert (sockets, more, reached) == (8, [], False)  # channel and command, of four checkpoints
    assert is_unharmed(target)


@pytest.mark.spec("UND-17")
def test_no_limit_of_a_checkpoint_can_be_changed(target):
    program = """
        WAYS = [
            lambda pid: resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, 0)),
            lambda pid: resource.prlimit(pid, resource.RLIMIT_NOFILE),
            lambda pid: syscall(302 if X86 else 261, pid, 3, struct.pack("QQ", 0, 0), None),
            lambda pid: os.sched_setaffinity(pid, {0}),
            lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 19),
            lambda pid: syscall(251 if X86 else 30, 1, pid, 0x6000),
        ]
        sorted({attempt(way, pid) for pid in elders() for way in WAYS})
    """
    assert run(target, program).value == [1]
    assert is_unharmed(target)


# ---------------------------------------------------------------------------------------------------- what is left behind


LEFT = {
    "an orphan that ignores signals": "orphan(lambda: [time.sleep(9) for _ in range(9)])",
    "an orphan that is stopped": "orphan(lambda: os.kill(os.getpid(), signal.SIGSTOP))",
    "an orphan that spins": "orphan(lambda: [None for _ in iter(int, 1)])",
    "an orphan whose first thread has ended": "orphan(lambda: (threading.Thread(target=time.sleep, args=(99,)).start(), libc.syscall(60 if X86 else 93, 0)))",
    "another program": "p = subprocess.Popen(['sh', '-c', 'trap \"\" TERM INT HUP; while true; do sleep 9; done'], start_new_session=True)",
    "a program that may not be read": "import shutil; shutil.copy(shutil.which('sleep'), '/tmp/x'); os.chmod('/tmp/x', 0o111)\ntry: subprocess.Popen(['/tmp/x', '99'])\nexcept OSError: subprocess.Popen(['sleep', '99'])",
    "a stopped child": "p = subprocess.Popen(['sleep', '99']); os.kill(p.pid, signal.SIGSTOP)",
    "a chain that forks and dies": "def chain():\n    while True:\n        if os.fork(): os._exit(0)\norphan(chain)",
    "a fork bomb": "def bomb():\n    while True: fork()\norphan(bomb)",
    "a writer to stdout": "def write():\n    while True: os.write(1, b'x')  # a byte at a time: the limit of output is not what ends the cell\norphan(write)",
    "a writer to the file": "def write():\n    while True: open('file', 'w').write('evil')\norphan(write)",
    "a writer through a mapping": "import mmap\nm = mmap.mmap(os.open('file', os.O_RDWR), 6)\ndef write():\n    while True: m[:] = b'evil!!'\norphan(write)",
    "a thread": "threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.spec("UND-18", "UND-05", "UND-12")
@pytest.mark.parametrize("left", LEFT)
def test_nothing_outlives_the_cell_that_is_taken_back(target, left):
    result = run(target, f"kept = 2\n{LEFT[left]}\nos._exit(1)")
    assert (result.error.type, result.session) == ("ProcessDied", ROLLED_BACK)
    assert target.run("print('own')").stdout == "own\n"
    assert is_unharmed(target)


@pytest.mark.slow
@pytest.mark.spec("UND-18", "UND-13", "UND-10")
@pytest.mark.parametrize("left", LEFT)
def test_nothing_outlives_an_undo(target, left):
    assert run(target, f"kept = 2\n{LEFT[left]}").status == "completed"
    assert target.undo(1).cells == 3
    assert target.run("print('own')").stdout == "own\n"
    assert is_unharmed(target)


# ---------------------------------------------------------------------------------------------------- in the guest's place


@pytest.fixture
def bystander(ot):
    with ot.session() as other:
        assert other.run("kept = 'here'").ok
        yield other
        assert other.run("kept").session == GONE_ON
        assert other.run("kept").text == "'here'"


@pytest.mark.slow
@pytest.mark.spec("UND-19", "UND-18", "ISO-09")
def test_an_orphan_that_reads_the_channel_costs_the_cells_until_it_is_gone(target, bystander):
    """It takes the messages that are for the live process, which then never answers; the limit of time ends both."""
    steal = """
        kept = 2
        def steal():
            while True: os.read(3, 1 << 16)
        orphan(steal)
    """
    assert run(target, steal).status == "completed"
    lost, result = 1, target.run("kept = 3", timeout_s=0.3)
    give_up = time.monotonic() + 20
    while result.status == "completed" and time.monotonic() < give_up:  # who of the two waits first gets the message
        lost, result = lost + 1, target.run("kept = 3", timeout_s=0.3)
    note = f"{lost} cells before it are lost, too: they had no checkpoint"
    assert (result.status, result.session) == (
        "limit_exceeded", SessionState(survived=True, rolled_back=True, checkpoint=False, note=note)
    )  # fmt: skip
    assert is_unharmed(target)


@pytest.mark.spec("UND-19", "UND-18", "ISO-09")
def test_an_orphan_that_answers_in_the_guests_place_is_the_programs_own_word_and_gone_after_undo(target, bystander):
    answer = """
        kept = 2
        def answer():
            raw = os.read(3, 1 << 16)
            size = struct.unpack(">I", raw[1:5])[0]
            body = json.dumps({"text": "forged", "value": 1, "error": None}).encode()
            head = json.dumps({"kind": "done", "run": json.loads(raw[9:9 + size])["run"], "parts": [len(body)]}).encode()
            os.write(3, b"\\x03" + struct.pack(">II", len(head), len(body)) + head + body)
        orphan(answer)
    """
    assert run(target, answer).status == "completed"
    texts = [target.run("kept = 3").text]
    give_up = time.monotonic() + 20
    while texts[-1] is None and time.monotonic() < give_up:  # who of the two waits first gets the message; the orphan may be late
        texts.append(target.run("kept = 3").text)
    assert texts[-1] == "forged"
    assert target.undo(len(texts) + 1).cells == 3
    assert is_unharmed(target)


# The guest's own function that answers is replaced: a program can, as they share an interpreter.
HIJACK = """
def guest():
    frame = sys._getframe()
    while "channel" not in frame.f_locals or "runner" not in frame.f_locals: frame = frame.f_back
    return frame.f_back.f_globals

def hijack(answer):
    checkpoint = guest()["checkpoint"]
    def leave(session, channel, message):
        for fd in channel.fds: os.close(fd)
        channel.fds.clear()
        os.write(3, answer(message.number))
    checkpoint.leave = leave
"""


@pytest.mark.spec("UND-19", "ISO-13")
@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ("kind='kept', number=number, live=parent, checkpoint=own, why=''", "a checkpoint says that it is the session's process"),
        ("kind='kept', number=number, live=1, checkpoint=own, why=''", "a process gave a number that is not its own"),
        ("kind='kept', number=number, live=4_000_000, checkpoint=own, why=''", "a process gave a number that is not its own"),
        ("kind='kept', number=number, live=-5, checkpoint=own, why=''", "a Kept that nobody waits for"),
        ("kind='kept', number=number + 1, live=own, checkpoint=parent, why=''", "a Kept that nobody waits for"),
        ("kind='kept', number='1', live=own, checkpoint=parent, why=''", "kept.number: wrong type or size"),
        ("kind='live', live=own, note=''", "a Live that nobody waits for"),
        ("kind='goodbye'", "Goodbye inside of a run"),
        ("kind='done', run='0' * 16", "a Done that nobody waits for"),
    ],
)
def test_a_forged_answer_to_the_request_for_a_checkpoint_costs_the_session(ot, bystander, lie, why):
    """Said inside of a cell or between cells, it is the same: nobody waits for it, or it does not fit what the kernel says."""
    with ot.session(checkpoints=8) as session:
        assert session.run(TOOLS).ok
        session.run(f"parent, own, number = os.getppid(), os.getpid(), 2\n{HIJACK}\nhijack(lambda number: packet({lie}))")
        with pytest.raises(SessionGone) as gone:
            session.run("1")
        assert why in str(gone.value)


@pytest.mark.spec("UND-19", "UND-13")
def test_a_guest_that_says_it_is_its_own_checkpoint_has_none(target, bystander):
    source = (
        HIJACK + "kept = 2\nhijack(lambda n: packet(kind='kept', number=n, live=os.getpid(), checkpoint=os.getpid(), why=''))"
    )
    assert run(target, source).status == "completed"
    result = target.run("kept")
    assert (result.value, result.session.note) == (2, "no checkpoint: its process could not be told apart")
    assert target.undo(2).cells == 3
    assert is_unharmed(target)


@pytest.mark.slow
@pytest.mark.spec("UND-19", "UND-23")
def test_a_checkpoint_that_never_slept_costs_its_own_state_only(target, bystander):
    """A child says that it goes on and that its parent sleeps; the socket for the command is nobody's. The one before holds."""
    source = """
        kept = 2
        def leave(session, channel, message):
            for fd in channel.fds: os.close(fd)
            channel.fds.clear()
            if fork() == 0:
                session.own(channel)
                os.write(3, packet(kind="kept", number=message.number, live=os.getpid(), checkpoint=os.getppid(), why=""))
            else:
                while True: time.sleep(9)
        guest()["checkpoint"].leave = leave
    """
    assert run(target, HIJACK + textwrap.dedent(source)).status == "completed"
    result = target.run("kept = 3; os._exit(1)")
    assert (result.session.survived, result.session.rolled_back) == (True, True)
    assert result.session.note == "1 more cells are lost: the checkpoint is gone"
    assert is_unharmed(target)


@pytest.mark.slow
@pytest.mark.spec("UND-18", "UND-19", "UND-12")
def test_a_checkpoint_that_never_sleeps_is_stopped_when_it_is_undone(target, bystander):
    """It is kept for `redo`, and would go on to write to the files of the state before it."""
    source = """
        kept = 2
        started, start = os.pipe()
        checkpoint = guest()["checkpoint"]
        sleep = checkpoint._sleep
        def wake(*args):
            def write():
                os.write(start, b".")
                while True: open("file", "w").write("evil")
            threading.Thread(target=write, daemon=True).start()
            return sleep(*args)
        checkpoint._sleep = wake
    """
    assert run(target, HIJACK + textwrap.dedent(source)).status == "completed"
    assert target.run("os.read(started, 1)").session == GONE_ON  # it writes now
    assert target.undo(2).cells == 3
    for _ in range(20):
        assert target.files.read("file") == b"before"
    assert is_unharmed(target)


@pytest.mark.slow
@pytest.mark.spec("UND-19", "UND-14")
def test_a_process_that_dies_between_cells_costs_what_had_no_checkpoint(target):
    """A thread ends the process while no cell runs: there could be no checkpoint of that state. The next cell says so, and does not run."""
    source = """
        kept = 2
        read, write = os.pipe()
        threading.Thread(target=lambda: (os.read(read, 1), os._exit(5))).start()
    """
    assert run(target, source).status == "completed"
    result = target.run("kept = 3; os.write(write, b'x'); threading.Event().wait()")
    assert result.error.message == "the interpreter ended with status 5 in the middle of the cell"
    assert result.session.note == "1 cells before it are lost, too: they had no checkpoint"
    assert is_unharmed(target)


# ---------------------------------------------------------------------------------------------------- exhaustion


@pytest.mark.slow
@pytest.mark.spec("UND-20", "UND-03", "LIM-03")
@pytest.mark.parametrize("who", ["itself", "its children"])
def test_dirtying_every_page_costs_the_cell(ot, who):
    """The kernel ends the live process or what it started, and not the checkpoint which holds as much."""
    with ot.session(limits=Limits(memory_mb=320, wall_s=20)) as session:
        assert session.run(TOOLS).ok
        assert session.run("import hashlib; big = bytearray(os.urandom(1 << 20)) * 90; was = hashlib.sha256(big).hexdigest()").ok
        program = """
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if who == "its children":
                for _ in range(8):
                    if fork() == 0: break
            for at in range(0, len(big), 4096): big[at] ^= 255
            more = []
            while who == "itself": more.append(mmap.mmap(-1, 1 << 24)); more[-1].write(bytes(1 << 24))
            time.sleep(20)
        """
        result = run(session, "import mmap\n" + textwrap.dedent(program), inputs={"who": who})
        assert (result.status, result.limit.name) == ("limit_exceeded", "memory")
        assert (result.session.survived, result.session.rolled_back) == (True, True)
        assert session.run("hashlib.sha256(big).hexdigest() == was").value is True


@pytest.mark.slow
@pytest.mark.spec("UND-05", "UND-10", "LIM-04")
def test_a_program_that_has_used_up_its_processes_can_be_undone(ot):
    with ot.session(limits=Limits(processes=20)) as session:
        assert session.run(TOOLS).ok
        program = "made = 0\nwhile fork() > 0: made += 1\nif ctypes.get_errno() != 11: time.sleep(99)\nmade"
        assert session.run(program).value == 19
        assert session.run("made").session.note == "no checkpoint: other processes of the program are alive"
        assert session.undo(2) == Rewound(1)
        assert session.run("'made' in globals()").session == GONE_ON


@pytest.mark.slow
@pytest.mark.spec("UND-17", "UND-13", "UND-14")
def test_a_program_that_uses_up_all_filters_has_no_more_checkpoints_and_those_before_hold(target):
    """The kernel bounds what filters one process has. One is needed per cell, so a session of some 2,000 cells ends here, too."""
    assert run(target, "kept = 2\nwhile install((6, 0, 0, 0x7FFF0000)) == 0: pass").status == "completed"
    result = target.run("kept")
    note = "no checkpoint: its elders cannot be put out of reach: [Errno 12] prctl PR_SET_SECCOMP"
    assert (result.value, result.session) == (2, SessionState(survived=True, checkpoint=False, note=note))
    result = target.run("os._exit(1)")
    assert result.session.note == "2 cells before it are lost, too: they had no checkpoint"
    assert is_unharmed(target)


@pytest.mark.spec("UND-17", "UND-23")
def test_a_filter_that_only_pretends_to_install_filters_costs_the_cells_since(target):
    """From that cell on the program can kill its checkpoints; it is that cell which is the oldest to be lost."""
    pretend = "install((0x20, 0, 0, 0), (0x15, 0, 3, 157 if X86 else 167), (0x20, 0, 0, 16), (0x15, 0, 1, 22), (6, 0, 0, 0x00050000), (6, 0, 0, 0x7FFF0000))"
    assert run(target, f"kept = 2\n{pretend}").value == 0
    assert run(target, "kept = 3").session == GONE_ON
    result = run(
        target,
        "hit = [pid for pid in elders() if attempt(os.kill, pid, 9) == 0]; open('hit', 'w').write(str(len(hit))); os._exit(1)",
    )
    assert (result.session.survived, result.session.rolled_back, result.session.checkpoint) == (True, True, True)
    assert result.session.note == "2 more cells are lost: the checkpoint is gone"
    assert is_unharmed(target)


@pytest.mark.slow
@pytest.mark.spec("UND-17", "UND-13")
def test_process_ids_that_went_round_give_no_checkpoint_that_could_be_reached(ot):
    if int(Path("/proc/sys/kernel/pid_max").read_text()) > 40_000:
        pytest.skip("needs a kernel.pid_max of at most 40,000: going round takes too long")
    with ot.session() as session:
        assert session.run(TOOLS).ok
        program = "kept = 1\nfor _ in range(33_000):\n    t = threading.Thread(target=int)\n    t.start(); t.join()"
        assert session.run(program, timeout_s=60).ok
        assert (
            session.run(
                "[attempt(os.kill, pid, 9) for pid in map(int, filter(str.isdigit, os.listdir('/proc'))) if pid != os.getpid()]"
            ).value
            is not None
        )
        assert session.run("os._exit(1)").session.survived is True
