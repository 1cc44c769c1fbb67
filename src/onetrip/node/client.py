"""The server's end of a node: starts one or finds the one that is there, and speaks to it."""

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from onetrip import addresses, errors
from onetrip.errors import PlatformError, Unavailable
from onetrip.model import ToolAnswer
from onetrip.node import messages
from onetrip.node.daemon import Config
from onetrip.node.link import Link

SOCKET: Final = "node.sock"  # in the folder of the server's data
CALL_S: Final = 60.0  # for an answer to anything that is no run
QUIT_S: Final = 60.0  # for every sandbox to be gone
_decoder: Final = msgspec.msgpack.Decoder(messages.ToServer)


class NodeLost(PlatformError):
    """The node died: its sessions are gone, and a new one is being started."""

    hint_default = "Open a new session; a new node is started by itself."


class NodeClient:
    """One connection to a node. `on_lost` is called once, unless `aclose` or `quit` came first."""

    def __init__(self, sock: socket.socket, *, adopted: bool) -> None:
        self.adopted = adopted  # it was there before us
        self.on_lost: Callable[[], None] = lambda: None
        self.on_asked: Callable[[messages.Asked | messages.Unasked], None] = lambda _: None
        self._calls: dict[int, _Call] = {}
        self._number = 0
        self._closing = False
        self._link = Link(sock, _decoder, self._received, self._closed)

    @classmethod
    async def connect(cls, folder: Path, config: Config, environ: Mapping[str, str]) -> Self:
        """The node whose socket is in `folder`, started if there is none. Raises Unavailable."""
        address = folder / SOCKET
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            client = cls(_connect(address), adopted=True)
            described = await client.describe()
            if described is not None and described.version == messages.VERSION:
                return client
            await client.quit()  # of another version, or it does not answer
        _start(address, folder / "node.log", config, environ)
        return cls(_connect(address), adopted=False)

    async def describe(self) -> messages.Described | None:
        """What the node holds; None when it cannot say so in our words."""
        try:
            return msgspec.convert(await self.call(messages.Describe()), messages.Described)
        except (msgspec.ValidationError, PlatformError):
            return None

    async def call(self, body: messages.Body, *, timeout_s: float = CALL_S) -> Any:
        """Ask, and wait for the answer. Raises what the node raised, NodeLost, or PlatformError after `timeout_s`."""
        return (await self._ask(body, timeout_s))[0]

    async def call_fd(self, body: messages.Workspace) -> int:
        """The same for a call whose answer is a descriptor, which is the caller's then."""
        fds = (await self._ask(body, CALL_S))[1]
        if len(fds) != 1:
            raise PlatformError("the node sent no descriptor")
        return fds[0]

    async def _ask(self, body: messages.Body, timeout_s: float) -> tuple[Any, list[int]]:
        call = self._begin(body)
        try:
            async with asyncio.timeout(timeout_s):
                return await call.answer
        except TimeoutError as err:
            raise PlatformError(f"the node did not answer within {timeout_s:.0f} s") from err
        finally:
            self._end(call)

    async def run(self, body: messages.Run | messages.Follow) -> messages.Item:
        """The last event of a run. No deadline: the run has its limits. Cancelling leaves the run alone."""
        call = self._begin(body)
        try:
            await call.answer
            if not call.items:
                raise PlatformError("the run ended without a result")
            return call.items[-1]
        finally:
            self._end(call)

    async def items(self, body: messages.Follow) -> AsyncGenerator[messages.Item]:
        """Events of a run; what was yielded counts as taken when the next one is asked for."""
        call = self._begin(body)
        taken = 0
        try:
            while True:
                while call.items:
                    item = call.items.pop(0)
                    yield item
                    taken += len(item.data)
                    if taken >= messages.ACK_BYTES:
                        self._link.send(messages.Ack(call.id, taken))
                        taken = 0
                if call.answer.done():
                    call.answer.result()
                    return
                call.wake.clear()
                await call.wake.wait()
        finally:
            self._end(call)

    def saved(self, run_ids: Iterable[str]) -> None:
        """These results are kept for good."""
        self._link.send(messages.Saved(tuple(run_ids)))

    def told(self, run_id: str, answer: ToolAnswer) -> None:
        """What a server tool gave."""
        self._link.send(messages.Told(run_id, answer))

    async def quit(self) -> None:
        """End every sandbox and the node; waits until nothing is left."""
        self._closing = True
        with contextlib.suppress(PlatformError):
            await self.call(messages.Quit(), timeout_s=QUIT_S)
        self._link.close()

    def close(self) -> None:
        """Leave the node, with its sessions, to the next server."""
        self._closing = True
        self._link.close()

    # ------------------------------------------------------------------ inside

    def _begin(self, body: messages.Body) -> "_Call":
        if self._link.closed:
            raise NodeLost("the node is gone")
        self._number += 1
        call = self._calls[self._number] = _Call(self._number)
        try:
            self._link.send(messages.Call(call.id, body))
        except BaseException:  # it cannot be encoded
            del self._calls[call.id]
            raise
        return call

    def _end(self, call: "_Call") -> None:
        self._calls.pop(call.id, None)
        if not call.answer.done():
            call.answer.cancel()
            self._link.send(messages.Cancel(call.id))
        elif not call.answer.cancelled():
            call.answer.exception()  # seen

    def _received(self, message: messages.ToServer) -> None:
        if isinstance(message, messages.Asked | messages.Unasked):
            self.on_asked(message)
            return
        fds = self._link.take_fds(message.fds) if isinstance(message, messages.Answer) else []
        call = self._calls.get(message.id)
        if call is None or call.answer.done():
            for fd in fds:
                os.close(fd)
            return
        match message:
            case messages.Item():
                call.items.append(message)
                if message.last:
                    call.answer.set_result((None, []))
            case messages.Answer():
                call.answer.set_result((message.value, fds))
            case messages.Failed():
                found = errors.named(message.code)
                call.answer.set_exception(
                    found(message.message, hint=message.hint, field=message.field, retry_after_s=message.retry_after_s)
                )
        call.wake.set()

    def _closed(self) -> None:
        for call in self._calls.values():
            if not call.answer.done():
                call.answer.set_exception(NodeLost("the node died"))
            call.wake.set()
        if not self._closing:
            self.on_lost()


class _Call:
    __slots__ = ("answer", "id", "items", "wake")

    def __init__(self, number: int) -> None:
        self.id = number
        self.answer: asyncio.Future[tuple[Any, list[int]]] = asyncio.get_running_loop().create_future()
        self.items: list[messages.Item] = []
        self.wake = asyncio.Event()


def _connect(address: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with addresses.short(address) as short:
            sock.connect(short)
    except BaseException:
        sock.close()
        raise
    return sock


def _start(address: Path, log: Path, config: Config, environ: Mapping[str, str]) -> None:
    """Start a node that listens at `address`, in a session of its own: a terminal's Ctrl-C is for the server. Raises Unavailable."""
    address.unlink(missing_ok=True)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            with addresses.short(address) as short:
                listener.bind(short)
            listener.listen(4)
            config_fd = os.memfd_create("config")
            try:
                os.write(config_fd, msgspec.json.encode(config))
                os.lseek(config_fd, 0, os.SEEK_SET)
                donated = (listener.fileno(), config_fd)
                with open(log, "ab") as errors_to:
                    subprocess.Popen(  # it outlives us on purpose; whether it runs is seen by its socket
                        [sys.executable, "-m", "onetrip.node", *map(str, donated)],
                        env=dict(environ), cwd="/", stdin=subprocess.DEVNULL, stdout=errors_to, stderr=errors_to,
                        pass_fds=donated, start_new_session=True,
                    )  # fmt: skip
            finally:
                os.close(config_fd)
    except OSError as err:
        raise Unavailable(f"the node could not be started: {err}", hint=_HINTS.get(err.errno or 0)) from err


_HINTS: Final = {
    errno.ENOSPC: "The disk is full: make space in `data_dir`.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
    errno.EACCES: "The server's user must be able to write to `data_dir`.",
}
