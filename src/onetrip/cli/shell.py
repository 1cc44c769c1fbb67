"""`onetrip shell`: an interactive session; without a terminal it reads the same cells from stdin."""

import ast
import codeop
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Final

import click

from onetrip import config
from onetrip.checks import decode_source
from onetrip.cli import report, request
from onetrip.cli.run import interrupting
from onetrip.cli.seam import Session, embedded
from onetrip.errors import BadRequest, OnetripError, PlatformError, SessionGone
from onetrip.model import Done, Result

HELP: Final = """\
A cell runs when it is complete: Enter after one line, an empty line after a block. Ctrl-C interrupts it, Ctrl-D leaves.
/files            list the workspace          /put PATH      copy a file of yours into the workspace
/save NAME [TO]   copy a file out of it       /pictures DIR  save the pictures of the last cell
/usage            what the last cell used     /reset         start again with nothing
/help             this text                   /quit          leave"""

_CONTINUES: Final = ("else:", "elif ", "else ", "except", "finally", "case ", ")", "]", "}", "@")


@click.command("shell")
@request.session_options
@click.pass_context
def command(
    context: click.Context,
    environment: str,
    paths: tuple[str, ...],
    isolation_floor: Any,
    allow_module: tuple[str, ...],
    deny_module: tuple[str, ...],
    **limit_options: Any,
) -> None:
    """Run cell after cell in one session; /help lists what else it understands.

    Without a terminal, cells come from stdin, separated by empty lines, and the exit status is that of the last cell.
    """
    report.prepare_streams()
    limits = request.limits_from(limit_options)
    chosen: dict[str, Any] = {
        "environment": environment,
        "limits": limits,
        "policy": request.policy_from(allow_module, deny_module),
        "files": request.files_from(paths, limits),
        "isolation_floor": isolation_floor,
    }
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    with embedded(context).local() as local:
        cells = _typed() if interactive else split_cells(decode_source(sys.stdin.buffer.read(), field="stdin").splitlines())
        last: Result | None = None
        while True:  # each turn is one session; only /reset, or a session that was lost, begins another
            with local.session(**chosen) as session:
                shell = Shell(session, interactive=interactive)
                for cell in cells:
                    if not shell.take(cell):
                        break
                last = shell.last or last
                if shell.again:
                    report.note("a new session: variables and files are gone")
                    continue
            break
    context.exit(0 if interactive or last is None else report.EXIT_STATUS[last.status])


class Shell:
    """Runs cells and commands against one session."""

    def __init__(self, session: Session, *, interactive: bool) -> None:
        self.last: Result | None = None
        self.again = False  # the caller should open a new session and go on
        self._session = session
        self._interactive = interactive
        self._printer = report.Printer()

    def take(self, cell: str) -> bool:
        """Run one cell or command; False when this session is over."""
        try:
            if cell.startswith("/"):
                return self._command(cell)
            self._run(cell)
        except SessionGone as err:
            report.print_error(err)
            self.again = True
            return False
        except PlatformError:
            raise
        except OnetripError as err:  # a mistake in this line, or no room: the session goes on
            report.print_error(err)
        if self.last is not None and not self.last.session.survived:
            self.again = True
            return False
        return True

    def _run(self, cell: str) -> None:
        self._printer = report.Printer()
        result: Result | None = None
        with interrupting(self._session):
            for event in self._session.stream(cell):
                if isinstance(event, Done):
                    result = event.result
                else:
                    self._printer.event(event)
        if result is None:
            raise PlatformError("The run ended without a result.")
        self.last = result
        self._printer.result(result)
        pictures = report.pictures(self._printer.displays)
        if pictures and self._interactive:
            report.note(f"{pictures} pictures; /pictures DIR saves them")

    def _command(self, line: str) -> bool:
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        match name:
            case "/quit" | "/exit":
                return False
            case "/reset":
                self.again = True
                return False
            case "/help":
                print(HELP, file=sys.stderr)
            case "/usage":
                report.note(report.summary(self.last) if self.last else "no cell has run yet")
            case "/files":
                for file in self._session.files.list():
                    print(f"{file.size:>12,}  {file.path}")
            case "/put":
                self._put(_named(name, rest))
            case "/save":
                self._save(_named(name, rest))
            case "/pictures":
                self._pictures(_named(name, rest))
            case _:
                raise BadRequest(f"There is no command {name}.", hint="/help lists the commands.")
        return True

    def _put(self, path: str) -> None:
        for name, data in request.files_from([path], request.limits_from({})).items():
            self._session.files.write(name, data)
            report.note(f"{name}: {len(data):,} bytes")

    def _save(self, rest: str) -> None:
        name, _, to = rest.partition(" ")
        data = self._session.files.read(name)
        path = to.strip() or os.path.basename(name)
        try:
            with open(path, "xb") as file:
                file.write(data)
        except OSError as err:
            raise BadRequest(f"/save: {path}: {err.strerror}.", hint="Name another place: /save NAME TO.") from err
        report.note(f"saved {path}")

    def _pictures(self, folder: str) -> None:
        try:
            os.makedirs(folder, exist_ok=True)
            saved = report.save_displays(self._printer.displays, folder)
        except OSError as err:
            raise BadRequest(
                f"/pictures: {err.filename or folder}: {err.strerror}.", hint="Name a folder that you can write to."
            ) from err
        for path in saved:
            report.note(f"saved {path}")


def split_cells(lines: Iterable[str]) -> Iterator[str]:
    """Cut a text into cells: at empty lines, where what came before is complete and what follows does not continue it."""
    held: list[str] = []
    gap = False
    for line in lines:
        if not line.strip():
            gap = bool(held)
            if held:
                held.append(line)
            continue
        command = line.startswith("/")  # no statement begins with one
        ended = command or (gap and not line[0].isspace() and not line.startswith(_CONTINUES))
        if held and ended and complete("\n".join(held)):
            yield "\n".join(held).rstrip("\n")
            held = []
        if command and not held:
            yield line
        else:
            held.append(line)
        gap = False
    if held:
        yield "\n".join(held).rstrip("\n")


def complete(source: str) -> bool:
    """Whether Python would run this as it stands; a syntax error counts as complete, so that it is reported."""
    compiler = codeop.Compile()  # its flags have Python itself say what is merely incomplete
    compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run will warn
        try:
            compiler(source + "\n", "<cell>", "exec")
        except SyntaxError as err:
            return "incomplete input" not in str(err)
        except (ValueError, OverflowError, MemoryError, RecursionError):
            pass  # the run will say it better
    return True


def _typed() -> Iterator[str]:
    """Cells as a person types them. Ctrl-C at the prompt empties the line, Ctrl-D ends."""
    from prompt_toolkit import PromptSession  # noqa: PLC0415 -- 80 ms that a piped shell need not pay
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory  # noqa: PLC0415 -- the same
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent  # noqa: PLC0415 -- the same
    from prompt_toolkit.lexers import PygmentsLexer  # noqa: PLC0415 -- the same
    from pygments.lexers.python import PythonLexer  # noqa: PLC0415 -- the same

    remembered = config.history_file()
    history: History = InMemoryHistory() if remembered is None else FileHistory(str(remembered))
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        text = buffer.text
        block = "\n" in text or text.rstrip().endswith((":", "\\"))
        done = complete(text) and buffer.document.is_cursor_at_the_end and (not block or not buffer.document.current_line.strip())
        if text.startswith("/") or done or not text.strip():  # nothing typed: a new prompt, as in Python
            buffer.validate_and_handle()
        else:
            line = buffer.document.current_line
            indent = line[: len(line) - len(line.lstrip())] + ("    " if line.rstrip().endswith(":") else "")
            buffer.insert_text("\n" + indent)

    prompt: PromptSession[str] = PromptSession(
        history=history, key_bindings=keys, multiline=True, lexer=PygmentsLexer(PythonLexer), prompt_continuation="... "
    )
    report.note("/help lists the commands, Ctrl-D leaves")
    while True:
        try:
            cell = prompt.prompt(">>> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if cell.strip():
            yield cell.strip("\n")


def _named(command: str, rest: str) -> str:
    if not rest:
        raise BadRequest(f"{command} needs a name.", hint="/help shows how it is used.")
    return rest
