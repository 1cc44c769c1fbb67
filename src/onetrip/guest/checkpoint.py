"""Leaves a checkpoint behind: the session's process forks, the parent sleeps as it was, the child goes on.

A checkpoint waits on a socket of its own, which no other process of the sandbox has. Asked to, it forks a process that goes on from
its state, any number of times; when the socket ends, it ends. It never runs a line of the program.

The process that goes on is a new one with a higher process id, in a session and process group of its own, and cannot signal its
elders (`forking.guard`). What does not come along with memory is mended here: positions of open files, the event loop's selector.
"""

import gc
from _signal import getsignal, signal  # type: ignore[import-not-found]  # no stubs; the C functions: see interrupts.py
from os import WNOHANG, chdir, close, dup2, environ, getppid, setsid, waitpid
from posix import _exit as exit_process  # pyright: ignore[reportPrivateUsage]  # its public name is os._exit
from posix import getpid, write
from selectors import DefaultSelector
from signal import SIG_DFL, SIGCHLD
from sys import modules
from typing import Any, Final, Protocol, cast

from .. import wire
from . import forking, openfiles, reseed
from .channel import Channel
from .own import OWN as __builtins__  # noqa: F401  # see own.py

_WORKSPACE: Final = "/workspace"
_BRANCHES: Final = "/branches/"
_UNRESTRICTED: Final = 71  # exit status (sysexits.h, EX_OSERR)
_CHILD, _DEFAULT = int(SIGCHLD), int(SIG_DFL)


class Session(Protocol):
    """What goes on in a child: see `loop`."""

    channel: Channel | None

    def own(self, channel: Channel) -> None: ...
    def touch(self) -> None: ...
    def event_loop(self) -> Any: ...
    def seeded(self) -> frozenset[str]: ...


def leave(session: Session, channel: Channel, message: wire.Checkpoint) -> None:
    """Answer `Checkpoint`. Returns in the process that goes on: the child now, or one that the checkpoint spawns later."""
    command, why = channel.fds.pop(), forking.obstacle()
    if why is None:
        # What is garbage now would be copied into every later process; what is not is not looked at again.
        gc.collect()
        gc.freeze()
        files = openfiles.record()
        openfiles.unlock(files)
        theirs = _hear_of_children()
        try:
            child = forking.fork()
        except OSError as err:
            why = f"it cannot be forked: {err.strerror or err}"
            openfiles.lock(files)
            _hear_as_before(theirs)
        else:
            if child:
                _sleep(session, channel, command, files)
                _hear_as_before(theirs)
                return
            openfiles.lock(files)
            _hear_as_before(theirs)
            close(command)
            why = _go_on(session, channel)
            session.touch()
            channel.send(wire.Kept(message.number, getpid(), getppid(), why or ""))
            return
    close(command)
    channel.send(wire.Kept(message.number, getpid(), 0, why))


def _sleep(session: Session, channel: Channel, command_fd: int, files: list[openfiles.OpenFile]) -> None:
    """Be a checkpoint. Returns in a process that it spawned."""
    command = Channel(command_fd)
    while True:
        message = command.receive()
        if not isinstance(message, wire.Spawn):
            exit_process(0)
        _reap()
        fds, command.fds = command.fds, []
        try:
            child = forking.fork()
        except OSError as err:
            refusal = wire.Refused("fork the checkpoint", err.errno or 0, err.strerror or str(err))
            for packet in wire.packets(refusal):
                write(fds[0] if fds else 3, packet)  # the channel of who would have gone on
            child = -1
        if child == 0:
            command.end()
            _rise(session, channel, message, fds, files)
            return
        for fd in fds:
            close(fd)


def _hear_of_children() -> Any:
    """While SIGCHLD is ignored, the kernel keeps no exit status for the host to read (wait(2)). Returns how it was handled."""
    theirs = cast("Any", getsignal(_CHILD))
    if theirs is not None:  # a handler of a library's, which could not be set again
        signal(_CHILD, _DEFAULT)
    return theirs


def _hear_as_before(theirs: Any) -> None:
    if theirs is not None:
        signal(_CHILD, theirs)


def _reap() -> None:
    try:
        while waitpid(-1, WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _rise(session: Session, channel: Channel, message: wire.Spawn, fds: list[int], files: list[openfiles.OpenFile]) -> None:
    """In a process that a checkpoint has just forked."""
    note = ""
    if message.branch:
        channel.own()
        *own, ruleset = fds
        for fd, target in zip(own, (3, 1, 2), strict=True):
            dup2(fd, target, inheritable=target != 3)
            close(fd)
        try:
            forking.restrict(ruleset)
        except OSError as err:  # it must not start with the files of others in reach
            channel.send(wire.Refused("enter the branch's Landlock domain", err.errno or 0, err.strerror or str(err)))
            exit_process(_UNRESTRICTED)
        close(ruleset)
        chdir(message.workspace)
        if message.workspace.startswith(_BRANCHES):  # a sibling has the scratch of its origin
            _move_scratch(message.workspace)
        reseed.branch(session.seeded())
        missing = openfiles.reopen(files, (_WORKSPACE, message.workspace))
        if missing:
            note = f"open files that are not in the branch: {', '.join(missing)[:500]}"
    else:
        openfiles.restore(files)
        channel.start_over()
    refusal = _go_on(session, channel)
    channel.send(wire.Live(getpid(), refusal or note))
    if not message.branch:  # whoever asks for a branch has something for it to do
        session.touch()


def _move_scratch(workspace: str) -> None:
    """A branch has its temporary files and its home beside its workspace."""
    above = workspace.rpartition("/")[0]
    scratch, home = f"{above}/scratch", f"{above}/home"
    environ.update(TMPDIR=scratch, HOME=home, MPLCONFIGDIR=scratch, XDG_CACHE_HOME=scratch)
    tempfile: Any = modules.get("tempfile")
    if tempfile is not None:
        tempfile.tempdir = None


def _go_on(session: Session, channel: Channel) -> str | None:
    """Become the session's process. Returns what could not be done, for people."""
    problem = None
    try:
        setsid()
        forking.guard(getpid())
    except OSError as err:
        problem = f"its elders cannot be put out of reach: {err}"
    _renew(session.event_loop())
    session.own(channel)
    return problem


def _renew(loop: Any) -> None:
    """Give an event loop a selector and a wake-up of its own: those that it has are shared with its elders."""
    if loop is None or loop.is_closed() or not hasattr(loop, "_selector"):
        return
    before, selector = loop._selector, DefaultSelector()  # noqa: SLF001  # there is no other way to change it
    for key in list(before.get_map().values()):
        if key.fd != loop._ssock.fileno():  # noqa: SLF001
            selector.register(key.fileobj, key.events, key.data)
    before.close()
    loop._selector = selector  # noqa: SLF001
    loop._ssock.close()  # noqa: SLF001
    loop._csock.close()  # noqa: SLF001
    loop._internal_fds -= 1  # noqa: SLF001
    loop._make_self_pipe()  # noqa: SLF001
