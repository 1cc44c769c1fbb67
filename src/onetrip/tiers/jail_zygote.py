"""The host's handle on one zygote: starts it, speaks with it over its control socket, and notices its end."""

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from onetrip import addresses
from onetrip.errors import PlatformError, SandboxFailed
from onetrip.jail import control, launch
from onetrip.tiers.base import SandboxDied

START_S: Final = 30  # building the house and starting Python; some 0.1 s when nothing is wrong
ISLAND: Final = str(Path(launch.__file__).parent.parent)
EventHandler = Callable[[Mapping[str, Any], list[int]], None]


class ZygoteHandle:
    """One running zygote and the connection to it. Created by `start` or `adopt`, ended by `aclose`.

    `on_event` gets every message that is not the answer to a launch, with descriptors that the handler then owns;
    `on_lost` is called once when the connection ends before `aclose`, `on_close` once when it ends in whatever way.
    """

    def __init__(self, connection: socket.socket, process: asyncio.subprocess.Process | None, path: Path) -> None:
        self._connection = connection
        self._process = process
        self._path = path
        self._launches: dict[str, asyncio.Future[list[int]]] = {}
        self._served: dict[str, str] = {}
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self.lost = False
        self.nodes: dict[str, str | None] = {}  # ready: None, else why not
        self._node_changed = asyncio.Event()
        self.on_event: EventHandler = lambda _message, fds: control.close_all(fds)
        self.on_lost: Callable[[], None] = lambda: None
        self.on_close: Callable[[], None] = lambda: None
        connection.setblocking(False)
        self._loop.add_reader(connection.fileno(), self._readable)

    @classmethod
    async def start(cls, house: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> "ZygoteHandle":
        """Start a zygote that listens at `path` and connect. Raises SandboxFailed naming the step; nothing is left then."""
        try:
            return await cls._start(house, config, path)
        except OSError as err:  # a full disk, no more descriptors or processes
            raise SandboxFailed(f"the zygote could not be started: {err}") from err

    @classmethod
    async def _start(cls, house: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> "ZygoteHandle":
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with listener, contextlib.ExitStack() as held:
            with addresses.short(path) as address:
                listener.bind(address)
            listener.listen(4)
            config_fd = _memory_file("config", config)
            held.callback(os.close, config_fd)
            donated = (config_fd, listener.fileno())  # the zygote inherits them under the numbers they have here
            spec_fd = _memory_file("spec", {**house, "argv": [*house["argv"], *map(str, donated)]})
            held.callback(os.close, spec_fd)
            status_read, status_write = os.pipe()
            held.callback(os.close, status_read)
            log = path.with_suffix(".log")  # what Python itself says when the zygote breaks; nothing of a guest gets here
            with contextlib.ExitStack() as write_end:
                write_end.callback(os.close, status_write)
                log_file = write_end.enter_context(open(log, "wb"))  # noqa: ASYNC230 - a new file on a local disk
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-I", "-S", "-c", launch.BOOT, ISLAND, "launch", str(spec_fd), str(status_write), *map(str, donated),
                    env={}, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=log_file,
                    pass_fds=(spec_fd, status_write, *donated), start_new_session=True,
                )  # fmt: skip
            try:
                report = await asyncio.wait_for(_read_to_end(status_read), START_S)
            except TimeoutError as err:
                process.kill()
                await process.wait()
                raise SandboxFailed(f"the zygote did not start within {START_S} s") from err
            if report:
                await process.wait()
                path.unlink(missing_ok=True)  # noqa: ASYNC240 - a local file
                failure = json.loads(report)
                raise SandboxFailed(f"the jail's step “{failure['step']}” failed: {failure['detail']}")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with addresses.short(path) as address:
                connection.connect(address)
        except OSError as err:
            connection.close()
            await process.wait()
            raise SandboxDied(f"the zygote ended at once with status {process.returncode}: {_tail(log)}") from err
        return cls(connection, process, path)

    @classmethod
    def adopt(cls, path: Path) -> "ZygoteHandle":
        """Connect to a zygote that outlived its host. Raises PlatformError when nobody is there."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with addresses.short(path) as address:
                connection.connect(address)
        except OSError as err:
            connection.close()
            raise PlatformError(f"no zygote listens at {path}: {err.strerror}") from err
        return cls(connection, None, path)

    async def launch(self, message: Mapping[str, Any], fds: Sequence[int]) -> tuple[list[int], str]:
        """Ask for one sandbox; returns the host's descriptors in the order of `zygote.HOST_FDS`, and the node that served.

        Raises SandboxFailed, SandboxDied where the zygote is gone. Cancelling gives the sandbox up: if it is launched all the same, it is ended at once.
        """
        if self.lost:
            raise SandboxDied("the zygote is gone")
        name = message["id"]
        answer: asyncio.Future[list[int]] = self._loop.create_future()
        self._launches[name] = answer
        try:
            self.tell({"do": "launch", **message}, fds)
            got = await asyncio.wait_for(answer, START_S)
            return got, self._served.pop(name)
        except TimeoutError as err:
            self.tell({"do": "forget", "id": name})
            raise SandboxFailed(f"no sandbox within {START_S} s") from err
        except asyncio.CancelledError:
            self.tell({"do": "forget", "id": name})
            raise
        finally:
            self._launches.pop(name, None)

    def tell(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Send without waiting for an answer; does nothing when the zygote is gone."""
        if self.lost:
            return
        try:
            control.send(self._connection, message, fds)
        except control.Closed:
            self._lose()

    async def wait_node(self, name: str) -> None:
        """Until this node is ready or has failed, or the zygote is gone."""
        while name not in self.nodes and not self.lost:
            self._node_changed.clear()
            await self._node_changed.wait()

    def _readable(self) -> None:
        while not self.lost:
            try:
                message, fds = control.receive(self._connection)
            except BlockingIOError:
                return
            except control.Closed:
                self._lose()
                return
            match message["event"]:
                case "launched" | "failed":
                    self._answered(message, fds)
                case "node":
                    self.nodes[message["node"]] = message["error"]
                    self._node_changed.set()
                case _:
                    self.on_event(message, fds)

    def _answered(self, message: Mapping[str, Any], fds: list[int]) -> None:
        answer = self._launches.get(message["id"])
        if answer is None or answer.done():
            control.close_all(fds)
            self.tell({"do": "forget", "id": message["id"]})
        elif message["event"] == "failed":
            answer.set_exception(SandboxFailed(f"the jail's step “{message['step']}” failed: {message['detail']}"))
        elif not fds:
            self.tell({"do": "forget", "id": message["id"]})
            answer.set_exception(
                SandboxFailed("this process may open no more files", hint="Raise the limit (`ulimit -n`), or close sessions.")
            )
        else:
            self._served[message["id"]] = message["node"]
            answer.set_result(fds)

    def _lose(self) -> None:
        if self.lost:
            return
        self.lost = True
        self._loop.remove_reader(self._connection.fileno())
        self._connection.close()
        self._node_changed.set()
        for answer in self._launches.values():
            if not answer.done():
                answer.set_exception(SandboxDied(f"the zygote died while it launched the sandbox: {self.last_words()}"))
        self.on_close()
        if not self._closing:
            self.on_lost()

    def last_words(self) -> str:
        """What Python said when the zygote broke, if it did."""
        return _tail(self._path.with_suffix(".log")) or "it left no message"

    def detach(self) -> None:
        """Leave the zygote and its sandboxes to the next host, for as long as the lease lasts."""
        self._closing = True
        self._lose()

    async def aclose(self) -> None:
        """End the zygote and everything in its house, and wait for that."""
        self._closing = True
        self.tell({"do": "end"})
        self._lose()
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), 5)
            except TimeoutError:
                self._process.kill()  # the launcher; its child notices the closed connection in any case
                await self._process.wait()
        self._path.unlink(missing_ok=True)
        self._path.with_suffix(".log").unlink(missing_ok=True)


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError):
        return log.read_text(errors="replace")[-2000:].strip()
    return ""


def _memory_file(name: str, content: Mapping[str, Any]) -> int:
    fd = os.memfd_create(name, 0)
    os.write(fd, json.dumps(content).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


async def _read_to_end(fd: int) -> bytes:
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    data = bytearray()
    done = loop.create_future()

    def readable() -> None:
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(fd, 65536)
            data.extend(chunk)
            if not chunk and not done.done():
                done.set_result(None)

    loop.add_reader(fd, readable)
    try:
        await done
    finally:
        loop.remove_reader(fd)
    return bytes(data)
