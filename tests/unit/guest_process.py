"""Runs the real guest in a process of its own, unjailed, and speaks the protocol with it: for tests of the guest alone.

The island is linked under another name, as in the jail, and started with `python -I -S`.
"""

import contextlib
import json
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from onetrip import wire

PYTHON = os.environ.get("ONETRIP_TEST_PYTHON", sys.executable)  # to test the guest under another interpreter
SOURCES = Path(wire.__file__).parents[1]
BOOT = """
import sys, os
island, site, imports = sys.argv[1], sys.argv[2], sys.argv[3].split()
sys.path.append(island)
if site:
    sys.path.append(site)
from ot_island.guest import loop
loop.prepare(imports)
loop.hide()
sys.path.remove(island)
import ctypes, gc
gc.collect(); gc.freeze()
places = loop.arm(own_pid=None)
pid = os.fork()
if pid:
    os.close(3)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 255)
for address, size in places:  # as a zygote's node has it done by the kernel
    ctypes.memmove(address, os.urandom(size), size)
loop.serve(3, ("none",))
"""


def descendants(pid: int) -> list[int]:
    """A process's children, and theirs."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(below for child in children for below in descendants(child))]


def link_island(directory: Path) -> Path:
    """A directory in which the package `ot_island` is wire/ and guest/, and nothing else."""
    package = directory / "ot_island"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "wire").symlink_to(SOURCES / "wire")
    (package / "guest").symlink_to(SOURCES / "guest")
    return directory


WAKE_S = 0.1  # until a cell that was interrupted and goes on is woken


class GuestDied(Exception):
    """The guest ended without a Done."""


class GuestProcess:
    """One guest. `run` gives {"stdout", "stderr", "displays", "done", "events"}; text decoded strictly."""

    def __init__(
        self, *, python: str = PYTHON, site: str = "", imports: str = "", session: dict[str, Any] | None = None,
        rlimits: dict[int, int] | None = None,
    ) -> None:  # fmt: skip
        self._exit = contextlib.ExitStack()
        scratch = Path(self._exit.enter_context(tempfile.TemporaryDirectory(prefix="guest-")))
        self.work = scratch / "work"
        self.work.mkdir()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        out, out_w = os.pipe()
        err, err_w = os.pipe()
        # fd 3 by dup2 in the child, before exec; pass_fds keeps numbers as they are, so a small shell-free launcher does it
        launcher = "import os,sys;os.dup2(int(sys.argv[1]),3);os.set_inheritable(3,True);os.execv(sys.argv[2],sys.argv[2:])"
        command = [python, "-I", "-S", "-c", BOOT, str(link_island(scratch)), site, imports]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", launcher, str(theirs.fileno()), *command],
            stdin=subprocess.DEVNULL,
            stdout=out_w,
            stderr=err_w,
            pass_fds=(theirs.fileno(),),
            cwd=self.work,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.work), "LANG": "C.UTF-8"},
        )
        for fd in (out_w, err_w):
            os.close(fd)
        theirs.close()
        self._channel, self._fds = ours, {out: "stdout", err: "stderr"}
        self._protocol = wire.HostProtocol()
        self._selector = selectors.DefaultSelector()
        for fd in (*self._fds, ours.fileno()):
            self._selector.register(fd, selectors.EVENT_READ)
        self._cells = 0
        while not isinstance(message := self._receive(), wire.Ready):
            if message is None:
                died = os.read(err, 65536).decode(errors="replace")
                raise GuestDied(f"before Ready: {died}")
        self.ready = message
        for child in descendants(self.process.pid):
            for which, limit in (rlimits or {}).items():
                resource.prlimit(child, which, (limit, limit))  # as the host does it
        if session is not None:
            self._send(wire.packets(wire.Hello(session)))

    def _send(self, packets: Any) -> None:
        for packet in packets:
            self._channel.send(packet)

    def _receive(self) -> wire.GuestMessage | None:
        """The next whole message; None at the end of file."""
        while True:
            packet = self._channel.recv(wire.PACKET_BYTES)
            if not packet:
                return None
            if (message := self._protocol.receive(packet)) is not None:
                return message

    def start(self, code: str | bytes, *, inputs: dict[str, Any] | None = None, final: bool = False, **more: Any) -> None:
        self._cells += 1
        source = code.encode("utf-8", "surrogatepass") if isinstance(code, str) else code
        parts = (source, json.dumps(inputs or {}).encode())
        self._send(self._protocol.execute(wire.Execute(f"run{self._cells}", self._cells, final, parts, **more)))

    def run(
        self,
        code: str | bytes,
        *,
        inputs: dict[str, Any] | None = None,
        final: bool = False,
        timeout_s: float = 20,
        interrupt_at: str | None = None,
        wake_at: str | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Run one cell. Send SIGINT when the text `interrupt_at` has appeared on stdout; only wake it when `wake_at` has."""
        self.start(code, inputs=inputs, final=final, **more)
        return self.finish(timeout_s=timeout_s, interrupt_at=interrupt_at, wake_at=wake_at)

    def finish(self, *, timeout_s: float = 20, interrupt_at: str | None = None, wake_at: str | None = None) -> dict[str, Any]:
        seen: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        events: list[tuple[str, Any]] = []
        displays: list[dict[str, bytes]] = []
        done: dict[str, Any] | None = None
        deadline = time.monotonic() + timeout_s
        wake = False
        while True:
            left = deadline - time.monotonic()
            ready = self._selector.select(0 if done is not None else min(left, WAKE_S) if wake else left)
            if not ready:
                if wake and left > WAKE_S and done is None:
                    os.kill(self.pid(), signal.SIGURG)  # as the host does (`onetrip.insistence`)
                    continue
                if done is None:
                    raise TimeoutError(f"no Done within {timeout_s} s; stdout so far {bytes(seen['stdout'])[-2000:]!r}")
                break
            pipes = [key.fd for key, _ in ready if key.fd in self._fds]
            for fd in pipes:
                data = os.read(fd, 1 << 20)
                if not data:
                    self._selector.unregister(fd)
                seen[self._fds[fd]] += data
                events.append((self._fds[fd], data))
                if interrupt_at is not None and interrupt_at.encode() in seen["stdout"]:
                    interrupt_at = None
                    self.interrupt()
                    wake = True
                if wake_at is not None and wake_at.encode() in seen["stdout"]:
                    wake_at, wake = None, True
            if pipes or done is not None:
                if not pipes:
                    break
                continue  # what was written before a message comes before it
            packet = self._channel.recv(wire.PACKET_BYTES)
            if not packet:
                raise GuestDied(f"stdout {bytes(seen['stdout'])!r}, stderr {bytes(seen['stderr'])!r}")
            message = self._protocol.receive(packet)
            if isinstance(message, wire.Display):
                bundle = dict(zip(message.mimes, message.parts, strict=True))
                displays.append({**bundle, "is_result": message.is_result})  # type: ignore[dict-item]
                events.append(("display", bundle))
            elif isinstance(message, wire.Done):
                assert message.run == f"run{self._cells}"
                done = json.loads(message.parts[0])
        return {
            "stdout": seen["stdout"].decode(),
            "stderr": seen["stderr"].decode(),
            "displays": displays,
            "done": done,
            "events": events,
        }

    def pid(self) -> int:
        """Of the forked guest itself."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def interrupt(self) -> None:
        os.kill(self.pid(), signal.SIGINT)

    def shutdown(self) -> wire.GuestMessage | None:
        self._send(wire.packets(wire.Shutdown()))
        return self._receive()

    def close(self) -> None:
        with contextlib.suppress(OSError, IndexError, FileNotFoundError):
            os.kill(self.pid(), signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self._selector.close()
        self._channel.close()
        for fd in self._fds:
            os.close(fd)
        self._exit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
