"""The system calls that a program in the jail may make, as data: number, reason, and rules on arguments.

`ALLOW` is the whole list; `refusals.REFUSE` names the calls that are answered EPERM; every other number, new ones included, is
answered ENOSYS, which makes libc and programs fall back to an older call.  So `clone3`, `statx`, `openat2`, `faccessat2`,
`renameat2`, `copy_file_range`, `sendfile`, `memfd_create`, `timer_create`, `io_uring_*` and the like are refused by not being here.
`REDUCED` replaces entries at the level without namespaces, where the host's files and processes are in view.

A rule looks at the low 32 bits of arguments, which is all that the kernel uses of those named here (they are `int`, `unsigned
int`, `umode_t`, or flag words below 2**32).  Pointers cannot be followed.  Numbers: arch/x86/entry/syscalls/syscall_64.tbl and
include/uapi/asm-generic/unistd.h; constants: the uapi headers named beside them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from errno import EAFNOSUPPORT, ENOMEM, EOPNOTSUPP, EPERM, EPROTONOSUPPORT
from typing import Final

OWN_PID: Final = 0x4F545049  # stands for the pid of the process that installs the filter (pids are below 2**22)


@dataclass(frozen=True, slots=True)
class OneOf:
    """Argument `arg`, masked, must be one of `values`; otherwise the call is answered with errno `otherwise` (0: success)."""

    arg: int
    values: tuple[int, ...]
    otherwise: int = EPERM
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Switch:
    """Last in a rule: what must hold is chosen by argument `arg`; a value without a case is answered with `otherwise`."""

    arg: int
    cases: tuple[tuple[int, tuple[OneOf, ...]], ...]
    otherwise: int = EPERM


Rule = tuple[OneOf | Switch, ...]  # all must hold, in this order


@dataclass(frozen=True, slots=True)
class Allow:
    """A call that is let through where `rule` holds. A number of None: the architecture does not have it."""

    name: str
    x86_64: int | None
    aarch64: int | None
    reason: str
    rule: Rule = ()


@dataclass(frozen=True, slots=True)
class Replace:
    """What the reduced level makes of an allowed call: other rules, or (`answer`) an errno without asking the kernel."""

    reason: str
    rule: Rule = ()
    answer: int | None = None


# fcntl.h. Not here: F_SETOWN and F_SETSIG (signals to processes of one's choice), leases, F_NOTIFY.
FCNTL: Final[Rule] = (OneOf(1, (0, 1, 2, 3, 4, 5, 6, 7, 9, 36, 37, 38, 1030, 1031, 1032, 1033, 1034)),)
# asm-generic/ioctls.h: TCGETS, TIOCGPGRP, TIOCOUTQ (what a peer has not read yet), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX,
# FIOCLEX, TCGETS2. Not TIOCSTI, TIOCLINUX,
# TIOCSCTTY or anything that configures a device, an interface or a file system.
IOCTL: Final[Rule] = (OneOf(1, (0x5401, 0x540F, 0x5411, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x802C542A)),)
# linux/fadvise.h. DONTNEED (4) would evict pages of libraries that all tenants share: it is advice, so it is taken and ignored.
FADVISE: Final[Rule] = (OneOf(3, (0, 1, 2, 3, 4, 5)), OneOf(3, (0, 1, 2, 3, 5), otherwise=0))
# stat.h: the type must be FIFO, regular, or none (regular); no devices, no sockets.
NODE: Final[Rule] = (OneOf(2, (0, 0o010000, 0o100000), mask=0o170000),)
NO_XATTR: Final[Rule] = (OneOf(0, (), EOPNOTSUPP),)
# asm-generic/mman-common.h: MAP_HUGETLB.
MMAP: Final[Rule] = (OneOf(3, (0,), ENOMEM, mask=0x40000),)
# asm-generic/mman-common.h. Not MERGEABLE (12, 13: shows what other tenants hold), HWPOISON (100, 101).
MADVISE: Final[Rule] = (OneOf(2, (0, 1, 2, 3, 4, 8, 9, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 102, 103)),)
# linux/sched.h: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; CLONE_PTRACE; CLONE_PARENT, by which a program
# could put a child of its own beside itself, under the process that watches it.
_CLONE_REFUSED: Final = 0x7E020000 | 0x2000 | 0x8000
_CLONE_THREAD: Final = 0x10000
CLONE: Final[Rule] = (OneOf(0, (0,), mask=_CLONE_REFUSED),)
# asm/prctl.h: ARCH_SET_FS, ARCH_GET_FS, ARCH_GET_XCOMP_SUPP, ARCH_GET_XCOMP_PERM, ARCH_REQ_XCOMP_PERM.
ARCH_PRCTL: Final[Rule] = (OneOf(0, (0x1002, 0x1003, 0x1021, 0x1022, 0x1023)),)
# linux/prctl.h: SET_PDEATHSIG, GET_PDEATHSIG, GET_DUMPABLE, SET_NAME, GET_NAME, GET_SECCOMP, CAPBSET_READ, GET_TIMERSLACK,
# SET_NO_NEW_PRIVS, GET_NO_NEW_PRIVS, SET_VMA (names of memory areas). Not SET_DUMPABLE: what is hidden stays hidden.
_PRCTL_ANY: Final = (1, 2, 3, 15, 16, 21, 23, 30, 38, 39, 0x53564D41)
# SET_SECCOMP, with SECCOMP_MODE_FILTER only: one more filter, which can only take away (guest/forking.py).
PRCTL: Final[Rule] = (Switch(0, (*((option, ()) for option in _PRCTL_ANY), (22, (OneOf(1, (2,)),)))),)
PRLIMIT: Final[Rule] = (OneOf(0, (0,)),)
# linux/net.h, linux/in.h: unix; inet and inet6 with TCP or UDP only, so that no protocol module is loaded. SOCK_STREAM 1,
# SOCK_DGRAM 2, SOCK_SEQPACKET 5; the mask leaves out SOCK_CLOEXEC and SOCK_NONBLOCK.
_INET: Final = (OneOf(1, (1, 2), mask=0xF), OneOf(2, (0, 6, 17), EPROTONOSUPPORT))
_UNIX: Final = (OneOf(1, (1, 2, 5), mask=0xF), OneOf(2, (0,), EPROTONOSUPPORT))
SOCKET: Final[Rule] = (Switch(0, ((1, _UNIX), (2, _INET), (10, _INET)), EAFNOSUPPORT),)
SOCKETPAIR: Final[Rule] = (Switch(0, ((1, _UNIX),), EAFNOSUPPORT),)
# asm-generic/socket.h, linux/in.h, linux/tcp.h, linux/in6.h. By level: SOL_SOCKET, IP, TCP, IPV6. Not SO_ATTACH_*FILTER,
# SO_ZEROCOPY, TCP_ULP (kernel TLS), TCP_REPAIR, TCP_MD5SIG, nor any table of netfilter (levels and options of their own).
# SO_SNDBUF and SO_RCVBUF (7, 8) are taken and ignored: without a control group nothing counts what lies in socket buffers, so
# NOFILE x net.core.wmem_default has to bound it.
_USUAL_BUFFERS: Final = OneOf(2, (2, 6, 9, 10, 13, 15, 16, 18, 20, 21, 66, 67), otherwise=0)
SETSOCKOPT: Final[Rule] = (
    Switch(
        1,
        (
            (1, (OneOf(2, (2, 6, 7, 8, 9, 10, 13, 15, 16, 18, 20, 21, 66, 67)), _USUAL_BUFFERS)),
            (0, (OneOf(2, (1, 2, 10, 11)),)),
            (6, (OneOf(2, (1, 2, 3, 4, 5, 6, 12, 18)),)),
            (41, (OneOf(2, (16, 26)),)),
        ),
    ),
)

ALLOW: Final[tuple[Allow, ...]] = (
    # reading and writing what is already open
    Allow("read", 0, 63, "files and pipes"),
    Allow("write", 1, 64, "files and pipes"),
    Allow("readv", 19, 65, "asyncio and subprocess gather buffers"),
    Allow("writev", 20, 66, "asyncio and subprocess gather buffers"),
    Allow("pread64", 17, 67, "sqlite3, zipfile and numpy read at an offset"),
    Allow("pwrite64", 18, 68, "sqlite3 and mmap writers write at an offset"),
    Allow("preadv", 295, 69, "os.preadv; preadv2 is refused so that glibc falls back to this"),
    Allow("pwritev", 296, 70, "os.pwritev; pwritev2 is refused so that glibc falls back to this"),
    Allow("lseek", 8, 62, "seek in files"),
    Allow("close", 3, 57, "descriptors"),
    Allow("close_range", 436, 436, "subprocess and os.closerange close what a child must not inherit"),
    Allow("dup", 32, 23, "os.dup"),
    Allow("dup2", 33, None, "glibc's dup2 on x86_64"),
    Allow("dup3", 292, 24, "os.dup2, subprocess"),
    Allow("fcntl", 72, 25, "close-on-exec, non-blocking, record locks of sqlite3", FCNTL),
    Allow("flock", 73, 32, "fcntl.flock: lock files of libraries and of the program"),
    Allow("ioctl", 16, 29, "io asks each new file whether it is a terminal; sockets ask for pending bytes", IOCTL),
    Allow("fsync", 74, 82, "os.fsync; databases"),
    Allow("fdatasync", 75, 83, "sqlite3"),
    Allow("ftruncate", 77, 46, "file.truncate, shared memory"),
    Allow("truncate", 76, 45, "os.truncate"),
    Allow("fallocate", 285, 47, "os.posix_fallocate"),
    Allow("fadvise64", 221, 223, "os.posix_fadvise, tools such as cat and sort", FADVISE),
    Allow("pipe", 22, None, "musl's pipe"),
    Allow("pipe2", 293, 59, "os.pipe, subprocess"),
    Allow("eventfd2", 290, 19, "os.eventfd; wake-ups in native event loops"),
    # names in the file system: which files they reach is decided by the mounts and by Landlock
    Allow("open", 2, None, "musl opens by this number"),
    Allow("openat", 257, 56, "open files"),
    Allow("creat", 85, None, "glibc's creat on x86_64, which tar calls"),
    Allow("stat", 4, None, "musl, older native libraries"),
    Allow("lstat", 6, None, "musl, older native libraries"),
    Allow("fstat", 5, 80, "size and kind of an open file"),
    Allow("newfstatat", 262, 79, "os.stat; statx is refused so that libc falls back to this"),
    Allow("access", 21, None, "importlib and shutil.which"),
    Allow("faccessat", 269, 48, "os.access"),
    Allow("readlink", 89, None, "realpath"),
    Allow("readlinkat", 267, 78, "os.readlink"),
    Allow("getdents64", 217, 61, "os.listdir, importlib"),
    Allow("getcwd", 79, 17, "os.getcwd"),
    Allow("chdir", 80, 49, "os.chdir"),
    Allow("fchdir", 81, 50, "os.chdir of a descriptor, shutil.rmtree"),
    Allow("mkdir", 83, None, "os.mkdir"),
    Allow("mkdirat", 258, 34, "os.mkdir with dir_fd"),
    Allow("rmdir", 84, None, "os.rmdir"),
    Allow("unlink", 87, None, "os.remove"),
    Allow("unlinkat", 263, 35, "shutil.rmtree"),
    Allow("rename", 82, None, "os.rename, atomic replacement"),
    Allow("renameat", 264, 38, "os.rename with dir_fd; renameat2 is refused, tools fall back"),
    Allow("link", 86, None, "os.link"),
    Allow("linkat", 265, 37, "os.link with dir_fd"),
    Allow("symlink", 88, None, "os.symlink"),
    Allow("symlinkat", 266, 36, "os.symlink with dir_fd"),
    Allow("chmod", 90, None, "os.chmod, tempfile, zipfile"),
    Allow("fchmod", 91, 52, "os.fchmod"),
    Allow("fchmodat", 268, 53, "shutil.copymode, os.chmod with dir_fd"),
    Allow("mknodat", 259, 33, "os.mkfifo", NODE),
    Allow("umask", 95, 166, "os.umask"),
    Allow("utimensat", 280, 88, "shutil.copystat, os.utime"),
    Allow("statfs", 137, 43, "shutil.disk_usage"),
    Allow("fstatfs", 138, 44, "os.statvfs of a descriptor"),
    Allow("listxattr", 194, 11, "answered EOPNOTSUPP, so that shutil.copy2 goes on; none can be set", NO_XATTR),
    Allow("getxattr", 191, 8, "answered EOPNOTSUPP: ls asks for access lists and takes ENOSYS for a failure", NO_XATTR),
    Allow("lgetxattr", 192, 9, "answered EOPNOTSUPP, as getxattr", NO_XATTR),
    Allow("llistxattr", 195, 12, "answered EOPNOTSUPP, as listxattr", NO_XATTR),
    # memory
    Allow("mmap", 9, 222, "malloc, numpy, mmap; no huge TLB pages: no memory cgroup counts them", MMAP),
    Allow("munmap", 11, 215, "malloc, mmap"),
    Allow("mremap", 25, 216, "realloc of large blocks, mmap.resize"),
    Allow("mprotect", 10, 226, "malloc arenas, dlopen, and compilers at run time (numba)"),
    Allow("madvise", 28, 233, "malloc gives memory back, numpy asks for huge pages; no merging with other tenants", MADVISE),
    Allow("msync", 26, 227, "mmap.flush"),
    Allow("brk", 12, 214, "malloc"),
    Allow(
        "landlock_restrict_self", 446, 446, "a branch gives up the files of the session that it comes from; can only take away"
    ),
    # processes and threads
    Allow("clone", 56, 220, "threads and os.fork; no namespaces, no tracing, no sibling of the caller", CLONE),
    Allow("fork", 57, None, "musl's fork"),
    Allow("vfork", 58, None, "subprocess starts programs by it"),
    Allow("execve", 59, 221, "subprocess"),
    Allow("exit", 60, 93, "end of a thread"),
    Allow("exit_group", 231, 94, "end of a process"),
    Allow("wait4", 61, 260, "os.waitpid"),
    Allow("waitid", 247, 95, "os.waitid, subprocess"),
    Allow("set_tid_address", 218, 96, "start of every program"),
    Allow("set_robust_list", 273, 99, "glibc, each thread and fork"),
    Allow("rseq", 334, 293, "glibc aborts a new thread whose registration fails when the first thread's succeeded"),
    Allow("arch_prctl", 158, None, "thread pointer of a new program; AMX for numpy", ARCH_PRCTL),
    Allow("prctl", 157, 167, "thread names; what a process may ask about itself", PRCTL),
    Allow("futex", 202, 98, "every lock"),
    Allow("sched_yield", 24, 124, "time.sleep(0), spin loops of OpenBLAS"),
    Allow("sched_getaffinity", 204, 123, "os.cpu_count, joblib, OpenMP"),
    Allow("getcpu", 309, 168, "allocators choose an arena by processor"),
    Allow("getpid", 39, 172, "os.getpid"),
    Allow("getppid", 110, 173, "os.getppid"),
    Allow("gettid", 186, 178, "threading.get_native_id"),
    Allow("getpgid", 121, 155, "os.getpgid"),
    Allow("getpgrp", 111, None, "os.getpgrp"),
    Allow("setpgid", 109, 154, "subprocess with process_group"),
    Allow("getsid", 124, 156, "os.getsid"),
    Allow("setsid", 112, 157, "subprocess with start_new_session"),
    Allow("getuid", 102, 174, "os.getuid"),
    Allow("geteuid", 107, 175, "os.geteuid, start of every program"),
    Allow("getgid", 104, 176, "os.getgid"),
    Allow("getegid", 108, 177, "os.getegid"),
    Allow("getgroups", 115, 158, "os.getgroups"),
    Allow("getresuid", 118, 148, "os.getresuid"),
    Allow("getresgid", 120, 150, "os.getresgid"),
    Allow("getrusage", 98, 165, "resource.getrusage, time.process_time"),
    Allow("times", 100, 153, "os.times"),
    Allow("prlimit64", 302, 261, "resource.getrlimit and setrlimit of the caller itself; hard limits cannot be raised", PRLIMIT),
    Allow("sysinfo", 99, 179, "os.sysconf: how much memory there is"),
    Allow("uname", 63, 160, "platform, os.uname"),
    Allow("getrandom", 318, 278, "os.urandom, hash seeds"),
    # time
    Allow("clock_gettime", 228, 113, "time.time where the vDSO cannot answer"),
    Allow("clock_getres", 229, 114, "time.get_clock_info"),
    Allow("clock_nanosleep", 230, 115, "time.sleep"),
    Allow("nanosleep", 35, 101, "sleep of libc and of older Pythons"),
    Allow("gettimeofday", 96, 169, "native libraries where the vDSO cannot answer"),
    Allow("getitimer", 36, 102, "signal.getitimer"),
    Allow("setitimer", 38, 103, "signal.setitimer: time-outs written by the program"),
    Allow("alarm", 37, None, "signal.alarm: time-outs written by the program"),
    # signals: within the PID namespace; its init ignores all that it has no handler for
    Allow("rt_sigaction", 13, 134, "signal.signal"),
    Allow("rt_sigprocmask", 14, 135, "signal.pthread_sigmask, every fork and thread"),
    Allow("rt_sigpending", 127, 136, "signal.sigpending"),
    Allow("rt_sigsuspend", 130, 133, "sigsuspend of libc"),
    Allow("rt_sigtimedwait", 128, 137, "signal.sigwait, sigtimedwait"),
    Allow("rt_sigreturn", 15, 139, "return from a handler"),
    Allow("restart_syscall", 219, 128, "the kernel resumes a sleep by it after SIGSTOP and SIGCONT"),
    Allow("sigaltstack", 131, 132, "faulthandler"),
    Allow("pause", 34, None, "signal.pause"),
    Allow("kill", 62, 129, "os.kill of its own processes, multiprocessing.terminate"),
    Allow("tkill", 200, 130, "musl's raise"),
    Allow("tgkill", 234, 131, "signal.raise_signal, abort, pthread_kill"),
    # waiting
    Allow("select", 23, None, "musl's select"),
    Allow("pselect6", 270, 72, "select.select, time.sleep of older Pythons"),
    Allow("poll", 7, None, "select.poll, subprocess.communicate"),
    Allow("ppoll", 271, 73, "selectors, poll on aarch64"),
    Allow("epoll_create1", 291, 20, "asyncio"),
    Allow("epoll_ctl", 233, 21, "asyncio"),
    Allow("epoll_wait", 232, None, "asyncio"),
    Allow("epoll_pwait", 281, 22, "asyncio on musl and aarch64"),
    # sockets: in the strict level there is nothing to reach but the sandbox itself
    Allow("socket", 41, 198, "local servers and multiprocessing: unix, inet and inet6; no raw, no rare protocols", SOCKET),
    Allow("socketpair", 53, 199, "asyncio, multiprocessing", SOCKETPAIR),
    Allow("connect", 42, 203, "sockets"),
    Allow("bind", 49, 200, "sockets"),
    Allow("listen", 50, 201, "sockets"),
    Allow("accept", 43, 202, "sockets"),
    Allow("accept4", 288, 242, "sockets"),
    Allow("getsockname", 51, 204, "sockets"),
    Allow("getpeername", 52, 205, "sockets"),
    Allow("sendto", 44, 206, "sockets"),
    Allow("recvfrom", 45, 207, "sockets"),
    Allow("sendmsg", 46, 211, "multiprocessing passes descriptors"),
    Allow("recvmsg", 47, 212, "multiprocessing passes descriptors"),
    Allow("shutdown", 48, 210, "sockets"),
    Allow("setsockopt", 54, 208, "options of ordinary sockets; no filters, no kernel TLS, no netfilter", SETSOCKOPT),
    Allow("getsockopt", 55, 209, "state of a connection, peer of a unix socket"),
)

_ONE_PROCESS: Final = "one process per sandbox: without a PID namespace nothing else keeps a family together"
_NO_PATHS: Final = "Landlock before ABI 9 lets a named socket of the host (a container engine, a session bus) be reached"
_IGNORED: Final = "Landlock does not watch it, so it would reach the host's files; taken and ignored, so that shutil.copy goes on"

REDUCED: Final[Mapping[str, Replace]] = {
    "clone": Replace(_ONE_PROCESS, (OneOf(0, (_CLONE_THREAD,), mask=_CLONE_REFUSED | _CLONE_THREAD),)),
    "fork": Replace(_ONE_PROCESS, answer=EPERM),
    "vfork": Replace(_ONE_PROCESS, answer=EPERM),
    "kill": Replace("the host's processes of the same user are in reach: itself only", (OneOf(0, (OWN_PID,)),)),
    "tgkill": Replace("as kill; the first argument is the process", (OneOf(0, (OWN_PID,)),)),
    "tkill": Replace("names a thread of any process", answer=EPERM),
    "socket": Replace(_NO_PATHS + "; without a network namespace also the network", answer=EAFNOSUPPORT),
    "socketpair": Replace(
        "asyncio needs one; not SOCK_DGRAM, whose ends can send to other addresses",
        (Switch(0, ((1, (OneOf(1, (1, 5), mask=0xF), OneOf(2, (0,), EPROTONOSUPPORT))),), EAFNOSUPPORT),),
    ),
    "connect": Replace(_NO_PATHS, answer=EPERM),
    "bind": Replace("a pair needs no name", answer=EPERM),
    "listen": Replace("nobody may connect", answer=EPERM),
    "accept": Replace("nobody may connect", answer=EPERM),
    "accept4": Replace("nobody may connect", answer=EPERM),
    "chmod": Replace(_IGNORED, answer=0),
    "fchmod": Replace(_IGNORED, answer=0),
    "fchmodat": Replace(_IGNORED, answer=0),
    "utimensat": Replace(_IGNORED, answer=0),
    "truncate": Replace("Landlock before ABI 3 does not watch it; ftruncate needs a file open for writing", answer=EPERM),
}
