"""The guest's life: what a zygote prepares, what a fork renews, and the loop that serves one session.

prepare()     in the zygote, any number of times: import, join libraries to our displays, use everything once
hide()        in the zygote: our modules disappear from sys.modules, the program sees a clean interpreter
arm()         in the zygote, last: everything of a session that needs nothing of its own; where random state lies
serve()       in the child: Ready, Hello, cells; never returns

The later a page of memory is touched, the fewer processes pay for a copy of it; so what can be done before the fork is done in
`arm`, in a process that will run nothing but forks from then on.
"""

import builtins
import importlib
import linecache
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from os import register_at_fork
from posix import _exit as exit_process  # pyright: ignore[reportPrivateUsage]  # its public name is os._exit
from posix import getpid
from typing import Any, Final, NoReturn

from .. import wire
from . import checkpoint, reseed, stdin, warmup
from .audit import Listener
from .channel import Channel
from .display import Displays
from .ending import note_handlers
from .hooks import Hook
from .interrupts import be_wakeable, block_all, forget_zygote
from .own import OWN as __builtins__  # noqa: F401  # see own.py
from .policy import ModulePolicy
from .runner import Runner
from .streams import Streams, line_buffer_c

_HOOK: Final = Hook()
_PYTHON: Final = sys.version.partition(" ")[0]
_FAILED: Final = b'{"text": null, "value": null, "has_value": false, "error": %s, "interrupted": false, "limit": null}'
_EMPTY_CELL: Final = b"__import__('sys').version\nNone"
_UNREPORTED: Final = _FAILED % (
    b'{"type": "ReportError", "message": "the program broke the interpreter so far that its outcome could not be reported", '
    b'"traceback": "", "line": null}'
)
_OUT_OF_MEMORY: Final = _FAILED.replace(b'"limit": null', b'"limit": "memory"') % (
    b'{"type": "MemoryError", "message": "no memory was left to report the outcome", "traceback": "", "line": null}'
)


class _Guest:
    """Everything that serves a session, made in the zygote, so that its memory is shared until it is used."""

    def __init__(self) -> None:
        with _session_fds():
            self.streams = Streams()
        self.listener = Listener(self.streams.pass_on)
        self.displays = Displays(self._show)
        self.runner = Runner(self.streams, self.displays, self.listener)
        self.channel: Channel | None = None

    def _show(self, data: Mapping[str, bytes], is_result: bool) -> bool:  # as `Send` has it
        self.streams.pass_on()  # the host reads what the pipes hold before it takes a message
        return self.channel is not None and self.channel.display(data, is_result)

    def arm(self) -> None:
        """In the zygote: become the stdout, stderr and `__main__` of every process forked from here on."""
        sys.modules["__main__"] = self.runner.start()
        self.streams.install()
        self.listener.listen()
        register_at_fork(before=self.streams.pass_on, after_in_child=self._in_forked_child)
        _HOOK.displays = self.displays
        sys.argv = [""]
        if sys.path[:1] != [""]:
            sys.path.insert(0, "")

    def start(self, channel_fd: int) -> Channel:
        """In the process of the session."""
        channel = self.channel = Channel(channel_fd)
        self.runner.own()
        self.listener.wrote = False
        return channel

    def own(self, channel: Channel) -> None:
        """In a process that goes on in place of the session's, or beside it."""
        channel.own()
        self.runner.own()

    def event_loop(self) -> Any:
        return self.runner.event_loop()

    def seeded(self) -> frozenset[str]:
        return frozenset(self.runner.seeded)

    def touch(self) -> None:
        """Rehearse a cell: the memory that every cell writes to is copied now, while nobody waits, and not in the first run.

        From the decoding of its packets to the encoding of its answer, so that almost no page is left for the cell itself to copy.
        """
        protocol = wire.GuestProtocol()
        try:
            for packet in wire.packets(wire.Execute("", 0, False, (_EMPTY_CELL, b"{}"))):
                message = protocol.receive(packet)
                if isinstance(message, wire.Execute):
                    body = self.runner.run(message.cell, message.parts[0], message.parts[1], final=message.final)
                    list(wire.packets(wire.Done(message.run, (body,))))
        except Exception:  # noqa: BLE001  # short of memory, or the program broke what a cell needs: the next cell will say so
            block_all()
        linecache.cache.pop("<cell 0>", None)

    def _in_forked_child(self) -> None:
        if self.channel is not None:
            self.channel.leave()
        self.streams.forget_burst()


_made: Final[list[_Guest]] = []  # by the latest `prepare`


def prepare(imports: Sequence[str]) -> None:
    """Import the named modules (one that is missing is left out) and use whatever a cell will use, so that forks share it.

    Leaves no trace that a program could see, and no thread. Raises what an import other than ImportError raises.
    """
    stdin.add_site_builtins()
    builtins.input = stdin.read_line
    builtins.display = _HOOK.display  # type: ignore[attr-defined]
    _HOOK.install()
    for name in imports:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    warmup.run(_HOOK)
    line_buffer_c()
    _made[:] = [_Guest()]


def hide() -> None:
    """Take this package out of sys.modules; it goes on working, because nothing in it imports late."""
    top = __name__.partition(".")[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == top]:
        del sys.modules[name]


def arm(*, own_pid: int | None) -> tuple[tuple[int, int], ...]:
    """In the zygote, after its last import and after `gc.freeze`, so that what is made here is the session's to be freed.

    `own_pid`: the id that every fork will have in its own PID namespace; None where that is not known. Returns the places
    (address, bytes) that need random bytes in each fork.
    """
    forget_zygote()
    be_wakeable()
    note_handlers()
    _made[-1].arm()
    return reseed.places(own_pid)


def serve(channel_fd: int, held: tuple[str, ...]) -> NoReturn:
    """Serve one session on this socket until the host says `Shutdown` or is gone. `held` goes into `Ready`.

    Precondition: `arm` was called before the fork, and the places it gave were filled; 0 is /dev/null, 1 and 2 are the pipes,
    the working directory is the workspace.
    """
    guest = _made.pop()
    channel = guest.start(channel_fd)
    reseed.finish()
    guest.touch()
    channel.send(wire.Ready(wire.VERSION, _PYTHON, held))
    while True:
        match channel.receive():
            case wire.Execute() as execute:
                _execute(execute, guest.runner, channel)
            case wire.Hello(session):
                if session.get("at_home"):
                    os.chdir(os.environ["HOME"])
                if (threads := session.get("threads", 1)) > 1:
                    _use_threads(threads)
                if policy := ModulePolicy.of(session):
                    policy.install()
                    guest.runner.accept_builtins()
            case wire.Tools(parts):
                guest.runner.tell_tools(parts[0], channel)
                guest.runner.accept_builtins()
            case wire.ToolResult():
                pass  # of a call that a cell made which is over
            case wire.Checkpoint() as message:
                checkpoint.leave(guest, channel, message)
            case wire.Shutdown():
                channel.send(wire.Goodbye())
                exit_process(0)
            case _:
                exit_process(0)  # the host is gone


@contextmanager
def _session_fds() -> Generator[None, None, None]:
    """A zygote's own 0, 1 and 2 may be anything; while our streams are made they find what they find later in the session."""
    kept = {fd: os.dup(fd) if _is_open(fd) else -1 for fd in (0, 1, 2)}
    ends = (os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), *os.pipe())
    try:
        for fd, end in ((0, ends[0]), (1, ends[2]), (2, ends[2])):
            os.dup2(end, fd)
        yield
    finally:
        for fd, copy in kept.items():
            if copy >= 0:
                os.dup2(copy, fd)
                os.close(copy)
            else:
                os.close(fd)
        for end in ends:
            os.close(end)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _execute(execute: wire.Execute, runner: Runner, channel: Channel) -> None:
    """Run one cell and answer. The outermost shell: whatever fails in here, there is an answer, or no process."""
    body = _UNREPORTED
    channel.open_run(execute.run)
    pid = getpid()
    try:
        if not execute.final:
            _HOOK.be_notebook()
        inputs = execute.parts[1] if len(execute.parts) > 1 else b""
        if execute.late_interrupt:
            runner.drop_interrupt()
        body = runner.run(execute.cell, execute.parts[0], inputs, final=execute.final)
    except MemoryError:
        body = _OUT_OF_MEMORY
    except BaseException:  # noqa: BLE001  # the program broke something that we rely on; it is told so
        block_all()
    if getpid() != pid:
        exit_process(1)
    try:
        channel.send(wire.Done(execute.run, (body,)))
    except BaseException:  # noqa: BLE001  # without an answer the host must see an end
        exit_process(70)


def _use_threads(count: int) -> None:
    """Let numerical libraries use so many threads: those that are loaded, and those that will be."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[name] = str(count)
    try:
        pools: Any = importlib.import_module("threadpoolctl")
    except ImportError:  # then only what is loaded later
        return
    _kept_limits.append(pools.threadpool_limits(limits=count))


_kept_limits: Final[list[Any]] = []  # what is set holds as long as this object does
