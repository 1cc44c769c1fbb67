"""stdout and stderr of the program: text over two pipes, in order, prompt, and fast.

Theory of operation
-------------------
*Prompt.* What ends a line is passed on at once.  A program that prints thousands of lines a second would pay two system calls
and a wake-up of the host for each; so after `_CREDIT` lines within `_WINDOW_S` lines are gathered, and a thread that lives
only during such a burst passes them on every `_GATHER_S`.  Nothing waits longer than that.

*Order within a stream.* Whatever else may write to it comes after what was printed before: the buffer is passed on before a
fork, a new program, and the end of the cell; C's stdout is line-buffered and flushed at the end of the cell.

*Order between the streams.* The host reads two pipes and sees no order between them.  When the program changes from one to
the other, we pass on the first and wait until the host has drained it, for a bounded time.
"""

import contextlib
import ctypes
import sys
from _thread import allocate_lock, start_new_thread
from fcntl import ioctl
from io import BufferedWriter, FileIO, TextIOWrapper
from termios import FIONREAD
from time import monotonic, sleep
from typing import Any, Final

from .own import OWN as __builtins__  # noqa: F401  # see own.py
from .stdin import open_stream

_BUFFER_BYTES: Final = 64 * 1024  # one pipe full
_CREDIT: Final = 200  # lines passed on one by one …
_WINDOW_S: Final = 0.02  # … in each window of this length: at most 2 % of the time goes into it
_GATHER_S: Final = 0.005
_DRAIN_S: Final = 0.02  # longest wait for the host when the program changes streams
_DRAIN_TOTAL_S: Final = 0.25  # and in one cell altogether; then order between the streams is given up for speed
_DRAIN_STEP_S: Final = 0.00005
_IO_LINE_BUFFERED: Final = 1  # stdio.h, _IOLBF

# What may go wrong when passing on: the program closed the stream or the descriptor, or the host closed its end.
_LOST: Final = (OSError, ValueError, RuntimeError)

_plain_write: Final = TextIOWrapper.write
_plain_flush: Final = TextIOWrapper.flush


class Stream(TextIOWrapper):
    """A real TextIOWrapper, so that everything programs do with sys.stdout works."""

    __module__ = "io"
    pair: "Streams"

    def write(self, text: str, /) -> int:
        pair = self.pair
        if pair.last is not self:
            pair.change_to(self)
        written = _plain_write(self, text)
        if "\n" in text:
            if pair.credit > 0:
                pair.credit -= 1
                _plain_flush(self)
            else:
                pair.gather(self)
        return written


class Streams:
    """The pair of them. One exists in a guest; `install` makes it the program's."""

    def __init__(self, out_fd: int = 1, err_fd: int = 2) -> None:
        self._fds = {"<stdout>": out_fd, "<stderr>": err_fd}
        self.out = self._open("<stdout>")
        self.err = self._open("<stderr>")
        self.stdin = open_stream()
        self.last = self.out
        self.credit = _CREDIT
        self._window_end = 0.0
        self._patience_s = _DRAIN_TOTAL_S
        self._burst: tuple[Any, Any] | None = None  # locks of the running thread: (stop, ended)

    def _open(self, name: str) -> Stream:
        raw = FileIO(self._fds[name], "w", closefd=False)  # the program may close its stream, the next cell still has one
        raw.name = name
        stream = Stream(BufferedWriter(raw, _BUFFER_BYTES), encoding="utf-8", errors="backslashreplace", newline="\n")
        stream.mode = "w"  # type: ignore[attr-defined]  # as the interpreter's own has it
        stream.pair = self
        return stream

    def install(self) -> None:
        sys.stdout = sys.__stdout__ = self.out  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self.err  # type: ignore[misc]
        sys.stdin = sys.__stdin__ = self.stdin  # type: ignore[misc]

    def begin(self) -> None:
        """Before a cell. Streams that the program closed are opened again; what it put in their place stays."""
        self.credit = _CREDIT
        self._patience_s = _DRAIN_TOTAL_S
        if self.out.closed or self.err.closed:
            for name in ("out", "err"):
                old, new = getattr(self, name), self._open(f"<std{name}>")
                if old.closed:
                    setattr(self, name, new)
                    if getattr(sys, f"std{name}", None) is old:
                        setattr(sys, f"std{name}", new)
                    setattr(sys, f"__std{name}__", new)
            self.last = self.out
        if self.stdin.closed and getattr(sys, "stdin", None) is self.stdin:  # `exit()` closes it
            self.stdin = sys.stdin = sys.__stdin__ = open_stream()  # type: ignore[misc]

    def pass_on(self) -> None:
        """Give the host everything that was written so far, by C code too. Never raises."""
        self.end_burst()
        for stream in (self.out, self.err):
            with contextlib.suppress(*_LOST):
                _plain_flush(stream)

    def pass_on_all(self) -> None:
        """The same for what C code wrote. At the end of a cell."""
        self.pass_on()
        _flush_c(None)

    # ------------------------------------------------------------------ order between the streams

    def change_to(self, stream: Stream) -> None:
        before, self.last = self.last, stream
        try:
            _plain_flush(before)
            waited_from = now = monotonic()
            give_up = now + min(_DRAIN_S, self._patience_s)
            fd = self._fds["<stdout>" if before is self.out else "<stderr>"]
            while now < give_up and any(ioctl(fd, FIONREAD, b"\0\0\0\0")):
                sleep(_DRAIN_STEP_S)
                now = monotonic()
            self._patience_s -= now - waited_from
        except _LOST:
            return  # nobody will see the other stream; nothing to keep in order

    # ------------------------------------------------------------------ bursts

    def gather(self, stream: Stream) -> None:
        """A line was written and there is no credit: pass it on soon."""
        now = monotonic()
        if now >= self._window_end:
            self._window_end = now + _WINDOW_S
            self.credit = _CREDIT
            _plain_flush(stream)
        elif self._burst is None:
            stop, ended = allocate_lock(), allocate_lock()
            stop.acquire()
            ended.acquire()
            try:
                # Before the assignment: an interrupt between the two must not leave us waiting for a thread that never was.
                start_new_thread(self._serve_burst, (stop, ended))
            except RuntimeError:  # no more threads are allowed
                _plain_flush(stream)
            else:
                self._burst = (stop, ended) if ended.locked() else None

    def _serve_burst(self, stop: Any, ended: Any) -> None:
        try:
            while not stop.acquire(timeout=_GATHER_S):
                over = monotonic() > self._window_end + _WINDOW_S
                if over and self._burst is not None and self._burst[0] is stop:
                    self._burst = None  # before the last flush: a line written after it starts the next thread
                for stream in (self.out, self.err):
                    with contextlib.suppress(*_LOST):
                        _plain_flush(stream)
                if over:
                    return
        finally:
            ended.release()

    def end_burst(self) -> None:
        burst, self._burst = self._burst, None
        if burst is not None:
            burst[0].release()
            burst[1].acquire()

    def forget_burst(self) -> None:
        """In a forked child: the thread did not come along."""
        self._burst = None


_libc = ctypes.CDLL(None)
_flush_c = _libc.fflush
_flush_c.argtypes = [ctypes.c_void_p]


def line_buffer_c() -> None:
    """Have C code's stdout arrive line by line, as Python's does. Before anything was written to it."""
    _libc.setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    _libc.setvbuf(ctypes.c_void_p.in_dll(_libc, "stdout"), None, _IO_LINE_BUFFERED, 0)
