"""The tools: names, descriptions, schemas, and what each does with a backend. The descriptions are prompts: a model reads them."""

import base64
import contextlib
import mimetypes
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import anyio
import msgspec
from mcp.server import ServerRequestContext
from mcp_types import CallToolResult, ImageContent, ToolAnnotations
from mcp_types import Tool as ToolType

from onetrip.errors import BadRequest, OnetripError, PlatformError
from onetrip.mcp_server import schema
from onetrip.mcp_server.backend import Backend
from onetrip.mcp_server.content import cut, executed, file_uri, is_picture, structured
from onetrip.mcp_server.whole import whole
from onetrip.model import Result

A = TypeVar("A")
Context = ServerRequestContext[Any, Any]
Call = Callable[[Backend, Any, Context], Awaitable[CallToolResult]]
MAX_READ_BYTES: Final = 1 << 20
PROGRESS_S: Final = 60.0  # in which a client takes no notification; then it gets no more of them
CLOSE_S: Final = 30.0

INSTRUCTIONS: Final = """\
Runs Python in isolated sandboxes. Call execute_python with code; keep the session_id of its result and pass it to later calls to go on \
with the same variables, imports and files. Write one program that does the whole job (loops, conditions, several files) instead of many \
small calls. Charts that the program shows come back as images. A program that fails, also one that crashes or runs out of memory, \
costs only itself: the session goes on, and undo takes back earlier runs."""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    title: str
    description: str
    takes: Any
    gives: Any
    call: Call
    read_only: bool = False
    destructive: bool = False
    idempotent: bool = False

    def shown(self) -> ToolType:
        """As clients see it. Programs have no network, so the world of every tool is closed."""
        return ToolType(
            name=self.name,
            title=self.title,
            description=self.description,
            input_schema=schema.json_schema(self.takes),
            output_schema=schema.json_schema(self.gives),
            annotations=ToolAnnotations(
                title=self.title,
                read_only_hint=self.read_only,
                destructive_hint=self.destructive,
                idempotent_hint=self.idempotent,
                open_world_hint=False,
            ),
        )


async def execute_python(backend: Backend, asked: schema.ExecutePython, context: Context) -> CallToolResult:
    if asked.one_shot and asked.session_id:
        raise BadRequest("one_shot: a run in a session is none", hint="Leave out session_id, or one_shot.", field="one_shot")
    if asked.one_shot:
        return executed(await _ran(backend, None, asked, context), None)
    if asked.session_id:
        session_id = asked.session_id
        result = await _ran(backend, session_id, asked, context)
    else:
        with whole():  # else a session that nobody knows of would stay
            session_id = await backend.open(schema.CreateSession(), by_itself=True)
        try:
            result = await _ran(backend, session_id, asked, context)
        except BaseException:
            with anyio.move_on_after(CLOSE_S, shield=True), contextlib.suppress(OnetripError):
                await backend.close(session_id)  # its id is told to nobody
            raise
    return executed(result, session_id if result.session.survived else None)


async def _ran(backend: Backend, session_id: str | None, asked: schema.ExecutePython, context: Context) -> Result:
    """The result; what is printed until then goes to the client as progress, if it wants to hear of that."""
    live = context.meta is not None and "progress_token" in context.meta
    result: Result | None = None
    sent = 0
    async with contextlib.aclosing(backend.run(session_id, asked.code, asked.timeout_s, live=live)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Result):
                result = piece
            elif live:
                sent += len(piece)
                with anyio.move_on_after(PROGRESS_S) as waiting:
                    await context.session.report_progress(sent, None, piece)
                live = not waiting.cancelled_caught
    if result is None:
        raise PlatformError("the run ended without a result")
    return result


async def create_session(backend: Backend, asked: schema.CreateSession, context: Context) -> CallToolResult:
    del context
    session_id = await backend.open(asked, by_itself=False)
    return structured(schema.Session(session_id), f"[session_id] {session_id}")


async def close_session(backend: Backend, asked: schema.OfSession, context: Context) -> CallToolResult:
    del context
    await backend.close(asked.session_id)
    return structured(schema.Closed(asked.session_id), "Closed.")


async def undo(backend: Backend, asked: schema.Undo, context: Context) -> CallToolResult:
    del context
    done = await backend.undo(asked.session_id, asked.cells)
    text = f"Taken back. The session's state is now that after {done.cells} runs."
    return structured(
        schema.Undone(asked.session_id, done.cells, done.note), text if done.note is None else f"{text}\n{done.note}"
    )


async def fork(backend: Backend, asked: schema.Fork, context: Context) -> CallToolResult:
    del context
    branches = await backend.fork(asked.session_id, asked.count)
    return structured(schema.Sessions(tuple(branches)), "\n".join(f"[session_id] {branch}" for branch in branches))


async def list_files(backend: Backend, asked: schema.OfSession, context: Context) -> CallToolResult:
    del context
    found = await backend.files(asked.session_id)
    files = tuple(schema.File(file.path, file.size, file_uri(asked.session_id, file.path)) for file in found)
    text = "\n".join(f"{file.size:>12} {file.path}" for file in files) or "(no files)"
    return structured(schema.Files(asked.session_id, files), cut(text))


async def read_file(backend: Backend, asked: schema.ReadFile, context: Context) -> CallToolResult:
    del context
    try:
        data = await backend.read(asked.session_id, asked.path, MAX_READ_BYTES)
    except BadRequest as err:
        if "more than" in str(err):
            err.hint = "Run a program that reads the part you need, or let the client read it as a resource."
        raise
    encoded = base64.b64encode(data).decode("ascii")
    mime = mimetypes.guess_type(asked.path)[0] or ""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        given = structured(schema.Content(asked.path, len(data), "base64", encoded), f"(not text; {len(data)} bytes)")
        if is_picture(mime, encoded):
            given.content.append(ImageContent(data=encoded, mime_type=mime))
        return given
    return structured(schema.Content(asked.path, len(data), "utf-8", text), text)


async def write_file(backend: Backend, asked: schema.WriteFile, context: Context) -> CallToolResult:
    del context
    if (asked.text is None) == (asked.content_base64 is None):
        raise BadRequest("text, content_base64: exactly one of them is needed", field="text")
    try:
        data = (
            (asked.text or "").encode() if asked.content_base64 is None else base64.b64decode(asked.content_base64, validate=True)
        )
    except ValueError as err:  # no base64, no ASCII, or a lone surrogate
        raise BadRequest(f"the content is not what it should be: {err}", field="content_base64") from err
    await backend.write(asked.session_id, asked.path, data)
    uri = file_uri(asked.session_id, asked.path)
    return structured(schema.Written(asked.path, len(data), uri), f"Wrote {len(data)} bytes to {asked.path}.")


TOOLS: Final = (
    Tool(
        name="execute_python",
        title="Run Python",
        description="""\
Run a Python program in an isolated sandbox and get what it printed, the value of its last expression, its charts as images, and the \
files it made. Use it to compute, to analyse data, to transform files, to draw charts, and to check your own reasoning.

State: the result has a session_id. Pass it to the next call and variables, imports and files are still there; without one, each call \
begins with nothing. Set one_shot to true for a program that needs no state and leaves none.

Write one complete program instead of many small calls. End it with an expression, or print what you need to see; print little, as \
long output is cut in the middle. Read and write files by relative paths. Show charts with plt.show(). Common packages are there \
(numpy, pandas, matplotlib, scipy, scikit-learn, sympy, openpyxl, Pillow); pip and the network are not.

If the program fails you get the traceback and exit_code 1, and the session goes on: correct the program and run it again. If it was killed \
(time, memory, crash), variables and files are as they were before that run.""",
        takes=schema.ExecutePython,
        gives=schema.Execution,
        call=execute_python,
    ),
    Tool(
        name="create_session",
        title="Open a session",
        description="""\
Open a session before anything runs in it: to write files into it first, or for limits other than the usual ones. \
Otherwise execute_python opens one by itself.""",
        takes=schema.CreateSession,
        gives=schema.Session,
        call=create_session,
    ),
    Tool(
        name="list_files",
        title="List files",
        description="List the files in a session's working folder, with sizes.",
        takes=schema.OfSession,
        gives=schema.Files,
        call=list_files,
        read_only=True,
    ),
    Tool(
        name="read_file",
        title="Read a file",
        description="""\
Read a file of up to 1 MB from a session's working folder: text as it is, pictures to look at, anything else as base64. \
For larger files, or only a part, run a program that prints what you need.""",
        takes=schema.ReadFile,
        gives=schema.Content,
        call=read_file,
        read_only=True,
    ),
    Tool(
        name="write_file",
        title="Write a file",
        description="""\
Put a file into a session's working folder, replacing one of that name; folders are made as needed. \
Give text, or content_base64 for what is not text.""",
        takes=schema.WriteFile,
        gives=schema.Written,
        call=write_file,
        destructive=True,
        idempotent=True,
    ),
    Tool(
        name="undo",
        title="Take back runs",
        description="""\
Take back the last runs of a session: variables, imports and files are as they were before them. Use it when a program did something \
it should not have done, instead of repairing the state by hand. About eight runs are kept.""",
        takes=schema.Undo,
        gives=schema.Undone,
        call=undo,
        destructive=True,
    ),
    Tool(
        name="fork",
        title="Branch a session",
        description="""\
Make branches of a session: new sessions that begin with its variables, imports and files as they are now, and go on independently. \
Use it to try several ways from the same point.""",
        takes=schema.Fork,
        gives=schema.Sessions,
        call=fork,
    ),
    Tool(
        name="close_session",
        title="Close a session",
        description="End a session when it is no longer needed. Its variables and files are gone for good.",
        takes=schema.OfSession,
        gives=schema.Closed,
        call=close_session,
        destructive=True,
        idempotent=False,
    ),
)
BY_NAME: Final = {tool.name: tool for tool in TOOLS}
SHOWN: Final = tuple(tool.shown() for tool in TOOLS)
