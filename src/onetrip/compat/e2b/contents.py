"""Contents of files: streamed between the request and the workspace where they lie there, else carried by the helper in pieces.

A path below /home/user is the workspace's and is opened by the host, beneath it and never through a link. What leads elsewhere is read
and written by a program in the sandbox, which can reach no more than any program there.
"""

import asyncio
import base64
import os
import posixpath
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from onetrip.compat.e2b.connect import RpcError
from onetrip.compat.e2b.sandboxes import Sandbox
from onetrip.errors import BadRequest, NotFound, WorkspaceFull
from onetrip.files import Opened

HOME: Final = "/home/user"
WORKSPACE: Final = "/workspace"
CHUNK_BYTES: Final = 1 << 20
CARRIED_BYTES: Final = 4 << 20  # in one piece by the helper


def absolute(path: str) -> str:
    """As a program in the home folder would understand it. Raises BadRequest."""
    if not path or "\0" in path or len(path.encode("utf-8", "replace")) > 4096:
        raise BadRequest("path: 1 to 4096 bytes without NUL", field="path")
    return posixpath.normpath(posixpath.join(HOME, path))


def in_workspace(path: str) -> str | None:
    """The path relative to the workspace; None for one elsewhere."""
    for folder in (HOME, WORKSPACE):
        if path.startswith(f"{folder}/"):
            return path[len(folder) + 1 :]
    return None


async def read(box: Sandbox, path: str) -> tuple[int | None, AsyncGenerator[bytes]]:
    """The size, where it is known, and the content. Raises NotFound, BadRequest before anything is sent."""
    relative = in_workspace(path)
    if relative is not None:
        try:
            async with box.service.sessions.workspace(box.caller, box.session.id) as workspace:
                opened = await asyncio.to_thread(workspace.open, relative)
        except BadRequest:
            pass  # a link, or no regular file: the program sees what it is
        else:
            return opened.size, _opened(opened)
    answer, first = await _asked(box, path, 0)
    return answer, _carried(box, path, answer, first)


async def _opened(opened: Opened) -> AsyncGenerator[bytes]:
    with opened:
        left, at = opened.size, 0
        while left > 0:
            data = await asyncio.to_thread(os.pread, opened.fd, min(CHUNK_BYTES, left), at)
            if not data:
                raise ConnectionResetError("the file became shorter while it was sent")
            at, left = at + len(data), left - len(data)
            yield data


async def _asked(box: Sandbox, path: str, offset: int) -> tuple[int, bytes]:
    try:
        answer, data = await box.helper.ask("entries", {"do": "read", "path": path, "offset": offset, "size": CARRIED_BYTES})
    except RpcError as err:
        raise as_http(err, path) from err
    return answer.size, data


async def _carried(box: Sandbox, path: str, size: int, data: bytes) -> AsyncGenerator[bytes]:
    at = 0
    while data and at < size:
        data = data[: size - at]
        at += len(data)
        yield data
        if at < size:
            _, data = await _asked(box, path, at)
    if at < size:
        raise ConnectionResetError("the file became shorter while it was sent")


async def write(box: Sandbox, path: str, pieces: AsyncIterator[bytes]) -> None:
    """Create or replace a file, whole or not at all, and the folders above it. Raises BadRequest, WorkspaceFull."""
    most = box.session.spec.limits.disk_mb << 20
    relative = in_workspace(path)
    bounded = _bounded(pieces, most)
    if relative is not None and not await _leads_out(box, path):
        async with box.service.sessions.workspace(box.caller, box.session.id, changes=True) as workspace:
            with await asyncio.to_thread(workspace.upload, relative) as upload:
                async for piece in _gathered(bounded, CHUNK_BYTES):
                    await asyncio.to_thread(upload.write, piece)
                await asyncio.to_thread(upload.finish)
        return
    part, more = f".upload-{secrets.token_hex(8)}", False
    try:
        last = b""
        async for piece in _gathered(bounded, CARRIED_BYTES):
            if last:
                await _carry(box, path, part, last, more=more, is_last=False)
                more = True
            last = piece
        await _carry(box, path, part, last, more=more, is_last=True)
    except BaseException:
        if more:
            await asyncio.shield(box.helper.ask("entries", {"do": "discard", "path": path, "part": part}))
        raise


async def _carry(box: Sandbox, path: str, part: str, data: bytes, *, more: bool, is_last: bool) -> None:
    request = {"do": "write", "path": path, "part": part, "data": base64.b64encode(data).decode(), "more": more, "last": is_last}
    try:
        await box.helper.ask("entries", request)
    except RpcError as err:
        raise as_http(err, path) from err


async def _leads_out(box: Sandbox, path: str) -> bool:
    """Whether a folder above it is a link, so that the host will not go there."""
    relative = in_workspace(posixpath.dirname(path))
    if relative is None:
        return False
    async with box.service.sessions.workspace(box.caller, box.session.id) as workspace:
        return await asyncio.to_thread(_has_link, workspace.fd, relative)


def _has_link(fd: int, relative: str) -> bool:
    at = ""
    for part in relative.split("/"):
        at = f"{at}/{part}" if at else part
        try:
            os.readlink(at, dir_fd=fd)
        except OSError:  # no link, or not there
            continue
        return True
    return False


async def _bounded(pieces: AsyncIterator[bytes], most: int) -> AsyncGenerator[bytes]:
    size = 0
    async for piece in pieces:
        size += len(piece)
        if size > most:
            raise WorkspaceFull(f"the file has more than the {most >> 20} MB of the sandbox's disk")
        yield piece


async def _gathered(pieces: AsyncIterator[bytes], size: int) -> AsyncGenerator[bytes]:
    """The same bytes in pieces of about that size."""
    held: list[bytes] = []
    count = 0
    async for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count >= size:
            yield b"".join(held)
            held, count = [], 0
    if held:
        yield b"".join(held)


def as_http(err: RpcError, path: str) -> Exception:
    """What the helper told, as an error of ours."""
    match err.code:
        case "not_found":
            return NotFound(f"path '{path[:200]}' does not exist", hint="It was never there, or was removed.")
        case "resource_exhausted":
            return WorkspaceFull(str(err))
        case "internal" | "unavailable" | "deadline_exceeded":
            return err
        case _:
            return BadRequest(str(err), field="path")
