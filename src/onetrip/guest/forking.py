"""Forks the session's process: as libc does it, but without what libraries do around a fork, so that the child is the same session.

`os.fork` runs handlers that are meant for a *new* process: `random` is seeded anew, locks are replaced. A session that goes on in a
child has to keep its state to the last bit, and has one thread, which holds no lock.
"""

import ctypes
import platform
import struct
from _thread import _count as python_threads  # type: ignore[attr-defined]  # beside the main thread
from os import WNOHANG, listdir, strerror
from posix import fork as os_fork  # pyright: ignore[reportPrivateUsage]  # its public name is os.fork
from posix import getpid, waitid
from sys import modules
from time import monotonic, sleep
from typing import Any, Final

from .own import OWN as __builtins__  # noqa: F401  # see own.py

_P_ALL, _WEXITED, _WNOWAIT = 0, 4, 0x01000000  # linux/wait.h
_NR_CLONE: Final = {"x86_64": 56, "aarch64": 220}.get(platform.machine(), -1)
_CHILD_CLEARTID, _CHILD_SETTID, _SIGCHLD = 0x00200000, 0x01000000, 17  # linux/sched.h
_PR_SET_SECCOMP, _PR_GET_TID_ADDRESS, _MODE_FILTER = 22, 40, 2  # linux/prctl.h, linux/seccomp.h
_ENDING_S: Final = 0.05
_ENDING_STEP_S: Final = 0.0002
_staying: Final = [0]  # threads that are not Python's, and were there after that long
# PyDLL keeps the interpreter's lock: another thread of state has no meaning in a child that libc did not fork.
_libc: Final = ctypes.PyDLL(None, use_errno=True)
_syscall: Final[Any] = _libc.syscall
_syscall.restype = ctypes.c_long
_prctl: Final[Any] = _libc.prctl


def _thread_id_address() -> int | None:
    """Where libc keeps the id of this thread (prctl(2), PR_GET_TID_ADDRESS). It is the same in every fork."""
    address = ctypes.c_ulong()
    known = _prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0) == 0
    return address.value if known and address.value else None


_TID_ADDRESS: Final = _thread_id_address()


def obstacle() -> str | None:
    """Why this process cannot be forked as a whole now; None when it can."""
    if threads := _others_alive():
        return f"{threads} more threads are alive"
    try:
        waitid(_P_ALL, 0, _WEXITED | WNOHANG | _WNOWAIT)
    except ChildProcessError:
        return None
    return "child processes are alive, or have not been waited for"


def _others_alive() -> int:
    """Threads beside this one. One that Python has joined may still be ending: it is given a moment, unless that was in vain before."""
    others = len(listdir("/proc/self/task")) - 1
    _staying[0] = min(_staying[0], others)
    if others > _staying[0] and python_threads() == 0:
        give_up = monotonic() + _ENDING_S
        while others and monotonic() < give_up:
            sleep(_ENDING_STEP_S)
            others = len(listdir("/proc/self/task")) - 1
        _staying[0] = others
    return others


def fork() -> int:
    """Fork; the child's pid, or 0 in the child. Raises OSError. Precondition: `obstacle` saw none."""
    if _TID_ADDRESS is None or _NR_CLONE < 0:
        return os_fork()
    flags = ctypes.c_long(_CHILD_SETTID | _CHILD_CLEARTID | _SIGCHLD)
    zero, at = ctypes.c_long(0), ctypes.c_long(_TID_ADDRESS)
    last = (at, zero) if _NR_CLONE == 56 else (zero, at)  # clone(2): the order differs
    pid: int = _syscall(ctypes.c_long(_NR_CLONE), flags, zero, zero, *last)
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, strerror(number))
    if pid == 0 and (threading := modules.get("threading")) is not None:
        threading.main_thread()._native_id = getpid()  # noqa: SLF001  # what threading's own handler does after a fork
    return pid


# ---------------------------------------------------------------------------------------------------- out of reach

_NR_LANDLOCK_RESTRICT_SELF: Final = 446  # the same on every architecture


def restrict(ruleset_fd: int) -> None:
    """Give up what this Landlock ruleset does not allow, for good. Raises OSError: E2BIG after 16 times, a branch of a branch of …"""
    if _syscall(ctypes.c_long(_NR_LANDLOCK_RESTRICT_SELF), ctypes.c_long(ruleset_fd), ctypes.c_long(0)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, strerror(number))


_LOAD, _JEQ, _JGE, _JGT, _RET = 0x20, 0x15, 0x35, 0x25, 0x06  # linux/bpf_common.h
_NR, _ARG_0 = 0, 16  # offsets in struct seccomp_data
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050003  # linux/seccomp.h: SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with ESRCH
_SIGNALLING: Final = {"x86_64": (62, 200, 234), "aarch64": (129, 130, 131)}.get(platform.machine(), ())  # kill, tkill, tgkill


def guard(own_pid: int) -> None:
    """From now on this process, and what it starts, can signal no process older than itself: those are its checkpoints.

    Process ids go up, so what a program starts itself has a higher one. A second system call filter, for the three calls that
    signal; the first argument must be 0 (the process's own group, which the caller has to itself), its own pid or a higher one, or
    minus the like; not -1, which is everybody. Others are answered as if they were not there: which numbers are taken is nobody's
    business. Raises OSError.
    """
    instruction = struct.Struct("<HBBI")
    allow, refuse = instruction.pack(_RET, 0, 0, _ALLOW), instruction.pack(_RET, 0, 0, _REFUSE)
    code = b"".join(
        (
            instruction.pack(_LOAD, 0, 0, _NR),
            *(instruction.pack(_JEQ, 3 - at, 0, number) for at, number in enumerate(_SIGNALLING)),
            allow,
            instruction.pack(_LOAD, 0, 0, _ARG_0),
            instruction.pack(_JEQ, 2, 0, 0),
            instruction.pack(_JGE, 0, 2, own_pid),
            instruction.pack(_JGT, 1, 0, 0x1_0000_0000 - own_pid),
            allow,
            refuse,
        )
    )
    held = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(held)), 16)
    if _prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), program, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl PR_SET_SECCOMP")
