"""A workspace of this machine for callers that await: each method by a thread, for the disk may be slow."""

import asyncio
import builtins
import os
import threading
from collections.abc import Callable
from typing import BinaryIO, Final

from onetrip.errors import BadRequest
from onetrip.files import Workspace
from onetrip.model import FileInfo

PIECE_BYTES: Final = 1 << 20


class LocalFiles:
    """See `seam.Files`. `find` gives the workspace, or raises what became of the session; `changed` is told after each change."""

    def __init__(self, find: Callable[[], Workspace], changed: Callable[[], None]) -> None:
        self._find, self._changed = find, changed

    async def write(self, path: str, data: bytes) -> None:
        await asyncio.to_thread(self._find().write, path, data)
        self._changed()

    async def read(self, path: str) -> bytes:
        return await asyncio.to_thread(self._find().read, path)

    async def list(self) -> builtins.list[FileInfo]:
        return await asyncio.to_thread(self._find().list)

    async def delete(self, path: str) -> None:
        await asyncio.to_thread(self._find().delete, path)
        self._changed()

    async def upload(self, path: str, source: BinaryIO) -> None:
        workspace = self._find()

        def copy(stop: threading.Event) -> None:
            with workspace.upload(path) as upload:
                while piece := source.read(PIECE_BYTES):
                    upload.write(piece)
                    if stop.is_set():
                        return
                upload.finish()

        await _until_cancelled(copy)
        self._changed()

    async def download(self, path: str, to: BinaryIO) -> None:
        workspace = self._find()

        def copy(stop: threading.Event) -> None:
            with workspace.open(path) as opened:
                left = opened.size  # and not to its end: a program may make it longer for ever
                while left and not stop.is_set():
                    piece = os.read(opened.fd, min(PIECE_BYTES, left))
                    if not piece:
                        raise BadRequest(f"{path!r} became shorter while it was read", field="path", hint="Read it again.")
                    to.write(piece)
                    left -= len(piece)

        await _until_cancelled(copy)


async def _until_cancelled(copy: Callable[[threading.Event], None]) -> None:
    """By one thread, which has and closes the descriptors: after a cancellation it stops at the next piece."""
    stop = threading.Event()
    try:
        await asyncio.to_thread(copy, stop)
    finally:
        stop.set()
