"""Code in contexts: `/execute` streams JSON lines, and `/contexts` are interpreters of their own."""

import contextlib
import secrets
from collections.abc import AsyncGenerator
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from onetrip.compat.e2b.connect import RpcError
from onetrip.compat.e2b.interpreters import Interpreter
from onetrip.compat.e2b.requests import body, json, sandbox
from onetrip.compat.e2b.sandboxes import DEFAULT, Context, Sandbox
from onetrip.compat.e2b.shapes import Execute, NewContext, failed, main_result, output, shown
from onetrip.compat.e2b.streams import Stream
from onetrip.errors import BadRequest, NotFound, OnetripError
from onetrip.model import Displayed, Done, Stderr, Stdout

HOME: Final = "/home/user"
LANGUAGES: Final = ("python", "python3")
Line = dict[str, Any]


async def execute(request: Request) -> Response:
    box, asked = sandbox(request), await body(request, Execute)
    if asked.context_id is not None and asked.language is not None:
        return PlainTextResponse("Only one of context_id or language can be provided", 400)
    _check_language(asked.language)
    context = _context(box, asked.context_id or DEFAULT)
    return Stream(_lines(box, context, asked), media_type="application/x-ndjson")


async def _lines(box: Sandbox, context: Context, asked: Execute) -> AsyncGenerator[bytes]:
    lines = _run(box, context, asked)
    async with contextlib.aclosing(lines):
        async for line in lines:
            yield msgspec.json.encode(line) + b"\n"


async def _run(box: Sandbox, context: Context, asked: Execute) -> AsyncGenerator[Line]:
    """Never raises for what the code does; what is our fault is told as an error of the execution, since the status is sent."""
    async with context.turn:
        context.executions += 1
        yield {"type": "number_of_executions", "execution_count": context.executions}
        try:
            before = await _set(context.interpreter, asked.env_vars)
            events = _code(box, context, asked.code)
            async with contextlib.aclosing(events):
                async for line in events:
                    yield line
            if before:
                await _set(context.interpreter, before)
        except RpcError as err:
            yield {"type": "error", "name": "SandboxError", "value": str(err), "traceback": ""}
        except OnetripError as err:
            value = f"{err} {err.hint}"
            yield {"type": "error", "name": type(err).__name__, "value": value, "traceback": value}
        yield {"type": "end_of_execution"}


async def _code(box: Sandbox, context: Context, code: str) -> AsyncGenerator[Line]:
    has_main = False
    interpreter = context.interpreter
    events = interpreter.execute(code)
    async with contextlib.aclosing(events):
        async for event in events:
            match event:
                case Stdout(text):
                    yield output("stdout", text)
                case Stderr(text):
                    yield output("stderr", text)
                case Displayed(display):
                    has_main = has_main or display.is_result
                    yield shown(display, is_main=display.is_result)
                case Done(result):
                    if not has_main and (line := main_result(result)) is not None:
                        yield line
                    if (line := failed(result)) is not None:
                        yield line
                    if not result.session.survived and interpreter.sibling_id is not None:
                        await _replace(box, context)
                case _:
                    pass


async def _set(interpreter: Interpreter, environ: Any) -> dict[str, str | None]:
    """Set variables of the environment; what they were before. Raises RpcError."""
    if not environ:
        return {}
    return (await interpreter.ask("setup", {"environ": environ, "cwd": None}))[0].before


async def _replace(box: Sandbox, context: Context) -> None:
    """A new interpreter in the place of one that is gone, or is not wanted any more."""
    await context.interpreter.close()
    context.interpreter = await box.interpreter()
    box.keep_contexts()
    await context.interpreter.ask("setup", {"environ": box.record.environ, "cwd": context.cwd})


# ---------------------------------------------------------------------------------------------------- contexts


async def create_context(request: Request) -> Response:
    box, asked = sandbox(request), await body(request, NewContext)
    _check_language(asked.language)
    cwd = asked.cwd or HOME
    context = Context(secrets.token_hex(12), cwd, await box.interpreter())
    try:
        await context.interpreter.ask("setup", {"environ": box.record.environ, "cwd": cwd})
    except BaseException:
        await context.interpreter.close()
        raise
    box.contexts[context.id] = context
    box.keep_contexts()
    return json(context.told())


async def contexts(request: Request) -> Response:
    return json([context.told() for context in sandbox(request).contexts.values()])


async def restart_context(request: Request) -> Response:
    box = sandbox(request)
    context = _context(box, request.path_params["id"])
    async with context.turn:
        await _replace(box, context)
    return json(context.told())


async def remove_context(request: Request) -> Response:
    box = sandbox(request)
    context = _context(box, request.path_params["id"])
    if context.id == DEFAULT:
        raise BadRequest("the default context cannot be removed", hint="Kill the sandbox, or restart the context.")
    del box.contexts[context.id]
    box.keep_contexts()
    await context.interpreter.close()
    return Response(status_code=204)


def _context(box: Sandbox, named: str) -> Context:
    found = box.contexts.get(named)
    if found is None:
        raise NotFound(f"Context {named[:60]} not found")
    return found


def _check_language(language: str | None) -> None:
    if language is not None and language.lower() not in LANGUAGES:
        raise BadRequest(
            f"language: {language[:40]!r} is not spoken here, only Python",
            hint="Run shell commands with `commands.run`.",
            field="language",
        )
