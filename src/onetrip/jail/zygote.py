"""The zygote: first process of the house. Makes rooms, has its nodes fork runners into them, and keeps what a restarted host needs.

Theory of operation
-------------------
    host ══ control socket (named) ══ zygote ──┬── init of sandbox 1, 2, 3 … (started from here: a program of 200 bytes)
                                               └── node "bare" ── node "numpy" ── node "pandas" … (a tree; each has more imported)
                                                                      └── runner (forked from a node, joins an init's namespaces)

A launch takes a room and has the wanted node fork a runner into it. Rooms of the usual size are made ahead (`SPARE_ROOMS`):
making one waits for the kernel's lock on network namespaces, up to 10 ms when others are being taken down. The zygote keeps a
duplicate of every host-side descriptor, so that a host which comes back finds its live sandboxes (`adopt`). When the control
connection ends, it waits `lease_s` for the next one and then exits, and everything in the house with it. One thread; no user code.
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
from collections.abc import Callable
from typing import Any, Final

from . import control, enter, holdings, init, landlock, mounts, node, syscalls
from .holdings import Room, Sandbox
from .steps import StepFailed

FIRST_CONNECTION_S: Final = 30  # a host that does not connect after starting us is dead
SPARE_ROOMS: Final = 3
FIRST_UID: Final = 10_000  # of the sandboxes, as this user namespace counts: all have as many digits as `enter.UID_TEXT`
SPARE_DELAY_S: Final = 0.004  # of quiet before spare rooms are made
HOST_FDS: Final = ("channel", "stdout", "stderr", "init", "runner", "workspace", "proc")


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
        self._usual_size: tuple[int, int] = tuple(config["room"])
        self._uids: int = config["uids"]  # how many ids may be used for sandboxes; 0: all share the only one there is
        self._next_uid: int = FIRST_UID + config["first_uid"] % max(1, self._uids)
        self._listener = listener
        self._host: socket.socket | None = None
        self._deadline: float | None = time.monotonic() + FIRST_CONNECTION_S
        self._sandboxes: dict[str, Sandbox] = {}
        self._by_pid: dict[int, str] = {}
        self._making: dict[int, tuple[Room, socket.socket, init.Image]] = {}  # fd of an init that is still at work → its room
        self._ended_early: dict[int, int] = {}  # pid → status of a runner that ended before its node's answer was read
        self._early: list[str] = []  # sandboxes with a room but no node to fork from yet
        self._spare: collections.deque[Room] = collections.deque()
        self._launching: set[str] = set()  # handed to a node that has not answered yet
        self._waiting: collections.deque[str] = collections.deque()  # sandboxes that want a room of the usual size
        self._images: dict[tuple[int, int], init.Image] = {}  # by size
        self._rules: landlock.Rules | None = None
        if self._level == "strict" and config["landlock"]:
            self._rules = landlock.rules(readonly=["/"], writable=enter.WRITABLE, nodes=enter.DEVICES)
        elif self._level == "reduced":
            syscalls.become_subreaper()
        self._readonly: list[str] = config["readonly"]
        self._groups: int = config["groups"]
        is_bound = self._level == "reduced" or self._rules is not None
        kind = enter.RunnerKind(self._level, config["groups"], is_bound, config["guest_uid"], config["pins"])
        # Nodes are forked now, before there is anything about a sandbox in this memory that a fork would take along, and before
        # there is a signal handler that they would have to take off again.
        self._nodes = node.Tree({**config, "held": self._held()}, kind)
        if self._level == "strict":
            self._starter = init.Starter(enter.ROOM_NAMESPACES)
            self._own_mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
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
        if self._host is None:  # what matters is kept: a host that comes back asks with `adopt`
            return
        try:
            control.send(self._host, message, fds or ())
        except control.Closed as err:
            if not isinstance(err.__cause__, BrokenPipeError | ConnectionResetError):  # else what it said last is read first
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
            case "branch":
                self._branch(message)
            case "join":
                self._in_room(message, lambda _room: ("", enter.join()))
            case "unbranch":
                self._unbranch(message["folder"], self._sandboxes.get(message["of"]))
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
        coming = sum(room.wanted_by is None for room, _, _ in self._making.values())
        return coming + len(self._spare) < len(self._waiting) + SPARE_ROOMS

    def _make_room(self, size: tuple[int, int], wanted_by: str | None) -> None:
        uid = 0
        if self._uids:
            self._next_uid = FIRST_UID + (self._next_uid + 1 - FIRST_UID) % self._uids
            uid = self._next_uid
        image = self._images.get(size)
        if image is None:
            steps = enter.room(enter.RoomSpec(*size, has_own_uid=bool(self._uids)), self._rules)
            image = init.Image(steps, enter.UID_TEXT)
            if size == self._usual_size:
                self._images[size] = image
        ours, theirs = control.pair()
        try:
            with theirs:
                pid = self._starter.start(image.of(uid), theirs.fileno())
        except StepFailed as err:
            ours.close()
            self._room_failed(wanted_by, err.step, err.errno, err.detail)
            return
        self._making[ours.fileno()] = (Room(size, uid, pid, os.pidfd_open(pid), wanted_by), ours, image)
        self._poll.register(ours.fileno(), select.EPOLLIN)

    def _room_ready(self, fd: int) -> None:
        room, ours, image = self._making.pop(fd)
        self._poll.unregister(fd)
        with ours:
            said, fds, _flags, _address = socket.recv_fds(ours, 64, 4, socket.MSG_CMSG_CLOEXEC)
        failed = image.failure(said)
        if failed is None and not fds:
            failed = StepFailed("make the room", 0, "init died before its room was ready")
        if failed is not None:
            control.close_all(fds)
            room.close()
            self._room_failed(room.wanted_by, failed.step, failed.errno, failed.detail)
            return
        room.workspace, room.proc, *ruleset = fds
        room.ruleset = ruleset[0] if ruleset else -1
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
        if len(cgroup_fds) != self._groups:
            self._failed(name, "join the control groups", 0, f"{len(cgroup_fds)} of {self._groups}: a host of another kind")
            return
        size = (message["disk_bytes"], message["inodes"])
        if self._level == "reduced":
            self._occupy(name, sandbox, None)
        elif size == self._usual_size:
            self._waiting.append(name)
            self._serve_waiting()
        else:
            self._make_room(size, name)

    def _held(self) -> tuple[str, ...]:
        if self._level == "strict":
            return () if self._rules is None else self._rules.held
        return landlock.rules(readonly=self._readonly, writable=[], tcp=True).held

    def _occupy(self, name: str, sandbox: Sandbox, room: Room | None) -> None:
        sandbox.room = room
        if not self._nodes.ready_fds:
            self._early.append(name)  # the first node still imports; `_node_changed` comes back to it
            return
        launch = sandbox.launch
        own: list[int] = []  # descriptors that only the runner needs
        if room is not None:
            for pipe in sandbox.guest_fds[1:3]:
                os.fchown(pipe, room.uid, room.uid)  # programs open /dev/stdout, which asks for the permission of the pipe
            fds = [*sandbox.guest_fds, room.pidfd, *([room.ruleset] if room.ruleset >= 0 else [])]
        else:
            try:
                own += holdings.open_room(launch["workspace"], launch["scratch"], self._readonly)
            except OSError as err:
                self._failed(name, "write the Landlock rules", err.errno or 0, str(err))
                return
            fds = [*sandbox.guest_fds, *own]
        self._launching.add(name)
        sandbox.node = self._nodes.fork(launch["node"], name, fds, cpu=launch["cpu"], scratch=launch["scratch"])
        control.close_all([*sandbox.guest_fds, *own])
        sandbox.guest_fds = []
        if room is not None and room.ruleset >= 0:
            os.close(room.ruleset)
            room.ruleset = -1

    def _branch(self, message: dict[str, Any]) -> None:
        options = {name: message[name] for name in ("folder", "disk_bytes", "inodes", "at_home")}
        self._in_room(message, lambda room: enter.branch(uid=room.uid, **options))

    def _in_room(self, message: dict[str, Any], work: Callable[[Room], tuple[Any, ...]]) -> None:
        """Do something in a room's mount namespace; the text and the descriptors that it gives are for the host."""
        name, sandbox = message["id"], self._sandboxes.get(message["of"])
        try:
            if sandbox is None or sandbox.room is None:
                raise StepFailed("find the room", 0, "the session is gone")
            with enter.inside(sandbox.room.pidfd, self._own_mounts):
                text, *fds = work(sandbox.room)
        except StepFailed as err:
            self._failed(name, err.step, err.errno, err.detail)
        else:
            self._tell({"event": "launched", "id": name, "node": text}, fds)
            control.close_all(fds)

    def _unbranch(self, folder: str, sandbox: Sandbox | None) -> None:
        if sandbox is not None and sandbox.room is not None:
            with contextlib.suppress(StepFailed, OSError), enter.inside(sandbox.room.pidfd, self._own_mounts):
                mounts.unmount_branch(folder)

    def _node_changed(self) -> None:
        try:
            message, sock = self._nodes.news()
        except control.Closed:  # every node has said its word
            self._poll.unregister(self._nodes.trunk.fileno())
            self._nodes.trunk.close()
            if not self._nodes.ready_fds:
                raise  # this ends us: without the first node nothing can be launched
            return
        self._tell(message)
        if sock is not None:
            self._poll.register(sock.fileno(), select.EPOLLIN)
            early, self._early = self._early, []
            for name in early:
                if sandbox := self._sandboxes.get(name):
                    self._occupy(name, sandbox, sandbox.room)

    def _from_node(self, fd: int) -> None:
        try:
            name, pid, outcome = self._nodes.forked(fd)
        except control.Closed:
            self._poll.unregister(fd)
            lost, abandoned = self._nodes.lose(fd)
            self._tell({"event": "node", "node": lost, "error": "the node died"})
            for name in abandoned:
                self._launching.discard(name)
                self._failed(name, "fork the runner", 0, "the node died")
            return
        self._launching.discard(name)
        sandbox = self._sandboxes.get(name)
        if isinstance(outcome, StepFailed):
            self._failed(name, outcome.step, outcome.errno, outcome.detail)
        elif sandbox is None:  # the host gave it up meanwhile
            signal.pidfd_send_signal(outcome, signal.SIGKILL)
            os.close(outcome)
        else:
            sandbox.runner_pid, sandbox.runner_pidfd = pid, outcome
            self._tell({"event": "launched", "id": name, "node": sandbox.node}, sandbox.fds())
            status = self._ended_early.pop(pid, None)
            if status is None:
                self._by_pid[pid] = name
            else:
                self._tell({"event": "exited", "id": name, "pid": pid, "status": status})
            if not self._lease_s:
                sandbox.let_go()  # no other host will ever ask for them

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
        """Collect every child that ended: inits, nodes, and the runners that nodes fork for us."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if name := self._by_pid.pop(pid, None):
                self._tell({"event": "exited", "id": name, "pid": pid, "status": status})
            elif self._launching:  # perhaps one whose node's answer we have not read yet
                self._ended_early[pid] = status
            else:
                self._ended_early.clear()
