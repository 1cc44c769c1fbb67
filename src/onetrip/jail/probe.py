"""Finds out, by trying, which mechanisms of the jail work for the user who runs this. Prints one JSON object and leaves nothing.

Executed by the host as a process of its own. Each mechanism is tried in a forked child that ends right after; the answer is
{"mechanism": {"errno": 0 or the kernel's, "detail": text}}.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Final

from . import enter, landlock, mounts, seccomp, syscalls

_NAMESPACES: Final = {
    "mountns": syscalls.CLONE_NEWNS,
    "netns": syscalls.CLONE_NEWNET,
    "ipcns": syscalls.CLONE_NEWIPC,
    "utsns": syscalls.CLONE_NEWUTS,
    "pidns": syscalls.CLONE_NEWPID,
    "cgroupns": syscalls.CLONE_NEWCGROUP,
}


def main() -> None:
    found = {"userns": _try(_user_namespace)}
    for name, flag in _NAMESPACES.items():
        found[name] = _try(lambda flag=flag: _user_namespace(flag))
    found["mounts"] = _try(_mounts)
    found["pidfd-setns"] = _try(_join_by_pidfd)
    found["landlock"] = _try(_landlock)
    found["seccomp"] = _try(_seccomp)
    found["no_new_privs"] = _try(lambda: syscalls.set_no_new_privs() or "")
    found["openat2"] = _try(_openat2)
    json.dump(found, sys.stdout)


def _try(attempt: Callable[[], str | None]) -> dict[str, object]:
    """Run one attempt in a child; what it returns, or its OSError, comes back through a pipe."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = {"errno": 0, "detail": attempt() or ""}
        except OSError as err:
            answer = {"errno": err.errno or 1, "detail": str(err)}
        os.write(write_end, json.dumps(answer).encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        raw = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if raw:
        return json.loads(raw)
    return {
        "errno": 1,
        "detail": f"the attempt was ended by {signal.Signals(-status).name if status < 0 else f'status {status}'}",
    }


def _user_namespace(more: int = 0) -> None:
    uid, gid = os.geteuid(), os.getegid()
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    enter.write_maps("/proc/self", f"0 {uid} 1", f"0 {gid} 1", deny_setgroups=True)
    if more:
        syscalls.unshare(more)


def _mounts() -> None:
    """A tmpfs, and a /proc of a new PID namespace: what an unprivileged process in a container often may not mount."""
    _user_namespace(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE, None)
            syscalls.mount("tmpfs", mounts.NEW_ROOT, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "size=1m")
            os.mkdir(f"{mounts.NEW_ROOT}/proc")
            syscalls.mount(
                "proc", f"{mounts.NEW_ROOT}/proc", "proc", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC, None
            )
        except OSError as err:
            os._exit(err.errno or 255)
        os._exit(0)
    number = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if number:
        raise OSError(number, os.strerror(number), "mount tmpfs or proc")


def _join_by_pidfd() -> None:
    """setns(2) with a pidfd: Linux 5.8."""
    _user_namespace()
    pid = os.fork()
    if pid == 0:
        signal.pause()
    pidfd = os.pidfd_open(pid)
    try:
        syscalls.setns(pidfd, syscalls.CLONE_NEWUTS)
    except OSError as err:
        if err.errno != 1:  # EPERM would mean that the call as such is known and looked at rights
            raise
    finally:
        os.kill(pid, signal.SIGKILL)


def _landlock() -> str:
    version = landlock.abi()
    if not version:
        raise OSError(95, "the kernel has no Landlock")
    syscalls.set_no_new_privs()
    landlock.restrict(readonly=["/"], writable=[], tcp=False)
    return f"ABI {version}"


def _seccomp() -> str:
    program = seccomp.program()
    syscalls.set_no_new_privs()
    seccomp.install(program)
    return f"{len(program) // 8} instructions"


def _openat2() -> None:
    os.close(syscalls.openat2(os.open("/", os.O_PATH), "proc", os.O_PATH, resolve=syscalls.RESOLVE_BENEATH))
