"""The guest's life: what a zygote prepares, what a fork renews, and the loop that serves one session.

prepare()     in the zygote, any number of times: import, join libraries to our displays, use everything once
hide()        in the zygote, last: our modules disappear from sys.modules, the program sees a clean interpreter
after_fork()  in the child: randomness of its own
serve()       in the child: Ready, Hello, cells; never returns
"""

import builtins
import importlib
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from os import register_at_fork
from posix import _exit as exit_process  # pyright: ignore[reportPrivateUsage]  # its public name is os._exit
from posix import getpid
from typing import Any, Final, NoReturn

from .. import wire
from . import reseed, stdin, warmup
from .audit import Listener
from .channel import Channel
from .display import Displays
from .hooks import Hook
from .interrupts import block_all
from .own import OWN as __builtins__  # noqa: F401  # see own.py
from .policy import ModulePolicy
from .runner import Runner
from .streams import Streams, line_buffer_c

_HOOK: Final = Hook()
_FAILED: Final = b'{"text": null, "value": null, "has_value": false, "error": %s, "interrupted": false, "limit": null}'
_UNREPORTED: Final = _FAILED % (
    b'{"type": "ReportError", "message": "the program broke the interpreter so far that its outcome could not be reported", '
    b'"traceback": "", "line": null}'
)
_OUT_OF_MEMORY: Final = _FAILED.replace(b'"limit": null', b'"limit": "memory"') % (
    b'{"type": "MemoryError", "message": "no memory was left to report the outcome", "traceback": "", "line": null}'
)


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


def hide() -> None:
    """Take this package out of sys.modules; it goes on working, because nothing in it imports late."""
    top = __name__.partition(".")[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == top]:
        del sys.modules[name]


def after_fork() -> None:
    """In the forked child, before anything of the program."""
    reseed.reseed()


def serve(channel_fd: int, held: tuple[str, ...]) -> NoReturn:
    """Serve one session on this socket until the host says `Shutdown` or is gone. `held` goes into `Ready`.

    Precondition: 0 is /dev/null, 1 and 2 are the pipes, the working directory is the workspace.
    """
    block_all()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a zygote's handler is not the program's
    channel = Channel(channel_fd)
    streams = Streams()
    streams.install()
    line_buffer_c()
    listener = Listener(streams.pass_on)
    listener.listen()

    def show(data: Mapping[str, bytes], is_result: bool) -> bool:
        streams.pass_on()  # the host reads what the pipes hold before it takes a message
        return channel.display(data, is_result)

    _HOOK.displays = displays = Displays(show)
    register_at_fork(before=streams.pass_on, after_in_child=lambda: _in_forked_child(channel, streams))
    sys.argv = [""]
    if sys.path[:1] != [""]:
        sys.path.insert(0, "")
    runner = Runner(streams, displays, listener)
    sys.modules["__main__"] = runner.main
    channel.send(wire.Ready(wire.VERSION, sys.version.partition(" ")[0], held))
    while True:
        match channel.receive():
            case wire.Execute() as execute:
                _execute(execute, runner, channel)
            case wire.Hello(session):
                _apply_limits(session.get("rlimits") or {})
                if policy := ModulePolicy.of(session):
                    policy.install()
                    runner.accept_builtins()
            case wire.Shutdown():
                channel.send(wire.Goodbye())
                exit_process(0)
            case _:
                exit_process(0)  # the host is gone


def _execute(execute: wire.Execute, runner: Runner, channel: Channel) -> None:
    """Run one cell and answer. The outermost shell: whatever fails in here, there is an answer, or no process."""
    body = _UNREPORTED
    channel.open_run(execute.run)
    pid = getpid()
    try:
        if not execute.final:
            _HOOK.be_notebook()
        inputs = execute.parts[1] if len(execute.parts) > 1 else b""
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


def _in_forked_child(channel: Channel, streams: Streams) -> None:
    channel.leave()
    streams.forget_burst()


def _apply_limits(limits: Mapping[str, Any]) -> None:
    for name, (soft, hard) in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))
