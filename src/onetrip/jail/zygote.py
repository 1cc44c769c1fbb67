"""The zygote: first process of the house. Makes rooms, has its nodes fork runners into them, and keeps what a restarted host needs.

Theory of operation
-------------------
    host ══ control socket (named) ══ zygote ──┬── init of sandbox 1, 2, 3 … (forked from here: small)
                                               └── node "bare" ── node "numpy" ── node "pandas" … (a tree; each has more imported)
                                                                      └── runner (forked from a node, joins an init's namespaces)

A launch is: fork an init, which builds its room and sends back descriptors of it; then hand these to the node that was asked
for, which forks the runner. The zygote keeps a duplicate of every host-side descriptor, so that a host which comes back finds its
live sandboxes (`adopt`). When the control connection ends, it waits `lease_s` for the next one and then exits; being PID 1 of the
house, its end is the end of everything in it. One thread; nothing here ever runs user code.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final

from . import control, enter, node, syscalls

FIRST_CONNECTION_S: Final = 30  # a host that does not connect after starting us is dead


@dataclass(slots=True)
class Sandbox:
    """One sandbox as the zygote knows it. `host_fds` are duplicates of what the host got, in the order of `HOST_FDS`."""

    node: str
    launch: dict[str, Any]
    init_pid: int
    runner_pid: int = 0
    host_fds: list[int] = field(default_factory=list)
    guest_fds: list[int] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    live: bool = False


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
        self._listener = listener
        self._host: socket.socket | None = None
        self._deadline: float | None = time.monotonic() + FIRST_CONNECTION_S
        self._sandboxes: dict[str, Sandbox] = {}
        self._rooms: dict[int, tuple[str, socket.socket]] = {}  # fd of an init that is still at work → sandbox
        self._poll = select.epoll()
        self._pidns = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC) if self._level == "strict" else -1
        self._wake, wake_end = socket.socketpair()
        wake_end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
        signal.set_wakeup_fd(wake_end.fileno(), warn_on_full_buffer=False)
        self._wake_end = wake_end
        # Nodes are forked now, before there is anything about a sandbox in this memory that a fork would take along.
        self._nodes = node.Tree(config)
        for known in (self._listener, self._wake, self._nodes.root):
            self._poll.register(known.fileno(), select.EPOLLIN)

    def run(self) -> None:
        while True:
            timeout = None if self._deadline is None else self._deadline - time.monotonic()
            if timeout is not None and timeout <= 0:
                sys.exit(0)
            for fd, _ in self._poll.poll(timeout):
                if fd == self._listener.fileno():
                    self._accept()
                elif fd == self._wake.fileno():
                    self._wake.recv(4096)
                    self._reap()
                elif self._host is not None and fd == self._host.fileno():
                    self._from_host()
                elif fd in self._rooms:
                    self._room_ready(fd)
                else:
                    self._from_node()

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
            self._tell({"event": "node", "node": name, "error": error})

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
                    if sandbox.live:
                        self._tell({"event": "adopted", "id": name, "node": sandbox.node, "meta": sandbox.meta}, sandbox.host_fds)
                self._tell({"event": "adopted_all"})
            case "end":
                sys.exit(0)

    # ------------------------------------------------------------------ launching

    def _launch(self, message: dict[str, Any], cgroup_fds: list[int]) -> None:
        name = message["id"]
        channel_host, channel_guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        sandbox = Sandbox(message["node"], message, 0)
        sandbox.meta = message["meta"]
        sandbox.host_fds = [channel_host.detach(), out_read, err_read]
        sandbox.guest_fds = [channel_guest.detach(), out_write, err_write, *cgroup_fds]
        self._sandboxes[name] = sandbox
        if self._level == "reduced":
            self._to_node(name, sandbox, [])
            return
        ours, theirs = control.pair()
        try:
            # setns before unshare: a second unshare(CLONE_NEWPID) without it is refused (pid_namespaces(7)).
            syscalls.setns(self._pidns, syscalls.CLONE_NEWPID)
            syscalls.unshare(syscalls.CLONE_NEWPID)
            pid = os.fork()
        except OSError as err:
            ours.close()
            theirs.close()
            self._failed(name, "fork init", err.errno or 0, str(err))
            return
        if pid == 0:
            _init(enter.RoomSpec(message["disk_bytes"], message["inodes"], message["uid"]), theirs)
        theirs.close()
        sandbox.init_pid = pid
        sandbox.host_fds.append(os.pidfd_open(pid))
        self._rooms[ours.fileno()] = (name, ours)
        self._poll.register(ours.fileno(), select.EPOLLIN)

    def _room_ready(self, fd: int) -> None:
        name, ours = self._rooms.pop(fd)
        self._poll.unregister(fd)
        with ours:
            try:
                message, fds = control.receive(ours)
            except control.Closed:
                self._failed(name, "init", 0, "init died before its room was ready")
                return
        if "step" in message:
            self._failed(name, message["step"], message["errno"], message["detail"])
        elif (sandbox := self._sandboxes.get(name)) is None:
            control.close_all(fds)  # the host gave it up meanwhile
        else:
            self._to_node(name, sandbox, fds)

    def _to_node(self, name: str, sandbox: Sandbox, room_fds: list[int]) -> None:
        init = [sandbox.host_fds[3]] if room_fds else []
        sandbox.host_fds += room_fds  # workspace, proc; the runner's pidfd comes between them once it exists
        request = {"id": name, "cgroups": len(sandbox.guest_fds) - 3, **sandbox.launch}
        sandbox.node = self._nodes.fork(request, sandbox.guest_fds + init)
        control.close_all(sandbox.guest_fds)
        sandbox.guest_fds = []

    def _from_node(self) -> None:
        message, fds = control.receive(self._nodes.root)  # Closed ends us: without nodes nothing can be launched
        match message["event"]:
            case "node":
                self._nodes.state[message["node"]] = message["error"]
                self._tell(message)
            case "forked":
                sandbox = self._sandboxes.get(message["id"])
                if sandbox is None:
                    signal.pidfd_send_signal(fds[0], signal.SIGKILL)
                    control.close_all(fds)
                    return
                sandbox.runner_pid, sandbox.live = message["pid"], True
                sandbox.host_fds.insert(4 if self._level == "strict" else 3, fds[0])
                self._tell({"event": "launched", "id": message["id"], "node": sandbox.node}, sandbox.host_fds)
                if not self._lease_s:
                    # Nobody will ever come back for them: keep only init's handle, not a third copy of each pipe.
                    control.close_all(sandbox.host_fds)
                    sandbox.host_fds = []
            case "refused":
                self._failed(message["id"], message["step"], message["errno"], message["detail"])
            case "exited":
                self._tell(message)

    # ------------------------------------------------------------------ ends

    def _failed(self, name: str, step: str, errno: int, detail: str) -> None:
        self._forget(name)
        self._tell({"event": "failed", "id": name, "step": step, "errno": errno, "detail": detail})

    def _forget(self, name: str) -> None:
        sandbox = self._sandboxes.pop(name, None)
        if sandbox is None:
            return
        control.close_all(sandbox.host_fds + sandbox.guest_fds)
        if sandbox.init_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(sandbox.init_pid, signal.SIGKILL)  # our own child, not reaped yet: the number cannot be another's

    def _reap(self) -> None:
        """Collect every child that ended. As PID 1 of the house we also get orphans: runners whose node was killed."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for name, sandbox in self._sandboxes.items():
                if sandbox.init_pid == pid:
                    sandbox.init_pid = 0
                elif sandbox.runner_pid == pid:
                    self._tell({"event": "exited", "id": name, "status": status})


def _init(spec: enter.RoomSpec, report: socket.socket) -> None:
    """In the forked child: become init. Never returns."""
    try:
        signal.set_wakeup_fd(-1)
        workspace, proc = enter.room(spec)
        control.send(report, {}, [workspace, proc])
        os.closerange(0, 65536)
        enter.be_init()
    except enter.StepFailed as err:
        with contextlib.suppress(control.Closed, OSError):
            control.send(report, {"step": err.step, "errno": err.errno, "detail": err.detail})
    finally:
        os._exit(1)
