"""The node's process: serves one server at a time on its socket, and ends when none has come for the length of the lease."""

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import msgspec

from onetrip import model
from onetrip.engine import LocalEngine
from onetrip.errors import OnetripError, PlatformError, SessionGone
from onetrip.node import messages
from onetrip.node.asking import Asking
from onetrip.node.link import Link
from onetrip.node.logs import Log
from onetrip.node.runs import Runs

EMPTY_LEASE_S: Final = 5.0  # with nothing worth keeping
FIRST_CONNECTION_S: Final = 30.0  # a server that does not connect after starting us is dead
MOVES: Final = frozenset({"tool_call", "tool_result", "done"})
_PAGE: Final = os.sysconf("SC_PAGESIZE")
T = TypeVar("T")
_decoder: Final = msgspec.msgpack.Decoder(messages.ToNode)


class Config(msgspec.Struct, frozen=True):
    path: str  # of the socket that it listens on, to be removed at the end
    lease_s: float
    warm: int
    max_live: int


class Node:
    """See above. `serve` until it is told to quit or its lease is over; afterwards nothing is left."""

    def __init__(self, config: Config, listener: socket.socket) -> None:
        self._config, self._listener = config, listener
        self.engine = LocalEngine(warm=config.warm, max_live=config.max_live)
        self.asking = Asking()
        self.runs = Runs(self.engine, self.asking.ask)
        self.runs.on_session_gone = self._session_gone
        self.sessions: dict[str, messages.HeldSession] = {}
        self._making: dict[str, asyncio.Task[None]] = {}
        self._connection: Connection | None = None
        self._quit = asyncio.Event()
        self._inode = _inode(config.path)
        self._lease: asyncio.TimerHandle | None = None

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._quit.set)
        self._listener.setblocking(False)
        loop.add_reader(self._listener.fileno(), self._accept)
        self._lease = loop.call_later(FIRST_CONNECTION_S, self._quit.set)
        try:
            await self._quit.wait()
        finally:
            loop.remove_reader(self._listener.fileno())
            if self._inode is not None and _inode(self._config.path) == self._inode:  # not another node's, which came after us
                os.unlink(self._config.path)
            self._listener.close()
            await self.runs.aclose()
            await self.engine.aclose()
            if self._connection is not None:
                await self._connection.farewell()

    def quit(self) -> None:
        self._quit.set()

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        if self._connection is not None:
            self._connection.end_if_left()
        if self._connection is not None or not _is_ours(sock):
            sock.close()  # one server at a time; it sees the end of file and can say so
            return
        if self._lease is not None:
            self._lease.cancel()
        self._connection = Connection(self, sock)

    def lost(self) -> None:
        """The server is gone."""
        self._connection = None
        self.asking.disconnected()
        if self._quit.is_set():
            return
        worth = self.sessions or any(not run.saved for run in self.runs.held())
        lease_s = self._config.lease_s if worth else min(EMPTY_LEASE_S, self._config.lease_s)
        self._lease = asyncio.get_running_loop().call_later(lease_s, self._quit.set)

    def _session_gone(self, session_id: str, why: str) -> None:
        if (held := self.sessions.get(session_id)) is not None:
            self.sessions[session_id] = msgspec.structs.replace(held, gone=why)

    async def once(self, session_id: str, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Make a session, unless it is there. A server that died while it was made may be followed by one that asks again."""
        if session_id in self.sessions:
            return
        making = self._making.get(session_id)
        if making is None:
            making = self._making[session_id] = asyncio.create_task(make())
            making.add_done_callback(lambda _: self._made(session_id))
        await asyncio.shield(making)

    def _made(self, session_id: str) -> None:
        making = self._making.pop(session_id)
        if not making.cancelled():
            making.exception()  # whoever asked has it; perhaps nobody is there any more

    async def open(self, session_id: str, spec: model.SessionSpec, files: dict[str, bytes], meta: dict[str, str]) -> None:
        await self.engine.open(spec, files, session_id=session_id, ask=self.asking.ask)
        self.sessions[session_id] = messages.HeldSession(session_id, meta, spec, None)

    async def fork(self, session_id: str, branches: dict[str, dict[str, str]]) -> None:
        held = self.sessions.get(session_id)
        await self.engine.fork(session_id, len(branches), ids=tuple(branches))
        for branch, meta in branches.items():
            spec = model.SessionSpec() if held is None else held.spec
            self.sessions[branch] = messages.HeldSession(branch, meta, spec, None)

    def described(self) -> messages.Described:
        return messages.Described(messages.VERSION, tuple(self.sessions.values()), self.runs.held(), self.asking.held())


class Connection:
    """One server's connection: each call becomes a task, so that none waits for another."""

    def __init__(self, node: Node, sock: socket.socket) -> None:
        self._node = node
        self._tellers: dict[int, asyncio.Task[None]] = {}  # they only pass on what a run says, and stop when nobody listens
        self._workers: dict[int, asyncio.Task[None]] = {}  # they change something, and do it whole
        self._credits: dict[int, _Credit] = {}
        self._quitting: int | None = None
        self._link = Link(sock, _decoder, self._received, self._closed)
        node.asking.connected(self._link.send)

    def _received(self, message: messages.ToNode) -> None:
        match message:
            case messages.Call(id, body):
                task = asyncio.create_task(self._serve(id, body))
                calls = self._tellers if isinstance(body, messages.Run | messages.Follow) else self._workers
                calls[id] = task
                task.add_done_callback(lambda _: calls.pop(id, None) and None)
            case messages.Ack(id, size):
                if (credit := self._credits.get(id)) is not None:
                    credit.give(size)
            case messages.Cancel(id):
                if (task := self._tellers.get(id)) is not None:
                    task.cancel()
            case messages.Saved(run_ids):
                self._node.runs.saved(run_ids)
            case messages.Told(run_id, answer):
                self._node.asking.told(run_id, answer)

    def end_if_left(self) -> None:
        """Close it now if its server is gone: the next server may come before we have read the end of file."""
        poll = select.poll()
        poll.register(self._link.fd, select.POLLRDHUP)
        if poll.poll(0):
            self._link.close()

    def _closed(self) -> None:
        for task in self._tellers.values():
            task.cancel()
        self._node.lost()

    async def farewell(self) -> None:
        """Nothing is left: tell who asked for it."""
        if self._quitting is not None:
            self._link.send(messages.Answer(self._quitting))
        self._link.close()

    async def _serve(self, id: int, body: messages.Body) -> None:  # noqa: A002 - the name on the wire
        try:
            await self._answer(id, body)
        except OnetripError as err:
            self._link.send(messages.Failed(id, err.code, str(err), err.hint, err.field, err.retry_after_s))
        except Exception as err:  # noqa: BLE001 - the outermost shell of a call: the server logs it
            failed = PlatformError(f"the node failed: {type(err).__name__}: {err}")
            self._link.send(messages.Failed(id, failed.code, str(failed), failed.hint, None, None))

    async def _answer(self, id: int, body: messages.Body) -> None:  # noqa: A002 - the name on the wire
        node, engine = self._node, self._node.engine
        value: Any = None
        match body:
            case messages.Run():
                cell = msgspec.structs.replace(body.cell, inputs=json.loads(body.inputs))
                entry = node.runs.begin(msgspec.structs.replace(body, cell=cell))
                await self._last(id, entry.log)
                return
            case messages.Follow(run_id, after, last_only, moves):
                log = node.runs.entry(run_id).log
                send = self._last if last_only else self._moves if moves else self._items
                await send(id, log, after)
                return
            case messages.Open(session_id, spec, files, meta):
                await node.once(session_id, lambda: node.open(session_id, spec, files, meta))
            case messages.Close(session_id):
                node.sessions.pop(session_id, None)
                await engine.close(session_id)
            case messages.Undo(session_id, cells, forward):
                rewind = engine.redo if forward else engine.undo
                value = msgspec.to_builtins(await _told(node, session_id, rewind(session_id, cells)))
            case messages.Fork(session_id, branches):
                await node.once(next(iter(branches)), lambda: _told(node, session_id, node.fork(session_id, branches)))
            case messages.Sibling(session_id, sibling_id):
                await _told(node, session_id, engine.sibling(session_id, sibling_id=sibling_id))
            case messages.Siblings(session_id):
                value = engine.siblings(session_id)
            case messages.Keep(session_id, meta):
                if (held := node.sessions.get(session_id)) is not None:
                    node.sessions[session_id] = msgspec.structs.replace(held, meta=meta)
            case messages.Workspace(session_id, note_changes):
                workspace = engine.workspace(session_id)
                if note_changes:
                    engine.note_files(session_id)
                else:
                    self._link.send(messages.Answer(id, None, 1), [os.dup(workspace.fd)])
                    return
            case messages.AnswerCalls(run_id, answers, key):
                value = await node.runs.answer(run_id, answers, key)
            case messages.Interrupt(run_id):
                node.runs.interrupt(run_id)
            case messages.Start(environment, floor):
                await engine.start(environment, floor=floor)
            case messages.Describe():
                value = msgspec.to_builtins(node.described())
            case messages.Stats():
                value = msgspec.to_builtins(self._statistics())
            case messages.Support():
                value = msgspec.to_builtins(await asyncio.to_thread(engine.support))
            case messages.Quit():
                self._quitting = id
                node.quit()
                return
        self._link.send(messages.Answer(id, value))

    async def _last(self, id: int, log: Log, after: int = 0) -> None:  # noqa: A002 - the name on the wire
        """The last event of a run, when there is one that is newer than `after`. Raises why there is none."""
        while True:
            await log.wait_settled(after)
            if log.failure is not None and not (log.records and log.records[-1].name == "done"):
                raise log.failure
            record = log.records[-1]
            if record.name == "done":
                break  # else it waited, and has gone on before we were here
        await self._link.wait_room()
        self._link.send(messages.Item(id, record.number, record.name, record.data, last=True))

    async def _moves(self, id: int, log: Log, after: int) -> None:  # noqa: A002 - the name on the wire
        """The first event that shows that a run that waited goes on, or has ended. A thread of it may have printed all the while."""
        async with contextlib.aclosing(log.read(after)) as records:
            async for record in records:
                if record.name in MOVES:
                    await self._link.wait_room()
                    self._link.send(messages.Item(id, record.number, record.name, record.data, last=True))
                    return
        raise log.failure or PlatformError("the run ended without a result")

    async def _items(self, id: int, log: Log, after: int) -> None:  # noqa: A002 - the name on the wire
        credit = self._credits[id] = _Credit()
        ended = False
        try:
            records = log.read(after)
            async with contextlib.aclosing(records):
                async for record in records:
                    await credit.wait()
                    await self._link.wait_room()
                    credit.take(len(record.data))
                    ended = record.name == "done"
                    self._link.send(messages.Item(id, record.number, record.name, record.data, last=ended))
        finally:
            del self._credits[id]
        if log.failure is not None and not (log.records and log.records[-1].name == "done"):
            raise log.failure
        if not ended:  # its last event was not asked for
            self._link.send(messages.Answer(id))

    def _statistics(self) -> messages.Statistics:
        engine, runs = self._node.engine, self._node.runs
        with open("/proc/self/statm", "rb") as file:
            resident = int(file.read().split()[1]) * _PAGE
        return messages.Statistics(len(self._node.sessions), runs.running, engine.warm, runs.log_bytes, os.getpid(), resident)


class _Credit:
    """How much a reader lets us send it before it acknowledges."""

    def __init__(self) -> None:
        self._left = messages.WINDOW_BYTES
        self._more = asyncio.Event()

    def take(self, size: int) -> None:
        self._left -= size

    def give(self, size: int) -> None:
        self._left += size
        self._more.set()

    async def wait(self) -> None:
        while self._left <= 0:
            self._more.clear()
            await self._more.wait()


async def _told(node: Node, session_id: str, work: Coroutine[Any, Any, T]) -> T:
    """Do it; a session that is gone is remembered as such."""
    try:
        return await work
    except SessionGone as err:
        if (held := node.sessions.get(session_id)) is not None and held.gone is None:
            node.sessions[session_id] = msgspec.structs.replace(held, gone=str(err))
        raise


def _inode(path: str) -> int | None:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return None


def _is_ours(sock: socket.socket) -> bool:
    """The other end's user, from the kernel (unix(7), SO_PEERCRED): who may connect is who may read the folder, and root."""
    peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return struct.unpack("3i", peer)[1] in (os.geteuid(), 0)
