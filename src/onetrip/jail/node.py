"""The tree of zygote nodes: each has some libraries imported and forks runners that start with them.

Most programs import nothing heavy, and a fork costs what its parent has in memory; so the smallest node whose imports cover the
program is the right one (SOCK, USENIX ATC '18). `Tree` is the zygote's handle; a node passes on what is for the nodes below it.
Every node is single-threaded and forks; none ever runs user code.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .. import wire
from ..guest import loop
from . import control, enter, seccomp, syscalls

BARE: Final = "bare"
_HUGE_PAGE: Final = 2 << 20


class Tree:
    """The zygote's view: one socket to the root of the tree, and which nodes are ready.

    `state[name]` is None for a ready node, else why it is not; a node that is missing is still importing.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.state: dict[str, str | None] = {}
        self._parents: dict[str, str] = {spec["name"]: spec["parent"] or BARE for spec in config["nodes"]}
        self.root, theirs = control.pair()
        if os.fork() == 0:
            self.root.close()
            signal.set_wakeup_fd(-1)
            imports = [name for spec in config["nodes"] if spec["name"] == BARE for name in spec["imports"]]
            _Node(BARE, imports, config, theirs).run()
        theirs.close()

    def fork(self, request: Mapping[str, Any], fds: Sequence[int]) -> str:
        """Have the wanted node, or the nearest ancestor that is ready, fork a runner. Returns that node's name."""
        name = request["node"]
        while name != BARE and self.state.get(name, "not ready") is not None:
            name = self._parents.get(name, BARE)
        control.send(self.root, {**request, "node": name, "path": self._path(name)}, fds)
        return name

    def _path(self, name: str) -> list[str]:
        path: list[str] = []
        while name != BARE:
            path.insert(0, name)
            name = self._parents[name]
        return path


class _Node:
    """One node process. Speaks with the node above it, and with those below."""

    def __init__(self, name: str, imports: Sequence[str], config: Mapping[str, Any], above: socket.socket) -> None:
        self._name, self._config, self._above = name, config, above
        self._level: enter.Level = config["level"]
        self._below: dict[int, tuple[str, socket.socket]] = {}
        self._runners: dict[int, str] = {}
        self._poll = select.epoll()
        self._wake, self._wake_end = socket.socketpair()
        self._wake_end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
        signal.set_wakeup_fd(self._wake_end.fileno(), warn_on_full_buffer=False)
        self._imports = imports

    def run(self) -> None:
        """Import, start the nodes below, then serve until the node above is gone. Never returns."""
        error: str | None = None
        if self._config["site_packages"] not in sys.path:  # in a house it lies where the interpreter looks
            sys.path.append(self._config["site_packages"])
        try:
            seccomp.program(reduced=self._level == "reduced")  # worked out once, here, not in every runner
            loop.prepare(self._imports)
            enter.bound_node()
        except BaseException as err:  # noqa: BLE001 - an import may raise anything; the node reports it and takes no work
            error = f"{type(err).__name__}: {err}"[:500]
        if error is None:
            for spec in self._config["nodes"]:
                if spec["name"] != BARE and (spec["parent"] or BARE) == self._name:
                    self._grow(spec)
            loop.hide()
            gc.collect()
            gc.freeze()
            _collapse_memory()
        with contextlib.suppress(control.Closed):
            control.send(self._above, {"event": "node", "node": self._name, "error": error})
            for sock in (self._above, self._wake):
                self._poll.register(sock.fileno(), select.EPOLLIN)
            while True:
                for fd, _ in self._poll.poll():
                    self._serve(fd)
        os._exit(0)

    def _grow(self, spec: Mapping[str, Any]) -> None:
        ours, theirs = control.pair()
        if os.fork() == 0:
            # Everything of this node's own conversation stays with it.
            for sock in (ours, self._above, self._wake, self._wake_end, *(below for _, below in self._below.values())):
                sock.close()
            self._poll.close()
            _Node(spec["name"], spec["imports"], self._config, theirs).run()
        theirs.close()
        self._below[ours.fileno()] = (spec["name"], ours)
        self._poll.register(ours.fileno(), select.EPOLLIN)

    def _serve(self, fd: int) -> None:
        if fd == self._wake.fileno():
            self._wake.recv(4096)
            self._reap()
        elif fd == self._above.fileno():
            request, fds = control.receive(self._above)
            self._handle(request, fds)
        else:
            name, below = self._below[fd]
            try:
                message, fds = control.receive(below)
            except control.Closed:
                self._poll.unregister(fd)
                del self._below[fd]
                below.close()
                control.send(self._above, {"event": "node", "node": name, "error": "the node died"})
                return
            control.send(self._above, message, fds)
            control.close_all(fds)

    def _handle(self, request: dict[str, Any], fds: list[int]) -> None:
        path = request["path"]
        if path:
            for name, below in self._below.values():
                if name == path[0]:
                    with contextlib.suppress(control.Closed):
                        control.send(below, {**request, "path": path[1:]}, fds)
                        control.close_all(fds)
                        return
            self._refuse(request, 0, f"node {path[0]} is gone")
        else:
            self._fork(request, fds)
        control.close_all(fds)

    def _refuse(self, request: Mapping[str, Any], errno: int, detail: str) -> None:
        control.send(
            self._above, {"event": "refused", "id": request["id"], "step": "fork the runner", "errno": errno, "detail": detail}
        )

    def _fork(self, request: Mapping[str, Any], fds: list[int]) -> None:
        at = 3 + request["cgroups"]
        init_pidfd = fds[at] if request["room"] else -1
        ruleset = fds[at + 1] if len(fds) > at + 1 else -1
        try:
            if init_pidfd >= 0:
                syscalls.setns(init_pidfd, syscalls.CLONE_NEWPID)  # concerns only the children forked from here on
            pid = os.fork()
        except OSError as err:
            self._refuse(request, err.errno or 0, str(err))
            return
        if pid == 0:
            _become_runner(request, fds, init_pidfd, ruleset, self._config)
        self._runners[pid] = request["id"]
        pidfd = os.pidfd_open(pid)
        try:
            control.send(self._above, {"event": "forked", "id": request["id"], "pid": pid}, [pidfd])
        finally:
            os.close(pidfd)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if name := self._runners.pop(pid, None):
                control.send(self._above, {"event": "exited", "id": name, "status": status})


def _become_runner(
    request: Mapping[str, Any], fds: Sequence[int], init_pidfd: int, ruleset: int, config: Mapping[str, Any]
) -> None:
    """In the forked child: close the jail, then serve. Never returns. A failed step is told to the host on the channel."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        held = enter.runner(
            enter.RunnerSpec(
                level=config["level"],
                channel=fds[0],
                stdout=fds[1],
                stderr=fds[2],
                cgroup_procs=fds[3 : 3 + request["cgroups"]],
                init_pidfd=init_pidfd,
                ruleset=ruleset,
                workspace=request["workspace"],
                readonly=config["readonly"],
                scratch=request["scratch"],
                uid=request["uid"],
                cpu=request["cpu"],
            )
        )
        held += tuple(request.get("held", ()))
        loop.after_fork()
    except enter.StepFailed as err:
        _refuse_on(fds[0], err)
        os._exit(1)
    loop.serve(3, held)


def _refuse_on(channel_fd: int, err: enter.StepFailed) -> None:
    """Say on the guest's channel which step failed; the descriptor is 3 once the descriptors are in place."""
    message = wire.Refused(err.step, err.errno, err.detail[:1000])
    for fd in (channel_fd, 3):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as channel:
            for packet in wire.packets(message):
                channel.send(packet)
            return


def _collapse_memory() -> None:
    """Gather the anonymous memory of this node into huge pages, so that each fork copies fewer page-table entries.

    madvise(2), MADV_COLLAPSE (Linux 6.1); where it is missing, or memory is too scattered, nothing changes.
    """
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        lines = maps.readlines()
    for line in lines:
        span, rights, _offset, device, *_rest = line.split()
        start, end = (int(part, 16) for part in span.split("-"))
        if rights.startswith("rw") and device == "00:00" and end - start >= _HUGE_PAGE:
            first = -(-start // _HUGE_PAGE) * _HUGE_PAGE
            if end - first >= _HUGE_PAGE:
                with contextlib.suppress(OSError):
                    syscalls.madvise(first, (end - first) // _HUGE_PAGE * _HUGE_PAGE, syscalls.MADV_COLLAPSE)
