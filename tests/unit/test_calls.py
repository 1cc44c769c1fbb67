"""Lists of system calls: what a walk does, where it ends, and that the machine code is that of its source."""

import os
import platform
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
from errno import EBADF, ENOENT
from pathlib import Path

import pytest

from onetrip.jail import calls, init
from onetrip.jail.calls import CallList, Data, Later, Place
from onetrip.jail.steps import StepFailed

SOURCES = Path(__file__).parent / "asm"
MACHINE = platform.machine()


def test_calls_happen_in_their_order_and_the_end_is_zero():
    read_end, write_end = os.pipe()
    steps = CallList()
    for text in (b"one ", b"two ", b"three"):
        steps.add("say", "write", write_end, text, len(text))
    assert steps.prepare().run() == 0
    assert os.read(read_end, 100) == b"one two three"
    os.close(read_end)
    os.close(write_end)


def test_the_first_error_ends_the_walk_and_names_its_step():
    read_end, write_end = os.pipe()
    steps = CallList()
    steps.add("first", "write", write_end, b"x", 1)
    steps.add("open what is not there", "openat", -100, b"/nowhere/at/all", os.O_RDONLY)
    steps.add("never", "write", write_end, b"y", 1)
    prepared = steps.prepare()
    stop = prepared.stop(prepared.run())
    assert (stop.step, stop.result) == ("open what is not there", -ENOENT)
    assert isinstance(stop.failure, StepFailed)
    assert (stop.failure.errno, stop.failure.detail) == (ENOENT, "No such file or directory")
    assert os.read(read_end, 100) == b"x"
    os.close(read_end)
    os.close(write_end)


def test_a_result_is_the_first_argument_of_a_later_call_and_numbers_come_late(tmp_path):
    target = tmp_path / "made"
    steps = CallList()
    opened = steps.add("make", "openat", -100, bytes(target), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    steps.add("write", "write", opened, b"12345", Later("count"))
    steps.add("close", "close", opened)
    prepared = steps.prepare()
    for count in (2, 4):
        assert prepared.run(count=count) == 0
        assert target.read_bytes() == b"12345"[:count]
        target.unlink()


def test_an_error_that_may_be_is_passed_over_and_one_place_holds_a_result():
    steps = CallList()
    place = Data(bytes(12))
    steps.add("close nothing", "close", -1, flags=calls.MAY_FAIL, store=place.at(4))
    steps.add_pointed("close it again", "close", place.at(4), flags=calls.MAY_FAIL)
    prepared = steps.prepare()
    assert prepared.run() == 0
    assert struct.unpack_from("<q", prepared.bytes_at(place), 4) == (-EBADF,)


def test_a_child_walks_a_list_of_its_own_and_the_parent_goes_on():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    inner = CallList()
    inner.add("speak", "write", theirs.fileno(), b"child", 5)
    inner.add("fail", "close", -1)
    child = Data(b"", list=inner)
    steps = CallList()
    pid = Data(bytes(8))
    steps.add_split("fork", "clone", signal.SIGCHLD.value, child=child, store=pid.at(0))
    steps.add("speak", "write", theirs.fileno(), b"parent", 6)
    prepared = steps.prepare()
    own = os.getpid()
    left = prepared.run()
    if os.getpid() != own:
        stop = prepared.stop(left, child)
        os._exit(17 if (stop.step, stop.result) == ("fail", -EBADF) else 1)
    assert left == 0
    (child_pid,) = struct.unpack("<q", prepared.bytes_at(pid))
    assert os.waitstatus_to_exitcode(os.waitpid(child_pid, 0)[1]) == 17
    assert {ours.recv(10), ours.recv(10)} == {b"child", b"parent"}
    ours.close()
    theirs.close()


def test_a_walk_that_repeats_ends_at_the_end_of_what_it_reads():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    buffer = Data(bytes(8))
    parts = Data(struct.pack("QQ", 0, 8), {0: buffer.at(0)})
    message = Data(struct.pack("QQQQQQQ", 0, 0, 0, 1, 0, 0, 0), {16: Place(parts)})
    read_end, write_end = os.pipe()
    steps = CallList()
    steps.add("read", "recvmsg", theirs.fileno(), message.at(0), 0, flags=calls.NOT_ZERO)
    steps.add("copy", "write", write_end, buffer.at(0), 1, flags=calls.REPEAT)
    for text in (b"a", b"b", b"c"):
        ours.send(text)
    ours.shutdown(socket.SHUT_WR)
    prepared = steps.prepare()
    stop = prepared.stop(prepared.run())
    assert (stop.step, stop.result, stop.failure) == ("read", 0, None)
    assert os.read(read_end, 10) == b"abc"
    ours.close()
    theirs.close()
    os.close(read_end)
    os.close(write_end)


def test_the_code_cannot_be_written_to():
    calls.load()
    with open("/proc/self/maps", encoding="ascii") as maps:
        executable = [line for line in maps if "x" in line.split()[1]]
    assert executable
    assert not [line for line in executable if "w" in line.split()[1]]


# ---------------------------------------------------------------------------------------------------- init


def test_init_reports_the_step_that_failed():
    steps = CallList()
    steps.add("speak", "write", 1, b"...", 3)
    steps.add("fail here", "close", -1)
    image = init.Image(steps, "99999")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = init.Starter(0).start(image.of(0), theirs.fileno())
    theirs.close()
    assert ours.recv(100) == b"..."
    failed = image.failure(ours.recv(100))
    assert failed is not None
    assert (failed.step, failed.errno) == ("fail here", EBADF)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    ours.close()


def test_init_waits_and_holds_nothing_of_ours():
    steps = CallList()
    steps.add("speak", "write", 1, b"made", 4)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = init.Starter(0).start(init.Image(steps, "99999").of(0), theirs.fileno())
    assert ours.recv(100) == b"made"
    mapped = Path(f"/proc/{pid}/maps").read_text()
    assert "python" not in mapped
    assert not [line for line in mapped.splitlines() if "rwx" in line]
    assert Path(f"/proc/{pid}/environ").read_bytes() == b""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    ours.close()
    theirs.close()


def test_an_image_gets_the_id_of_its_owner_in_numbers_and_in_texts():
    steps = CallList()
    steps.add("set", "setresuid", Later("uid"), Later("uid"), Later("uid"))
    steps.add("tell", "write", 1, b"uid=99999,gid=99999", 19)
    image = init.Image(steps, "99999").of(12345)
    assert image.count(b"12345") == 2
    assert image.count(struct.pack("<Q", 12345)) == 3
    assert b"99999" not in image


# ---------------------------------------------------------------------------------------------------- the machine code


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("what", ["walk", "init"])
def test_the_machine_code_is_that_of_its_source(machine, what, tmp_path):
    prefix = "" if machine == MACHINE else f"{machine}-linux-gnu-"
    if shutil.which(f"{prefix}as") is None or shutil.which(f"{prefix}objcopy") is None:
        pytest.skip(f"no assembler for {machine} (apt-get install binutils, binutils-aarch64-linux-gnu)")
    source = "".join((SOURCES / f"{name}.{machine}.s").read_text() for name in (["walk"] if what == "walk" else ["init", "walk"]))
    (tmp_path / "code.s").write_text(source)
    subprocess.run([f"{prefix}as", "-o", "code.o", "code.s"], cwd=tmp_path, check=True)
    subprocess.run([f"{prefix}objcopy", "-O", "binary", "-j", ".text", "code.o", "code.bin"], cwd=tmp_path, check=True)
    module = calls if what == "walk" else init
    written = Path(module.__file__).read_text()
    block = written[written.index(f'"{machine}":\n') :]
    block = block[: block.index(",\n")]
    assert "".join(re.findall(r'"([0-9a-f]+)"', block)) == (tmp_path / "code.bin").read_bytes().hex()


def test_an_unknown_machine_is_refused_by_name():
    code = "import platform; platform.machine = lambda: 'sparc64'\nfrom onetrip.jail import calls\ncalls.load()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "no machine code for sparc64" in done.stderr
