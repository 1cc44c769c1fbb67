"""The files of a session over HTTP: streamed both ways in constant memory, and taken up again where a connection broke."""

import asyncio
import builtins
import io
import time
from collections.abc import AsyncIterator
from typing import BinaryIO, Final

from onetrip.client import core
from onetrip.client.http import PIECE_BYTES, Broken, Link
from onetrip.client.retries import Retries
from onetrip.errors import BadRequest, OnetripError
from onetrip.model import FileInfo

MAX_READ_BYTES: Final = 512 << 20  # as embedded
PARTIAL_CONTENT: Final = 206


class RemoteFiles:
    """See `seam.Files`."""

    def __init__(self, link: Link, session_id: str, retry_s: float) -> None:
        self._link, self._session_id, self._retry_s = link, session_id, retry_s

    async def write(self, path: str, data: bytes) -> None:
        await self._link.ask(core.put_file(self._session_id, path, data))

    async def read(self, path: str) -> bytes:
        data = io.BytesIO()
        await self._fetch(path, data, max_bytes=MAX_READ_BYTES)
        return data.getvalue()

    async def list(self) -> builtins.list[FileInfo]:
        return core.listing(await self._link.ask(core.files(self._session_id)))

    async def delete(self, path: str) -> None:
        await self._link.ask(core.file(self._session_id, path, "DELETE"))

    async def upload(self, path: str, source: BinaryIO) -> None:
        start = source.tell() if source.seekable() else None

        async def pieces() -> AsyncIterator[bytes]:
            if start is not None:
                await asyncio.to_thread(source.seek, start)
            while piece := await asyncio.to_thread(source.read, PIECE_BYTES):
                yield piece

        ask = core.put_file(self._session_id, path)
        await self._link.ask(ask, content=pieces, is_repeatable=start is not None)

    async def download(self, path: str, to: BinaryIO) -> None:
        await self._fetch(path, to, max_bytes=None)

    async def _fetch(self, path: str, to: BinaryIO, *, max_bytes: int | None) -> None:
        start = to.tell() if to.seekable() else None
        at, size, etag = 0, -1, ""
        retries, since = Retries(self._retry_s), time.monotonic()
        while at != size:
            rest = (("Range", f"bytes={at}-"), ("If-Range", etag)) if at and etag else ()
            try:
                async with self._link.begin(core.file(self._session_id, path, "GET", *rest)) as response:
                    if at and response.status_code != PARTIAL_CONTENT:
                        if start is None:  # what was written cannot be taken back
                            raise BadRequest(f"{path!r} was changed while it was read", field="path", hint="Read it again.")
                        await asyncio.to_thread(_back_to, to, start)
                        at = 0
                    etag, size = response.headers.get("etag", ""), at + int(response.headers.get("content-length", -1 - at))
                    if max_bytes is not None and size > max_bytes:
                        raise BadRequest(
                            f"{path!r} has {size} bytes, more than {max_bytes}", field="path", hint="Use `files.download`."
                        )
                    async for piece in response.aiter_raw(PIECE_BYTES):
                        await asyncio.to_thread(to.write, piece)
                        at += len(piece)
                        since = time.monotonic()
                        retries.progressed()
                    return
            except Broken as err:
                pause = self._link.pause_after(err, retries, since)
                if pause is None:
                    raise self._link.unreachable(err) from err
            except OnetripError as err:
                pause = retries.after_refusal(err, time.monotonic() - since)
                if pause is None:
                    raise
            await asyncio.sleep(pause)


def _back_to(file: BinaryIO, start: int) -> None:
    file.seek(start)
    file.truncate()
