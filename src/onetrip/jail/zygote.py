"""The zygote: first process of the house. Makes rooms, has its nodes fork runners into them, and keeps what a restarted host needs.

Theory of operation
-------------------
    host ══ control socket (named) ══ zygote ──┬── init of sandbox 1, 2, 3 … (forked from here: small)
                                               └── node "bare" ── node "numpy" ── node "pandas" … (a tree; each has more imported)
                                                                      └── runner (forked from a node, joins an init's namespaces)

A launch takes a room and has the wanted node fork a runner into it. Rooms of the usual size are made ahead (`SPARE_ROOMS`):
making one waits for the kernel's lock on network namespaces, up to 10 ms when others are being taken down. The zygote keeps a
duplicate of every host-side descriptor, so that a host which comes back finds its live sandboxes (`adopt`). When the control
connection ends, it waits `lease_s` for the next one and then exits; being PID 1 of the house, its end is the end of everything
in it. One thread; nothing here ever runs user code.
"""

import collections
import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any, Final

from . import control, enter, node, syscalls

FIRST_CONNECTION_S: Final = 30  # a host that does not connect after starting us is dead
SPARE_ROOMS: Final = 3
SPARE_DELAY_S: Final = 0.004  # of quiet before spare rooms are made
HOST_FDS: Final = ("channel", "stdout", "stderr", "init", "runner", "workspace", "proc")


@dataclass(slots=True)
class Room:
    """An init and what it opened. `wanted_by` is the sandbox it is made for; None: whoever asks next."""

    size: tuple[int, int]  # bytes, inodes
    uid: int  # its owner, as this user namespace counts
    pid: int
    pidfd: int
    wanted_by: str | None
    workspace: int = -1
    proc: int = -1
    ruleset: int = -1
    held: tuple[str, ...] = ()

    def close(self) -> None:
        """Kill init, and with it whatever is in the room."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        control.close_all([fd for fd in (self.pidfd, self.workspace, self.proc, self.ruleset) if fd >= 0])


@dataclass(slots=True)
class Sandbox:
    """One sandbox as the zygote knows it."""

    node: str
    launch: dict[str, Any]
    host_fds: list[int]  # channel, stdout, stderr: duplicates of what the host got
    guest_fds: list[int]  # until they are handed to the node
    meta: dict[str, Any]
    room: Room | None = None
    runner_pid: int = 0
    runner_pidfd: int = -1

    def fds(self) -> list[int]:
        """In the order of `HOST_FDS`; without a room only up to the runner."""
        room = [] if self.room is None else [self.room.workspace, self.room.proc]
        init = [] if self.room is None else [self.room.pidfd]
        return [*self.host_fds, *init, self.runner_pidfd, *room]

    def let_go(self) -> None:
        """Close what only a host needs; init's handle stays, to end the sandbox."""
        control.close_all(self.host_fds)
        self.host_fds = []
        if self.room is not None:
            control.close_all([self.room.workspace, self.room.proc])
            self.room.workspace = self.room.proc = -1


def main(config_fd: str, listen_fd: str) -> None:
    with open(int(config_fd), "rb") as file:
        config = json.load(file)
    listener = socket.socket(fileno=int(listen_fd))
    os.set_inheritable(listener.fileno(), False)
    Zygote(config, listener).run()


class Zygote:
    def __init__(self, config: dict[str, Any], listener: socket.socket) -> None:
        self._level: enter.Level = config["level"]
        self._lease_s: float = config["lease_s"]
        self._landlock: bool = config["landlock"]
        self._usual_size: tuple[int, int] = tuple(config["room"])
        self._uids: int = config["uids"]  # how many ids may be used for sandboxes; 0: all share the only one there is
        self._next_uid: int = config["first_uid"]
        self._listener = listener
        self._host: socket.socket | None = None
        self._deadline: float | None = time.monotonic() + FIRST_CONNECTION_S
        self._sandboxes: dict[str, Sandbox] = {}
        self._by_pid: dict[int, str] = {}
        self._making: dict[int, tuple[Room, socket.socket]] = {}  # fd of an init that is still at work → its room
        self._early: list[str] = []  # sandboxes with a room but no node to fork from yet
        self._spare: collections.deque[Room] = collections.deque()
        self._launching: set[str] = set()  # handed to a node that has not answered yet
        self._waiting: collections.deque[str] = collections.deque()  # sandboxes that want a room of the usual size
        # Nodes are forked now, before there is anything about a sandbox in this memory that a fork would take along, and before
        # there is a signal handler that they would have to take off again.
        self._nodes = node.Tree(config)
        self._poll = select.epoll()
        self._wake, self._wake_end = socket.socketpair()
        self._wake.setblocking(False)
        self._wake_end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
        signal.set_wakeup_fd(self._wake_end.fileno(), warn_on_full_buffer=False)
        for known in (self._listener, self._wake, self._nodes.trunk):
            self._poll.register(known.fileno(), select.EPOLLIN)

    def run(self) -> None:
        while True:
            timeout = None if self._deadline is None else self._deadline - time.monotonic()
            if timeout is not None and timeout <= 0:
                sys.exit(0)
            idle_s = None if not self._rooms_missing() else 0 if self._waiting else SPARE_DELAY_S
            events = self._poll.poll(timeout if idle_s is None else idle_s)
            for fd, _ in events:
                if fd == self._listener.fileno():
                    self._accept()
                elif fd == self._wake.fileno():
                    self._wake.recv(4096)
                    self._reap()
                elif self._host is not None and fd == self._host.fileno():
                    self._from_host()
                elif fd in self._making:
                    self._room_ready(fd)
                elif fd == self._nodes.trunk.fileno():
                    self._node_changed()
                elif fd in self._nodes.ready_fds:
                    self._from_node(fd)
            # After the answers, one at a time, and while others wait for the CPUs only if it is needed now.
            if self._rooms_missing() and (self._waiting or not events):
                self._make_room(self._usual_size, None)

    # ------------------------------------------------------------------ the host

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if self._host is not None:
            connection.close()  # one host at a time; it sees the end of file and can say so
            return
        control.limit_sends(connection)
        self._host, self._deadline = connection, None
        self._poll.register(connection.fileno(), select.EPOLLIN)
        for name, error in self._nodes.state.items():
            self._tell({"event": "node", "node": name, "error": error})  # the others follow when they are ready

    def _lose_host(self) -> None:
        if self._host is not None:
            self._poll.unregister(self._host.fileno())
            self._host.close()
            self._host = None
        self._deadline = time.monotonic() + self._lease_s

    def _tell(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        if self._host is None:
            return  # what matters is kept: a host that comes back asks with `adopt`
        try:
            control.send(self._host, message, fds or ())
        except control.Closed:
            self._lose_host()

    def _from_host(self) -> None:
        assert self._host is not None
        try:
            message, fds = control.receive(self._host)
        except control.Closed:
            self._lose_host()
            return
        match message["do"]:
            case "launch":
                self._launch(message, fds)
            case "forget":
                self._forget(message["id"])
            case "describe":
                if sandbox := self._sandboxes.get(message["id"]):
                    sandbox.meta = message["meta"]
            case "adopt":
                for name, sandbox in self._sandboxes.items():
                    if sandbox.runner_pidfd >= 0:
                        self._tell({"event": "adopted", "id": name, "node": sandbox.node, "meta": sandbox.meta}, sandbox.fds())
                self._tell({"event": "adopted_all"})
            case "end":
                sys.exit(0)
            case other:
                raise ValueError(f"the host said {other!r}")

    # ------------------------------------------------------------------ rooms

    def _rooms_missing(self) -> bool:
        """Whether to make rooms of the usual size, so that those who wait get one and a few are left to spare."""
        if self._host is None or self._level == "reduced":
            return False
        if self._launching and not self._waiting:
            return False  # two forks at once only get in each other's way
        coming = sum(room.wanted_by is None for room, _ in self._making.values())
        return coming + len(self._spare) < len(self._waiting) + SPARE_ROOMS

    def _make_room(self, size: tuple[int, int], wanted_by: str | None) -> None:
        uid = 0
        if self._uids:
            self._next_uid = self._next_uid % self._uids + 1
            uid = self._next_uid
        ours, theirs = control.pair()
        try:
            pid = syscalls.clone_into(enter.ROOM_NAMESPACES)
        except OSError as err:
            ours.close()
            theirs.close()
            self._room_failed(wanted_by, "fork init", err.errno or 0, str(err))
            return
        if pid == 0:
            _init(enter.RoomSpec(size[0], size[1], uid, self._landlock), theirs)
        theirs.close()
        self._making[ours.fileno()] = (Room(size, uid, pid, os.pidfd_open(pid), wanted_by), ours)
        self._poll.register(ours.fileno(), select.EPOLLIN)

    def _room_ready(self, fd: int) -> None:
        room, ours = self._making.pop(fd)
        self._poll.unregister(fd)
        message: dict[str, Any]
        with ours:
            try:
                message, fds = control.receive(ours)
            except control.Closed:
                message, fds = {"step": "make the room", "errno": 0, "detail": "init died before its room was ready"}, list[int]()
        if "step" in message:
            room.close()
            self._room_failed(room.wanted_by, message["step"], message["errno"], message["detail"])
            return
        room.workspace, room.proc, *ruleset = fds
        room.ruleset = ruleset[0] if ruleset else -1
        room.held = tuple(message["held"])
        if room.wanted_by is None:
            self._spare.append(room)
            self._serve_waiting()
        elif sandbox := self._sandboxes.get(room.wanted_by):
            self._occupy(room.wanted_by, sandbox, room)
        else:
            room.close()  # the host gave it up meanwhile

    def _room_failed(self, wanted_by: str | None, step: str, errno: int, detail: str) -> None:
        if wanted_by is None and self._waiting:
            wanted_by = self._waiting.popleft()
        if wanted_by is not None:
            self._failed(wanted_by, step, errno, detail)

    def _serve_waiting(self) -> None:
        while self._waiting and self._spare:
            name = self._waiting.popleft()
            if sandbox := self._sandboxes.get(name):
                self._occupy(name, sandbox, self._spare.popleft())

    # ------------------------------------------------------------------ launching

    def _launch(self, message: dict[str, Any], cgroup_fds: list[int]) -> None:
        name = message["id"]
        channel_host, channel_guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        sandbox = Sandbox(
            node=message["node"],
            launch=message,
            host_fds=[channel_host.detach(), out_read, err_read],
            guest_fds=[channel_guest.detach(), out_write, err_write, *cgroup_fds],
            meta=message["meta"],
        )
        self._sandboxes[name] = sandbox
        size = (message["disk_bytes"], message["inodes"])
        if self._level == "reduced":
            self._occupy(name, sandbox, None)
        elif size == self._usual_size:
            self._waiting.append(name)
            self._serve_waiting()
        else:
            self._make_room(size, name)

    def _occupy(self, name: str, sandbox: Sandbox, room: Room | None) -> None:
        sandbox.room = room
        if not self._nodes.ready_fds:
            self._early.append(name)  # the first node still imports; `_node_changed` comes back to it
            return
        request = {"id": name, "cgroups": len(sandbox.guest_fds) - 3, "room": room is not None, **sandbox.launch}
        fds = list(sandbox.guest_fds)
        if room is not None:
            fds += [room.pidfd] if room.ruleset < 0 else [room.pidfd, room.ruleset]
            for pipe in sandbox.guest_fds[1:3]:
                os.fchown(pipe, room.uid, room.uid)  # programs open /dev/stdout, which asks for the permission of the pipe
            request["held"] = room.held
        self._launching.add(name)
        sandbox.node = self._nodes.fork(request, fds)
        control.close_all(sandbox.guest_fds)
        sandbox.guest_fds = []
        if room is not None and room.ruleset >= 0:
            os.close(room.ruleset)
            room.ruleset = -1

    def _node_changed(self) -> None:
        message, sock = self._nodes.news()  # Closed ends us: without the first node nothing can be launched
        self._tell(message)
        if sock is not None:
            self._poll.register(sock.fileno(), select.EPOLLIN)
            early, self._early = self._early, []
            for name in early:
                if sandbox := self._sandboxes.get(name):
                    self._occupy(name, sandbox, sandbox.room)

    def _from_node(self, fd: int) -> None:
        try:
            message, fds = self._nodes.receive(fd)
        except control.Closed:
            self._poll.unregister(fd)
            self._tell({"event": "node", "node": self._nodes.lose(fd), "error": "the node died"})
            return
        match message["event"]:
            case "forked":
                self._launching.discard(message["id"])
                sandbox = self._sandboxes.get(message["id"])
                if sandbox is None:  # the host gave it up meanwhile
                    signal.pidfd_send_signal(fds[0], signal.SIGKILL)
                    control.close_all(fds)
                    return
                sandbox.runner_pid, sandbox.runner_pidfd = message["pid"], fds[0]
                self._by_pid[message["pid"]] = message["id"]
                self._tell({"event": "launched", "id": message["id"], "node": sandbox.node}, sandbox.fds())
                if not self._lease_s:
                    sandbox.let_go()  # no other host will ever ask for them
            case "refused":
                self._launching.discard(message["id"])
                self._failed(message["id"], message["step"], message["errno"], message["detail"])
            case "exited":
                self._by_pid.pop(message["pid"], None)
                self._tell(message)
            case other:
                raise ValueError(f"a node said {other!r}")

    # ------------------------------------------------------------------ ends

    def _failed(self, name: str, step: str, errno: int, detail: str) -> None:
        self._forget(name)
        self._tell({"event": "failed", "id": name, "step": step, "errno": errno, "detail": detail})

    def _forget(self, name: str) -> None:
        sandbox = self._sandboxes.pop(name, None)
        if sandbox is None:
            return
        if sandbox.room is not None:
            sandbox.room.close()
        elif sandbox.runner_pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(sandbox.runner_pidfd, signal.SIGKILL)
        control.close_all([*sandbox.host_fds, *sandbox.guest_fds, *([sandbox.runner_pidfd] if sandbox.runner_pidfd >= 0 else [])])

    def _reap(self) -> None:
        """Collect every child that ended. As PID 1 of the house we also get orphans: runners whose node was killed."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if name := self._by_pid.pop(pid, None):
                self._tell({"event": "exited", "id": name, "pid": pid, "status": status})


def _init(spec: enter.RoomSpec, report: socket.socket) -> None:
    """In the forked child: become init. Never returns."""
    try:
        keys = enter.room(spec)
        rules = [keys.ruleset] if keys.ruleset >= 0 else []
        control.send(report, {"held": keys.held}, [keys.workspace, keys.proc, *rules])
        os.closerange(0, 65536)
        enter.wait_for_ever()
    except enter.StepFailed as err:
        with contextlib.suppress(control.Closed, OSError):
            control.send(report, {"step": err.step, "errno": err.errno, "detail": err.detail})
    finally:
        os._exit(1)
