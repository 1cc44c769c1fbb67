"""How results, events and errors look on a terminal: the program's output on stdout, everything of ours on stderr."""

import base64
import os
import sys
from typing import IO, Final

from onetrip.errors import OnetripError
from onetrip.model import DisplayData, Displayed, Event, LimitName, Result, SessionState, Stderr, Stdout

_DIM: Final = ("\x1b[2m", "\x1b[0m")
_RED: Final = ("\x1b[31m", "\x1b[0m")

EXIT_STATUS: Final = {"completed": 0, "failed": 1, "interrupted": 1, "limit_exceeded": 3, "lost": 4, "waiting": 4}

LIMIT_HINTS: Final[dict[LimitName, str]] = {
    "wall": "Raise it with --wall-s, or look for a loop that does not end.",
    "cpu": "Raise it with --cpu-s; it counts all processes of the program together.",
    "memory": "Raise it with --memory-mb, or read the data in parts; files of the program count too.",
    "processes": "Raise it with --processes; threads count too.",
    "disk": "Raise it with --disk-mb, or write less; many small files count too.",
    "output": "Raise it with --output-mb, or write to a file.",
    "tool_calls": "The program called tools more often than allowed.",
}

_EXTENSIONS: Final = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/svg+xml": "svg",
    "application/pdf": "pdf",
    "text/html": "html",
}


def prepare_streams() -> None:
    """Never die of a character that the terminal's encoding lacks: a program may print lone surrogates."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a test's capture has none
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def print_error(error: OnetripError) -> None:
    """What happened, then what to do."""
    print(f"{_coloured('error:', _RED, sys.stderr)} {error}", file=sys.stderr)
    print(f"hint: {error.hint}", file=sys.stderr)


def note(text: str) -> None:
    """One dim line of ours."""
    print(_coloured(text, _DIM, sys.stderr), file=sys.stderr)


class Printer:
    """Prints the events of one run as they come, then its result. Remembers what it may have to put on a new line."""

    def __init__(self) -> None:
        self._open_line = False  # stdout's last character was not a newline
        self.displays: list[DisplayData] = []

    def event(self, event: Event) -> None:
        match event:
            case Stdout(text=text):
                self._stdout(text)
            case Stderr(text=text):
                sys.stdout.flush()
                sys.stderr.write(text)
                sys.stderr.flush()
            case Displayed(display=display):
                self.displays.append(display)
                plain = display.data.get("text/plain")
                if plain is not None and not display.is_result:
                    self._line(plain)
            case _:
                pass

    def result(self, result: Result) -> None:
        """The value of the last expression, the traceback, the limit that ended it, and one line of what it used."""
        if result.text is not None:
            self._line(result.text)
        sys.stdout.flush()
        if self._open_line and (result.error or result.limit):
            print(file=sys.stderr)
        if result.error is not None:
            traceback = result.error.traceback.rstrip("\n")
            print(traceback or f"{result.error.type}: {result.error.message}", file=sys.stderr)
        if result.limit is not None:
            limit = result.limit
            print(
                f"{_coloured('error:', _RED, sys.stderr)} the {limit.name} limit of {limit.limit:g} {limit.unit} ended the run",
                file=sys.stderr,
            )
            print(f"hint: {LIMIT_HINTS[limit.name]}", file=sys.stderr)
        elif result.status == "interrupted":
            note("interrupted")
        elif result.status == "lost":
            print(f"{_coloured('error:', _RED, sys.stderr)} the sandbox was lost", file=sys.stderr)
            print("hint: Run it again; `onetrip doctor` shows what this machine gives.", file=sys.stderr)
        for stream in ("stdout", "stderr"):
            if getattr(result.truncated, stream):
                note(f"{stream} was cut at the limit of output")

    def _stdout(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        if text:
            self._open_line = not text.endswith("\n")

    def _line(self, text: str) -> None:
        if self._open_line:
            self._stdout("\n")
        self._stdout(f"{text}\n")


def changes(state: SessionState) -> list[str]:
    """What became of a session that goes on: nothing to say, or that it was rolled back, or that this cell cannot be undone."""
    if not state.survived:
        return []
    said = ["rolled back: variables and files are as they were before"] if state.rolled_back else []
    return said if state.note is None else [*said, state.note]


def summary(result: Result) -> str:
    """One line: how it ended, what it cost, how it was isolated."""
    usage = result.usage
    return (
        f"{result.status.replace('_', ' ')} · {_ms(usage.wall_ms)} wall, {_ms(usage.cpu_ms)} cpu, "
        f"{usage.peak_memory_bytes / 2**20:.0f} MB peak · {result.isolation.tier}, {result.isolation.level}"
    )


def save_displays(displays: list[DisplayData], folder: str) -> list[str]:
    """Write every display that has a form for a file, the richest one, as display-N; their paths. Raises OSError."""
    saved: list[str] = []
    for number, display in enumerate(displays, 1):
        for mime, extension in _EXTENSIONS.items():
            data = display.data.get(mime)
            if data is None:
                continue
            text = mime.startswith("text/") or mime == "image/svg+xml"
            path = os.path.join(folder, f"display-{number}.{extension}")
            with open(path, "wb") as file:
                file.write(data.encode(errors="backslashreplace") if text else base64.b64decode(data))
            saved.append(path)
            break
    return saved


def pictures(displays: list[DisplayData]) -> int:
    return sum(any(mime.startswith("image/") for mime in display.data) for display in displays)


def _ms(ms: float) -> str:
    return f"{ms:.1f} ms" if ms < 1000 else f"{ms / 1000:.2f} s"


def _coloured(text: str, colour: tuple[str, str], stream: IO[str]) -> str:
    return text.join(colour) if stream.isatty() else text
