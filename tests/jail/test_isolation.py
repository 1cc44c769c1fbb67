"""What a program in a sandbox can see and reach: nothing of the host, nothing of another session."""

import os
import socket
import textwrap
from pathlib import Path

import pytest

import onetrip

NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts")


@pytest.mark.spec("ISO-01", "ISO-10")
def test_every_namespace_is_neither_the_hosts_nor_another_sessions(ot, value):
    names = f"import os; {{n: os.readlink(f'/proc/self/ns/{{n}}') for n in {NAMESPACES!r}}}"
    with ot.session() as one, ot.session() as other:
        seen = [value(one, names), value(other, names)]
    seen.append({name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES})
    assert {name: len({places[name] for places in seen}) for name in NAMESPACES} == dict.fromkeys(NAMESPACES, 3)


@pytest.mark.spec("ISO-02")
def test_the_root_holds_what_python_needs_and_nothing_else(session, value):
    known = {
        "bin",
        "branches",  # empty: where branches of a session would have their files
        "dev",
        "etc",
        "home",
        "lib",
        "lib32",
        "lib64",
        "mnt",
        "opt",
        "proc",
        "run",
        "sbin",
        "tmp",
        "usr",
        "var",
        "workspace",
    }
    assert set(value(session, "import os; os.listdir('/')")) <= known
    assert set(value(session, "os.listdir('/etc')")) <= {"passwd", "group", "hosts", "nsswitch.conf", "ld.so.cache", "localtime"}
    assert value(
        session, "[[n for n in os.listdir(p) if n[0] != '.'] for p in ('/home', '/home/user', '/tmp', '/workspace')]"
    ) == [["user"], [], [], []]
    assert set(value(session, "os.listdir('/dev')")) == {
        "null", "zero", "full", "random", "urandom", "shm", "fd", "stdin", "stdout", "stderr",
    }  # fmt: skip
    assert (
        value(session, "sorted(os.path.exists(p) for p in ('/sys', '/root', '/boot', '/proc/sys', '/proc/meminfo'))")
        == [False] * 5
    )


@pytest.mark.spec("ISO-02")
def test_a_file_of_the_host_cannot_be_read_by_any_path_to_it(session, value, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("of the host")
    for folder in (secret, *secret.parents):
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o555)  # so that it is not the host's permissions which refuse
    program = """
        import os
        opened = []
        for path in paths:
            try:
                opened.append(open(path).read())
            except OSError as err:
                pass
        opened
    """
    roots = ["", "/proc/self/root", "/proc/1/root", "/proc/self/cwd/../..", "/proc/self/fd/3/../..", "/../../../.."]
    value(session, "import os; os.symlink(target, 'link'); None", inputs={"target": str(secret)})
    paths = [root + str(secret) for root in roots] + ["link", "/workspace/link"]
    assert value(session, program, inputs={"paths": paths}) == []


@pytest.mark.spec("ISO-02")
def test_nothing_but_the_four_writable_places_can_be_written(session, value):
    program = """
        import os
        writable = []
        for folder, folders, files in os.walk("/"):
            if folder in ("/proc", "/workspace", "/tmp", "/home/user", "/dev/shm"):
                folders.clear()
                continue
            if folder.count("/") > 7:
                folders.clear()
            try:
                os.close(os.open(folder + "/canary", os.O_CREAT | os.O_WRONLY))
                writable.append(folder)
            except OSError:
                pass
            for name in files[:50]:
                try:
                    os.close(os.open(os.path.join(folder, name), os.O_WRONLY))
                    writable.append(os.path.join(folder, name))
                except OSError:
                    pass
        writable
    """
    harmless = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "stdin", "stdout", "stderr")}
    assert set(value(session, program)) <= harmless
    works = "[open(f'{p}/x', 'w').write('y') for p in ('/workspace', '/tmp', '/home/user', '/dev/shm', '/var/tmp', '/mnt/data')]"
    assert value(session, works) == [1] * 6


@pytest.mark.spec("ISO-02", "ISO-07")
def test_no_mount_honours_set_user_id_bits_or_devices_of_its_own(session, value):
    mounts = [line.split() for line in value(session, "open('/proc/self/mountinfo').read()").splitlines()]
    assert len(mounts) > 5
    lax = {mount[4]: mount[5] for mount in mounts if "nosuid" not in mount[5].split(",")}
    assert lax == {}
    devices = {mount[4] for mount in mounts if "nodev" not in mount[5].split(",")}
    assert devices <= {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")}
    writable = {mount[4] for mount in mounts if "ro" not in mount[5].split(",")} - devices
    assert writable == {"/workspace", "/tmp", "/home/user", "/dev/shm", "/proc"}


@pytest.mark.spec("ISO-02")
def test_mounts_cannot_be_taken_away_or_added(session, value):
    program = """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        def call(name, *arguments):
            ctypes.set_errno(0)
            return getattr(libc, name)(*arguments), os.strerror(ctypes.get_errno())
        [
            call("umount2", b"/workspace", 2),
            call("umount2", b"/proc", 2),
            call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
            call("mount", None, b"/", None, 32 | 4096, None),
            call("chroot", b"/tmp"),
            call("unshare", 0x10000000),
            call("unshare", 0x00020000),
            call("setns", 0, 0),
        ]
    """
    assert value(session, program) == [[-1, "Operation not permitted"]] * 8


@pytest.mark.spec("ISO-01")
def test_a_child_cannot_be_cloned_into_a_namespace_of_its_own(session, value):
    program = """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.restype = ctypes.c_long
        refused = []
        for flag in (0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x08000000, 0x04000000, 0x02000000):
            pid = libc.syscall(56 if os.uname().machine == "x86_64" else 220, flag | 17, 0, 0, 0, 0)
            if pid == 0:
                os._exit(0)
            refused.append((pid, ctypes.get_errno()))
        refused
    """
    assert value(session, program) == [[-1, 1]] * 7


@pytest.mark.spec("ISO-03")
def test_no_variable_of_the_host_is_there(monkeypatch, value):
    monkeypatch.setenv("ONETRIP_TEST_SECRET", "a key of the host")
    with onetrip.local(warm=0) as ot, ot.session() as session:
        variables = value(session, "import os; dict(os.environ)")
        assert set(variables) <= {
            "PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
            "NUMEXPR_NUM_THREADS", "MPLCONFIGDIR", "XDG_CACHE_HOME", "PYTHONDONTWRITEBYTECODE", "LD_LIBRARY_PATH", "MPLBACKEND",
        }  # fmt: skip
        assert variables["HOME"] == "/home/user"
        search = """
            import os
            found = []
            for pid in filter(str.isdigit, os.listdir("/proc")):
                for name in ("environ", "cmdline"):
                    try:
                        found.append(open(f"/proc/{pid}/{name}").read())
                    except OSError:
                        pass
            "".join(found)
        """
        assert "key of the host" not in value(session, search)


@pytest.mark.spec("ISO-03")
def test_only_its_own_processes_are_in_sight(ot, value):
    with ot.session(checkpoints=0) as session:
        sees_only_itself(session, value)


@pytest.mark.spec("ISO-03", "UND-17")
def test_its_checkpoints_are_in_sight_and_nobody_else(session, value):
    for number in range(3):
        seen, own, parent = value(
            session, "import os; [int(p) for p in os.listdir('/proc') if p.isdigit()], os.getpid(), os.getppid()"
        )
        assert (len(seen), max(seen), sorted(seen)[-2]) == (number + 2, own, parent)


def sees_only_itself(session, value):
    assert value(session, "import os; [p for p in os.listdir('/proc') if p.isdigit()] == [str(os.getpid())]")
    assert value(session, "os.getppid()") == 0
    child = "import subprocess; int(subprocess.run(['sh', '-c', 'echo $PPID'], capture_output=True).stdout) == os.getpid()"
    assert value(session, child) is True
    probe = """
        import os
        alive = []
        for pid in range(1, 70_000):
            try:
                os.kill(pid, 0)
                alive.append(pid)
            except OSError as err:
                if err.errno != 3:  # ESRCH
                    alive.append(pid)
        sorted(set(alive) - {1, os.getpid()})
    """
    assert value(session, probe) == []


@pytest.mark.spec("ISO-03")
def test_host_name_and_users_are_not_the_hosts(session, value):
    assert value(session, "import os, pwd; (os.uname().nodename, sorted(u.pw_name for u in pwd.getpwall()))") == [
        "sandbox",
        ["root", "user"],
    ]
    assert value(session, "os.getuid(), os.geteuid(), os.getgid(), os.getgroups()")[:3] == [1000, 1000, 1000]


@pytest.mark.spec("ISO-04")
def test_the_network_is_a_loopback_of_its_own(session, value):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = """
            import errno, socket
            def reach(address):
                try:
                    with socket.socket() as s:
                        s.settimeout(1)
                        s.connect(tuple(address))
                    return "reached"
                except OSError as err:
                    return errno.errorcode.get(err.errno, str(err))
            [reach(address) for address in addresses]
        """
        addresses = [("127.0.0.1", port), ("192.0.2.1", 80), ("169.254.169.254", 80)]
        answers = value(session, program, inputs={"addresses": addresses})
    assert answers == ["ECONNREFUSED", "ENETUNREACH", "ENETUNREACH"]
    resolve = session.run("import socket; socket.getaddrinfo('example.org', 80)")
    assert (resolve.status, resolve.error.type) == ("failed", "gaierror")


@pytest.mark.spec("ISO-04")
def test_servers_of_the_program_itself_work(session, value):
    program = """
        import socket, threading
        server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=lambda: server.accept()[0].sendall(b"hello")).start()
        socket.create_connection(server.getsockname()).recv(5).decode()
    """
    assert value(session, program) == "hello"


@pytest.mark.spec("ISO-04", "ISO-03")
def test_abstract_sockets_of_the_host_and_of_other_sessions_are_out_of_reach(ot, value):
    name = f"\0onetrip-test-{os.getpid()}"
    connect = f"""
        import socket
        try:
            socket.socket(socket.AF_UNIX).connect({name!r})
            answer = "reached"
        except OSError as err:
            answer = err.strerror
        answer
    """
    with socket.socket(socket.AF_UNIX) as server, ot.session() as one, ot.session() as other:
        server.bind(name)
        server.listen()
        assert value(one, connect) == "Connection refused"
        assert value(one, f"import socket; s = socket.socket(socket.AF_UNIX); s.bind({name!r}); s.listen(); 1") == 1
        assert value(other, connect) == "Connection refused"


@pytest.mark.spec("ISO-03", "CEL-03")
def test_sessions_share_no_writable_place(ot, value):
    write = "for p in ('/workspace', '/tmp', '/dev/shm', '/home/user', '/var/tmp'):\n    open(p + '/left', 'w').write('x')"
    look = "import os; [p for p in ('/workspace', '/tmp', '/dev/shm', '/home/user', '/var/tmp') if os.path.exists(p + '/left')]"
    with ot.session() as one, ot.session() as other:
        assert one.run(write).ok
        assert value(one, look) != []
        assert value(other, look) == []
    with ot.session() as later:
        assert value(later, look) == []


@pytest.mark.spec("ISO-03")
def test_sessions_share_no_ipc_objects(ot, value):
    program = """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        [(libc.shmget(4242, 4096, 0o1666), ctypes.get_errno()), (libc.msgget(4242, 0o1666), ctypes.get_errno()), (libc.semget(4242, 1, 0o1666), ctypes.get_errno())]
    """
    exists = program.replace("0o1666", "0o666")
    with ot.session() as one, ot.session() as other:
        one.run(program)
        assert [got for got, _ in value(other, exists)] == [-1, -1, -1]


@pytest.mark.spec("ISO-07", "ISO-10")
def test_no_capability_no_new_privileges_and_the_filter_on(session, value):
    status = dict(
        line.split(":\t", 1) for line in value(session, "open('/proc/self/status').read()").splitlines() if ":\t" in line
    )
    assert {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {
        "CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 0, "CapAmb": 0,
    }  # fmt: skip
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Uid"].split() == status["Gid"].split() == ["1000"] * 4


@pytest.mark.spec("ISO-07")
def test_no_program_makes_root_of_the_user(session, value):
    program = """
        import os, subprocess
        escalated = []
        for attempt in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgid(0), lambda: os.setgroups([0])):
            try:
                attempt()
            except OSError:
                continue
            escalated.append(os.getresuid())
        escalated, [w for w in ("su", "sudo", "mount", "newuidmap", "ping") if any(os.path.exists(f"{d}/{w}") for d in ("/bin", "/usr/bin", "/sbin", "/usr/sbin"))]
    """
    assert value(session, program) == [[], []]


@pytest.mark.spec("ISO-07", "ISO-02")
def test_no_file_in_sight_has_a_set_user_id_bit(session, value):
    program = """
        import os, stat
        found = []
        for folder, folders, files in os.walk("/usr/bin"):
            for name in files:
                if os.lstat(os.path.join(folder, name)).st_mode & (stat.S_ISUID | stat.S_ISGID):
                    found.append(name)
        found
    """
    assert value(session, program) == []


@pytest.mark.spec("ISO-09")
def test_init_cannot_be_killed_traced_or_read(session, value):
    program = """
        import ctypes, errno, os, signal
        libc = ctypes.CDLL(None, use_errno=True)
        answers = []
        for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV):
            try:
                os.kill(1, number)
            except OSError as err:
                answers.append(errno.errorcode[err.errno])
        ptrace = libc.ptrace(16, 1, 0, 0)  # PTRACE_ATTACH
        opened = []
        for name in ("mem", "environ", "root", "maps", "fd", "cwd", "exe"):
            try:
                os.listdir("/proc/1/fd") if name == "fd" else open(f"/proc/1/{name}", "rb").read(1)
                opened.append(name)
            except OSError:
                pass
        (ptrace, opened)
    """
    assert value(session, program) == [-1, []]
    assert value(session, "6 * 7") == 42


@pytest.mark.spec("ISO-09", "ISO-03")
def test_killing_everything_it_may_kill_hits_nobody_else(ot, value):
    with ot.session(checkpoints=0) as one, ot.session() as other:
        value(other, "kept = 'here'; 1")
        program = """
            import os, signal, subprocess
            child = subprocess.Popen(["sleep", "60"])
            try:
                os.kill(-1, signal.SIGKILL)
            except OSError:
                pass
            child.wait(10)
        """
        assert value(one, program) == -9
        assert value(other, "kept") == "here"
        suicidal = one.run("import os, signal; os.killpg(0, signal.SIGKILL)")
        assert (suicidal.status, suicidal.error.type, suicidal.session.survived) == ("failed", "ProcessDied", False)
        assert value(other, "kept") == "here"


@pytest.mark.spec("ISO-09")
def test_a_child_has_the_same_bounds_as_its_parent(session, value):
    program = """
        import subprocess
        script = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status"
        subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout.split()
    """
    assert value(session, program) == ["CapEff:", "0" * 16, "CapBnd:", "0" * 16, "NoNewPrivs:", "1", "Seccomp:", "2"]


@pytest.mark.spec("ISO-12")
def test_every_result_names_what_held(ot):
    isolation = ot.run("1").isolation
    assert (isolation.tier, isolation.level) == ("jail", "strict")
    always = {"userns", "pidns", "mountns", "netns", "ipcns", "utsns", "rlimits", "no_new_privs", "no_caps", "seccomp"}
    assert always <= set(isolation.mechanisms)
    assert any(name.startswith("landlock-abi") for name in isolation.mechanisms)
    assert {"watchdog"} <= set(isolation.mechanisms) or any(name.startswith("cgroup-v") for name in isolation.mechanisms)


@pytest.mark.spec("ISO-14")
def test_random_numbers_and_identifiers_differ_between_sandboxes(ot):
    program = textwrap.dedent("""
        import os, random, secrets, tempfile, uuid
        import numpy
        [random.random(), numpy.random.random(), float(numpy.random.default_rng().random()), str(uuid.uuid1()), str(uuid.uuid4()), uuid.getnode(),
         secrets.token_hex(8), os.urandom(8).hex(), tempfile.mktemp()]
    """)
    drawn = [ot.run(program).value for _ in range(3)]
    assert [len(set(column)) for column in zip(*drawn, strict=True)] == [3] * 9


@pytest.mark.spec("ISO-02")
def test_our_own_code_does_not_stand_in_the_programs_way(session, value):
    assert value(session, "import sys; [name for name in sys.modules if 'onetrip' in name or 'island' in name]") == []
    missing = session.run("import onetrip")
    assert (missing.status, missing.error.type) == ("failed", "ModuleNotFoundError")


@pytest.mark.spec("ISO-02")
def test_the_host_paths_of_interpreter_and_environment_do_not_show(session, value):
    shown = value(session, "import sys, os; [sys.prefix, sys.executable, *sys.path, *(v for v in os.environ.values())]")
    home = str(Path.home())
    assert [path for path in shown if home != "/" and home in path] == []
