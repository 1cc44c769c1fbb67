"""Files of sessions as resources: `sandbox://{session}/files/{path}`, where the path is percent-encoded, its slashes too or not."""

import base64
import mimetypes
import re
from typing import Final
from urllib.parse import unquote

from mcp import MCPError
from mcp_types import (
    INVALID_PARAMS,
    BlobResourceContents,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextResourceContents,
)

from onetrip.errors import OnetripError, SessionGone
from onetrip.mcp_server.backend import Backend
from onetrip.mcp_server.content import file_uri

TEMPLATE: Final = "sandbox://{session}/files/{path}"
MAX_BYTES: Final = 32 << 20  # base64 in one message; what is larger goes by the native interface
LISTED_SESSIONS: Final = 8
LISTED_FILES: Final = 500
_URI: Final = re.compile(r"sandbox://(?P<session>[^/?#]{1,100})/files/(?P<path>[^?#]{1,9000})")


def templates() -> ListResourceTemplatesResult:
    template = ResourceTemplate(
        uri_template=TEMPLATE,
        name="session-file",
        title="A file of a session",
        description="A file in the working folder of a session; `path` is relative to it and percent-encoded.",
    )
    return ListResourceTemplatesResult(resource_templates=[template])


async def listed(backend: Backend) -> ListResourcesResult:
    """Files of the sessions that were used last; of others by `list_files`. A session may end while we look."""
    found: list[Resource] = []
    for session_id in backend.sessions()[:LISTED_SESSIONS]:
        try:
            files = await backend.files(session_id)
        except SessionGone:
            continue
        found += [
            Resource(uri=file_uri(session_id, file.path), name=file.path, size=file.size, mime_type=_mime(file.path))
            for file in files[: LISTED_FILES - len(found)]
        ]
    return ListResourcesResult(resources=found)


async def read(backend: Backend, uri: str) -> ReadResourceResult:
    """Raises MCPError for what there is not."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise MCPError(INVALID_PARAMS, f"there is no resource {uri[:200]!r}; they look like {TEMPLATE}", {"uri": uri[:1000]})
    path = unquote(match["path"], errors="surrogateescape")
    data = await backend.read(unquote(match["session"]), path, MAX_BYTES)
    mime = _mime(path)
    if mime.startswith("text/") or mime in {"application/json", "image/svg+xml"}:
        try:
            return ReadResourceResult(contents=[TextResourceContents(uri=uri, mime_type=mime, text=data.decode("utf-8"))])
        except UnicodeDecodeError:
            pass  # its name says text, its content does not
    return ReadResourceResult(
        contents=[BlobResourceContents(uri=uri, mime_type=mime, blob=base64.b64encode(data).decode("ascii"))]
    )


def as_protocol_error(error: OnetripError, uri: str) -> MCPError:
    """Resources have no result that says an error, so code and hint go with the protocol's own."""
    return MCPError(
        INVALID_PARAMS,
        f"{error} ({error.hint})",
        {"uri": uri[:1000], "code": error.code, "hint": error.hint, "field": error.field},
    )


def _mime(path: str) -> str:
    return mimetypes.guess_type(path)[0] or "application/octet-stream"
