"""The tree of zygote nodes: each has some libraries imported and forks runners that start with them.

Most programs import nothing heavy, and a fork costs what its parent has in memory; so the smallest node whose imports cover the
program is the right one (SOCK, USENIX ATC '18). `Tree` is the zygote's handle. A node grows the nodes below it, then tells the
zygote that it is ready, through those above it, and from then on speaks with the zygote directly.

What a child does between the fork and the first user line costs it a copy of every page it touches, about 4 µs each here. So
nodes prepare before the fork whatever can be prepared, and have no signal handlers for a child to take off.
"""

import contextlib
import gc
import os
import select
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
    """The zygote's view. `state[name]` is None for a ready node, else why it is not; a node that is missing still imports."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.state: dict[str, str | None] = {}
        self.ready_fds: dict[int, tuple[str, socket.socket]] = {}
        self._parents: dict[str, str] = {spec["name"]: spec["parent"] or BARE for spec in config["nodes"]}
        self.trunk, theirs = control.pair()
        if os.fork() == 0:
            self.trunk.close()
            imports = [name for spec in config["nodes"] if spec["name"] == BARE for name in spec["imports"]]
            _Node(BARE, imports, config, theirs).run()
        theirs.close()

    def news(self) -> tuple[dict[str, Any], socket.socket | None]:
        """A node is ready, with a socket of its own, or has failed. Raises Closed when the first node is gone."""
        message, fds = control.receive(self.trunk)
        name = message["node"]
        self.state[name] = message["error"]
        if not fds:
            return message, None
        sock = socket.socket(fileno=fds[0])
        self.ready_fds[sock.fileno()] = (name, sock)
        return message, sock

    def receive(self, fd: int) -> tuple[dict[str, Any], list[int]]:
        return control.receive(self.ready_fds[fd][1])

    def lose(self, fd: int) -> str:
        """A node is gone: the nearest one above it serves in its place. Returns its name."""
        name, sock = self.ready_fds.pop(fd)
        sock.close()
        self.state[name] = "the node died"
        return name

    def fork(self, request: Mapping[str, Any], fds: Sequence[int]) -> str:
        """Have the wanted node, or the nearest one above it that is ready, fork a runner. Returns that node's name.

        Raises Closed when not even the first node is there.
        """
        name = request["node"]
        while name != BARE and self.state.get(name, "not ready") is not None:
            name = self._parents.get(name, BARE)
        for known, sock in self.ready_fds.values():
            if known == name:
                control.send(sock, request, fds)
                return name
        raise control.Closed(name)


class _Node:
    """One node process."""

    def __init__(self, name: str, imports: Sequence[str], config: Mapping[str, Any], above: socket.socket) -> None:
        self._name, self._imports, self._config, self._above = name, imports, config, above
        self._below: dict[int, socket.socket] = {}  # nodes that this one grew: their news is passed on
        self._runners: dict[int, tuple[int, str]] = {}  # pidfd → pid and sandbox
        self._poll = select.epoll()
        self._zygote, self._zygote_end = control.pair()

    def run(self) -> None:
        """Import, grow the nodes below, then serve until the zygote is gone. Never returns."""
        error: str | None = None
        if self._config["site_packages"] not in sys.path:  # in a house it lies where the interpreter looks
            sys.path.append(self._config["site_packages"])
        try:
            seccomp.program(reduced=self._config["level"] == "reduced")  # worked out once, here, not in every runner
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
            fds = [self._zygote_end.fileno()] if error is None else []
            control.send(self._above, {"event": "node", "node": self._name, "error": error}, fds)
            self._zygote_end.close()
            self._poll.register(self._zygote.fileno(), select.EPOLLIN)
            while error is None or self._below:
                for fd, _ in self._poll.poll():
                    self._serve(fd)
        os._exit(0)

    def _grow(self, spec: Mapping[str, Any]) -> None:
        ours, theirs = control.pair()
        if os.fork() == 0:
            # This node's own conversations stay with it.
            for sock in (ours, self._above, self._zygote, self._zygote_end, *self._below.values()):
                sock.close()
            self._poll.close()
            _Node(spec["name"], spec["imports"], self._config, theirs).run()
        theirs.close()
        self._below[ours.fileno()] = ours
        self._poll.register(ours.fileno(), select.EPOLLIN)

    def _serve(self, fd: int) -> None:
        if fd == self._zygote.fileno():
            request, fds = control.receive(self._zygote)
            self._fork(request, fds)
            control.close_all(fds)
        elif fd in self._runners:
            self._reap(fd)
        elif (below := self._below.get(fd)) is not None:
            try:
                message, fds = control.receive(below)
            except control.Closed:
                self._poll.unregister(fd)
                del self._below[fd]
                below.close()
                return
            control.send(self._above, message, fds)
            control.close_all(fds)

    def _fork(self, request: Mapping[str, Any], fds: Sequence[int]) -> None:
        at: int = 3 + request["cgroups"]
        init_pidfd: int = fds[at] if request["room"] else -1
        ruleset: int = fds[at + 1] if len(fds) > at + 1 else -1
        try:
            if init_pidfd >= 0:
                syscalls.setns(init_pidfd, syscalls.CLONE_NEWPID)  # concerns only the children forked from here on
            pid = syscalls.fork_quickly()
        except OSError as err:
            refusal = {
                "event": "refused",
                "id": request["id"],
                "step": "fork the runner",
                "errno": err.errno or 0,
                "detail": str(err),
            }
            control.send(self._zygote, refusal)
            return
        if pid == 0:
            _become_runner(request, fds, init_pidfd, ruleset, self._config)
        pidfd = os.pidfd_open(pid)
        self._runners[pidfd] = (pid, request["id"])
        control.send(self._zygote, {"event": "forked", "id": request["id"], "pid": pid}, [pidfd])
        self._poll.register(pidfd, select.EPOLLIN)  # readable when it has ended: no signal handler needed

    def _reap(self, pidfd: int) -> None:
        pid, name = self._runners.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        control.send(self._zygote, {"event": "exited", "id": name, "pid": pid, "status": status})


def _become_runner(
    request: Mapping[str, Any], fds: Sequence[int], init_pidfd: int, ruleset: int, config: Mapping[str, Any]
) -> None:
    """In the forked child: close the jail, then serve. Never returns. A failed step is told to the host on the channel."""
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
        loop.after_fork()
    except enter.StepFailed as err:
        _refuse_on(fds[0], err)
        os._exit(1)
    loop.serve(3, (*held, *request.get("held", ())))


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
