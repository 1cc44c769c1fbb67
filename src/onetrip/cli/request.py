"""Reads what the options of `run` and `shell` name: source, files, inputs, limits. Every mistake names its option."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
import msgspec

from onetrip.checks import (
    LIMIT_RANGES,
    MAX_SOURCE_BYTES,
    check_checkpoints,
    check_inputs,
    check_limits,
    check_source,
    decode_source,
)
from onetrip.cli.seam import names
from onetrip.errors import BadRequest
from onetrip.model import Limits, ModulePolicy, Policy

F = TypeVar("F", bound=Callable[..., Any])


def session_options(function: F) -> F:
    """The options that `run` and `shell` share."""
    defaults = Limits()

    def limit(name: str, meaning: str) -> Callable[[F], F]:
        allowed = LIMIT_RANGES[name]
        kind = int if allowed.low == int(allowed.low) else float
        default = getattr(defaults, name)
        text = f"{meaning}  [default: {default:g}; {allowed.low:g} to {allowed.high:,.0f}]"
        return click.option(f"--{name.replace('_', '-')}", name, type=kind, default=default, help=text, metavar="N")

    options = [
        click.option("--env", "environment", default="default", help="Environment to run in.  [default: default]", metavar="E"),
        click.option(
            "--file",
            "paths",
            multiple=True,
            help="File to put into the workspace under its own name; repeatable.",
            metavar="PATH",
        ),
        limit("wall_s", "Seconds that one run may take."),
        limit("cpu_s", "Seconds of CPU, all processes together."),
        limit("memory_mb", "Memory of all processes together, files included."),
        limit("processes", "Processes and threads."),
        limit("disk_mb", "Size of the workspace."),
        limit("output_mb", "stdout and stderr of one run."),
        click.option(
            "--isolation-floor",
            type=click.Choice(["strict", "reduced"]),
            default="strict",
            help="Weakest isolation to run with; below it nothing starts.  [default: strict]",
        ),
        click.option(
            "--allow-module", multiple=True, help="Only these modules may be imported; repeatable, or with commas.", metavar="M"
        ),
        click.option(
            "--deny-module", multiple=True, help="These modules may not be imported; repeatable, or with commas.", metavar="M"
        ),
        click.option(
            "--on-error",
            type=click.Choice(["keep", "rollback"]),
            default="keep",
            help="What an exception leaves: what was done until then, or nothing. What is killed leaves nothing.  [default: keep]",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def limits_from(options: dict[str, Any]) -> Limits:
    """Take the limits out of a command's options. Raises BadRequest that names the option."""
    chosen = {name: options.pop(name) for name in LIMIT_RANGES if name in options}
    try:
        return check_limits(Limits(**chosen))
    except BadRequest as err:
        field = (err.field or "").removeprefix("limits.")
        option = f"--{field.replace('_', '-')}"
        raise BadRequest(
            str(err).replace(f"limits.{field}", option, 1), hint=f"Give {option} a value in that range.", field=err.field
        ) from err


def checkpoints_from(checkpoints: int) -> int:
    """How many cells can be undone. Raises BadRequest that names the option."""
    try:
        check_checkpoints(checkpoints)
    except BadRequest as err:
        raise BadRequest(f"--{err}", hint="Give --checkpoints a value in that range.", field=err.field) from err
    return checkpoints


def policy_from(allow: Sequence[str], deny: Sequence[str]) -> Policy:
    for option, values in (("--allow-module", names(allow)), ("--deny-module", names(deny))):
        for value in values:
            if not all(part.isidentifier() for part in value.split(".")):
                raise BadRequest(f"{option}: {value!r} is not the name of a module.", field="policy.modules")
    return Policy(modules=ModulePolicy(allow=names(allow) if allow else None, deny=names(deny)))


def files_from(paths: Sequence[str], limits: Limits) -> dict[str, bytes]:
    """The files that `--file` names, by the name that they will have. Raises BadRequest that names the path."""
    files: dict[str, bytes] = {}
    room = limits.disk_mb * 1024 * 1024
    for path in paths:
        name = os.path.basename(os.path.abspath(path))
        if name in files:
            raise BadRequest(f"--file: there are two files named {name!r}.", hint="Rename one of them.", field="files")
        data = _read(path, room)
        room -= len(data)
        files[name] = data
    return files


def inputs_from(pairs: Sequence[str]) -> dict[str, Any]:
    """`NAME=JSON` pairs. Raises BadRequest that names the variable."""
    inputs: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise BadRequest(
                f"--input: {pair!r} is not NAME=JSON.",
                hint='For example --input n=3 or --input \'words=["a","b"]\'.',
                field="inputs",
            )
        try:
            inputs[name] = msgspec.json.decode(text.encode(errors="surrogateescape"))
        except (msgspec.DecodeError, UnicodeDecodeError) as err:
            raise BadRequest(
                f"--input: {name}: not JSON: {err}.", hint=f"A text needs quotes: --input '{name}=\"…\"'.", field=f"inputs.{name}"
            ) from err
    check_inputs(inputs)
    return inputs


def sources_from(files: Sequence[str], code: str | None) -> list[tuple[str, str]]:
    """The programs, each with its name: `-c`, files, or stdin for `-` and for nothing at all when something is piped in."""
    if code is not None:
        if files:
            raise BadRequest("Both FILE and -c were given.", hint="Give one of them.", field="code")
        check_source(code, field="-c")
        return [("-c", code)]
    if not files and sys.stdin.isatty():
        raise BadRequest(
            "There is no program to run.",
            hint="Name a FILE, give `-c CODE`, or pipe source in. `onetrip shell` is interactive.",
            field="code",
        )
    if list(files).count("-") > 1:
        raise BadRequest("FILE: stdin was named twice.", hint="It can be read once.", field="code")
    return [(file, _source(file)) for file in files or ["-"]]


def _source(file: str) -> str:
    if file == "-":
        raw = sys.stdin.buffer.read(MAX_SOURCE_BYTES + 1)
        if len(raw) > MAX_SOURCE_BYTES:
            raise BadRequest(
                f"stdin: more than {MAX_SOURCE_BYTES:,} bytes of source (10 MiB).", hint="Pass data with --file.", field="code"
            )
        return decode_source(raw, field="stdin")
    try:
        with open(file, "rb") as opened:  # may be a pipe, as `onetrip run <(generate)` gives
            raw = opened.read(MAX_SOURCE_BYTES + 1)
            size = max(len(raw), os.fstat(opened.fileno()).st_size)
    except OSError as err:
        raise BadRequest(f"FILE: {file}: {err.strerror}.", hint="Check the path and that you may read it.", field="code") from err
    if size > MAX_SOURCE_BYTES:
        raise BadRequest(
            f"FILE: {file} has {size:,} bytes; the most is {MAX_SOURCE_BYTES:,} (10 MiB).",
            hint="Pass data with --file.",
            field="code",
        )
    return decode_source(raw, field=file)


def _read(path: str, room: int) -> bytes:
    """A regular file's bytes, at most `room`. Never opens what could block or act: a FIFO, a device."""
    try:
        if not os.path.isfile(path) and os.path.exists(path):
            kind = "a folder" if os.path.isdir(path) else "not a regular file"
            raise BadRequest(f"--file: {path} is {kind}.", hint="Name a regular file.", field="files")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > room:
                raise BadRequest(
                    f"--file: {path} has {size:,} bytes; the workspace has room for {room:,}.",
                    hint="Raise --disk-mb.",
                    field="files",
                )
            return file.read(room)
    except OSError as err:
        raise BadRequest(
            f"--file: {path}: {err.strerror}.", hint="Check the path and that you may read it.", field="files"
        ) from err
