"""How a result looks to a model: text to read, pictures, and the same as structured data; all of it bounded.

What a program made is a stranger's data. A picture that is none would be refused by the model's interface together with the whole
conversation, so only what begins as its type says is passed on.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec
from mcp_types import CallToolResult, ContentBlock, ImageContent, TextContent

from onetrip.errors import OnetripError
from onetrip.mcp_server.schema import Cut, Execution, FileLink, Isolation
from onetrip.model import DisplayData, Result

MAX_CHARS: Final = 50_000  # of one text: more fills a model's context with what it does not read
MAX_VALUE_BYTES: Final = 50_000
MAX_IMAGES: Final = 20
MAX_IMAGE_CHARS: Final = 8 << 20  # of base64, all pictures together
MAX_FILES: Final = 200
_STARTS: Final = {  # what models' interfaces take, and how such files begin
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
}


def file_uri(session_id: str, path: str) -> str:
    return f"sandbox://{session_id}/files/{quote(path, safe='/')}"


def executed(result: Result, session_id: str | None) -> CallToolResult:
    """A run's result. `session_id`: that of the session if it can be used again."""
    images = pictures(result.displays)
    execution = _execution(result, session_id, len(images))
    content: list[ContentBlock] = [TextContent(text=_told(execution, result)), *images]
    return CallToolResult(content=content, structured_content=_plain(execution))


def structured(value: Any, text: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=text)], structured_content=_plain(value))


def failed(error: OnetripError) -> CallToolResult:
    """An error of ours or of the caller: its stable code, what happened, what to do."""
    said: dict[str, Any] = {"code": error.code, "message": str(error), "hint": error.hint, "field": error.field}
    if error.retry_after_s is not None:
        said["retry_after_s"] = error.retry_after_s
    text = f"Error ({error.code}): {error}\nHint: {error.hint}"
    return CallToolResult(content=[TextContent(text=text)], structured_content={"error": said}, is_error=True)


def _plain(value: Any) -> Any:
    """As a client will decode it; what JSON cannot hold, such as an infinity, is null."""
    return msgspec.json.decode(msgspec.json.encode(value))


def pictures(displays: Iterable[DisplayData]) -> list[ImageContent]:
    """Of each display the first type that is a picture."""
    found: list[ImageContent] = []
    left = MAX_IMAGE_CHARS
    for display in displays:
        for mime in _STARTS:
            data = display.data.get(mime)
            if data is not None and len(data) <= left and len(found) < MAX_IMAGES and is_picture(mime, data):
                found.append(ImageContent(data=data, mime_type=mime))
                left -= len(data)
                break
    return found


def is_picture(mime: str, data: str) -> bool:
    """Is this base64 of something that begins as such a picture does?"""
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return False
    return mime in _STARTS and _STARTS[mime].match(raw) is not None


def cut(text: str, limit: int = MAX_CHARS) -> str:
    """The beginning and the end of what is too long, and how much is missing between them."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def _execution(result: Result, session_id: str | None, images: int) -> Execution:
    is_long = len(msgspec.json.encode(result.value)) > MAX_VALUE_BYTES
    error = result.error
    if error is not None:
        error = msgspec.structs.replace(error, message=cut(error.message), traceback=cut(error.traceback))
    return Execution(
        session_id=session_id,
        exit_code=0 if result.ok else 1,
        status=result.status,
        stdout=cut(result.stdout),
        stderr=cut(result.stderr),
        text=None if result.text is None else cut(result.text),
        value=None if is_long else result.value,
        error=error,
        limit=result.limit,
        truncated=Cut(
            stdout=result.truncated.stdout or len(result.stdout) > MAX_CHARS,
            stderr=result.truncated.stderr or len(result.stderr) > MAX_CHARS,
            text=len(result.text or "") > MAX_CHARS,
            value=is_long,
        ),
        files=tuple(
            FileLink(
                file.path, file.size, file.change,
                None if session_id is None or file.change == "deleted" else file_uri(session_id, file.path),
            )
            for file in result.files[:MAX_FILES]
        ),
        images=images,
        notes=result.notes,
        session=result.session,
        usage=result.usage,
        isolation=Isolation(result.isolation.tier, result.isolation.level),
        run_id=result.id,
    )  # fmt: skip


def _told(execution: Execution, result: Result) -> str:
    """For clients that show a model only text. Everything it needs to go on is in it."""
    parts: list[str] = []
    if execution.stdout:
        parts.append(execution.stdout.rstrip("\n"))
    if execution.stderr:
        parts.append(f"[stderr]\n{execution.stderr.rstrip(chr(10))}")
    if execution.text is not None:
        parts.append(f"[value]\n{execution.text}" if parts else execution.text)
    if (error := execution.error) is not None:
        parts.append(error.traceback.rstrip("\n") or f"{error.type}: {error.message}")
    if not parts:
        parts.append("(no output)")
    return "\n".join([*parts, "", *_notes(execution, result.files)])


def _notes(execution: Execution, files: Sequence[Any]) -> list[str]:
    said = [f"[status] {execution.status.replace('_', ' ')}"]
    if (limit := execution.limit) is not None:
        said.append(f"[limit] the {limit.name} limit of {limit.limit:g} {limit.unit} ended the run")
    said += [f"[note] {cut(note)}" for note in execution.notes]
    shown = [f"{file.path} ({file.change}, {file.size} bytes)" for file in execution.files]
    if len(files) > len(shown):
        shown.append(f"and {len(files) - len(shown)} more")
    if shown:
        said.append(f"[files] {', '.join(shown)}")
    state = execution.session
    if execution.session_id is not None:
        if state.rolled_back:
            said.append("[session] rolled back: variables and files are as they were before this run")
        if state.note is not None:
            said.append(f"[session] {state.note}")
        said.append(f"[session_id] {execution.session_id}")
    elif not state.survived and state.note is not None:
        said.append(f"[session] it ended: {state.note}")
    return said
