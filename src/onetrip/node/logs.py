"""The events of one run, numbered: made once, read by any number of readers, each from where it likes.

A run goes on without a reader, for its output is bounded by its limits. A reader that is slow slows it: the maker waits while some
reader has more than `WINDOW_BYTES` before it.
"""

import asyncio
import collections
from collections.abc import AsyncGenerator
from typing import Final

import msgspec

from onetrip import model
from onetrip.node.messages import WINDOW_BYTES

NAMES: Final = {
    model.Started: "started",
    model.Stdout: "stdout",
    model.Stderr: "stderr",
    model.Displayed: "display",
    model.ToolCalled: "tool_call",
    model.ToolAnswered: "tool_result",
    model.Done: "done",
}
READER_S: Final = 10.0
_encode: Final = msgspec.json.Encoder().encode


class Record(msgspec.Struct, frozen=True):
    number: int
    name: str
    data: bytes  # JSON


class _Reader:
    __slots__ = ("at", "wake")

    def __init__(self, at: int) -> None:
        self.at = at  # index of the next record
        self.wake = asyncio.Event()


class Log:
    """`put` events, `end` it; `read` from a number on. `failure` is set instead of a last event where there is none.

    A run that waits for its caller has a `done` as its newest event, which is the last one until the run goes on.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.bytes = 0
        self.ended = False
        self.waiting = False
        self.failure: BaseException | None = None
        self._sizes: list[int] = [0]  # bytes before each record
        self._readers: set[_Reader] = set()
        self._expected: _Reader | None = None
        self._room: asyncio.Event = asyncio.Event()
        self._waiters: collections.deque[tuple[int, asyncio.Future[None]]] = collections.deque()

    def expect_reader(self) -> None:
        """One will come at once and begin at the first event: until it is there, or `READER_S` have gone, it counts as one that is slow."""
        expected = self._expected = _Reader(0)
        self._readers.add(expected)
        asyncio.get_running_loop().call_later(READER_S, self._arrived, expected)

    def _arrived(self, expected: _Reader) -> None:
        self._readers.discard(expected)
        self._room.set()

    async def put(self, event: model.Event) -> None:
        """Add an event; waits while a reader is far behind."""
        data = _encode(event.result) if isinstance(event, model.Done) else _encode(event)
        self.records.append(Record(len(self.records) + 1, NAMES[type(event)], data))
        self.bytes += len(data)
        self._sizes.append(self.bytes)
        self.waiting = isinstance(event, model.Done) and event.result.status == "waiting"
        if isinstance(event, model.Done) and not self.waiting:
            self.end()
            return
        self._wake()
        self._settled()
        while self._readers and not self._has_room():
            self._room.clear()
            await self._room.wait()

    def end(self, failure: BaseException | None = None) -> None:
        """Nothing more comes."""
        self.ended, self.waiting, self.failure = True, False, failure
        self._wake()
        self._settled()

    def go_on(self) -> None:
        """It does not wait any more, though no event says so yet, and none may for long: a call was allowed, and is being made."""
        self.waiting = False

    def _is_settled(self, after: int) -> bool:
        return self.ended or (self.waiting and len(self.records) > after)

    def _settled(self) -> None:
        for after, waiter in self._waiters:
            if self._is_settled(after) and not waiter.done():
                waiter.set_result(None)
        self._waiters = collections.deque(waiting for waiting in self._waiters if not waiting[1].done())

    async def wait_settled(self, after: int = 0) -> None:
        """Until it has ended, or waits with an event that is newer than `after`."""
        if not self._is_settled(after):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((after, waiter))
            await waiter

    async def read(self, after: int) -> AsyncGenerator[Record]:
        """Records with a number above `after`, to the last. What was yielded counts as taken when the next one is asked for.

        That the run waits, or waited, is told only if it still does; then it is the last.
        """
        reader = _Reader(min(max(after, 0), len(self.records)))
        self._readers.add(reader)
        if self._expected is not None:
            expected, self._expected = self._expected, None
            self._arrived(expected)
        try:
            while True:
                while reader.at < len(self.records):
                    record = self.records[reader.at]
                    is_last = record.name == "done" and reader.at + 1 == len(self.records) and (self.ended or self.waiting)
                    if is_last or record.name != "done":
                        yield record
                    reader.at += 1
                    self._room.set()
                    if is_last:
                        return
                if self.ended:
                    return
                reader.wake.clear()
                await reader.wake.wait()
        finally:
            self._readers.discard(reader)
            self._room.set()

    def _wake(self) -> None:
        for reader in self._readers:
            reader.wake.set()

    def _has_room(self) -> bool:
        return all(self.bytes - self._sizes[reader.at] <= WINDOW_BYTES for reader in self._readers)
