"""The guest's end of the channel: whole messages in and out, and never two senders at once.

The program may have threads and forked children that outlive a cell and still want to display something.  A message is sent
under a lock, by the process that owns the channel, and a display only while its own run is open.
"""

import select
from _socket import AF_UNIX, CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_DONTWAIT, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, socket
from _thread import LockType, allocate_lock
from collections import deque
from collections.abc import Mapping
from fcntl import ioctl
from itertools import repeat
from os import set_blocking
from posix import _exit as exit_process  # pyright: ignore[reportPrivateUsage]  # its public name is os._exit
from posix import close, getpid, write
from sys import byteorder
from termios import TIOCOUTQ  # of a socket: bytes that the other end has not read
from time import monotonic, sleep
from typing import Final

from .. import wire
from .interrupts import block_all, restore
from .own import OWN as __builtins__  # noqa: F401  # see own.py

_FDS_BYTES: Final = CMSG_SPACE(4 * 4)
_READ_S: Final = 0.02  # longest wait for the host to read a display …
_READ_TOTAL_S: Final = 0.25  # … and in one cell altogether
_READ_STEP_S: Final = 0.00005
_PACKET: Final = (wire.PACKET_BYTES,)
_SOME: Final = ((wire.PACKET_BYTES,) * 64, (int(MSG_DONTWAIT),) * 64)
_LOST: Final = 70  # exit status (sysexits.h, EX_SOFTWARE): the program closed or broke the channel


class Channel:
    """Over an AF_UNIX SOCK_SEQPACKET socket: one packet is one read or write."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._socket = socket(AF_UNIX, SOCK_SEQPACKET, 0, fd)
        self.fds: list[int] = []  # that came with the message received last; whoever uses them takes them out
        self._pid = getpid()
        self._run: str | None = None
        self._patience_s = 0.0
        self._lock = allocate_lock()
        self._protocol = wire.GuestProtocol()

    def receive(self) -> wire.HostMessage | None:
        """The next message from the host, waiting for it; None when the host is gone."""
        while True:
            try:
                packet = self._receive()
            except BlockingIOError:  # the program changed the socket
                set_blocking(self._fd, True)
                continue
            except OSError:
                exit_process(_LOST)
            if not packet:
                return None
            message = self._protocol.receive(packet)
            if message is not None:
                return message

    def _receive(self) -> bytes:
        packet, ancillary, _flags, _address = self._socket.recvmsg(wire.PACKET_BYTES, _FDS_BYTES, MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                self.fds += [int.from_bytes(data[at : at + 4], byteorder) for at in range(0, len(data), 4)]
        return packet

    def own(self) -> None:
        """In a process that goes on in place of the one that made this: it is the owner."""
        self._pid = getpid()

    def start_over(self) -> None:
        """Throw away what was meant for a process that is gone, before the host hears that another one goes on."""
        try:
            while self._socket.recv(wire.PACKET_BYTES, MSG_DONTWAIT):
                pass
        except BlockingIOError:
            return

    def end(self) -> None:
        """Close it."""
        if self._fd >= 0:
            self._fd = -1
            self._socket.close()

    def open_run(self, run: str) -> None:
        self._run = run
        self._patience_s = _READ_TOTAL_S

    def send(self, message: wire.GuestMessage) -> None:
        """Signals must be blocked. Raises ValueError when the message is too large for the protocol; nothing is sent then."""
        packets = list(wire.packets(message))
        with self._lock:
            if type(message) is wire.Done:
                self._run = None
            self._send(packets)

    # ------------------------------------------------------------------ calls of tools, see `calling`

    @property
    def fd(self) -> int:
        return self._fd

    @property
    def sending(self) -> LockType:
        """Whoever holds it is the only one who sends. Signals must be blocked."""
        return self._lock

    def run(self) -> str | None:
        """The run that is open, if one is. While `sending` is held."""
        return self._run if getpid() == self._pid else None  # a child that C code forked has not left the channel

    def put(self, packets: list[bytes]) -> None:
        """Send them, while `sending` is held."""
        if len(packets) == 1:
            try:
                self._socket.send(packets[0])
                return
            except BlockingIOError:  # the program changed it
                pass
            except OSError:
                exit_process(_LOST)
        self._send(packets)

    def pull(self, into: deque[bytes], *, wait_s: float | None = None) -> None:
        """Take the next packet into `into`, waiting for it, or as long as is said. Signals may interrupt the wait, and no packet is lost."""
        try:
            if wait_s is None:
                into.extend(map(self._socket.recv, _PACKET))  # one call into C: nothing comes between the packet and its place
            else:
                if wait_s > 0:
                    poll = select.poll()
                    poll.register(self._fd, select.POLLIN)
                    poll.poll(wait_s * 1e3)
                into.extend(map(self._socket.recv, *_SOME))  # until there is none: what came is in its place
        except BlockingIOError:
            if wait_s is None:
                set_blocking(self._fd, True)  # the program changed it
            return
        except OSError:
            exit_process(_LOST)
        if into and not into[-1]:
            exit_process(_LOST)  # the host is gone

    def complete(self, packet: bytes) -> wire.HostMessage | None:
        """A packet that was pulled → the message that it completes, if it does."""
        return self._protocol.receive(packet)

    def display(self, data: Mapping[str, bytes], is_result: bool) -> bool:
        """Send one rich output, from any thread of the program. False when it cannot be shown any more."""
        run = self._run
        if run is None or getpid() != self._pid:
            return False
        mask = block_all()  # an interrupt between two packets would leave half a message
        try:
            try:
                packets = list(wire.packets(wire.Display(run, tuple(data), is_result, tuple(data.values()))))
            except ValueError:  # too large
                return False
            with self._lock:
                if self._run != run:
                    return False
                self._send(packets)
        finally:
            restore(mask)
        self._wait_until_read()
        return True

    def _wait_until_read(self) -> None:
        """Until the host has taken the display, for a bounded time: what is printed next goes another way and must not overtake it."""
        began = now = monotonic()
        give_up = began + min(_READ_S, self._patience_s)
        try:
            while now < give_up and any(ioctl(self._fd, TIOCOUTQ, b"\0\0\0\0")):
                sleep(_READ_STEP_S)
                now = monotonic()
        except OSError:
            return  # not allowed here: then only the order of events is less exact
        self._patience_s -= now - began

    def _send(self, packets: list[bytes]) -> None:
        try:
            set_blocking(self._fd, True)  # the program may have changed it
            # One call into C: no signal handler of Python's can run between two packets.
            deque(map(write, repeat(self._fd), packets), 0)
        except OSError:
            exit_process(_LOST)

    def leave(self) -> None:
        """In a forked child: the channel is the parent's."""
        if self._fd >= 0 and getpid() != self._pid:
            self._run, self._lock = None, allocate_lock()  # another thread may have held it when it was copied
            fd, self._fd = self._fd, -1
            self._socket.detach()
            close(fd)
