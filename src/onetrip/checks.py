"""Checks a request before anything is started: limits in range, source that is text, names that are names.

Every refusal is a `BadRequest` whose `field` names the part of the request, and whose message gives the range allowed.
The command line and the Python interface both come through here, so the same mistake gets the same words.
"""

import keyword
import math
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, cast

import msgspec

from onetrip.errors import BadRequest
from onetrip.model import Cell, Limits, Tool

MAX_SOURCE_BYTES: Final = 10 * 1024 * 1024  # of one cell; CPython's parser needs about 100 times that in memory
MAX_INPUT_BYTES: Final = 32 * 1024 * 1024  # of all inputs as JSON; half of what one frame carries
MAX_INPUT_DEPTH: Final = 500  # of lists and objects in each other; the parsers on both sides give up at about 1,000
_ENVIRONMENT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}", re.IGNORECASE)


class Range(NamedTuple):
    """Smallest and largest value that a limit may have, and why not less or more."""

    low: float
    high: float
    unit: str
    why: str


DAY_S: Final = 86_400

LIMIT_RANGES: Final[Mapping[str, Range]] = {
    "wall_s": Range(0.01, DAY_S, "s", "shorter than one start of a sandbox, or longer than a day"),
    "cpu_s": Range(0.01, 64 * DAY_S, "s", "shorter than one clock tick, or longer than a day on 64 cores"),
    "memory_mb": Range(32, 1024 * 1024, "MB", "less than an interpreter with numpy, or more than a terabyte"),
    "processes": Range(1, 4096, "processes and threads", "none at all, or more than a namespace should hold"),
    "disk_mb": Range(1, 1024 * 1024, "MB", "less than one chart, or more than a terabyte"),
    "output_mb": Range(1, 1024, "MB", "nothing, or more than a caller can hold as one text"),
    "tool_calls": Range(0, 1_000_000, "calls", "less than none, or more than a ledger should hold"),
}


def check_limits(limits: Limits) -> Limits:
    """Return `limits` unchanged, or raise BadRequest that names the field and its range."""
    for name, allowed in LIMIT_RANGES.items():
        _check_range(f"limits.{name}", getattr(limits, name), allowed)
    return limits


def check_timeout(timeout_s: object) -> float | None:
    """The same range as `limits.wall_s`; None means that limit."""
    return None if timeout_s is None else _check_range("timeout_s", timeout_s, LIMIT_RANGES["wall_s"])


def _check_range(field: str, value: object, allowed: Range) -> float:
    whole = allowed.low == int(allowed.low)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise BadRequest(f"{field}: {value!r} is not a {'whole ' if whole else ''}number.", field=field)
    if not math.isfinite(value) or not allowed.low <= value <= allowed.high:
        raise BadRequest(
            f"{field}: {value} is out of range; it must be from {allowed.low:g} to {allowed.high:,.0f} {allowed.unit}.",
            field=field,
        )
    return value


MAX_CHECKPOINTS: Final = 64


def check_checkpoints(checkpoints: object) -> None:
    """How many cells of a session can be undone."""
    _check_range(
        "checkpoints",
        checkpoints,
        Range(0, MAX_CHECKPOINTS, "checkpoints", "less than none, or more processes asleep than useful"),
    )


def check_cells(cells: object) -> None:
    """How many cells to go back, or forward again."""
    _check_range("cells", cells, Range(1, MAX_CHECKPOINTS, "cells", "less than one, or more than are kept"))


MAX_BRANCHES: Final = 1000
MAX_SIBLINGS: Final = 64
MAX_THREADS: Final = 64


def check_threads(threads: object) -> None:
    """How many threads OpenMP and BLAS may use, and so how many CPUs."""
    _check_range("threads", threads, Range(1, MAX_THREADS, "threads", "less than one, or more than a machine has"))


def check_siblings(siblings: object, *, checkpoints: int, threads: int) -> None:
    """How many interpreters may work beside a session's own. They come from its first checkpoint."""
    allowed = Range(0, MAX_SIBLINGS, "interpreters", "less than none, or more than one room should hold")
    if _check_range("siblings", siblings, allowed) and (not checkpoints or threads > 1):
        raise BadRequest("siblings: a session without checkpoints, or with several threads, can have none.", field="siblings")


MAX_TOOLS: Final = 2000
MAX_CATALOGUE_BYTES: Final = 8 * 1024 * 1024
RESERVED_NAMES: Final = frozenset(
    {"search", "describe", "ToolError", "ToolTimeout", "ToolDenied", "ToolArgumentError"}
)  # in the module `tools` itself


def check_tools(tools: Sequence[Tool], *, field: str = "tools") -> None:
    """Names that a program can write, each once; schemas of objects; not more than a guest should be told."""
    if len(tools) > MAX_TOOLS:
        raise BadRequest(f"{field}: {len(tools):,} tools; the most is {MAX_TOOLS:,}.", field=field)
    seen: set[str] = set()
    size = 0
    for i, tool in enumerate(tools):
        where = f"{field}[{i}]"
        parts = tool.name.split(".")
        if len(tool.name) > 200 or not all(
            part.isidentifier() and part.isascii() and not keyword.iskeyword(part) for part in parts
        ):
            raise BadRequest(
                f"{where}.name: {tool.name[:80]!r} is not a name that a program can call.",
                hint="Use letters, digits and _, not beginning with a digit; a dot between a namespace and a name.",
                field=f"{where}.name",
            )
        if parts[0] in RESERVED_NAMES or any(part.startswith("__") for part in parts):
            raise BadRequest(
                f"{where}.name: {tool.name!r} is the name of something else in the module `tools`.", field=f"{where}.name"
            )
        if tool.name in seen:
            raise BadRequest(f"{where}.name: there are two tools named {tool.name!r}.", field=f"{where}.name")
        seen.add(tool.name)
        if tool.input_schema.get("type", "object") != "object":
            raise BadRequest(f"{where}.input_schema: must describe an object.", field=f"{where}.input_schema")
        size += len(msgspec.json.encode(tool))
    spaces = {name[:at] for name in seen for at, letter in enumerate(name) if letter == "."}
    if both := sorted(seen & spaces):
        raise BadRequest(f"{field}: {both[0]!r} is a tool and a namespace.", field=field)
    if size > MAX_CATALOGUE_BYTES:
        raise BadRequest(f"{field}: {size:,} bytes in all; the most is {MAX_CATALOGUE_BYTES:,}.", field=field)


def check_cell(cell: Cell) -> None:
    """Everything that a cell brings. Raises BadRequest."""
    check_source(cell.code)
    check_inputs(cell.inputs)
    check_timeout(cell.timeout_s)
    check_tools(cell.tools)


def check_count(count: object) -> None:
    """How many branches one call makes."""
    _check_range("count", count, Range(1, MAX_BRANCHES, "branches", "less than one, or more than one call should make"))


def check_source(code: object, *, field: str = "code") -> bytes:
    """The source as UTF-8. Raises BadRequest for what is not text, holds NUL characters, or is over `MAX_SOURCE_BYTES`."""
    if not isinstance(code, str):
        raise BadRequest(f"{field}: source must be a str, not {type(code).__name__}.", field=field)
    if len(code) > MAX_SOURCE_BYTES:  # a character is at least a byte: refuse before encoding 50 MB
        raise _too_large(field, len(code))
    nul = code.find("\0")
    if nul >= 0:
        line = code.count("\n", 0, nul) + 1
        raise BadRequest(
            f"{field}: the source holds a NUL character in line {line}; Python refuses such source.",
            hint="Remove it; in a string literal write \\0.",
            field=field,
        )
    try:
        source = code.encode()
    except UnicodeEncodeError as err:
        line = code.count("\n", 0, err.start) + 1
        raise BadRequest(
            f"{field}: the source holds a lone surrogate (U+{ord(code[err.start]):04X}) in line {line}; it cannot be encoded as UTF-8.",
            hint="It comes from text that was decoded wrongly; in a string literal write \\ud800.",
            field=field,
        ) from err
    if len(source) > MAX_SOURCE_BYTES:
        raise _too_large(field, len(source))
    return source


def decode_source(raw: bytes, *, field: str) -> str:
    """Text of a source file in UTF-8, with or without a byte order mark. Raises BadRequest with the offset of the first bad byte."""
    if len(raw) > MAX_SOURCE_BYTES:
        raise _too_large(field, len(raw))
    bom = b"\xef\xbb\xbf"
    body = raw.removeprefix(bom)
    try:
        code = body.decode()
    except UnicodeDecodeError as err:
        offset = err.start + len(raw) - len(body)
        line = body.count(b"\n", 0, err.start) + 1
        raise BadRequest(
            f"{field}: the source is not UTF-8: byte 0x{body[err.start]:02x} at offset {offset} (line {line}).",
            hint="Save the file as UTF-8; for example `iconv -f LATIN1 -t UTF-8 FILE`.",
            field=field,
        ) from err
    check_source(code, field=field)
    return code


def check_inputs(inputs: Mapping[str, object]) -> bytes:
    """The inputs as one JSON object. Raises BadRequest for names that are no identifiers and values that are not JSON."""
    for name in inputs:
        if not isinstance(name, str) or not name.isidentifier():  # pyright: ignore[reportUnnecessaryIsInstance] -- a caller's mapping
            raise BadRequest(f"inputs: {name!r} is not a name that a variable can have.", field=f"inputs.{name}")
    try:
        encoded = msgspec.json.encode(inputs)
    except (TypeError, ValueError, RecursionError) as err:
        raise BadRequest(f"inputs: not JSON: {err}.", field="inputs") from err
    if len(encoded) > MAX_INPUT_BYTES:
        raise BadRequest(
            f"inputs: {len(encoded):,} bytes of JSON; the most is {MAX_INPUT_BYTES:,}.",
            hint="Pass large data as a file.",
            field="inputs",
        )
    if encoded.count(b"[") + encoded.count(b"{") > MAX_INPUT_DEPTH and _depth(inputs) > MAX_INPUT_DEPTH:
        raise BadRequest(f"inputs: nested more than {MAX_INPUT_DEPTH} deep.", hint="Pass such data as a file.", field="inputs")
    return encoded


def _depth(value: object) -> int:
    """How many lists and dictionaries are in each other, found without recursion."""
    depth, level = -1, [value]
    while level:
        inner: list[object] = []
        for one in level:
            if isinstance(one, Mapping):
                inner += cast("Mapping[str, object]", one).values()
            elif isinstance(one, list | tuple):
                inner += cast("list[object]", one)
        depth, level = depth + 1, inner
    return depth


def check_environment_name(name: object, *, field: str = "environment") -> str:
    """Letters, digits, `_`, `.` and `-`, at most 64, the first a letter or digit: it becomes the name of a folder."""
    if not isinstance(name, str) or not _ENVIRONMENT_NAME.fullmatch(name):
        raise BadRequest(
            f"{field}: {str(name)[:80]!r} is not a name for an environment.",
            hint="Use up to 64 letters, digits, `_`, `.` and `-`, beginning with a letter or a digit.",
            field=field,
        )
    return name


def _too_large(field: str, size: int) -> BadRequest:
    return BadRequest(
        f"{field}: the source has {size:,} bytes; the most is {MAX_SOURCE_BYTES:,} (10 MiB).",
        hint="Pass data as a file or as inputs, not as source.",
        field=field,
    )
