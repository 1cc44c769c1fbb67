"""Endpoints of files: raw bytes, streamed both ways in constant memory; ranges, ETags, preconditions (RFC 9110)."""

import asyncio
import contextlib
import os
import re
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from onetrip.api.requests import caller, pieces, service
from onetrip.api.runs import JSON
from onetrip.errors import BadRequest, NotFound, PreconditionFailed, RangeUnsatisfiable
from onetrip.files import Opened
from onetrip.schema import FileEntry, FileList

CHUNK_BYTES: Final = 1 << 20
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def _path(request: Request) -> str:
    """The name as it was sent. Raises BadRequest for bytes that are not UTF-8, which would name another file."""
    path: str = request.path_params["path"]
    raw: bytes = request.scope.get("raw_path", b"")
    try:
        unquote_to_bytes(raw).decode()
    except UnicodeDecodeError as err:
        raise BadRequest("the path is not UTF-8", field="path") from err
    return path


async def list_files(request: Request) -> Response:
    who = caller(request, "reader")
    async with service(request).sessions.workspace(who, request.path_params["sid"]) as workspace:
        found = await asyncio.to_thread(workspace.list)
    return Response(
        msgspec.json.encode(FileList(tuple(FileEntry(f.path, f.size, f.modified_ns) for f in found))), media_type=JSON
    )


async def delete_file(request: Request) -> Response:
    who = caller(request, "user")
    path = _path(request)
    sessions = service(request).sessions
    async with sessions.workspace(who, request.path_params["sid"], changes=True) as workspace, _alone(request, sessions.writing):
        if _is_conditional(request):
            _check_write(request, await asyncio.to_thread(_etag_of, workspace, path))
        await asyncio.to_thread(workspace.delete, path)
    return Response(status_code=204)


async def put_file(request: Request) -> Response:
    who = caller(request, "user")
    path = _path(request)
    sessions = service(request).sessions
    async with sessions.workspace(who, request.path_params["sid"], changes=True) as workspace:
        existing = await asyncio.to_thread(_etag_of, workspace, path)
        _check_write(request, existing)
        with await asyncio.to_thread(workspace.upload, path) as upload:
            waiting: list[bytes] = []
            held = 0
            async with contextlib.aclosing(pieces(request)) as body:
                async for piece in body:
                    waiting.append(piece)
                    held += len(piece)
                    if held >= CHUNK_BYTES:
                        await asyncio.to_thread(upload.write, b"".join(waiting))
                        waiting, held = [], 0
            await asyncio.to_thread(upload.write, b"".join(waiting))
            async with _alone(request, sessions.writing):
                if _is_conditional(request):  # again: much may have happened while the body arrived
                    existing = await asyncio.to_thread(_etag_of, workspace, path)
                    _check_write(request, existing)
                await asyncio.to_thread(upload.finish)
            size = upload.size
        etag = await asyncio.to_thread(_etag_of, workspace, path)
    service(request).count(who, bytes_in=size)
    return Response(status_code=204 if existing else 201, headers={"ETag": etag} if etag else None)


async def get_file(request: Request) -> Response:
    who = caller(request, "reader")
    async with service(request).sessions.workspace(who, request.path_params["sid"]) as workspace:
        opened = await asyncio.to_thread(workspace.open, _path(request))
    with contextlib.ExitStack() as held:
        held.enter_context(opened)
        etag = _etag(opened)
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
        if _names(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        # A program's file is a stranger's: never shown as a page of ours, whatever its name says.
        headers |= {"Content-Type": "application/octet-stream", "X-Content-Type-Options": "nosniff"}
        span = _span(request, opened.size, etag)
        first, last = span or (0, opened.size - 1)
        if span is not None:
            headers["Content-Range"] = f"bytes {first}-{last}/{opened.size}"
        headers["Content-Length"] = str(last - first + 1)
        status = 200 if span is None else 206
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        service(request).count(who, bytes_out=last - first + 1)
        held.pop_all()
    return _FileStream(opened, first, last, status, headers, service(request).settings.stall_s)


class _FileStream(Response):
    """Closes the file in any case. One that shrank meanwhile breaks the connection: a short body must not look whole."""

    def __init__(self, opened: Opened, first: int, last: int, status: int, headers: dict[str, str], stall_s: float) -> None:
        super().__init__(status_code=status, headers=headers)
        self._stall_s = stall_s
        self._opened, self._at, self._end = opened, first, last + 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 -- ASGI's interface
        with self._opened as opened:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while self._at < self._end:
                size = min(CHUNK_BYTES, self._end - self._at)
                data = await asyncio.to_thread(os.pread, opened.fd, size, self._at)
                if not data:
                    raise ConnectionResetError("the file became shorter while it was sent")
                self._at += len(data)
                async with asyncio.timeout(self._stall_s):
                    await send({"type": "http.response.body", "body": data, "more_body": self._at < self._end})
            if self._end == 0 or self.headers.get("content-length") == "0":
                await send({"type": "http.response.body", "body": b"", "more_body": False})


def _etag(opened: Opened) -> str:
    return f'"{opened.modified_ns:x}-{opened.size:x}-{opened.inode:x}"'


def _etag_of(workspace: Any, path: str) -> str | None:
    try:
        with workspace.open(path) as opened:
            return _etag(opened)
    except NotFound:
        return None
    except BadRequest:  # something else than a file; writing says what
        return None


def _names(header: str | None, etag: str) -> bool:
    return header is not None and (
        header.strip() == "*" or etag in (part.strip().removeprefix("W/") for part in header.split(","))
    )


def _is_conditional(request: Request) -> bool:
    return "if-match" in request.headers or "if-none-match" in request.headers


def _alone(request: Request, lock: asyncio.Lock) -> contextlib.AbstractAsyncContextManager[Any]:
    """One writer at a time where what is written depends on what is there: no two of them may find the same."""
    return lock if _is_conditional(request) else contextlib.nullcontext()


def _check_write(request: Request, existing: str | None) -> None:
    """Raises PreconditionFailed."""
    match, none_match = request.headers.get("if-match"), request.headers.get("if-none-match")
    if match is not None and (existing is None or not _names(match, existing)):
        raise PreconditionFailed("the file is not the one that If-Match names", field="If-Match")
    if none_match is not None and existing is not None and _names(none_match, existing):
        raise PreconditionFailed("the file exists already", field="If-None-Match")


def _span(request: Request, size: int, etag: str) -> tuple[int, int] | None:
    """First and last byte that are wanted; None for all. Several ranges are answered by all, as RFC 9110 allows."""
    header = request.headers.get("range")
    only_if = request.headers.get("if-range")
    found = _RANGE.fullmatch(header.strip()) if header else None
    if found is None or (only_if is not None and only_if != etag) or found[0] == "bytes=-":
        return None
    if found[1]:
        first, last = int(found[1]), min(int(found[2]) if found[2] else size - 1, size - 1)
    else:
        first, last = max(0, size - int(found[2])), size - 1
    if first >= size or last < first:
        raise RangeUnsatisfiable(f"the file has {size} bytes", field="Range")
    return first, last
