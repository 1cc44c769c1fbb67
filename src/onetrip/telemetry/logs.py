"""Structured logs: one JSON object per line, or a line for people on a terminal, that no untrusted text can forge.

A line is never longer than a pipe takes at once, so lines of several processes on one stderr do not mix; and it is written only
when the reader takes it, so a reader that is stuck costs lines, which are counted, and never stops the server.
"""

import json
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

from onetrip.telemetry.context import current

LINE_BYTES: Final = select.PIPE_BUF  # 4096: what a pipe takes whole or not at all
REPORTED: Final = "request "  # begins the note on an exception that was logged where it was caught
Level = Literal["debug", "info", "warning", "error"]
_FIELDS: Final = "onetrip_fields"
_CONTENT: Final = "onetrip_content"
_LEVELS: Final[Mapping[Level, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# logger → the lowest level that we take from it; others write through them
_FOREIGN: Final[Mapping[str, int]] = {"uvicorn": 20, "asyncio": 30, "opentelemetry": 30, "mcp": 30}
_encode: Final = json.JSONEncoder(default=str, ensure_ascii=True, separators=(",", ":")).encode
_SILENT: Final = "uvicorn.access"  # the middleware's line says more


class Log:
    """Writes events. `error` adds its traceback; `content` is code or output, which only `log_content` lets through."""

    def __init__(self, name: str = "onetrip") -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, /, **fields: Any) -> None:
        self._write(10, event, fields)

    def info(self, event: str, /, **fields: Any) -> None:
        self._write(20, event, fields)

    def warning(self, event: str, /, *, error: BaseException | None = None, **fields: Any) -> None:
        self._write(30, event, fields, error)

    def error(self, event: str, /, *, error: BaseException | None = None, **fields: Any) -> None:
        self._write(40, event, fields, error)

    def content(self, event: str, /, *, content: Mapping[str, str], **fields: Any) -> None:
        """An event at level `info` with code or output, which are left out unless `log_content` is set."""
        self._write(20, event, fields, None, content)

    def _write(
        self,
        level: int,
        event: str,
        fields: Mapping[str, Any],
        error: BaseException | None = None,
        content: Mapping[str, str] | None = None,
    ) -> None:
        if not self._logger.isEnabledFor(level):
            return
        about = (type(error), error, error.__traceback__) if error is not None else None
        record = logging.LogRecord(
            self._logger.name, level, "", 0, event, None, about
        )  # by hand: looking for the caller costs more
        record.__dict__[_FIELDS], record.__dict__[_CONTENT] = fields, content
        self._logger.handle(record)


class LineHandler(logging.Handler):
    """Writes records as lines to a descriptor; counts what it had to drop."""

    def __init__(self, fd: int, *, human: bool, content: bool) -> None:
        super().__init__()
        self.dropped = 0
        self._torn = False  # what was written last has no end
        self._unsaid = 0  # dropped since the last line that got through
        self._fd, self._content = fd, content
        self._render: Callable[[dict[str, Any]], str] = human_line if human else json_line
        self._ready = select.poll()
        self._ready.register(fd, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:  # under the handler's lock
        if record.name.startswith("uvicorn") and _reported(record):
            return
        line = fitted(_fields(record, content=self._content), self._render)
        if self._unsaid and self._write(self._render({**_stamp("warning"), "event": "log_lines_dropped", "count": self._unsaid})):
            self._unsaid = 0
        if not self._write(line):
            self.dropped += 1
            self._unsaid += 1

    def _write(self, line: str) -> bool:
        # A pipe that polls as writable takes LINE_BYTES without blocking. Another process that writes in between could make us
        # wait all the same, for as long as the reader does; that takes a reader that is stuck and two writers at one moment.
        data = (b"\n" if self._torn else b"") + line.encode("utf-8", "backslashreplace") + b"\n"
        try:
            written = os.write(self._fd, data) if self._ready.poll(0) else 0
        except OSError:  # the reader went away, or the disk is full: a server goes on without its log
            written = 0
        if written:
            self._torn = written < len(data)  # the last of the disk took a part of it
        return written == len(data)


def configure(level: Level, *, content: bool = False, fd: int | None = None, human: bool | None = None) -> LineHandler:
    """Send our log and that of uvicorn, asyncio and the SDK to `fd`, by default stderr. `release` takes it back.

    Start uvicorn with `log_config=None`, or it sets up its own.
    """
    to = sys.stderr.fileno() if fd is None else fd
    handler = LineHandler(to, human=os.isatty(to) if human is None else human, content=content)
    ours = logging.getLogger("onetrip")
    ours.setLevel(_LEVELS[level])
    for name in ("onetrip", *_FOREIGN):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    for name, lowest in _FOREIGN.items():
        logging.getLogger(name).setLevel(max(lowest, _LEVELS[level]))
    access = logging.getLogger(_SILENT)
    access.handlers.clear()
    access.propagate = False
    return handler


def release(handler: LineHandler) -> None:
    """Undo `configure`, as far as its handler is still the one in place."""
    for name in ("onetrip", *_FOREIGN):
        logger = logging.getLogger(name)
        if handler in logger.handlers:
            logger.removeHandler(handler)
            logger.propagate = True
            logger.setLevel(logging.NOTSET)
    logging.getLogger(_SILENT).propagate = True
    handler.close()


def json_line(fields: Mapping[str, Any]) -> str:
    """ASCII only, so that no reader finds a line's end, a terminal's command or a change of direction in a value."""
    return _encode(fields).replace("\x7f", "\\u007f")


def human_line(fields: Mapping[str, Any]) -> str:
    """The same for people: what cannot be printed is shown as an escape; a traceback follows, indented, on lines of its own."""
    rest = {name: value for name, value in fields.items() if name not in {"time", "level", "event", "traceback"}}
    said = "  ".join(f"{name}={shown(value)}" for name, value in rest.items())
    line = f"{str(fields['time'])[11:23]} {fields['level']:7} {shown(fields['event'])}  {said}".rstrip()
    trace = [shown(frame) for frame in str(fields.get("traceback", "")).splitlines()]
    return "\n    ".join([line, *trace])


def shown(value: object) -> str:
    """A value as text on one line of a terminal."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def fitted(fields: dict[str, Any], render: Callable[[dict[str, Any]], str]) -> str:
    """The fields as a line that fits; the longest texts are cut first, a traceback from its beginning."""
    for name, value in fields.items():  # so that what follows is quick whatever we were given
        if isinstance(value, str) and len(value) > LINE_BYTES:
            fields[name] = _cut(name, value, LINE_BYTES)
    line = render(fields)
    while len(line) >= LINE_BYTES or (not line.isascii() and len(line.encode("utf-8", "backslashreplace")) >= LINE_BYTES):
        texts = [name for name, value in fields.items() if isinstance(value, str) and len(value) > 64]
        if not texts:  # a field that is no text: say at least what and when
            return render(
                {name: fields[name] for name in ("time", "level", "event", "request_id") if name in fields} | {"cut": True}
            )
        longest = max(texts, key=lambda name: len(fields[name]))
        fields[longest] = _cut(longest, fields[longest], len(fields[longest]) * 2 // 3)
        line = render(fields)
    return line


def _cut(name: str, text: str, length: int) -> str:
    return f"…{text[-length:]}" if name == "traceback" else f"{text[:length]}…"


def _stamp(level: str, at: float | None = None) -> dict[str, Any]:
    now = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    return {"time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"), "level": level}


def _fields(record: logging.LogRecord, *, content: bool) -> dict[str, Any]:
    fields = _stamp("error" if record.levelno >= 40 else record.levelname.lower(), record.created)
    info = current()
    own: Mapping[str, Any] | None = record.__dict__.get(_FIELDS)
    if own is None:  # a library's
        fields |= {"event": "library", "logger": record.name, "message": record.getMessage()}
    else:
        fields["event"] = record.msg
    if info is not None:
        about = {
            "request_id": info.request_id,
            "run_id": info.run_id,
            "session_id": info.session_id,
            "tenant": info.tenant,
            "trace_id": info.trace_id,
        }
        fields |= {name: value for name, value in about.items() if value is not None}
    # what every line has is not to be overwritten by a field of the same name
    fields |= {name: value for name, value in (own or {}).items() if value is not None and name not in {"time", "level", "event"}}
    if content and (said := record.__dict__.get(_CONTENT)):
        fields |= {name: value for name, value in said.items() if name not in fields}
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        fields["error"] = type(error).__name__
        fields["traceback"] = "".join(traceback.format_exception(error, limit=-12))
    return fields


def _reported(record: logging.LogRecord) -> bool:
    """Whether the middleware has logged this exception already: uvicorn logs it again when it closes the connection."""
    error = record.exc_info[1] if record.exc_info else None
    return error is not None and any(said.startswith(REPORTED) for said in getattr(error, "__notes__", ()))
