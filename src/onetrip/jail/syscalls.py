"""The system calls of the jail: one function each, that does the call or raises OSError with the call's name.

Everything that takes time (argument types, numbers, the count of capabilities) is prepared when this file is imported, because
the functions are called right after a fork.  Signatures and constants: the man page of the same name, or the header named.
"""

import ctypes
import os
import platform
import struct
from ctypes import c_char_p, c_int, c_long, c_size_t, c_ulong, c_void_p
from errno import ENOSYS
from typing import Any, Final

from . import calls

# linux/sched.h
CLONE_VM: Final = 0x00000100
CLONE_VFORK: Final = 0x00004000
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
# linux/mount.h
MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_NOATIME: Final = 0x400
MS_NODIRATIME: Final = 0x800
MS_BIND: Final = 0x1000
MS_MOVE: Final = 0x2000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MS_SLAVE: Final = 0x80000
MS_RELATIME: Final = 0x200000
MNT_DETACH: Final = 2
# asm-generic/mman-common.h
MADV_HUGEPAGE: Final = 14
MADV_COLLAPSE: Final = 25
# linux/fcntl.h
AT_FDCWD: Final = -100
# linux/openat2.h
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10
# linux/prctl.h
PR_SET_PDEATHSIG, _PR_GET_DUMPABLE, PR_SET_DUMPABLE = 1, 3, 4
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 23, 24, 38, 47, 4
# linux/capability.h: version 3, two words per set
_CAPABILITY_VERSION_3: Final = 0x20080522
# linux/if.h, linux/sockios.h
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1
# linux/seccomp.h
SECCOMP_SET_MODE_FILTER: Final = 1
# Numbers of calls that libc has no function for: asm/unistd.h; from 424 on they are the same on every architecture.
_NR_PIVOT_ROOT, _NR_SECCOMP = {"x86_64": (155, 317), "aarch64": (41, 277)}.get(platform.machine(), (-1, -1))
SIGCHLD: Final = 17
_MACHINE: Final = platform.machine()
_CLONE_PIDFD, _CLONE_PARENT, _CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x1000, 0x8000, 0x00200000, 0x01000000
_PR_SET_CHILD_SUBREAPER, _PR_GET_TID_ADDRESS = 36, 40
_NR_OPENAT2: Final = 437
_NR_LANDLOCK_CREATE_RULESET, _NR_LANDLOCK_ADD_RULE, _NR_LANDLOCK_RESTRICT_SELF = 444, 445, 446

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _function(name: str, *arguments: Any) -> Any:
    function = getattr(_libc, name)
    function.argtypes = arguments
    function.restype = c_int
    return function


_unshare = _function("unshare", c_int)
_setns = _function("setns", c_int, c_int)
_mount = _function("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = _function("umount2", c_char_p, c_int)
_sethostname = _function("sethostname", c_char_p, c_size_t)
_prctl = _function("prctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
# Without argument types a call takes half the time, and `drop_capabilities` makes 41: for small, non-negative numbers only.
_prctl_quick = _libc["prctl"]
_capset = _function("capset", c_void_p, c_void_p)
_madvise = _function("madvise", c_void_p, c_size_t, c_int)
# `syscall` takes any number of arguments, all words; the types are given with each call.
_syscall = _libc.syscall
_syscall.restype = c_long


def _check(result: int, call: str, detail: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", detail)
    return result


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


# ---------------------------------------------------------------------------------------------------- namespaces and mounts


def unshare(flags: int) -> None:
    _check(_unshare(flags), "unshare")


def _thread_id_address() -> int | None:
    """Where libc keeps the id of this thread (prctl(2), PR_GET_TID_ADDRESS); None where the kernel does not say."""
    address = c_ulong()
    return address.value if _prctl(_PR_GET_TID_ADDRESS, ctypes.addressof(address), 0, 0, 0) == 0 and address.value else None


_TID_ADDRESS: Final = _thread_id_address()


def add_fork(steps: calls.CallList, step: str, child: calls.Data, pidfd: calls.Place, pid: calls.Place) -> None:
    """Fork as libc does it, with the thread's id in place, but without the handlers that libraries registered around a fork.

    The child's parent is ours (CLONE_PARENT): it is told of the child's end. `pidfd` gets a descriptor of the child, 32 bits, `pid` its number, 64 bits.
    Precondition: one thread, which holds no lock that the child needs. Raises OSError (ENOSYS) where the kernel does not say
    where that id is (built without CONFIG_CHECKPOINT_RESTORE).
    """
    if _TID_ADDRESS is None:
        raise OSError(ENOSYS, "prctl PR_GET_TID_ADDRESS: the kernel does not say where a thread's id is kept")
    flags = _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID | _CLONE_PARENT | _CLONE_PIDFD | SIGCHLD
    last = (_TID_ADDRESS, 0) if _MACHINE == "x86_64" else (0, _TID_ADDRESS)  # clone(2): the order differs
    steps.add_split(step, "clone", flags, 0, pidfd, *last, child=child, store=pid)


def setns(fd: int, flags: int) -> None:
    """Enter the namespaces `flags` of `fd`: a namespace file, or (Linux ≥ 5.8) a pidfd, whose namespaces are entered together."""
    _check(_setns(fd, flags), "setns")


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None) -> None:
    _check(_mount(_bytes(source), _bytes(target), _bytes(fstype), flags, _bytes(data)), "mount", target)


def umount2(target: str, flags: int) -> None:
    _check(_umount2(_bytes(target), flags), "umount2", target)


def pivot_root(new_root: str, put_old: str) -> None:
    _check(_syscall(c_long(_NR_PIVOT_ROOT), c_char_p(_bytes(new_root)), c_char_p(_bytes(put_old))), "pivot_root", new_root)


def sethostname(name: str) -> None:
    raw = name.encode()
    _check(_sethostname(raw, len(raw)), "sethostname")


def add_loopback(steps: calls.CallList) -> None:
    """Set the loopback interface of the current network namespace up. Needs CAP_NET_ADMIN over that namespace."""
    step = "bring up loopback"
    request = calls.Data(struct.pack("16sH22x", b"lo", _IFF_UP))  # struct ifreq
    sock = steps.add(step, "socket", 2, 2 | os.O_CLOEXEC, 0)  # AF_INET, SOCK_DGRAM
    steps.add(step, "ioctl", sock, _SIOCSIFFLAGS, request.at(0))
    steps.add(step, "close", sock)


def openat2(dir_fd: int, path: str, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` under the restrictions `resolve`; EXDEV or ELOOP where it would leave them. Linux ≥ 5.6, else ENOSYS."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return _check(
        _syscall(c_long(_NR_OPENAT2), c_long(dir_fd), c_char_p(_bytes(path)), c_char_p(how), c_size_t(24)), "openat2", path
    )


def madvise(address: int, length_bytes: int, advice: int) -> None:
    """Advise on memory of this process; `address` is page-aligned."""
    _check(_madvise(address, length_bytes, advice), "madvise")


# ---------------------------------------------------------------------------------------------------- what this process may do


def set_no_new_privs() -> None:
    _check(_prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl PR_SET_NO_NEW_PRIVS")


def set_dumpable(dumpable: bool) -> None:
    """Not dumpable: no ptrace, no core, and /proc/PID belongs to root. Changing ids and `execve` set it anew."""
    _check(_prctl(PR_SET_DUMPABLE, int(dumpable), 0, 0, 0), "prctl PR_SET_DUMPABLE")


def is_dumpable() -> bool:
    return _check(_prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0), "prctl PR_GET_DUMPABLE") == 1


def become_subreaper() -> None:
    """Be told of the end of orphans below us, as PID 1 of a namespace is anyway (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    _check(_prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl PR_SET_CHILD_SUBREAPER")


def set_pdeathsig(signal_number: int) -> None:
    """Get this signal when the thread that forked us ends. Changing ids clears it: set it after that."""
    _check(_prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "prctl PR_SET_PDEATHSIG")


def _capability_count() -> int:
    count = 0
    while _prctl_quick(_PR_CAPBSET_READ, count) >= 0:
        count += 1
    return count


_CAPABILITIES: Final = _capability_count()  # of this kernel: 41 in Linux 5.9 and later
_CAP_HEADER: Final = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
_CAP_NONE: Final = struct.pack("6I", 0, 0, 0, 0, 0, 0)


def add_drop_capabilities(steps: calls.CallList) -> None:
    """Empty the effective, permitted, inheritable, ambient and bounding sets.

    The bounding set stays where only CAP_SETPCAP may shrink it; then no_new_privs alone keeps it from mattering.
    """
    step = "drop every capability"
    for capability in range(_CAPABILITIES):
        steps.add(step, "prctl", _PR_CAPBSET_DROP, capability, flags=calls.MAY_FAIL)
    steps.add(step, "prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    steps.add(step, "capset", calls.Data(_CAP_HEADER).at(0), calls.Data(_CAP_NONE).at(0))


# ---------------------------------------------------------------------------------------------------- filters


def seccomp_set_filter(fprog: Any) -> None:
    """`fprog` is a reference to a `struct sock_fprog`."""
    _check(_syscall(c_long(_NR_SECCOMP), c_long(SECCOMP_SET_MODE_FILTER), c_long(0), fprog), "seccomp")


def landlock_create_ruleset(attributes: bytes | None, flags: int) -> int:
    """A ruleset's descriptor; with flags 1 (LANDLOCK_CREATE_RULESET_VERSION) and no attributes, the ABI."""
    size = c_size_t(len(attributes) if attributes else 0)
    call = _syscall(c_long(_NR_LANDLOCK_CREATE_RULESET), c_char_p(attributes), size, c_long(flags))
    return _check(call, "landlock_create_ruleset")


def landlock_add_path(ruleset: int, allowed: int, path_fd: int) -> None:
    """Add a LANDLOCK_RULE_PATH_BENEATH."""
    rule = struct.pack("=Qi", allowed, path_fd)  # packed, without padding: struct landlock_path_beneath_attr
    call = _syscall(c_long(_NR_LANDLOCK_ADD_RULE), c_long(ruleset), c_long(1), c_char_p(rule), c_long(0))
    _check(call, "landlock_add_rule")


def landlock_restrict_self(ruleset: int) -> None:
    _check(_syscall(c_long(_NR_LANDLOCK_RESTRICT_SELF), c_long(ruleset), c_long(0)), "landlock_restrict_self")
