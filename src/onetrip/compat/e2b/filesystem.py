"""Connect's `filesystem.Filesystem`: folders listed, made, moved, removed and watched by the helper program in the sandbox.

Watching is looking again: nobody in the sandbox tells us of changes. What came and went between two looks is not seen.
"""

import asyncio
import posixpath
import secrets
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from onetrip.compat.e2b import connect
from onetrip.compat.e2b.connect import RpcError
from onetrip.compat.e2b.contents import absolute
from onetrip.compat.e2b.requests import json, message, sandbox
from onetrip.compat.e2b.sandboxes import Sandbox
from onetrip.compat.e2b.shapes import Entry, Move, PathRequest, Watcher, entry
from onetrip.errors import BadRequest, OnetripError

LOOK_S: Final = 0.25  # between two looks of a watching stream
MAX_WATCHERS: Final = 64  # of one sandbox
MAX_EVENTS: Final = 10_000
KEEPALIVE: Final[dict[str, dict[str, str]]] = {"keepalive": {}}
Seen = Mapping[str, Entry]  # by path


async def list_dir(request: Request) -> Response:
    box, asked = sandbox(request), await message(request, PathRequest)
    if not 0 <= asked.depth <= 64:
        raise RpcError("invalid_argument", "depth: from 1 to 64")
    entries = await _ask(box, "list", asked.path, depth=asked.depth or 1)
    return json({"entries": [entry(one) for one in entries]})


async def stat(request: Request) -> Response:
    box, asked = sandbox(request), await message(request, PathRequest)
    return json({"entry": entry(_only(await _ask(box, "stat", asked.path)))})


async def make_dir(request: Request) -> Response:
    box, asked = sandbox(request), await message(request, PathRequest)
    return json({"entry": entry(_only(await _ask(box, "make", asked.path)))})


async def move(request: Request) -> Response:
    box, asked = sandbox(request), await message(request, Move)
    return json({"entry": entry(_only(await _ask(box, "move", asked.source, to=_path(asked.destination))))})


async def remove(request: Request) -> Response:
    box, asked = sandbox(request), await message(request, PathRequest)
    await _ask(box, "remove", asked.path)
    return json({})


async def _ask(box: Sandbox, do: str, path: str, **more: Any) -> tuple[Entry, ...]:
    answer, _ = await box.helper.ask("entries", {"do": do, "path": _path(path), **more})
    return answer.entries


def _path(path: str) -> str:
    try:
        return absolute(path)
    except BadRequest as err:
        raise RpcError("invalid_argument", str(err)) from err


def _only(entries: tuple[Entry, ...]) -> Entry:
    if len(entries) != 1:
        raise RpcError("internal", "a helper in the sandbox was meddled with")
    return entries[0]


# ---------------------------------------------------------------------------------------------------- watching


class Watching:
    """One folder that is watched: what it held at the last look."""

    def __init__(self, box: Sandbox, asked: PathRequest) -> None:
        self._box, self._path, self._deep, self._with_entry = box, _path(asked.path), asked.recursive, asked.includeEntry
        self._seen: Seen = {}
        self._turn = asyncio.Lock()

    async def begin(self) -> None:
        """Raises RpcError where there is no such folder."""
        self._seen = await self._look()

    async def events(self) -> list[dict[str, Any]]:
        """What changed since the last look. A folder that is gone has no more events."""
        async with self._turn:
            now: Seen = {}
            try:
                now = await self._look()
            except RpcError as err:
                if err.code != "not_found":
                    raise
            before, self._seen = self._seen, now
        return [self._told(kind, one) for kind, one in changes(before, now)[:MAX_EVENTS]]

    async def _look(self) -> Seen:
        return {one.path: one for one in await _ask(self._box, "look", self._path, deep=self._deep)}

    def _told(self, kind: str, one: Entry) -> dict[str, Any]:
        told: dict[str, Any] = {"name": posixpath.relpath(one.path, self._path), "type": f"EVENT_TYPE_{kind}"}
        return {**told, "entry": entry(one)} if self._with_entry else told


def changes(before: Seen, now: Seen) -> list[tuple[str, Entry]]:
    """In the words of inotify, as far as two looks tell."""
    found: list[tuple[str, Entry]] = []
    came = {one.inode: one for path, one in now.items() if path not in before}
    for path, old in before.items():
        new = now.get(path)
        if new is None:
            found.append(("RENAME" if old.inode in came else "REMOVE", old))
        elif new.inode != old.inode:
            found += [("CREATE", new), ("WRITE", new)]
        else:
            if not new.folder and (new.modified_ns, new.size) != (old.modified_ns, old.size):
                found.append(("WRITE", new))
            if new.mode != old.mode:
                found.append(("CHMOD", new))
    renamed = {old.inode for path, old in before.items() if path not in now}
    for path, new in now.items():
        if path not in before:
            found.append(("CREATE", new))
            if not new.folder and new.size and new.inode not in renamed:
                found.append(("WRITE", new))
    return found


async def create_watcher(request: Request) -> Response:
    box, asked = sandbox(request), await message(request, PathRequest)
    if len(box.watchers) >= MAX_WATCHERS:
        raise RpcError("resource_exhausted", f"{MAX_WATCHERS} folders are watched already; stop one")
    watching = Watching(box, asked)
    await watching.begin()
    name = secrets.token_hex(8)
    box.watchers[name] = watching
    return json({"watcherId": name})


async def get_watcher_events(request: Request) -> Response:
    return json({"events": await _watching(sandbox(request), await message(request, Watcher)).events()})


async def remove_watcher(request: Request) -> Response:
    box, asked = sandbox(request), await message(request, Watcher)
    _watching(box, asked)
    del box.watchers[asked.watcherId]
    return json({})


def _watching(box: Sandbox, asked: Watcher) -> Watching:
    found = box.watchers.get(asked.watcherId)
    if not isinstance(found, Watching):
        raise RpcError("not_found", f"watcher with id {asked.watcherId[:60]} not found")
    return found


async def watch_dir(box: Sandbox, asked: PathRequest) -> AsyncGenerator[bytes]:
    """A stream: that it has begun, then each event."""
    watching = Watching(box, asked)
    await watching.begin()
    yield connect.envelope({"start": {}})
    while True:
        await asyncio.sleep(LOOK_S)  # not a wait for something: the time between two looks
        try:
            for event in await watching.events():
                yield connect.envelope({"filesystem": event})
        except OnetripError as err:
            raise RpcError.of(err) from err
