"""stdout and stderr of one sandbox: two pipes, read as they fill, counted, cut at the limit, and slowed by a slow reader."""

import asyncio
import codecs
import collections
import contextlib
import errno
import os
from collections.abc import Callable
from typing import Final, Literal

from onetrip.model import Event

BUFFER_BYTES: Final = 1 << 20  # of events that wait for a slow consumer
READ_BYTES: Final = 256 * 1024
DRAIN_BYTES: Final = 4 << 20  # of one stream at the end of a run: more than a pipe can hold, so a writer cannot keep us here
_decoder: Final = codecs.getincrementaldecoder("utf-8")

Name = Literal["stdout", "stderr"]
Sink = Callable[[Name, str, int], None]


class Backlog:
    """Events on their way to a consumer that may be slow. More than `BUFFER_BYTES` of them pause whoever makes them."""

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._pause, self._resume = pause, resume
        self._events: collections.deque[Event] = collections.deque()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._events)

    def add(self, event: Event, size: int) -> None:
        self._events.append(event)
        self._bytes += size
        if self._bytes > BUFFER_BYTES:
            self._pause()

    def take(self) -> Event:
        event = self._events.popleft()
        if not self._events:
            if self._bytes > BUFFER_BYTES:
                self._resume()
            self._bytes = 0
        return event

    def clear(self) -> None:
        self._events.clear()
        self._bytes = 0


class _Pipe:
    """One stream. `kept` is what the current run's result will hold."""

    def __init__(self, name: Name, fd: int) -> None:
        self.name: Name = name
        self.fd = fd
        self.listening = False
        self.at_end = False
        self.renew()

    def renew(self) -> None:
        self.decoder = _decoder("replace")
        self.kept: list[str] = []
        self.truncated = False


class Outputs:
    """Both streams of one sandbox. Between runs nothing is read: what background threads print waits in the pipe.

    `sink` gets (stream, text, bytes) as it comes; `on_limit` is called once per run, when the bytes of both streams and of
    displays together pass `limit_bytes`. What is over the limit is read and dropped, so that the program can be interrupted.
    """

    def __init__(self, stdout_fd: int, stderr_fd: int, sink: Sink, on_limit: Callable[[], None]) -> None:
        self._pipes = (_Pipe("stdout", stdout_fd), _Pipe("stderr", stderr_fd))
        self._loop = asyncio.get_running_loop()
        self._sink, self._on_limit = sink, on_limit
        self._running = False
        self.bytes = 0
        self._limit_bytes = 0

    def begin(self, limit_bytes: int) -> None:
        """Start reading for a run."""
        self._running, self.bytes, self._limit_bytes = True, 0, limit_bytes
        for pipe in self._pipes:
            pipe.renew()
        self.resume()

    def end(self) -> None:
        """The run is over, and its text is not asked for again.

        Listening goes on until the first byte that nobody waits for: a quiet program costs no system call.
        """
        self._running = False
        for pipe in self._pipes:
            pipe.renew()  # a session may be idle for long, and a worker that was closed wait for the collector

    def resume(self) -> None:
        for pipe in self._pipes:
            if not pipe.listening and not pipe.at_end:
                self._loop.add_reader(pipe.fd, self._readable, pipe)
                pipe.listening = True

    def pause(self) -> None:
        """Read no more for now: the pipes fill, and the program waits."""
        for pipe in self._pipes:
            if pipe.listening:
                self._loop.remove_reader(pipe.fd)
                pipe.listening = False

    def close(self) -> None:
        """The descriptors are about to be closed; their numbers may be another sandbox's a moment later, so they are not read again."""
        self.pause()
        for pipe in self._pipes:
            pipe.at_end = True

    def count(self, size: int) -> bool:
        """Count bytes that came another way (displays). False when they are over the limit and to be dropped."""
        self.bytes += size
        if self.bytes <= self._limit_bytes:
            return True
        self._on_limit()
        return False

    def drain(self) -> None:
        """Take what was written up to now."""
        for pipe in self._pipes:
            left = DRAIN_BYTES
            while left > 0 and not pipe.at_end and (got := self._read(pipe)):
                left -= got

    def discard(self) -> None:
        """Throw away what is in the pipes: who wrote it is gone, and its run is over."""
        for pipe in self._pipes:
            with contextlib.suppress(BlockingIOError):
                if pipe.at_end:
                    continue
                for _ in range(DRAIN_BYTES // READ_BYTES):
                    if not os.read(pipe.fd, READ_BYTES):
                        break

    def text(self, name: Name) -> str:
        pipe = self._pipes[0] if name == "stdout" else self._pipes[1]
        return "".join(pipe.kept) + pipe.decoder.decode(b"", final=True)

    def truncated(self, name: Name) -> bool:
        return (self._pipes[0] if name == "stdout" else self._pipes[1]).truncated

    def _readable(self, pipe: _Pipe) -> None:
        if not self._running:
            self._loop.remove_reader(pipe.fd)
            pipe.listening = False
            return
        self._read(pipe)
        if pipe.at_end and pipe.listening:
            self._loop.remove_reader(pipe.fd)
            pipe.listening = False

    def _read(self, pipe: _Pipe) -> int:
        """Read once; the number of bytes, 0 when there is nothing now or ever again."""
        try:
            data = os.read(pipe.fd, READ_BYTES)
        except BlockingIOError:
            return 0
        except OSError as err:
            if err.errno != errno.EBADF:  # closed under us: the sandbox is being taken down
                raise
            data = b""
        if not data:
            pipe.at_end = True
            return 0
        room = max(0, self._limit_bytes - self.bytes)
        self.bytes += len(data)
        size = len(data)
        if size > room:
            pipe.truncated = True
            data = data[:room]
            self._on_limit()
        if text := pipe.decoder.decode(data):
            pipe.kept.append(text)
            self._sink(pipe.name, text, size)
        return size
