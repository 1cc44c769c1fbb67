"""`/files` and `/health`: contents by HTTP, as forms or raw, compressed or not; links that are signed instead of carrying a header."""

import asyncio
import base64
import hashlib
import hmac
import posixpath
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message

from onetrip.api.requests import pieces
from onetrip.compat.e2b import contents
from onetrip.compat.e2b.requests import json, sandbox, sandboxes
from onetrip.compat.e2b.sandboxes import Sandbox
from onetrip.compat.e2b.streams import Stream
from onetrip.errors import BadRequest, TooLarge, Unauthorized

MAX_PARTS: Final = 1000
FORM_S: Final = 600.0  # for all of a form
FORM_MORE_BYTES: Final = 1 << 20  # that a form may have beside files which fit into the sandbox


async def health(request: Request) -> Response:
    sandbox(request)
    return Response(status_code=204)


async def read(request: Request) -> Response:
    box = _sandbox(request, "read")
    path = contents.absolute(request.query_params.get("path", ""))
    size, pieces = await contents.read(box, path)
    response = Stream(pieces, media_type="application/octet-stream")
    response.headers["X-Content-Type-Options"] = "nosniff"
    if size is not None:
        response.headers["content-length"] = str(size)
    return response


async def write(request: Request) -> Response:
    box = _sandbox(request, "write")
    given = request.query_params.get("path", "")
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        return await _write_form(request, box, given)
    path = contents.absolute(given)
    body: AsyncIterator[bytes] = pieces(request)
    match request.headers.get("content-encoding", "identity").strip().lower():
        case "gzip":
            body = _unzipped(body)
        case "identity" | "":
            pass
        case other:
            raise BadRequest(f"Content-Encoding: {other[:40]!r} is not known here", field="Content-Encoding")
    await contents.write(box, path, body)
    return json([_written(path)])


async def _write_form(request: Request, box: Sandbox, given: str) -> Response:
    written: list[dict[str, str]] = []
    form = await _form(_bounded(request, (box.session.spec.limits.disk_mb << 20) + FORM_MORE_BYTES))
    try:
        uploads = [part for part in form.getlist("file") if isinstance(part, UploadFile)]
        if not uploads:
            raise BadRequest("the form has no part named `file`", field="file")
        if given and len(uploads) > 1:
            raise BadRequest("path: for one file only; the names of the parts are their paths", field="path")
        for upload in uploads:
            path = contents.absolute(given or upload.filename or "")
            await contents.write(box, path, _upload(upload))
            written.append(_written(path))
    finally:
        await form.close()
    return json(written)


def _bounded(request: Request, most: int) -> Request:
    """The same request, whose body is at most so large: a form lies on the host's disk until it is taken apart."""
    size, length = 0, request.headers.get("content-length", "")
    too_large = TooLarge(f"a form of more than {most} bytes", hint="Its files do not fit into the sandbox.")
    if length.isdecimal() and int(length[:18]) > most:
        raise too_large

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > most:
            raise too_large
        return message

    return Request(request.scope, receive)


async def _form(request: Request) -> FormData:
    """The whole form, on a temporary disk. Raises BadRequest, also when it does not come in time."""
    try:
        async with asyncio.timeout(FORM_S):
            return await request.form(max_files=MAX_PARTS, max_fields=MAX_PARTS)
    except TimeoutError as err:
        raise BadRequest(f"the form did not arrive within {FORM_S:.0f} s") from err
    except ClientDisconnect as err:
        raise BadRequest("the body ended early; nothing was written") from err


def _written(path: str) -> dict[str, str]:
    return {"name": posixpath.basename(path), "type": "file", "path": path}


async def _upload(upload: UploadFile) -> AsyncGenerator[bytes]:
    while piece := await upload.read(contents.CHUNK_BYTES):
        yield piece


async def _unzipped(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """In bounded pieces, whatever the body claims to hold. Raises BadRequest."""
    unzip = zlib.decompressobj(wbits=31)
    try:
        async for piece in pieces:
            held = piece
            while held:
                yield unzip.decompress(held, contents.CHUNK_BYTES)
                held = unzip.unconsumed_tail
                if unzip.eof:
                    held, unzip = unzip.unused_data, zlib.decompressobj(wbits=31)
    except zlib.error as err:
        raise BadRequest(f"the body is not gzip: {err}", field="Content-Encoding") from err


# ---------------------------------------------------------------------------------------------------- signed links


def _sandbox(request: Request, operation: str) -> Sandbox:
    """By its header, or by a signature over the path with the sandbox's token. Raises Unauthorized, Gone, BadRequest."""
    signature = request.query_params.get("signature")
    if signature is None or request.headers.get("e2b-sandbox-id"):
        return sandbox(request)
    path, user = request.query_params.get("path", ""), request.query_params.get("username", "")
    expires = request.query_params.get("signature_expiration")
    if expires is not None and not (expires.isdecimal() and int(expires[:18]) > time.time()):
        raise Unauthorized("the link has expired", hint="Make a new one.")
    sandboxes(request).adopt()
    for box in sandboxes(request).live():
        text = ":".join((path, operation, user, box.record.token, *(() if expires is None else (expires,))))
        made = base64.b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        if hmac.compare_digest(b"v1_" + made, signature.encode()):
            return box
    raise Unauthorized("the link is not signed with the token of a sandbox that runs", hint="Make a new one.")
