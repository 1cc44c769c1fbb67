"""The reduced level, on a host without user namespaces: one process without children, Landlock, the filter, and no namespace."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

# Root of a user namespace in which no further one can be made: all that is missing is what `strict` needs.
HOST = """
import json, os, sys
from onetrip.jail import enter, syscalls
uid, gid = os.geteuid(), os.getegid()
syscalls.unshare(syscalls.CLONE_NEWUSER)
enter.write_maps("/proc/self", f"0 {uid} 1", f"0 {gid} 1", deny_setgroups=True)
open("/proc/sys/user/max_user_namespaces", "w").write("0")
import onetrip
from onetrip import Limits
with onetrip.local(warm=0) as ot, ot.session(isolation_floor="reduced", limits=Limits(memory_mb=128, disk_mb=4, wall_s=5)) as session:
    for cell in json.loads(sys.argv[1]):
        result = session.run(cell)
        error = result.error and result.error.type
        print(json.dumps([result.status, result.value, error, result.limit and result.limit.name, list(result.isolation.mechanisms)]), flush=True)
"""


@pytest.fixture
def temporary():
    with tempfile.TemporaryDirectory(prefix="host-") as folder:
        yield Path(folder)


@pytest.fixture
def cells(temporary):
    """Runs cells in one session of such a host: [status, value, error, limit, mechanisms] of each. Nothing is left of it."""

    def run(*sources: str) -> list[list]:
        command = [sys.executable, "-c", HOST, json.dumps([textwrap.dedent(source) for source in sources])]
        environ = {**os.environ, "TMPDIR": str(temporary), "ONETRIP_TEST_SECRET": "a key"}
        ran = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60, check=False)
        assert (ran.stderr, ran.returncode) == ("", 0)
        assert list(temporary.iterdir()) == []
        return [json.loads(line) for line in ran.stdout.splitlines()]

    return run


@pytest.mark.spec("ISO-11", "ISO-12")
def test_programs_run_and_the_result_says_what_held(cells):
    first, second = cells("import numpy\nx = 41\nopen('a', 'w').write('1')", "[x + 1, open('a').read()]")
    assert first[0] == "completed"
    assert second[:2] == ["completed", [42, "1"]]
    assert {"seccomp", "no_new_privs", "rlimits"} <= set(second[4])
    assert any(name.startswith("landlock") for name in second[4])
    assert {"userns", "pidns", "netns"} & set(second[4]) == set()


@pytest.mark.spec("ISO-06", "ISO-02")
def test_no_file_of_the_host_can_be_read_or_written(cells, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    secret.chmod(0o644)
    program = f"""
        reached = []
        for path in ({str(secret)!r}, "/etc/passwd", "/etc/shadow", "/proc/1/environ", "/proc/self/environ", "/proc/meminfo", "/sys/kernel/hostname"):
            try:
                reached.append([path, open(path).read()])
            except OSError:
                pass
        for path in ({str(tmp_path)!r}, "/tmp", "/var/tmp", "/dev/shm", "/usr/lib", "/"):
            try:
                open(path + "/written-by-a-guest", "w").close()
                reached.append(path)
            except OSError:
                pass
        reached
    """
    assert cells(program)[0][:2] == ["completed", []]


@pytest.mark.spec("ISO-03", "ISO-08")
def test_neither_variables_nor_descriptors_of_the_host_are_there(cells):
    program = """
        import os
        open_ = []
        for fd in range(1024):
            try:
                os.fstat(fd)
                open_.append(fd)
            except OSError:
                pass
        ["ONETRIP_TEST_SECRET" in os.environ, open_]
    """
    assert cells(program)[0][1] == [False, [0, 1, 2, 3]]


@pytest.mark.spec("ISO-04")
def test_no_network_not_even_the_loopback(cells):
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = f"""
            import socket
            answers = []
            for make in (lambda: socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), 1), lambda: socket.socket(), lambda: socket.socket(socket.AF_INET6)):
                try:
                    make()
                    answers.append("reached")
                except OSError as err:
                    pass
            answers
        """
        assert cells(program)[0][1] == []


@pytest.mark.spec("ISO-03", "LIM-04")
def test_no_child_and_no_signal_to_others(cells):
    with subprocess.Popen(["sleep", "60"]) as bystander:
        program = f"""
            import os, subprocess
            done = []
            for attempt in (os.fork, lambda: subprocess.run(["true"]), lambda: os.kill({bystander.pid}, 9), lambda: os.kill(os.getppid(), 9), lambda: os.kill(-1, 9)):
                try:
                    attempt()
                    done.append("done")
                except OSError:
                    pass
            done
        """
        assert cells(program)[0][1] == []
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.spec("LIM-03", "LIM-05", "LIM-01", "LIM-07")
@pytest.mark.parametrize(
    ("program", "limit"),
    [
        ("keep = []\nwhile True: keep.append(bytearray(1_000_000))", "memory"),
        ("with open('big', 'wb') as f:\n    while True: f.write(bytes(1 << 20))", "disk"),
        ("n = 0\nwhile True:\n    with open(f'f{n}', 'wb') as f: f.write(bytes(1 << 20))\n    n += 1", "disk"),
        ("while True: pass", "wall"),
    ],
)
def test_limits_hold(cells, program, limit):
    (answer,) = cells(program)
    assert (answer[0], answer[3]) == ("limit_exceeded", limit)
