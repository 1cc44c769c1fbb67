"""The tree of zygote nodes: each has some libraries imported and forks runners that start with them.

Theory of operation
-------------------
Most programs import nothing heavy, and a fork costs what its parent has in memory; so the smallest node whose imports cover the
program is the right one (SOCK, USENIX ATC '18). `Tree` is the zygote's handle. Nodes are grown by nodes, but they, and the runners
that they fork, are all children of the zygote: it alone is told how they ended.

What a child does between the fork and the first user line costs it a copy of every page it touches, about 4 µs each here, and its
node another for each page that the node touches while the child shares it. So nodes prepare before the fork whatever can be
prepared, the guest's objects and the places where random state lies included; and from then on a node runs no Python. It walks one
list of calls (`calls`) round and round:

    receive a request with its descriptors → enter the init's PID namespace → fork ──→ child: close the jail (`enter.runner`), serve
                                     ↑──── close the descriptors ← send back a pidfd ┘
"""

import contextlib
import gc
import json
import os
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from .. import wire
from ..guest import loop
from . import calls, control, enter, seccomp, syscalls
from .steps import StepFailed

BARE: Final = "bare"
_HUGE_PAGE: Final = 2 << 20
_RUNNER_PID: Final = 2  # in its room, where init is 1
_SCRATCH_BYTES: Final = 1024
_CMSG_HEADER: Final = 16  # cmsg(3): length, level, type
_PID: Final = struct.Struct("<q")


class Tree:
    """The zygote's view. `state[name]` is None for a ready node, else why it is not; a node that is missing still imports."""

    def __init__(self, config: Mapping[str, Any], kind: enter.RunnerKind) -> None:
        self.state: dict[str, str | None] = {}
        self.ready_fds: dict[int, tuple[str, socket.socket]] = {}
        self._waiting: dict[str, list[str]] = {}  # node → sandboxes whose runner it is to fork, in the order of the requests
        self._parents: dict[str, str] = {spec["name"]: spec["parent"] or BARE for spec in config["nodes"]}
        self.trunk, theirs = control.pair()
        if os.fork() == 0:
            self.trunk.close()
            imports = [name for spec in config["nodes"] if spec["name"] == BARE for name in spec["imports"]]
            _Node(BARE, imports, config, kind, theirs).run()
        theirs.close()

    def news(self) -> tuple[dict[str, Any], socket.socket | None]:
        """A node is ready, with a socket of its own, or has failed. Raises Closed when no node is left."""
        message, fds = control.receive(self.trunk)
        name = message["node"]
        self.state[name] = message["error"]
        if not fds:
            return message, None
        sock = socket.socket(fileno=fds[0])
        self.ready_fds[sock.fileno()] = (name, sock)
        self._waiting[name] = []
        return message, sock

    def fork(self, wanted: str, sandbox: str, fds: Sequence[int], *, cpu: int | None, scratch: str | None) -> str:
        """Have the wanted node, or the nearest one above it that is ready, fork a runner. Returns that node's name.

        `fds`: what `RunnerKind.donated` names. Raises Closed when not even the first node is there.
        """
        name = wanted
        while name != BARE and self.state.get(name, "not ready") is not None:
            name = self._parents.get(name, BARE)
        for known, sock in self.ready_fds.values():
            if known == name:
                cpus = (0 if cpu is None else 1 << cpu).to_bytes(enter.CPU_SET_BYTES, "little")
                control.send_raw(sock, cpus + os.fsencode(scratch or "").ljust(_SCRATCH_BYTES, b"\0"), fds)
                self._waiting[name].append(sandbox)
                return name
        raise control.Closed(name)

    def forked(self, fd: int) -> tuple[str, int, int | StepFailed]:
        """A node's answer: the sandbox, its runner's pid, and a pidfd of it or why there is none. Raises Closed."""
        name, sock = self.ready_fds[fd]
        raw, fds = control.receive_raw(sock)
        sandbox = self._waiting[name].pop(0)
        if fds:
            return sandbox, _PID.unpack(raw)[0], fds[0]
        failed = json.loads(raw)
        return sandbox, 0, StepFailed(failed["step"], failed["errno"], failed["detail"])

    def lose(self, fd: int) -> tuple[str, list[str]]:
        """A node is gone: the nearest one above it serves in its place. Returns its name, and the sandboxes it leaves without one."""
        name, sock = self.ready_fds.pop(fd)
        sock.close()
        self.state[name] = "the node died"
        return name, self._waiting.pop(name)


class _Node:
    """One node process."""

    def __init__(
        self, name: str, imports: Sequence[str], config: Mapping[str, Any], kind: enter.RunnerKind, trunk: socket.socket
    ) -> None:
        self._name, self._imports, self._config, self._kind, self._trunk = name, imports, config, kind, trunk

    def run(self) -> NoReturn:
        """Import, grow the nodes below, then fork runners until the zygote is gone."""
        if self._config["site_packages"] not in sys.path:  # in a house it lies where the interpreter looks
            sys.path.append(self._config["site_packages"])
        try:
            calls.load()
            seccomp.program(reduced=self._kind.level == "reduced")  # worked out once, here, not in every runner
            loop.prepare(self._imports)
            enter.bound_node()
        except BaseException as err:  # noqa: BLE001 - an import may raise anything; the node reports it and takes no work
            self._report(f"{type(err).__name__}: {err}"[:500])
            os._exit(0)
        for spec in self._config["nodes"]:
            if spec["name"] != BARE and (spec["parent"] or BARE) == self._name:
                self._grow(spec)
        loop.hide()
        gc.collect()
        gc.freeze()
        seeds = loop.arm(own_pid=_RUNNER_PID if self._kind.level == "strict" else None)
        ours, theirs = control.pair()
        forks = _Forks(self._kind, ours, seeds, (*enter.held_by_runner(self._kind), *self._config["held"]))
        _collapse_memory()
        self._report(None, [theirs.fileno()])
        theirs.close()
        self._trunk.close()
        forks.serve()

    def _report(self, error: str | None, fds: Sequence[int] = ()) -> None:
        with contextlib.suppress(control.Closed):
            control.send(self._trunk, {"event": "node", "node": self._name, "error": error}, fds)

    def _grow(self, spec: Mapping[str, Any]) -> None:
        child = os.fork()
        if child == 0:
            # Forked twice, so that the new node is the zygote's child, as this one is.
            if os.fork() == 0:
                _Node(spec["name"], spec["imports"], self._config, self._kind, self._trunk).run()
            os._exit(0)
        os.waitpid(child, 0)


class _Forks:
    """The list that a node walks, and what is left for Python: a request that failed, and the child."""

    def __init__(
        self, kind: enter.RunnerKind, zygote: socket.socket, seeds: Sequence[tuple[int, int]], held: tuple[str, ...]
    ) -> None:
        self._kind, self._zygote, self._held = kind, zygote, held
        count = len(kind.donated)
        # CMSG_SPACE: exactly as much as comes, so that the kernel leaves the sizes in the message's header as they are
        size = _CMSG_HEADER + -(-4 * count // 8) * 8
        self._received = calls.Data(bytes(size))
        self._text = calls.Data(bytes(enter.CPU_SET_BYTES + _SCRATCH_BYTES))
        parts = calls.Data(struct.pack("QQ", 0, len(self._text.content)), {0: self._text.at(0)})
        self._request = calls.Data(struct.pack("QQQQQQQ", 0, 0, 0, 1, 0, size, 0), {16: parts.at(0), 32: self._received.at(0)})
        fds = {name: self._received.at(_CMSG_HEADER + 4 * at) for at, name in enumerate(kind.donated)}
        self._child = calls.Data(b"", list=enter.runner(kind, fds, self._text.at(0), seeds))
        self._steps = self._list(fds, zygote.fileno()).prepare()

    def _list(self, fds: Mapping[str, calls.Place], zygote: int) -> calls.CallList:
        steps = calls.CallList()
        steps.add(_RECEIVE, "recvmsg", zygote, self._request.at(0), socket.MSG_CMSG_CLOEXEC, flags=calls.NOT_ZERO)
        if self._kind.level == "strict":
            # concerns only the children forked from here on
            steps.add_pointed("enter the room's PID namespace", "setns", fds["init"], syscalls.CLONE_NEWPID)
        sent = calls.Data(struct.pack("=QiiiI", _CMSG_HEADER + 4, socket.SOL_SOCKET, socket.SCM_RIGHTS, -1, 0))
        pid = calls.Data(bytes(8))
        parts = calls.Data(struct.pack("QQ", 0, 8), {0: pid.at(0)})
        answer = calls.Data(struct.pack("QQQQQQQ", 0, 0, 0, 1, 0, _CMSG_HEADER + 4, 0), {16: parts.at(0), 32: sent.at(0)})
        pidfd = sent.at(_CMSG_HEADER)
        syscalls.add_fork(steps, "fork the runner", self._child, pidfd, pid.at(0))
        for name in fds:
            steps.add_pointed("close what the runner has", "close", fds[name])
        steps.add("answer the zygote", "sendmsg", zygote, answer.at(0), socket.MSG_NOSIGNAL)
        steps.add_pointed("close what the runner has", "close", pidfd, flags=calls.REPEAT)
        return steps

    def serve(self) -> NoReturn:
        """Fork one runner per request until the zygote is gone."""
        own_pid = os.getpid()
        while True:
            left = self._steps.run()
            if left == 0 or os.getpid() != own_pid:
                self._become_runner(left)
            stop = self._steps.stop(left)
            if stop.step == _RECEIVE or stop.failure is None or not self._refuse(stop.failure):
                os._exit(0)

    def _refuse(self, err: StepFailed) -> bool:
        """Answer a request that failed before or at the fork. False when the zygote is gone."""
        fds = self._steps.bytes_at(self._received)[_CMSG_HEADER:].cast("i")[: len(self._kind.donated)]
        control.close_all(list(fds))
        failed = {"step": err.step, "errno": err.errno, "detail": err.detail}
        try:
            control.send_raw(self._zygote, json.dumps(failed).encode(), ())
        except control.Closed:
            return False
        return True

    def _become_runner(self, left: int) -> NoReturn:
        """In the forked child, after its list of steps: serve. A failed step is told to the host on the channel."""
        try:
            if left and (failure := self._steps.stop(left, self._child).failure):
                raise failure
            if self._kind.level == "reduced":
                _use_scratch(bytes(self._steps.bytes_at(self._text)[enter.CPU_SET_BYTES :]).rstrip(b"\0"))
                enter.finish_reduced()
        except StepFailed as err:
            _refuse_on(self._steps.bytes_at(self._received)[_CMSG_HEADER:].cast("i")[0], err)
            os._exit(1)
        loop.serve(3, self._held)


_RECEIVE: Final = "wait for a request"


def _use_scratch(folder: bytes) -> None:
    """Without a room: where this sandbox keeps temporary files."""
    if folder:
        path = os.fsdecode(folder)
        os.environ.update(TMPDIR=path, HOME=path, MPLCONFIGDIR=path, XDG_CACHE_HOME=path)


def _refuse_on(channel_fd: int, err: StepFailed) -> None:
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
