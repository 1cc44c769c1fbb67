"""The filter on the real kernel: each rule both ways, in a forked child, with arguments that do no harm where they get through."""

import ctypes
import errno
import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from onetrip.jail import seccomp, syscalls
from onetrip.jail.policy import ALLOW
from onetrip.jail.refusals import REFUSE

pytestmark = pytest.mark.skipif(platform.machine() not in seccomp.AUDIT_ARCH, reason="no filter for this architecture")

MACHINE = platform.machine()
COLUMN = ("x86_64", "aarch64").index(MACHINE) if MACHINE in seccomp.AUDIT_ARCH else 0
NR = {entry.name: (entry.x86_64, entry.aarch64)[COLUMN] for entry in ALLOW} | {
    name: pair[COLUMN] for group in REFUSE for name, pair in group.calls.items()
}
CAN_JIT = 7  # PROT_READ | PROT_WRITE | PROT_EXEC
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def call(name: str | int, *arguments: int | bytes | None) -> str:
    """Make one system call; "OK" or the name of its errno."""
    number = NR[name] if isinstance(name, str) else name
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    ctypes.set_errno(0)
    if _libc.syscall(ctypes.c_long(number), *words) != -1:
        return "OK"
    return errno.errorcode[ctypes.get_errno()].replace("ENOTSUP", "EOPNOTSUPP")  # one number


def in_filtered_child(body: Callable[[], Any], *, reduced: bool = False) -> Any:
    """What `body` returned in a fork that has the filter on, or `{"signal": number}` when a signal ended it."""
    program = seccomp.program(reduced=reduced)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.set_no_new_privs()
            seccomp.install(seccomp.bind_own_pid(program, os.getpid()))
            answer = body()
        except BaseException as err:
            answer = repr(err)
        os.write(write_end, json.dumps(answer).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as answers:
        raw = answers.read()
    status = os.waitpid(pid, 0)[1]
    return {"signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else json.loads(raw)


# Calls that must not get through. Root gets another answer to them from the kernel, so there it is the filter that refuses.
REFUSED: list[tuple[str, tuple[int | bytes | None, ...], str]] = [
    ("ptrace", (0x4206, -1, 0, 0), "EPERM"),
    ("process_vm_readv", (-1, None, 0, None, 0, 1), "EPERM"),
    ("mount", (None, b"/nonexistent", None, 0, None), "EPERM"),
    ("umount2", (b"/nonexistent", 0), "EPERM"),
    ("pivot_root", (b"/nonexistent", b"/nonexistent"), "EPERM"),
    ("chroot", (b"/nonexistent",), "EPERM"),
    ("setns", (-1, 0), "EPERM"),
    ("unshare", (0,), "EPERM"),
    ("bpf", (-1, None, 0), "EPERM"),
    ("perf_event_open", (None, 0, -1, -1, 0), "EPERM"),
    ("userfaultfd", (-1,), "EPERM"),
    ("keyctl", (-1, 0, 0), "EPERM"),
    ("add_key", (None, None, None, 0, 0), "EPERM"),
    ("init_module", (None, 0, b""), "EPERM"),
    ("kexec_load", (0, -1, None, -1), "EPERM"),
    ("reboot", (0, 0, 0, None), "EPERM"),
    ("syslog", (-1, None, 0), "EPERM"),
    ("setuid", (-1,), "EPERM"),
    ("capset", (None, None), "EPERM"),
    ("chown", (b"/nonexistent", -1, -1), "EPERM"),
    ("fchownat", (-100, b"/nonexistent", -1, -1, 0), "EPERM"),
    ("sethostname", (None, -1), "EPERM"),
    ("personality", (0xFFFFFFFF,), "EPERM"),
    ("name_to_handle_at", (-1, b"", None, None, 0), "EPERM"),
    ("inotify_init1", (-1,), "EPERM"),
    ("shmget", (0, 0, 0), "EPERM"),
    ("mq_open", (None, 0, 0, None), "EPERM"),
    ("sched_setaffinity", (0, 0, None), "EPERM"),
    ("setpriority", (-1, 0, 0), "EPERM"),
    ("mincore", (1, 0, None), "EPERM"),
    ("mlock", (0, 0), "EPERM"),
    ("splice", (-1, None, -1, None, 0, 0), "EPERM"),
    ("vmsplice", (-1, None, 0, 0), "EPERM"),
    ("sync", (), "EPERM"),
    ("seccomp", (-1, 0, None), "EPERM"),
    ("kcmp", (-1, -1, 0, 0, 0), "EPERM"),
]


@pytest.mark.parametrize(("name", "arguments", "answer"), REFUSED, ids=[case[0] for case in REFUSED])
def test_refused_call_is_answered_without_the_kernel(name: str, arguments: tuple[Any, ...], answer: str) -> None:
    if NR[name] is None:
        pytest.skip(f"{MACHINE} has no {name}")
    assert in_filtered_child(lambda: call(name, *arguments)) == answer


# Numbers from 424 on are the same everywhere.
NEWER = {
    "io_uring_setup": 425,
    "clone3": 435,
    "openat2": 437,
    "epoll_pwait2": 441,
    "landlock_create_ruleset": 444,
    "timer_create": 107 if MACHINE == "aarch64" else 222,
    "none": 999,
}


@pytest.mark.parametrize("number", NEWER.values(), ids=NEWER.keys())
def test_newer_call_seems_not_to_exist_so_that_libc_falls_back(number: int) -> None:
    assert in_filtered_child(lambda: call(number, -1, -1, -1, -1, -1, -1)) == "ENOSYS"


SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET, CLOEXEC = 1, 2, 3, 5, 0o2000000
NEW_NAMESPACES = {
    "NS": 0x20000,
    "CGROUP": 0x2000000,
    "UTS": 0x4000000,
    "IPC": 0x8000000,
    "USER": 0x10000000,
    "PID": 0x20000000,
    "NET": 0x40000000,
}

RULES: list[tuple[str, tuple[int | bytes | None, ...], str]] = [
    ("socket", (1, SOCK_STREAM | CLOEXEC, 0), "OK"),
    ("socket", (2, SOCK_STREAM, 6), "OK"),
    ("socket", (10, SOCK_DGRAM, 17), "OK"),
    ("socket", (2, SOCK_RAW, 1), "EPERM"),
    ("socket", (2, SOCK_DGRAM, 1), "EPROTONOSUPPORT"),  # ping sockets
    ("socket", (2, SOCK_STREAM, 132), "EPROTONOSUPPORT"),  # SCTP: would load a module
    ("socket", (2, SOCK_STREAM, 262), "EPROTONOSUPPORT"),  # MPTCP
    ("socket", (2, SOCK_SEQPACKET, 0), "EPERM"),
    ("socket", (38, SOCK_SEQPACKET, 0), "EAFNOSUPPORT"),  # AF_ALG: Copy Fail
    ("socket", (16, SOCK_RAW, 0), "EAFNOSUPPORT"),  # netlink
    ("socket", (17, SOCK_RAW, 0), "EAFNOSUPPORT"),  # packet
    ("socket", (40, SOCK_STREAM, 0), "EAFNOSUPPORT"),  # vsock
    ("socket", (1 << 32 | 38, SOCK_SEQPACKET, 0), "EAFNOSUPPORT"),  # the high half of an int is not looked at
    ("socketpair", (1, SOCK_SEQPACKET, 0, b"\0" * 8), "OK"),
    ("socketpair", (2, SOCK_STREAM, 0, b"\0" * 8), "EAFNOSUPPORT"),
    ("setsockopt", (-1, 1, 2, None, 0), "EBADF"),  # SO_REUSEADDR gets through
    ("setsockopt", (-1, 6, 1, None, 0), "EBADF"),  # TCP_NODELAY
    ("setsockopt", (-1, 41, 26, None, 0), "EBADF"),  # IPV6_V6ONLY
    ("setsockopt", (-1, 1, 26, None, 0), "EPERM"),  # SO_ATTACH_FILTER
    ("setsockopt", (-1, 1, 50, None, 0), "EPERM"),  # SO_ATTACH_BPF
    ("setsockopt", (-1, 6, 31, None, 0), "EPERM"),  # TCP_ULP
    ("setsockopt", (-1, 0, 64, None, 0), "EPERM"),  # IPT_SO_SET_REPLACE
    ("ioctl", (-1, 0x5401, None), "EBADF"),
    ("ioctl", (-1, 0x541B, None), "EBADF"),
    ("ioctl", (-1, 0x5411, None), "EBADF"),
    ("ioctl", (-1, 0x5412, None), "EPERM"),  # TIOCSTI
    ("ioctl", (-1, 0x541C, None), "EPERM"),  # TIOCLINUX
    ("ioctl", (-1, 1 << 32 | 0x5412, None), "EPERM"),
    ("ioctl", (-1, 0x8914, None), "EPERM"),  # SIOCSIFFLAGS
    ("fcntl", (-1, 3), "EBADF"),
    ("fcntl", (-1, 8, 1), "EPERM"),  # F_SETOWN
    ("fcntl", (-1, 10, 9), "EPERM"),  # F_SETSIG
    ("fcntl", (-1, 1024, 0), "EPERM"),  # F_SETLEASE
    ("prctl", (15, b"thread\0", 0, 0, 0), "OK"),
    ("prctl", (3, 0, 0, 0, 0), "OK"),
    ("prctl", (4, 1, 0, 0, 0), "EPERM"),  # PR_SET_DUMPABLE
    ("prctl", (22, 0, 0, 0, 0), "EPERM"),  # PR_SET_SECCOMP
    ("prctl", (35, 1, 0, 0, 0), "EPERM"),  # PR_SET_MM
    ("prctl", (47, 4, 0, 0, 0), "EPERM"),  # PR_CAP_AMBIENT
    ("prctl", (0x59616D61, -1, 0, 0, 0), "EPERM"),  # PR_SET_PTRACER
    ("prlimit64", (0, 7, None, None), "OK"),
    ("prlimit64", (1, 7, None, None), "EPERM"),
    ("madvise", (0, 0, 4), "OK"),
    ("madvise", (0, 0, 14), "OK"),
    ("madvise", (0, 0, 12), "EPERM"),  # MADV_MERGEABLE
    ("madvise", (0, 0, 100), "EPERM"),  # MADV_HWPOISON
    ("mmap", (0, 4096, 3, 0x22, -1, 0), "OK"),
    ("mmap", (0, 4096, CAN_JIT, 0x22, -1, 0), "OK"),
    ("mmap", (0, 2 << 20, 3, 0x40022, -1, 0), "ENOMEM"),  # MAP_HUGETLB
    ("mknodat", (-1, b"x", 0o010600, 0), "EBADF"),  # a FIFO
    ("mknodat", (-1, b"x", 0o100600, 0), "EBADF"),
    ("mknodat", (-1, b"x", 0o020600, 0x103), "EPERM"),  # a character device
    ("mknodat", (-1, b"x", 0o060600, 0x700), "EPERM"),  # a block device
    ("fadvise64", (-1, 0, 0, 3), "EBADF"),
    ("fadvise64", (-1, 0, 0, 4), "OK"),  # taken and ignored: even a bad descriptor is not noticed
    ("fadvise64", (-1, 0, 0, 9), "EPERM"),
    ("listxattr", (b"/nonexistent", None, 0), "EOPNOTSUPP"),
    ("kill", (0x3FFFFFFF, 0), "ESRCH"),
    *[("clone", (flag | signal.SIGCHLD, 0, 0, 0, 0), "EPERM") for flag in NEW_NAMESPACES.values()],
    ("clone", (0x2000 | signal.SIGCHLD, 0, 0, 0, 0), "EPERM"),  # CLONE_PTRACE
    ("clone", (0x8000 | signal.SIGCHLD, 0, 0, 0, 0), "EPERM"),  # CLONE_PARENT
    ("clone", (0x10000, 0, 0, 0, 0), "EINVAL"),  # CLONE_THREAD alone gets through, and the kernel finds it incomplete
]


@pytest.mark.parametrize(("name", "arguments", "answer"), RULES, ids=[f"{case[0]}-{at}" for at, case in enumerate(RULES)])
def test_rule_on_arguments(name: str, arguments: tuple[Any, ...], answer: str) -> None:
    assert in_filtered_child(lambda: call(name, *arguments)) == answer


@pytest.mark.skipif(MACHINE != "x86_64", reason="x86_64 only: arch_prctl, int 0x80, x32")
def test_thread_pointer_may_be_asked_for_and_cpuid_faulting_may_not() -> None:
    got = in_filtered_child(lambda: [call("arch_prctl", 0x1003, b"\0" * 8), call("arch_prctl", 0x1012, 0)])
    assert got == ["OK", "EPERM"]


@pytest.mark.skipif(MACHINE != "x86_64", reason="x86_64 only: arch_prctl, int 0x80, x32")
def test_32_bit_entry_kills_and_x32_numbers_do_not_exist() -> None:
    def int_0x80_getpid() -> int:
        import mmap

        page = mmap.mmap(-1, 4096, prot=CAN_JIT)
        page.write(bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3]))  # mov eax, 20 (getpid); int 0x80; ret
        return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()

    assert in_filtered_child(int_0x80_getpid) == {"signal": signal.SIGSYS}
    assert in_filtered_child(lambda: call(0x40000000 | 39)) == "ENOSYS"


REDUCED: list[tuple[str, tuple[int | bytes | None, ...], str]] = [
    ("clone", (signal.SIGCHLD, 0, 0, 0, 0), "EPERM"),
    ("clone", (0x10000, 0, 0, 0, 0), "EINVAL"),  # threads get through
    ("socket", (1, SOCK_STREAM, 0), "EAFNOSUPPORT"),
    ("socket", (2, SOCK_STREAM, 0), "EAFNOSUPPORT"),
    ("socketpair", (1, SOCK_STREAM, 0, b"\0" * 8), "OK"),
    ("socketpair", (1, SOCK_DGRAM, 0, b"\0" * 8), "EPERM"),  # could send to /dev/log
    ("connect", (-1, None, 0), "EPERM"),
    ("bind", (-1, None, 0), "EPERM"),
    ("accept4", (-1, None, None, 0), "EPERM"),
    ("kill", (0, 0), "EPERM"),
    ("kill", (-1, 0), "EPERM"),
    ("tkill", (1, 0), "EPERM"),
    ("tgkill", (1, 1, 0), "EPERM"),
    ("truncate", (b"/nonexistent", 0), "EPERM"),
    ("fchmodat", (-1, b"/nonexistent", 0), "OK"),  # taken and ignored
    ("utimensat", (-1, b"/nonexistent", None, 0), "OK"),
    ("read", (-1, None, 0), "EBADF"),
]


@pytest.mark.parametrize(("name", "arguments", "answer"), REDUCED, ids=[f"{case[0]}-{at}" for at, case in enumerate(REDUCED)])
def test_reduced_level(name: str, arguments: tuple[Any, ...], answer: str) -> None:
    assert in_filtered_child(lambda: call(name, *arguments), reduced=True) == answer


def test_reduced_level_lets_a_process_signal_itself_and_have_threads() -> None:
    def body() -> list[Any]:
        import asyncio
        import threading

        seen: list[Any] = []
        signal.signal(signal.SIGUSR1, lambda number, _frame: seen.append(number))
        os.kill(os.getpid(), signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        thread = threading.Thread(target=seen.append, args=("thread",))
        thread.start()
        thread.join()
        seen.append(asyncio.run(asyncio.sleep(0, "asyncio")))
        try:
            os.fork()
        except PermissionError as err:
            seen.append(errno.errorcode[err.errno])
        return seen

    assert in_filtered_child(body, reduced=True) == [signal.SIGUSR1, signal.SIGUSR1, "thread", "asyncio", "EPERM"]


def test_another_process_cannot_be_signalled_at_the_reduced_level() -> None:
    victim = os.getpid()
    assert in_filtered_child(lambda: [call("kill", victim, 0), call("tgkill", victim, victim, 0)], reduced=True) == ["EPERM"] * 2


# ---------------------------------------------------------------------------------------------------- what is left to reach

# Calls that end, stop or duplicate the caller when they get through, or wait for ever.
NOT_SWEPT = ["rt_sigreturn", "pause", "clone", "fork", "vfork", "exit", "exit_group", "rt_sigsuspend", "kill", "tkill", "tgkill"]
# uretprobe and uprobe of x86_64: Linux ≥ 6.14 lets them past every filter, and kills who calls them himself (kernel/seccomp.c,
# seccomp_uprobe_exception).
PAST_EVERY_FILTER = {335, 336} if MACHINE == "x86_64" else set()
SWEEP_END = 512
MAX_REACHABLE = 133  # the product's promise is 150; landlock_restrict_self is the latest


def sweep() -> list[list[Any]]:
    """[number, answer] of every call, with garbage for arguments."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    skipped = {NR[name] for name in NOT_SWEPT} | PAST_EVERY_FILTER
    return [[nr, call_any(nr)] for nr in range(SWEEP_END) if nr not in skipped]


def call_any(nr: int) -> str:
    arguments = {NR["wait4"]: (0x7FFFFFF1,), NR["alarm"]: (0,), NR["umask"]: (0o22,), NR["brk"]: (0,)}.get(nr, (-1,) * 6)
    ctypes.set_errno(0)
    if _libc.syscall(ctypes.c_long(nr), *(ctypes.c_long(word) for word in arguments)) != -1:
        return "OK"
    return errno.errorcode.get(ctypes.get_errno(), "?")


@pytest.mark.spec("ISO-05")
@pytest.mark.parametrize("reduced", [False, True], ids=["strict", "reduced"])
def test_few_calls_are_reachable(reduced: bool) -> None:
    answers = in_filtered_child(sweep, reduced=reduced)
    reachable = sorted(nr for nr, answer in answers if answer not in ("EPERM", "ENOSYS"))
    allowed = {nr for entry in ALLOW if (nr := NR[entry.name]) is not None}
    assert len(answers) == SWEEP_END - len({NR[name] for name in NOT_SWEPT} - {None} | PAST_EVERY_FILTER)
    assert set(reachable) <= allowed
    assert 80 < len(reachable) <= MAX_REACHABLE, reachable


# ---------------------------------------------------------------------------------------------------- and Python still works

PROGRAM = textwrap.dedent("""
    import asyncio, concurrent.futures, csv, mmap, multiprocessing, os, select, shutil, signal, socket, sqlite3, subprocess, sys
    import tempfile, threading, time
    from multiprocessing import shared_memory

    def square(x):
        return x * x

    async def echo():
        async def answer(reader, writer):
            writer.write(await reader.readline()); await writer.drain(); writer.close(); await writer.wait_closed()
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\\n"); line = await reader.readline(); writer.close(); await writer.wait_closed()
        server.close(); await server.wait_closed()
        process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", "-c", "print(7)", stdout=subprocess.PIPE)
        return line, (await process.communicate())[0]

    def main():
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            with open("a", "w") as file: file.write("x" * 100_000)
            shutil.copy2("a", "b"); shutil.copytree(".", "tree", symlinks=True); os.mkfifo("fifo"); os.symlink("a", "link")
            os.chmod("b", 0o600); os.utime("b"); os.truncate("b", 10); os.rename("b", "c"); os.link("c", "d")
            assert os.path.getsize("c") == 10 and shutil.disk_usage(".").total > 0 and os.access("a", os.R_OK)
            db = sqlite3.connect("db"); db.execute("create table t(x)"); db.executemany("insert into t values (?)", [(1,), (2,)])
            db.commit(); assert db.execute("select sum(x) from t").fetchone() == (3,); db.close()
            with open("a", "r+b") as file, mmap.mmap(file.fileno(), 0) as view: view[:1] = b"y"; view.flush()
            with concurrent.futures.ThreadPoolExecutor(4) as pool: assert list(pool.map(square, range(4))) == [0, 1, 4, 9]
            context = multiprocessing.get_context("fork")
            with context.Pool(2) as pool: assert pool.map(square, range(4)) == [0, 1, 4, 9]
            queue = context.Queue(); child = context.Process(target=queue.put, args=("x",)); child.start()
            assert queue.get() == "x"; child.join()
            memory = shared_memory.SharedMemory(create=True, size=4096); memory.buf[0] = 1; memory.close(); memory.unlink()
            assert subprocess.run(["sh", "-c", "cat a | wc -c"], capture_output=True, check=True).stdout.strip() == b"100000"
            assert asyncio.run(echo()) == (b"hello\\n", b"7\\n")
            left, right = socket.socketpair(); left.sendall(b"x"); assert select.select([right], [], [], 5)[0] == [right]
            poll = select.epoll(); poll.register(right); assert poll.poll(5)[0][0] == right.fileno()
            signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, 0.001); signal.pause()
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); os.kill(os.getpid(), signal.SIGUSR1)
            assert signal.sigwait([signal.SIGUSR1]) == signal.SIGUSR1
            time.sleep(0.001); os.urandom(8); os.cpu_count(); os.sched_getaffinity(0); os.getloadavg
            os.chdir("/")
        print("all worked")

    if __name__ == "__main__":
        main()
""")


@pytest.mark.slow
def test_ordinary_python_works_under_the_filter(tmp_path: Any) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    program = seccomp.program()

    def enter() -> None:
        syscalls.set_no_new_privs()
        seccomp.install(program)

    done = subprocess.run(
        [sys.executable, "-I", str(path)], preexec_fn=enter, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "all worked\n", "")


def test_filter_cannot_be_put_on_without_no_new_privs_or_privilege() -> None:
    if os.geteuid() == 0:
        pytest.skip("needs a process without CAP_SYS_ADMIN")
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        try:
            seccomp.install(seccomp.program())
        except OSError as err:
            os.write(write_end, str(err).encode())
        os._exit(0)
    os.wait()
    assert os.read(read_end, 100) == b"[Errno 13] seccomp: Permission denied"
