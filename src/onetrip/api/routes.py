"""Every path of the native interface, with what it takes and gives: the router and the OpenAPI document are both made from this."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from onetrip import schema
from onetrip.api import batch, files, runs, sessions, system
from onetrip.model import Result
from onetrip.tools.batch import BatchRequest, BatchResult

Endpoint = Callable[[Request], Awaitable[Response]]
BYTES: Final = "bytes"
EVENTS: Final = "events"
TEXT: Final = "text"


class Route(msgspec.Struct, frozen=True, kw_only=True):
    method: str
    path: str  # as OpenAPI writes it; a parameter `path` may have slashes
    endpoint: Endpoint
    summary: str
    takes: Any = None  # type of the JSON body, or BYTES
    body_optional: bool = False
    gives: tuple[tuple[int, Any], ...] = ()  # status → type of the JSON body, BYTES, EVENTS, TEXT, or None for no body
    query: tuple[tuple[str, str, str], ...] = ()  # name, type, meaning
    headers: tuple[tuple[str, str], ...] = ()  # name, meaning
    errors: tuple[int, ...] = (400, 404, 410)  # beside those that every path has
    is_open: bool = False  # needs no key


_KEY: Final = ("Idempotency-Key", "The same request under the same key is done once, and answered the same.")
_SID: Final = (400, 404, 410)

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="POST", path="/v1/runs", endpoint=runs.create_run, summary="Run a one-shot",
        takes=schema.RunRequest, gives=((200, Result), (200, EVENTS)), headers=(_KEY,), errors=(400, 404, 409, 413, 500, 501, 503),
    ),
    Route(
        method="GET", path="/v1/runs/{rid}", endpoint=runs.get_run, summary="The result of a run; 202 while there is none",
        gives=((200, Result), (202, schema.Pending)), query=(("wait_s", "integer", "Wait so long for it, at most 60 seconds"),),
        errors=(400, 404, 410, 409, 500, 501, 503),
    ),
    Route(
        method="GET", path="/v1/runs/{rid}/events", endpoint=runs.get_events, summary="The events of a run, again",
        gives=((200, EVENTS), (204, None)), query=(("after", "integer", "Only events with a higher number"),),
        headers=(("Last-Event-ID", "The same, as browsers send it"),), errors=(400, 404, 410, 409, 500, 501, 503),
    ),
    Route(
        method="POST", path="/v1/runs/{rid}/interrupt", endpoint=runs.interrupt_run, summary="Like Ctrl-C, then kill",
        gives=((204, None),), errors=(400, 404, 409, 410, 500, 501, 503),
    ),
    Route(
        method="POST", path="/v1/runs/{rid}/tool_results", endpoint=runs.answer_tools, summary="Answer pending tool calls",
        takes=schema.ToolResultsRequest, gives=((200, Result), (200, EVENTS), (202, schema.Pending)), headers=(_KEY,),
        errors=(400, 404, 409, 410, 413, 500, 501, 503),
    ),
    Route(
        method="POST", path="/v1/sessions", endpoint=sessions.create_session, summary="Open a session",
        takes=schema.SessionRequest, body_optional=True, gives=((201, schema.SessionInfo),), headers=(_KEY,),
        errors=(400, 404, 409, 410, 413, 500, 501, 503, 507),
    ),
    Route(
        method="GET", path="/v1/sessions", endpoint=sessions.list_sessions, summary="The tenant's sessions",
        gives=((200, schema.SessionList),), errors=(),
    ),
    Route(
        method="GET", path="/v1/sessions/{sid}", endpoint=sessions.get_session, summary="One session",
        gives=((200, schema.SessionInfo),), errors=_SID,
    ),
    Route(
        method="DELETE", path="/v1/sessions/{sid}", endpoint=sessions.delete_session, summary="Close a session",
        gives=((204, None),), errors=_SID,
    ),
    Route(
        method="POST", path="/v1/sessions/{sid}/runs", endpoint=runs.create_cell, summary="Run a cell",
        takes=schema.CellRequest, gives=((200, Result), (200, EVENTS)), headers=(_KEY,),
        errors=(400, 404, 409, 410, 413, 500, 501, 503),
    ),
    Route(
        method="POST", path="/v1/sessions/{sid}/undo", endpoint=sessions.undo, summary="Go back to a checkpoint",
        takes=schema.UndoRequest, body_optional=True, gives=((200, schema.Rewinding),), headers=(_KEY,),
        errors=(400, 404, 409, 410, 413, 500, 503),
    ),
    Route(
        method="POST", path="/v1/sessions/{sid}/redo", endpoint=sessions.redo, summary="Take an undo back",
        takes=schema.UndoRequest, body_optional=True, gives=((200, schema.Rewinding),), headers=(_KEY,),
        errors=(400, 404, 409, 410, 413, 500, 503),
    ),
    Route(
        method="POST", path="/v1/sessions/{sid}/fork", endpoint=sessions.fork, summary="Branches of a session",
        takes=schema.ForkRequest, body_optional=True, gives=((201, schema.ForkResponse),), headers=(_KEY,),
        errors=(400, 404, 409, 410, 413, 500, 501, 503),
    ),
    Route(
        method="GET", path="/v1/sessions/{sid}/files", endpoint=files.list_files, summary="The files of a session",
        gives=((200, schema.FileList),), errors=(*_SID, 500, 503),
    ),
    Route(
        method="GET", path="/v1/sessions/{sid}/files/{path}", endpoint=files.get_file, summary="Read a file",
        gives=((200, BYTES), (206, BYTES), (304, None)),
        headers=(("Range", "bytes=FIRST-LAST"), ("If-None-Match", "ETags"), ("If-Range", "ETag")),
        errors=(*_SID, 416, 500, 503),
    ),
    Route(
        method="PUT", path="/v1/sessions/{sid}/files/{path}", endpoint=files.put_file, summary="Create or replace a file",
        takes=BYTES, gives=((201, None), (204, None)),
        headers=(("If-Match", "ETags"), ("If-None-Match", "ETags, or *")), errors=(*_SID, 412, 500, 503, 507),
    ),
    Route(
        method="DELETE", path="/v1/sessions/{sid}/files/{path}", endpoint=files.delete_file, summary="Delete a file",
        gives=((204, None),), headers=(("If-Match", "ETags"),), errors=(*_SID, 412, 500, 503),
    ),
    Route(
        method="POST", path="/v1/batch", endpoint=batch.create_batch, summary="Many tool calls and cells, as a graph",
        takes=BatchRequest, gives=((200, BatchResult), (200, EVENTS)), headers=(_KEY,), errors=(400, 404, 409, 410, 413, 500, 503),
    ),
    Route(
        method="GET", path="/v1/tools", endpoint=system.tools, summary="The server's tools", gives=((200, schema.ToolList),), errors=()
    ),
    Route(
        method="GET", path="/v1/tools/stubs", endpoint=system.stubs, summary="Tools as text for a prompt", gives=((200, TEXT),),
        query=(
            ("budget", "integer", "At most so many tokens, 2000 if it is not said"), ("style", "string", "async (the default) or blocking"),
            ("tools", "string", "A pattern such as shop.*; may be repeated"),
        ),
        errors=(400,),
    ),
    Route(
        method="GET", path="/v1/capabilities", endpoint=system.capabilities, summary="What isolation and limits hold here",
        gives=((200, schema.Capabilities),), errors=(500, 503),
    ),
    Route(
        method="GET", path="/healthz", endpoint=system.healthz, summary="The process lives", gives=((200, schema.Health),),
        errors=(), is_open=True,
    ),
    Route(
        method="GET", path="/readyz", endpoint=system.readyz, summary="Runs can begin",
        gives=((200, schema.Health), (503, schema.Health)), errors=(), is_open=True,
    ),
    Route(
        method="GET", path="/metrics", endpoint=system.metrics, summary="Counters for Prometheus", gives=((200, TEXT),), errors=()
    ),
)  # fmt: skip
