"""What the program raised → type, message, traceback and line, for the answer.

A traceback shows the program's own frames: cells and modules of the workspace, with their lines. Ours never appear, and those of
libraries are only counted: a model mends its own line, and twenty frames of pandas do not help it find it.
"""

import errno
import linecache
from os.path import dirname
from traceback import StackSummary, TracebackException
from types import TracebackType
from typing import Any, Final

from .own import OWN
from .values import unicode_scalars

__builtins__ = OWN  # see own.py

# The standard library, wherever this interpreter has it; packages lie in folders named site-packages or dist-packages.
_LIBRARIES: Final = (dirname(linecache.__file__) + "/", "<frozen ")
MAX_MESSAGE_CHARS: Final = 4096
MAX_TRACEBACK_CHARS: Final = 64 * 1024
# Read below the class of the program, which may have attributes of these names.
_CAUSE: Final[Any] = vars(BaseException)["__cause__"]
_CONTEXT: Final[Any] = vars(BaseException)["__context__"]
_MEMBERS: Final[Any] = vars(BaseExceptionGroup)["exceptions"]
_MAX_CHAIN: Final = 200  # exceptions looked at (causes, contexts, members of groups), and frames of the simple form


def describe(error: BaseException, cell: str) -> dict[str, Any]:
    """`{"type", "message", "traceback", "line"}` of an exception that ended the cell of this file name.

    `line` is that of the innermost frame in this cell, so in a function of this cell rather than where it was called; of a
    syntax error, where the parser stumbled. Cuts our frames off the tracebacks of the exception itself and of its chain.
    """
    for member in _chain(error):
        member.__traceback__ = _cut(member.__traceback__)
    message = _safe_str(error.code if isinstance(error, SystemExit) else error)
    return {
        "type": str.__str__(type.__dict__["__name__"].__get__(type(error))),
        "message": shorten(message, MAX_MESSAGE_CHARS),
        "traceback": shorten(_format(error), MAX_TRACEBACK_CHARS),
        "line": _line(error, cell),
    }


def limit_of(error: BaseException) -> str | None:
    """The limit that the exception points to: "memory", "disk", "processes", or None."""
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, BlockingIOError) and error.errno == errno.EAGAIN and _is_fork(error.__traceback__):
        return "processes"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "disk"
    if type(error) is RuntimeError and error.args == ("can't start new thread",):
        return "processes"
    return None


def shorten(text: str, limit: int) -> str:
    """Head and tail of a text that is too long, with the cut marked."""
    text = unicode_scalars(text)
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… [{len(text) - 2 * half} characters left out] …\n{text[-half:]}"


def _safe_str(value: object) -> str:
    try:
        return str(value)
    # The program's own __str__: whatever it raises, the answer still has to be given.
    except BaseException as failure:  # noqa: BLE001
        return f"<str() of it failed: {type(failure).__name__}>"


def _format(error: BaseException) -> str:
    try:
        whole = TracebackException(type(error), error, error.__traceback__, compact=True)
        todo: list[Any] = [whole]
        while todo:
            part = todo.pop()
            if part is not None:
                part.stack = _OwnFrames(part.stack)
                todo += [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())]
        return "".join(whole.format())
    # Formatting calls methods of the program's exception, and needs memory; the type and message are still worth having.
    except BaseException:  # noqa: BLE001
        return _format_simply(error)


class _OwnFrames(StackSummary):
    """Shows the program's own frames; of libraries only how many there were, between or below them."""

    def format(self, **_options: Any) -> list[str]:
        lines: list[str] = []
        kept = StackSummary()
        skipped = 0
        for frame in [*self, None]:
            if frame is not None and _is_library(frame.filename):
                skipped += 1
                continue
            if skipped:
                lines += [*kept.format(), f"  … {skipped} frame{'s' if skipped > 1 else ''} of libraries …\n"]
                kept, skipped = StackSummary(), 0
            if frame is not None:
                kept.append(frame)
        return [*lines, *kept.format()]


def _is_library(filename: str) -> bool:
    # Compiled libraries name their sources as they were at their makers'.
    return filename.startswith(_LIBRARIES) or "-packages/" in filename or filename.endswith((".pyx", ".pxi"))


def _format_simply(error: BaseException) -> str:
    """The frames alone, without help of the standard library, which the program may have broken."""
    lines = ["Traceback (most recent call last):\n"]
    at = error.__traceback__
    while at is not None and len(lines) < _MAX_CHAIN:
        code = at.tb_frame.f_code
        lines.append(f'  File "{code.co_filename}", line {at.tb_lineno}, in {code.co_name}\n')
        at = at.tb_next
    return "".join([*lines, f"{type(error).__name__}: {_safe_str(error)}\n"])


def _chain(error: BaseException) -> list[BaseException]:
    """The exception with its causes, contexts and group members, each once."""
    found: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo and len(found) < _MAX_CHAIN:
        member = todo.pop()
        if member is None or id(member) in seen:
            continue
        seen.add(id(member))
        found.append(member)
        todo += [_CAUSE.__get__(member), _CONTEXT.__get__(member)]
        if isinstance(member, BaseExceptionGroup):
            todo += _MEMBERS.__get__(member)
    return found


def _cut(traceback: TracebackType | None) -> TracebackType | None:
    """Drop our frames; when ours began it, also what lies between them and the first frame of a cell (the event loop's)."""
    if traceback is not None and traceback.tb_frame.f_builtins is OWN:
        start = traceback
        while start is not None and not start.tb_frame.f_code.co_filename.startswith("<cell "):
            start = start.tb_next
        traceback = start or traceback
    while traceback is not None and traceback.tb_frame.f_builtins is OWN:
        traceback = traceback.tb_next
    at = traceback
    while at is not None:
        after = at.tb_next
        while after is not None and after.tb_frame.f_builtins is OWN:
            after = after.tb_next
        if after is not at.tb_next:
            at.tb_next = after
        at = after
    return traceback


def _line(error: BaseException, cell: str) -> int | None:
    if isinstance(error, SyntaxError) and error.filename == cell and type(error.lineno) is int:
        return error.lineno
    line, at = None, error.__traceback__
    while at is not None:
        if at.tb_frame.f_code.co_filename == cell:
            line = at.tb_lineno
        at = at.tb_next
    return line


def _is_fork(traceback: TracebackType | None) -> bool:
    """Whether the innermost line starts a process; a socket that is not ready raises the same error."""
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    line = linecache.getline(traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)
    return "fork" in line or "spawn" in line
