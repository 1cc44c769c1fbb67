"""`onetrip run`: one program or several in one session, their output as it comes, their outcome in the exit status."""

import os
import signal
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
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
@click.argument("files", nargs=-1, metavar="[FILE|-]...")
@click.option("-c", "code", help="Program text instead of a file.", metavar="CODE")
@click.option("--input", "pairs", multiple=True, help="Variable of each program, as NAME=JSON; repeatable.", metavar="NAME=JSON")
@request.session_options
@click.option("--keep-going", is_flag=True, help="Run the next program also when one has failed.")
@click.option("--save", "folder", help="Folder for the charts and for the files that the program made.", metavar="DIR")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result object (of several programs: a list), and nothing while they run."
)
@click.pass_context
def command(
    context: click.Context,
    files: tuple[str, ...],
    code: str | None,
    pairs: tuple[str, ...],
    environment: str,
    paths: tuple[str, ...],
    isolation_floor: Any,
    allow_module: tuple[str, ...],
    deny_module: tuple[str, ...],
    on_error: Any,
    keep_going: bool,
    folder: str | None,
    as_json: bool,
    **limit_options: Any,
) -> None:
    """Run one program in a sandbox made for it, and discard the sandbox.

    Prints what the program prints and the value of its last expression. Several programs are cells of one session: each finds
    the variables and files of those before it. The first that fails is the last, unless --keep-going is given; a program that
    was killed is taken back before the next one runs, with --on-error rollback also one that raised.

    Exit status: 0 completed, 1 the program failed or was interrupted, 2 a mistake in the command, 3 a limit ended it, 4 the
    sandbox could not be started or was lost; of several programs that of the first which did not complete.
    """
    report.prepare_streams()
    limits = request.limits_from(limit_options)
    policy = request.policy_from(allow_module, deny_module)
    inputs = request.inputs_from(pairs)
    sources = request.sources_from(files, code)
    contents = request.files_from(paths, limits)
    _make_folder(folder)

    is_one = len(sources) == 1
    printer = report.Printer()
    with (
        embedded(context).local() as local,
        local.session(
            environment=environment,
            limits=limits,
            policy=policy,
            files=contents,
            isolation_floor=isolation_floor,
            checkpoints=0 if is_one and on_error == "keep" else 1,  # one to go back to; of a program alone nothing goes on
            on_error=on_error,
        ) as session,
    ):
        results: list[Result] = []
        for number, (name, source) in enumerate(sources, 1):
            result = _run(session, source, inputs, is_last=number == len(sources), printer=None if as_json else printer)
            results.append(result)
            if not as_json:
                printer.result(result)
                for line in report.changes(result.session):
                    report.note(line)
                if not is_one:
                    report.note(f"{name}: {report.summary(result)}")
            over = result.status == "interrupted" or not result.session.survived
            if over or not (result.ok or keep_going):
                break
        left = [name for name, _ in sources[len(results) :]]
        if left and not as_json:
            report.note(f"not run: {', '.join(left)}")
        if as_json:
            _print_json(results[0] if is_one else results)
        if folder is not None:
            displays = [display for result in results for display in result.displays] if as_json else printer.displays
            for path in (*_saved(folder, displays), *_fetch(session, _made(results), folder)):
                report.note(f"saved {path}")
        elif not as_json:
            pictures, made = report.pictures(printer.displays), len(_made(results))
            if pictures or made:
                report.note(f"not kept: {pictures} pictures, {made} files; --save DIR keeps them")
        if is_one and not as_json:
            report.note(report.summary(results[0]))
    context.exit(next((report.EXIT_STATUS[result.status] for result in results if not result.ok), 0))


def _run(session: Session, source: str, inputs: Mapping[str, Any], *, is_last: bool, printer: report.Printer | None) -> Result:
    """One program; the last one behaves at its end as an ending program does."""
    result: Result | None = None
    with interrupting(session):
        for event in session.stream(source, inputs=inputs, final=is_last):
            if isinstance(event, Done):
                result = event.result
            elif printer is not None:
                printer.event(event)
    if result is None:
        raise PlatformError("The run ended without a result.")
    return result


def _print_json(results: Result | Sequence[Result]) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(results), indent=2).decode() + "\n")
    sys.stdout.flush()


def _made(results: Sequence[Result]) -> list[str]:
    """Paths of what the programs created or changed, and did not delete again."""
    last = {change.path: change.change for result in results for change in result.files}
    return [path for path, change in last.items() if change != "deleted"]


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


def _fetch(session: Session, made: Sequence[str], folder: str) -> list[str]:
    """Copy what the programs made out of the workspace. The paths are relative and were checked by the host."""
    saved: list[str] = []
    for name in made:
        try:
            data = session.files.read(name)
        except (NotFound, SessionGone, BadRequest) as err:
            report.note(f"not saved: {name}: {err}")
            continue
        path = os.path.join(folder, name)
        try:
            # `folder` is ours, but may hold links of an earlier save's making: never write through one
            if os.path.realpath(path) != os.path.join(os.path.realpath(folder), os.path.normpath(name)):
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
