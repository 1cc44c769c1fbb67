"""Descriptors of a sandbox: four, and none of the host's among them."""

import os
import stat

import pytest

import onetrip

OPEN = """
    import os, stat
    found = {}
    for fd in range(4096):
        try:
            found[fd] = stat.S_IFMT(os.fstat(fd).st_mode)
        except OSError:
            pass
    [[fd, kind] for fd, kind in sorted(found.items())]
"""


@pytest.mark.spec("ISO-08")
def test_a_program_starts_with_stdin_stdout_stderr_and_its_channel(session, value):
    assert value(session, OPEN) == [[0, stat.S_IFCHR], [1, stat.S_IFIFO], [2, stat.S_IFIFO], [3, stat.S_IFSOCK]]
    assert value(session, "os.readlink('/proc/self/fd/0')") == "/dev/null"


@pytest.mark.spec("ISO-08")
def test_descriptors_that_the_host_left_inheritable_do_not_arrive(value, tmp_path):
    with open(tmp_path / "secret", "w+b") as secret, onetrip.local(warm=0) as ot:
        os.set_inheritable(secret.fileno(), True)
        folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        os.set_inheritable(folder, True)
        try:
            with ot.session() as session:
                assert [fd for fd, _ in value(session, OPEN)] == [0, 1, 2, 3]
        finally:
            os.close(folder)


@pytest.mark.spec("ISO-08", "ISO-03")
def test_no_descriptor_of_a_zygote_shows_in_any_cell_or_child(session, value):
    value(session, "import os; None")
    in_child = """
        import subprocess, sys
        subprocess.run(["sh", "-c", "ls /proc/self/fd"], capture_output=True, text=True).stdout.split()
    """
    # 3 is the listing's own; the channel is closed on exec
    assert value(session, in_child) == ["0", "1", "2", "3"]
    forked = """
        import os
        r, w = os.pipe()
        pid = os.fork()
        if pid == 0:
            open_ = []
            for fd in range(64):
                try:
                    os.fstat(fd); open_.append(fd)
                except OSError:
                    pass
            os.write(w, repr([fd for fd in open_ if fd not in (r, w)]).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.read(r, 1000).decode()
    """
    assert value(session, forked) == "[0, 1, 2]"


@pytest.mark.spec("ISO-08", "CEL-06")
def test_stdin_is_at_its_end(session, value):
    assert value(session, "import os; os.read(0, 10).decode()") == ""


@pytest.mark.spec("LIM-04")
def test_descriptors_are_bounded(session, value):
    program = """
        import os
        opened = []
        try:
            while True:
                opened.append(os.dup(0))
        except OSError as err:
            reason = err.strerror
        for fd in opened:
            os.close(fd)
        (len(opened) + 4, reason)
    """
    assert value(session, program) == [1024, "Too many open files"]
