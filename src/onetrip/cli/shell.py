"""`onetrip shell`: an interactive session; without a terminal it reads the same cells from stdin."""

import ast
import codeop
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import click

from onetrip import config
from onetrip.checks import decode_source
from onetrip.cli import report, request
from onetrip.cli.run import interrupting
from onetrip.cli.seam import Session, embedded
from onetrip.errors import BadRequest, OnetripError, PlatformError, SessionGone
from onetrip.model import Done, Result, Rewound

HELP: Final = """\
A cell runs when it is complete: Enter after one line, an empty line after a block. Ctrl-C interrupts it, Ctrl-D leaves.
/files            list the workspace          /put PATH      copy a file of yours into the workspace
/save NAME [TO]   copy a file out of it       /pictures DIR  save the pictures of the last cell
/undo [N]         take back N cells           /redo [N]      take back an undo
/fork             go on in a branch           /branch [N]    list the branches, or go to branch N
/usage            what the last cell used     /reset         start again with nothing
/help             this text                   /quit          leave"""

PROMPT: Final = ">>> "
_CONTINUES: Final = ("else:", "elif ", "else ", "except", "finally", "case ", ")", "]", "}", "@")


@click.command("shell")
@request.session_options
@click.option(
    "--checkpoints", type=int, default=8, help="How many cells can be undone; 0: none.  [default: 8; 0 to 64]", metavar="N"
)
@click.pass_context
def command(
    context: click.Context,
    environment: str,
    paths: tuple[str, ...],
    isolation_floor: Any,
    allow_module: tuple[str, ...],
    deny_module: tuple[str, ...],
    on_error: Any,
    checkpoints: int,
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
        "checkpoints": request.checkpoints_from(checkpoints),
        "on_error": on_error,
    }
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    with embedded(context).local() as local:
        shell: Shell | None = None
        if interactive:
            cells = _typed(lambda: shell.prompt if shell is not None else PROMPT)
        else:
            cells = split_cells(decode_source(sys.stdin.buffer.read(), field="stdin").splitlines())
        last: Result | None = None
        while True:  # each turn is one session with its branches; only /reset, or the loss of them all, begins another
            with local.session(**chosen) as session:
                shell = Shell(session, interactive=interactive)
                try:
                    for cell in cells:
                        if not shell.take(cell):
                            break
                finally:
                    shell.close_branches()
                last = shell.last or last
                if shell.again:
                    report.note("a new session: variables and files are gone")
                    continue
            break
    context.exit(0 if interactive or last is None else report.EXIT_STATUS[last.status])


class Shell:
    """Runs cells and commands against one session, whose caller closes it, and its branches."""

    def __init__(self, session: Session, *, interactive: bool) -> None:
        self.last: Result | None = None
        self.again = False  # the caller should open a new session and go on
        self._sessions = {0: session}  # by the number of the branch; 0 is the one that all came from
        self._origins: dict[int, int] = {}  # which branch each was forked from
        self._here: int = 0
        self._said: list[str] = []  # what was said last about what became of the session
        self._interactive = interactive
        self._printer = report.Printer()

    @property
    def prompt(self) -> str:
        return f"branch {self._here} {PROMPT}" if self._here else PROMPT

    @property
    def _session(self) -> Session:
        return self._sessions[self._here]

    def close_branches(self) -> None:
        for number, session in self._sessions.items():
            if number:
                session.close()

    def take(self, cell: str) -> bool:
        """Run one cell or command; False when this session is over, and every branch of it."""
        try:
            return self._command(cell) if cell.startswith("/") else self._run(cell)
        except SessionGone as err:
            report.print_error(err)
            return self._lose()
        except PlatformError:
            raise
        except OnetripError as err:  # a mistake in this line, or no room: the session goes on
            report.print_error(err)
        return True

    def _lose(self) -> bool:
        """The session is gone: go on in the one that it was forked from, or in another. False when there is none."""
        gone = self._here
        session = self._sessions.pop(gone)
        if gone:
            session.close()
        if not self._sessions:
            self.again = True
            return False
        origin = self._origins.get(gone, 0)
        while origin and origin not in self._sessions:
            origin = self._origins[origin]
        self._here = origin if origin in self._sessions else max(self._sessions)
        report.note(f"branch {gone} is gone; this is branch {self._here}")
        return True

    def _run(self, cell: str) -> bool:
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
        said = report.changes(result.session)
        if result.session.rolled_back or said != self._said:  # that a thread is still alive is not said after every cell
            for line in said:
                report.note(line)
        self._said = said
        pictures = report.pictures(self._printer.displays)
        if pictures and self._interactive:
            report.note(f"{pictures} pictures; /pictures DIR saves them")
        return result.session.survived or self._lose()

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
            case "/undo":
                self._moved(self._session.undo(_number(name, rest)))
            case "/redo":
                self._moved(self._session.redo(_number(name, rest)))
            case "/fork":
                self._fork()
            case "/branch" | "/branches":
                self._go_to(_number(name, rest)) if rest else self._list()
            case _:
                raise BadRequest(f"There is no command {name}.", hint="/help lists the commands.")
        return True

    def _moved(self, moved: Rewound) -> None:
        cells = f"{moved.cells} cell{'s' if moved.cells > 1 else ''}"
        report.note(f"variables and files are as they were {f'after {cells}' if moved.cells else 'before the first cell'}")
        if moved.note is not None:
            report.note(moved.note)

    def _fork(self) -> None:
        branch = self._session.fork()
        number = max((*self._sessions, *self._origins)) + 1
        self._sessions[number], self._origins[number], self._here = branch, self._here, number
        report.note(f"this is branch {number}; /branch {self._origins[number]} goes back to where it came from")

    def _go_to(self, number: int) -> None:
        if number not in self._sessions:
            raise BadRequest(f"There is no branch {number}.", hint="/branch lists them.")
        self._here = number
        report.note(f"this is branch {number}")

    def _list(self) -> None:
        for number in self._sessions:
            origin = f"from {self._origins[number]}" if number in self._origins else "the first"
            print(f"{'*' if number == self._here else ' '} {number}  {origin}")

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


def _typed(prompt_now: Callable[[], str]) -> Iterator[str]:
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
        history=history,
        key_bindings=keys,
        multiline=True,
        lexer=PygmentsLexer(PythonLexer),
        prompt_continuation=lambda width, _line, _wrapped: "... ".rjust(width),
    )
    report.note("/help lists the commands, Ctrl-D leaves")
    while True:
        try:
            cell = prompt.prompt(prompt_now())
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


def _number(command: str, rest: str) -> int:
    try:
        return int(rest or "1")
    except ValueError:
        raise BadRequest(f"{command}: {rest!r} is not a number.", hint="/help shows how it is used.") from None
