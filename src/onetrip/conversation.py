"""The channel of one sandbox, from the host's end: packets in, messages out, and waiting for whatever comes next.

Everything that arrives is a stranger's: the protocol (`wire`) checks it, and what does not fit ends the sandbox. Callbacks run on
the event loop, in the order of arrival. One task waits at a time.
"""

import asyncio
import collections
import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from onetrip import wire
from onetrip.errors import SandboxFailed
from onetrip.tiers.base import Sandbox

PACKETS_AT_ONCE: Final = 16  # at most 1 MiB; decoding them takes about a millisecond
MAX_LAST_PACKETS: Final = 512  # more than fit into the socket's buffer, net.core.rmem_default
MAX_UNREAD_BYTES: Final = 256 << 20  # of answers that the guest has not taken
MOVE_S: Final = 10.0  # for the guest to fork; milliseconds when nothing is wrong
_CALL: Final = b'{"kind": "tool_call"'
_PREFIX_BYTES: Final = 9  # of a first packet, before its header
_LOOK_BYTES: Final = _PREFIX_BYTES + len(_CALL)
_UNKNOWN: Final = b"?"  # no list of tools
_SENDER_BYTES: Final = socket.CMSG_SPACE(12)  # struct ucred


class Conversation:
    """Speaks with the guest. `ended` says why nothing more will come; `fallen` why the session's process is gone, if it alone is.

    `before_packet` is called before a packet is taken, `on_message` with each message but those about checkpoints, which end here,
    `on_end` when the channel has ended or was broken, with the reason and whether the guest broke the protocol.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        before_packet: Callable[[], None],
        on_message: Callable[[wire.GuestMessage], None],
        on_end: Callable[[str, bool], None],
    ) -> None:
        self._sandbox = sandbox
        self._before_packet, self._on_message, self._on_end = before_packet, on_message, on_end
        self._loop = asyncio.get_running_loop()
        self._wakeup: asyncio.Future[None] | None = None
        self._moved: wire.Kept | wire.Live | None = None
        self._refusal: str | None = None
        # answers, with their sizes; of the first, packets that are left
        self._outgoing: collections.deque[tuple[Iterator[bytes], int]] = collections.deque()
        self._next: bytes | None = None  # a packet of it that found no room
        self._unread_bytes = 0
        self.protocol = wire.HostProtocol()
        self._tools: bytes = b""  # that the guest knows
        self.had_tools: bool = False  # it was told some, at any time
        self.ended: str | None = None
        self.fallen: str | None = None

    @property
    def silent(self) -> str | None:
        """Why the session's process will say nothing more; None while it may."""
        return self.ended or self.fallen

    def listen(self) -> None:
        self._loop.add_reader(self._sandbox.channel.fileno(), self._readable)

    def end(self, reason: str) -> None:
        """Nothing more is read or written."""
        if self.ended is None:
            self.ended = reason
            self._loop.remove_reader(self._sandbox.channel.fileno())
            self._loop.remove_writer(self._sandbox.channel.fileno())
        self.wake()

    def fall(self, reason: str) -> None:
        """The session's process is gone or of no use, and another one will speak in its place."""
        if self.fallen is None:
            self.fallen = reason
        self.wake()

    def hear_out(self) -> None:
        """Take what is in the channel already: the last words of a process. The end of file need not come: a child may hold it open."""
        for _ in range(MAX_LAST_PACKETS // PACKETS_AT_ONCE):
            if self.ended is None:
                self._readable()

    # ------------------------------------------------------------------ waiting and sending

    def wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    async def wait(self) -> None:
        """Until something happens. No deadline of its own: a run has its wall limit's timer, everything else a timeout around it."""
        self._wakeup = self._loop.create_future()
        try:
            await self._wakeup
        finally:
            self._wakeup = None

    async def wait_until(self, happened: Callable[[], bool], within_s: float) -> bool:
        """Whether it happened in time; looked at whenever something does."""
        try:
            async with asyncio.timeout(within_s):
                while not happened():
                    await self.wait()
        except TimeoutError:
            return False
        return True

    def knows_as(self, origin: "Conversation") -> None:
        """This guest comes from one of another conversation's checkpoints, and knows of tools what that one knew then."""
        self.had_tools = origin.had_tools
        self._tools = _UNKNOWN if self.had_tools else b""

    async def tell_tools(self, catalogue: bytes) -> None:
        """Tell the guest what its program can call, if it does not know."""
        if catalogue != self._tools:
            self._tools, self.had_tools = catalogue, True
            await self.send(wire.packets(wire.Tools((catalogue,))))

    async def send(self, packets: Iterable[bytes], fds: Sequence[int] = ()) -> None:
        """Send all packets, `fds` with the first. Returns early when the other end is gone."""
        channel = self._sandbox.channel
        while self._outgoing and self.silent is None:  # the guest takes them when it waits for us
            await self.wait()
        for packet in packets:
            while self.silent is None:
                try:
                    if fds:
                        socket.send_fds(channel, [packet], fds)
                    else:
                        channel.send(packet)
                    fds = ()
                    break
                except BlockingIOError:
                    # A guest that does not read; whoever sends has a deadline, which will end it.
                    self._loop.add_writer(channel.fileno(), self.wake)
                    try:
                        await self.wait()
                    finally:
                        if self.ended is None:
                            self._loop.remove_writer(channel.fileno())
                except OSError as err:
                    self._on_end(f"the channel broke: {err}", False)

    def answer(self, number: int, failed: bool, body: bytes) -> bool:
        """Send the answer to a call of the run that is open, as soon as the guest takes it and after those before it; not waited for.

        False, and it is dropped, when with this value more than `MAX_UNREAD_BYTES` would wait. Nothing is sent where nobody would hear it.
        """
        size = 0 if failed else len(body)
        if self.silent is not None or self.protocol.state != "running":
            return True
        if self._unread_bytes + size > MAX_UNREAD_BYTES:
            return False
        self._unread_bytes += size
        self._outgoing.append((self.protocol.tool_result(number, failed=failed, body=body), size))
        if len(self._outgoing) == 1 and self._next is None:
            self._flush()
        return True

    def unpost(self) -> None:
        """The run is over: of the answers that wait only one that has begun is sent to its end."""
        first = self._outgoing.popleft() if self._next is not None else None
        self._clear_outgoing()
        if first is not None:
            self._outgoing.append((first[0], 0))

    def _clear_outgoing(self) -> None:
        self._outgoing.clear()
        self._unread_bytes = 0

    def _flush(self) -> None:
        channel = self._sandbox.channel
        try:
            while self._outgoing and self.silent is None:
                while (packet := self._next or next(self._outgoing[0][0], None)) is not None:
                    self._next = packet
                    channel.send(packet)
                    self._next = None
                self._unread_bytes -= self._outgoing.popleft()[1]
        except BlockingIOError:
            self._loop.add_writer(channel.fileno(), self._writable)
            return
        except OSError as err:
            self._on_end(f"the channel broke: {err}", False)
        self.wake()

    def _writable(self) -> None:
        self._loop.remove_writer(self._sandbox.channel.fileno())
        self._flush()

    # ------------------------------------------------------------------ reading

    def _readable(self) -> None:
        for _ in range(PACKETS_AT_ONCE):  # then it is the others' turn: a guest can send faster than we decode
            try:
                # A call need not be in order with what is printed, as a display must be; to look costs less than to drain two pipes.
                if not self._sandbox.channel.recv(_LOOK_BYTES, socket.MSG_PEEK).startswith(_CALL, _PREFIX_BYTES):
                    self._before_packet()
                sender: list[tuple[int, int, bytes]] = []
                if self.protocol.state == "moving":
                    packet, sender, _flags, _address = self._sandbox.channel.recvmsg(wire.PACKET_BYTES + 1, _SENDER_BYTES)
                else:
                    packet = self._sandbox.channel.recv(wire.PACKET_BYTES + 1)
                if not packet:
                    self._on_end("the guest's process ended", False)
                elif (message := self.protocol.receive(packet)) is not None:
                    self._received(message, sender)
            except BlockingIOError:
                return
            except OSError as err:
                self._on_end(f"the channel broke: {err}", False)
            except wire.Violation as err:
                self._on_end(f"the guest broke the protocol: {err}", True)
            if self.ended is not None:
                return

    def _received(self, message: wire.GuestMessage, sender: Sequence[tuple[int, int, bytes]]) -> None:
        if isinstance(message, wire.Kept | wire.Live):
            try:
                self._sandbox.follow(message.live, sender)
            except SandboxFailed as err:
                self._on_end(str(err), False)
                return
            self._moved = message
            self.fallen = None
        elif isinstance(message, wire.Refused) and self.protocol.state == "moving":
            self._refusal = f"the step “{message.step}” failed: {message.detail}"
        else:
            self._on_message(message)
        self.wake()

    # ------------------------------------------------------------------ checkpoints: what a timeline needs

    async def ask(self, message: wire.Checkpoint, command: socket.socket) -> wire.Kept:
        """See `timeline.Link`."""
        self._moved = self._refusal = None
        await self.send(self.protocol.checkpoint(message), [command.fileno()])
        moved = await self._wait_moved()
        if not isinstance(moved, wire.Kept):
            raise SandboxFailed("the guest did not answer the request for a checkpoint")
        return moved

    async def start_over(self) -> None:
        """See `timeline.Link`. Everybody who could write is gone by now."""
        self._moved = self._refusal = None
        self._tools = _UNKNOWN if self.had_tools else b""  # what the next process knows is as old as it is
        self._clear_outgoing()
        self._next = None
        if self.ended is None:
            self._loop.remove_writer(self._sandbox.channel.fileno())
        self.protocol.start_over()
        with contextlib.suppress(BlockingIOError):
            for _ in range(MAX_LAST_PACKETS):
                if not self._sandbox.channel.recv(wire.PACKET_BYTES + 1):
                    break
        self._before_packet()

    async def wait_live(self, gone: asyncio.Future[None]) -> wire.Live:
        """See `timeline.Link`."""

        def wake(_: asyncio.Future[None]) -> None:
            self.wake()

        gone.add_done_callback(wake)
        try:
            moved = await self._wait_moved(gone)
        finally:
            gone.remove_done_callback(wake)
        if not isinstance(moved, wire.Live):
            raise SandboxFailed("the checkpoint did not say that it goes on")
        return moved

    async def _wait_moved(self, gone: asyncio.Future[None] | None = None) -> wire.Kept | wire.Live | None:
        try:
            async with asyncio.timeout(MOVE_S):
                while self._moved is None and self.ended is None:
                    if self._refusal is not None:
                        raise SandboxFailed(self._refusal)
                    if gone is not None and gone.done():
                        raise SandboxFailed("the checkpoint is gone")
                    if gone is None and self.fallen is not None:
                        raise SandboxFailed(self.fallen)
                    await self.wait()
        except TimeoutError as err:
            raise SandboxFailed(f"the guest did not fork within {MOVE_S:.0f} s") from err
        if self.ended is not None:
            raise SandboxFailed(self.ended)
        return self._moved
