"""Messages with file descriptors over a `SOCK_SEQPACKET` socket, between the host, the zygote and its nodes.

All of these processes are ours and trusted; no guest ever holds one of these sockets. One message is one packet: a JSON object
and at most `MAX_FDS` descriptors (unix(7), SCM_RIGHTS), which arrive close-on-exec.
"""

import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

MAX_FDS: Final = 32
MAX_BYTES: Final = 128 * 1024  # below net.core.wmem_default, so that one send takes it whole
SEND_TIMEOUT_S: Final = 10  # a peer that does not read for this long is as good as dead


class Closed(Exception):
    """The other end is gone."""


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        limit_sends(end)
    return ours, theirs


def limit_sends(sock: socket.socket) -> None:
    """Let a blocking send fail instead of waiting for ever (socket(7), SO_SNDTIMEO)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))


def send(sock: socket.socket, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message; the caller keeps its own descriptors. Raises Closed when the peer is gone or does not read."""
    send_raw(sock, json.dumps(message).encode(), fds)


def send_raw(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """The same with any bytes for a message."""
    if len(data) > MAX_BYTES or len(fds) > MAX_FDS:
        raise ValueError(f"a control message of {len(data)} bytes with {len(fds)} descriptors is too large")
    try:
        socket.send_fds(sock, [data], list(fds))
    except (BrokenPipeError, ConnectionResetError, TimeoutError, BlockingIOError) as err:
        raise Closed from err


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """One message and the descriptors that came with it, which the caller now owns. Raises Closed at the end, BlockingIOError
    on a non-blocking socket that has nothing.

    Where this process may open no more descriptors the message comes without any.
    """
    data, fds = receive_raw(sock)
    return json.loads(data), fds


def receive_raw(sock: socket.socket) -> tuple[bytes, list[int]]:
    """The same for any bytes."""
    try:
        data, fds, flags, _address = socket.recv_fds(sock, MAX_BYTES, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        # The other end closed with something unread: the kernel says so once, before it gives what was sent until then.
        try:
            data, fds, flags, _address = socket.recv_fds(sock, MAX_BYTES, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError as err:
            raise Closed from err
    if not data:
        close_all(fds)
        raise Closed
    if flags & socket.MSG_CTRUNC:
        close_all(fds)
        fds = []
    return data, list(fds)


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
