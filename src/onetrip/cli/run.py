"""`onetrip run`: one program, its output as it comes, its outcome in the exit status."""

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click
import msgspec

from onetrip.cli import report, request
from onetrip.cli.seam import Session, embedded
from onetrip.errors import BadRequest, NotFound, OnetripError, PlatformError, SessionGone
from onetrip.model import Done, Result


@click.command("run")
@click.argument("file", required=False, metavar="[FILE|-]")
@click.option("-c", "code", help="Program text instead of a file.", metavar="CODE")
@click.option("--input", "pairs", multiple=True, help="Variable of the program, as NAME=JSON; repeatable.", metavar="NAME=JSON")
@request.session_options
@click.option("--save", "folder", help="Folder for the charts and for the files that the program made.", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print the result object, and nothing while the program runs.")
@click.pass_context
def command(
    context: click.Context,
    file: str | None,
    code: str | None,
    pairs: tuple[str, ...],
    environment: str,
    paths: tuple[str, ...],
    isolation_floor: Any,
    allow_module: tuple[str, ...],
    deny_module: tuple[str, ...],
    folder: str | None,
    as_json: bool,
    **limit_options: Any,
) -> None:
    """Run one program in a sandbox made for it, and discard the sandbox.

    Prints what the program prints and the value of its last expression. Exit status: 0 completed, 1 the program failed or
    was interrupted, 2 a mistake in the command, 3 a limit ended it, 4 the sandbox could not be started or was lost.
    """
    report.prepare_streams()
    limits = request.limits_from(limit_options)
    policy = request.policy_from(allow_module, deny_module)
    inputs = request.inputs_from(pairs)
    source = request.source_from(file, code)
    files = request.files_from(paths, limits)
    _make_folder(folder)

    printer = report.Printer()
    with (
        embedded(context).local() as local,
        local.session(
            environment=environment, limits=limits, policy=policy, files=files, isolation_floor=isolation_floor
        ) as session,
    ):
        result: Result | None = None
        with interrupting(session):
            for event in session.stream(source, inputs=inputs, final=True):
                if isinstance(event, Done):
                    result = event.result
                elif not as_json:
                    printer.event(event)
        if result is None:
            raise PlatformError("The run ended without a result.")
        if as_json:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n")
            sys.stdout.flush()
        else:
            printer.result(result)
        if folder is not None:
            displays = list(result.displays) if as_json else printer.displays
            saved = [*_saved(folder, displays), *_fetch(session, result, folder)]
            for path in saved:
                report.note(f"saved {path}")
        elif not as_json:
            pictures = report.pictures(printer.displays)
            made = sum(change.change != "deleted" for change in result.files)
            if pictures or made:
                report.note(f"not kept: {pictures} pictures, {made} files; --save DIR keeps them")
        if not as_json:
            printer.summary(result)
    context.exit(report.EXIT_STATUS[result.status])


@contextmanager
def interrupting(session: Session) -> Generator[None]:
    """While inside, Ctrl-C interrupts the program; a second one gives up waiting and raises KeyboardInterrupt."""
    presses = 0

    def pressed(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 -- a signal handler's signature
        nonlocal presses
        presses += 1
        if presses > 1:
            raise KeyboardInterrupt
        # in a thread of its own: the main thread may hold a lock of the very queue that an interrupt goes through
        threading.Thread(target=session.interrupt, daemon=True).start()

    before = signal.signal(signal.SIGINT, pressed)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _make_folder(folder: str | None) -> None:
    if folder is None:
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as err:
        raise BadRequest(f"--save: {folder}: {err.strerror}.", hint="Name a folder that you can write to.", field="save") from err
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadRequest(f"--save: {folder} is not writable.", hint="Name a folder that you can write to.", field="save")


def _saved(folder: str, displays: list[Any]) -> list[str]:
    try:
        return report.save_displays(displays, folder)
    except OSError as err:
        raise PlatformError(
            f"--save: {err.filename or folder}: {err.strerror}.", hint="Free some space, or name another folder."
        ) from err


def _fetch(session: Session, result: Result, folder: str) -> list[str]:
    """Copy what the program created or changed out of the workspace. Its paths are relative and were checked by the host."""
    saved: list[str] = []
    for change in result.files:
        if change.change == "deleted":
            continue
        try:
            data = session.files.read(change.path)
        except (NotFound, SessionGone, BadRequest) as err:
            report.note(f"not saved: {change.path}: {err}")
            continue
        path = os.path.join(folder, change.path)
        try:
            # `folder` is ours, but may hold links of an earlier save's making: never write through one
            if os.path.realpath(path) != os.path.join(os.path.realpath(folder), os.path.normpath(change.path)):
                raise BadRequest(f"--save: {path} would be written outside of {folder}.", field="save")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(data)
        except OSError as err:
            raise PlatformError(f"--save: {path}: {err.strerror}.", hint="Free some space, or name another folder.") from err
        except OnetripError as err:
            report.note(f"not saved: {err}")
            continue
        saved.append(path)
    return saved
