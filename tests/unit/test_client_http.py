"""The client against a server that breaks, refuses, lies and is silent: a script of answers on a real socket, byte for byte."""

import asyncio
import contextlib
import io
from collections.abc import Callable

import msgspec
import pytest

import onetrip
from onetrip.client import engine as client_engine
from onetrip.client import files as client_files
from onetrip.client import retries
from onetrip.errors import BadRequest, Conflict, NotFound, PlatformError, QuotaExceeded, Unauthorized, Unavailable, WorkspaceFull
from onetrip.model import Done, Isolation, Result, Started, Stdout

RESULT = Result(id="run_1", session_id="ses_1", status="completed", text="'end'", isolation=Isolation("jail", "strict", ()))
EVENTS = (
    b'id: 1\nevent: started\ndata: {"type":"started","run_id":"run_1"}\n\n'
    b'id: 2\nevent: stdout\ndata: {"type":"stdout","text":"one"}\n\n: still here\n\n'
    b'id: 3\nevent: stdout\ndata: {"type":"stdout","text":"two"}\n\n'
    b"id: 4\nevent: done\ndata: " + msgspec.json.encode(RESULT) + b"\n\n"
)
OUTCOME = [Started("run_1"), Stdout("one"), Stdout("two"), Done(RESULT)]
SESSION = b'{"id":"ses_1","created_at":1,"last_used_at":1,"expires_at":1,"environment":"default","limits":{}}'
CUT = object()  # the connection breaks here
HOLD = object()  # nothing more is said


def answer(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def problem(status: int, code: str, *headers: str) -> bytes:
    body = {"type": "t", "title": "t", "status": status, "detail": f"it is {code}", "code": code, "hint": "do", "request_id": "r"}
    return answer(status, msgspec.json.encode(body), *headers)


def stream(data: bytes, *, ended: bool = True) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
    return head + chunk + (b"0\r\n\r\n" if ended else b"")


class Asked(msgspec.Struct):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Script:
    """Answers the requests that come, one after the other, with what it was given: bytes, `CUT`, `HOLD`, or a function that makes them.

    What is asked about the server's health is answered beside the script, by `health`.
    """

    def __init__(self, *answers) -> None:
        self.answers, self.asked = list(answers), []
        self.health = answer(200, b'{"status":"ok"}')
        self.came: dict[int, asyncio.Event] = {}
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def until(self, count: int) -> None:
        """So many requests have come."""
        event = self.came.setdefault(count, asyncio.Event())
        if len(self.asked) < count:
            async with asyncio.timeout(10):
                await event.wait()

    def _accepted(self, reader, writer) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader, writer) -> None:
        try:
            while (asked := await _request(reader)) is not None:
                if asked.path == "/healthz":
                    parts = (self.health,)
                else:
                    self.asked.append(asked)
                    self.came.setdefault(len(self.asked), asyncio.Event()).set()
                    said = self.answers.pop(0)
                    said = said(asked) if callable(said) else said
                    parts = said if isinstance(said, tuple) else (said,)
                for part in parts:
                    if part is CUT:
                        return
                    if part is HOLD:
                        await reader.read()  # until the client goes
                        return
                    writer.write(part)
                    await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def _request(reader) -> Asked | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    return Asked(method, path, headers, body)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_S", 0.0)
    monkeypatch.setattr(client_files, "PIECE_BYTES", 1000)


def against(script: Script, work: Callable, **options):
    """What `work` gives, with an interface that is connected to the script; the connections are closed afterwards."""

    async def main():
        async with script, onetrip.aconnect(script.url, "key", **options) as ot:
            return await work(ot)

    return asyncio.run(main())


async def attached(ot):
    return await ot.attach("ses_1")


async def all_events(ot) -> list:
    session = await attached(ot)
    return [event async for event in session.stream("code")]


KNOWN = answer(200, SESSION)  # to `attach`: from now on the client knows that there is a server

# ---------------------------------------------------------------------------------------------------- connections


@pytest.mark.spec("CLT-03")
def test_a_server_that_is_not_there_is_said_at_once_and_with_the_remedy():
    async def main() -> None:
        async with Script() as script:
            pass
        async with onetrip.aconnect(script.url, "key") as ot:
            with pytest.raises(Unavailable, match="cannot be reached") as gone:
                await ot.run("1")
        assert script.url in str(gone.value)
        assert "onetrip serve" in gone.value.hint

    asyncio.run(main())


@pytest.mark.spec("CLT-05")
def test_a_request_whose_connection_broke_is_repeated_under_the_same_key():
    script = Script(KNOWN, CUT, (b"HTTP/1.1 200", CUT), stream(EVENTS))
    assert against(script, all_events) == OUTCOME
    _, *runs = script.asked
    assert {(ask.method, ask.path, ask.body, ask.headers["idempotency-key"]) for ask in runs} == {
        ("POST", "/v1/sessions/ses_1/runs", b'{"code":"code","stream":true}', runs[0].headers["idempotency-key"])
    }
    assert {ask.headers["authorization"] for ask in script.asked} == {"Bearer key"}


@pytest.mark.spec("CLT-05")
def test_two_runs_have_two_keys():
    async def work(ot) -> None:
        await ot.run("1")
        await ot.run("1")

    script = Script(stream(EVENTS), stream(EVENTS))
    against(script, work)
    assert len({ask.headers["idempotency-key"] for ask in script.asked}) == 2


@pytest.mark.spec("CLT-05")
def test_a_busy_server_is_asked_again_when_it_says_and_a_long_wait_is_the_callers_to_decide():
    script = Script(
        problem(503, "overloaded", "Retry-After: 0"),
        problem(429, "quota_exceeded", "Retry-After: 0"),
        problem(429, "quota_exceeded", "Retry-After: 3600"),
    )
    with pytest.raises(QuotaExceeded) as busy:
        against(script, lambda ot: ot.run("1"))
    assert (busy.value.retry_after_s, len(script.asked)) == (3600, 3)
    assert len({ask.headers["idempotency-key"] for ask in script.asked}) == 1


@pytest.mark.spec("CLT-03")
@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (problem(401, "unauthorized"), Unauthorized),
        (problem(409, "conflict"), Conflict),
        (problem(507, "workspace_full"), WorkspaceFull),
        (answer(502, b"<html>no</html>"), Unavailable),
        (answer(307, b"", "Location: http://127.0.0.1:9/"), PlatformError),
        (answer(200, b"<html>a web page</html>"), PlatformError),
    ],
)
def test_what_is_no_success_is_our_error_and_not_repeated(said, kind):
    script = Script(said)
    with pytest.raises(kind):
        against(script, lambda ot: ot.session().open())
    assert len(script.asked) == 1


@pytest.mark.spec("CLT-03", "END-03")
def test_a_client_that_was_closed_says_so():
    async def main() -> None:
        ot = onetrip.aconnect("http://127.0.0.1:9")
        await ot.aclose()
        with pytest.raises(PlatformError, match="closed"):
            await ot.run("1")

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------- events


@pytest.mark.spec("CLT-04")
def test_a_stream_that_breaks_at_any_byte_goes_on_after_the_last_event_that_came():
    def rest(asked: Asked) -> bytes:
        """As a server: everything to who asks again for the run, what comes later to who names the last event."""
        last = int(asked.headers.get("last-event-id", 0))
        assert (last > 0) == (asked.path == "/v1/runs/run_1/events")
        records = EVENTS.split(b"\n\n")
        return stream(b"\n\n".join(record for record in records if b"id: " not in record or int(record[4:5]) > last))

    async def main() -> None:
        for cut in range(0, len(EVENTS) + 1, 3):
            for end in ((CUT,), (b"0\r\n\r\n",)):  # the connection breaks, or the answer ends as if that were all
                script = Script(KNOWN, (stream(EVENTS[:cut], ended=False), *end), rest)
                async with script, onetrip.aconnect(script.url, "key") as ot:
                    assert await all_events(ot) == OUTCOME, cut

    asyncio.run(main())


@pytest.mark.spec("CLT-04")
def test_a_stream_that_breaks_again_and_again_is_taken_up_as_long_as_it_goes_on():
    ends = [at + 2 for at in range(len(EVENTS)) if EVENTS[at : at + 2] == b"\n\n"]
    pieces = [EVENTS[before:end] for before, end in zip([0, *ends], ends, strict=False)]
    script = Script(KNOWN, *((stream(piece, ended=False), CUT) for piece in pieces))
    assert against(script, all_events) == OUTCOME
    assert [ask.headers.get("last-event-id") for ask in script.asked[2:]] == ["1", "2", "2", "3"]


@pytest.mark.spec("CLT-06")
@pytest.mark.parametrize(("session", "survived"), [(KNOWN, True), (problem(410, "session_gone"), False)])
def test_a_run_that_the_server_lost_is_a_result_that_says_so(session, survived):
    script = Script(KNOWN, (stream(EVENTS[:70], ended=False), CUT), problem(404, "not_found"), session)
    events = against(script, all_events)
    assert events[0] == Started("run_1")
    result = events[-1].result
    assert (result.id, result.session_id, result.status, result.ok) == ("run_1", "ses_1", "lost", False)
    assert (result.error.type, result.session.survived) == ("SandboxLost", survived)


@pytest.mark.spec("CLT-05")
def test_a_server_that_is_silent_is_asked_how_it_is_and_then_for_the_same_run(monkeypatch):
    monkeypatch.setattr(client_engine, "SILENCE_S", 0.1)
    script = Script(KNOWN, HOLD, (stream(EVENTS[:70], ended=False), HOLD), stream(EVENTS[66:]))
    assert against(script, all_events) == OUTCOME
    assert [ask.path for ask in script.asked[1:]] == ["/v1/sessions/ses_1/runs"] * 2 + ["/v1/runs/run_1/events"]


@pytest.mark.spec("CLT-05")
def test_a_server_that_hangs_for_good_is_given_up(monkeypatch):
    monkeypatch.setattr(client_engine, "SILENCE_S", 0.1)
    monkeypatch.setattr(client_engine, "HEALTH_S", 0.1)
    script = Script(KNOWN, HOLD)
    script.health = HOLD
    with pytest.raises(Unavailable, match="cannot be reached"):
        against(script, all_events, retry_s=0.3)


# ---------------------------------------------------------------------------------------------------- cancelling


@pytest.mark.spec("CLT-07")
def test_a_cancelled_run_is_interrupted():
    script = Script(KNOWN, (stream(EVENTS[:70], ended=False), HOLD), answer(204))

    async def work(ot) -> None:
        session = await attached(ot)
        began = asyncio.Event()

        async def run() -> None:
            async for _ in session.stream("code"):
                began.set()

        task = asyncio.create_task(run())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    against(script, work)
    assert (script.asked[-1].method, script.asked[-1].path) == ("POST", "/v1/runs/run_1/interrupt")


@pytest.mark.spec("CLT-07")
def test_a_reader_that_leaves_a_stream_interrupts_its_run():
    async def work(ot) -> None:
        async with contextlib.aclosing(ot.stream("code")) as events:
            await anext(events)

    script = Script((stream(EVENTS[:70], ended=False), HOLD), answer(204))
    against(script, work)
    assert script.asked[-1].path == "/v1/runs/run_1/interrupt"


@pytest.mark.spec("CLT-07")
def test_a_run_that_is_cancelled_before_its_id_is_known_is_asked_for_again_and_interrupted():
    script = Script(HOLD, (stream(EVENTS[:70], ended=False), HOLD), answer(204))

    async def work(ot) -> None:
        task = asyncio.create_task(ot.run("code"))
        await script.until(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await script.until(3)

    against(script, work)
    first, again, interrupt = script.asked
    assert first.headers["idempotency-key"] == again.headers["idempotency-key"]
    assert interrupt.path == "/v1/runs/run_1/interrupt"


@pytest.mark.spec("CLT-07")
def test_a_session_whose_opening_is_cancelled_is_closed():
    script = Script(HOLD, answer(201, SESSION), answer(204))

    async def work(ot) -> None:
        task = asyncio.create_task(ot.session().open())
        await script.until(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await script.until(3)

    against(script, work)
    first, again, close = script.asked
    assert first.headers["idempotency-key"] == again.headers["idempotency-key"]
    assert (close.method, close.path) == ("DELETE", "/v1/sessions/ses_1")


@pytest.mark.spec("CLT-07")
def test_interrupt_is_for_the_run_that_has_begun_and_nothing_where_none_runs():
    script = Script(KNOWN, KNOWN, (stream(EVENTS[:70], ended=False), HOLD), answer(204), answer(204))

    async def work(ot) -> None:
        session = await attached(ot)
        await session.interrupt()
        async with contextlib.aclosing(session.stream("code")) as events:
            await anext(events)
            await session.interrupt()

    against(script, work)
    assert [ask.path for ask in script.asked[1:4]] == [
        "/v1/sessions/ses_1",
        "/v1/sessions/ses_1/runs",
        "/v1/runs/run_1/interrupt",
    ]


# ---------------------------------------------------------------------------------------------------- files

DATA = bytes(range(256)) * 20


class Pipe(io.RawIOBase):
    """What can neither be read again nor taken back."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = io.BytesIO(data)

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        return self.data.read(size)

    def write(self, data) -> int:
        return self.data.write(data)


@pytest.mark.spec("CLT-08")
def test_a_download_that_breaks_goes_on_where_it_was():
    def rest(asked: Asked) -> bytes:
        first = int(asked.headers["range"].removeprefix("bytes=").removesuffix("-"))
        assert asked.headers["if-range"] == '"v1"'
        return answer(206, DATA[first:], f"Content-Range: bytes {first}-{len(DATA) - 1}/{len(DATA)}", 'ETag: "v1"')

    async def work(ot) -> None:
        for to in (io.BytesIO(), Pipe()):
            await (await attached(ot)).files.download("f", to)
            assert (to if isinstance(to, io.BytesIO) else to.data).getvalue() == DATA

    half = answer(200, DATA, 'ETag: "v1"')[:-3000]
    against(Script(KNOWN, (half, CUT), rest, KNOWN, (half, CUT), rest), work)


@pytest.mark.spec("CLT-08")
def test_a_file_that_changed_between_two_connections_is_read_anew_or_refused_and_never_mixed():
    new = b"new" * 1000

    async def work(ot) -> None:
        session = await attached(ot)
        assert await session.files.read("f") == new
        with pytest.raises(BadRequest, match="changed"):
            await session.files.download("f", Pipe())

    half = (answer(200, DATA, 'ETag: "v1"')[:-3000], CUT)
    changed = answer(200, new, 'ETag: "v2"')
    against(Script(KNOWN, half, changed, half, changed), work)


@pytest.mark.spec("CLT-08")
def test_a_named_file_appears_whole_or_not_at_all(tmp_path):
    async def work(ot) -> None:
        session = await attached(ot)
        with pytest.raises(NotFound):
            await session.files.download("f", tmp_path / "f")
        with pytest.raises(Unavailable):
            await session.files.download("f", tmp_path / "f")
        assert list(tmp_path.iterdir()) == []
        await session.files.download("f", tmp_path / "f")

    half = (answer(200, DATA, 'ETag: "v1"')[:-3000], CUT)
    against(Script(KNOWN, problem(404, "not_found"), half, answer(200, DATA)), work, retry_s=-1)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f", DATA)]


@pytest.mark.spec("CLT-08")
def test_an_upload_that_breaks_begins_again_with_all_of_it():
    source = io.BytesIO(b"skipped" + DATA)
    source.seek(7)

    async def work(ot) -> None:
        session = await attached(ot)
        await session.files.upload("f", source)
        with pytest.raises(Unavailable):
            await session.files.upload("f", Pipe(DATA))

    script = Script(KNOWN, CUT, answer(201), CUT)
    against(script, work)
    assert [(ask.method, ask.path, ask.body) for ask in script.asked[1:]] == [("PUT", "/v1/sessions/ses_1/files/f", DATA)] * 3


@pytest.mark.spec("CLT-08")
def test_a_delete_that_is_repeated_and_finds_nothing_has_succeeded():
    async def work(ot) -> None:
        session = await attached(ot)
        await session.files.delete("f")
        with pytest.raises(NotFound):
            await session.files.delete("f")

    against(Script(KNOWN, CUT, problem(404, "not_found"), problem(404, "not_found")), work)


@pytest.mark.spec("CLT-08")
def test_files_that_cannot_be_opened_here_are_the_callers_mistake(tmp_path):
    async def work(ot) -> None:
        session = await attached(ot)
        for source in (tmp_path / "missing", tmp_path, "a\0b"):
            with pytest.raises(BadRequest, match=r"^source: "):
                await session.files.upload("f", source)
        with pytest.raises(BadRequest, match=r"^to: "):
            await session.files.download("f", tmp_path / "no" / "folder")

    against(Script(KNOWN), work)


# ---------------------------------------------------------------------------------------------------- where to connect


@pytest.mark.spec("CLT-01")
@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8400", "ftp://host", "http://", "http://[::1", "http://h:99999", "http://u:p@h", "http://h/?a=1"]
)
def test_an_address_that_is_none_is_refused(url, monkeypatch):
    monkeypatch.setenv("ONETRIP_URL", url or "nonsense")
    with pytest.raises(BadRequest, match=r"^url: "):
        onetrip.aconnect(url or None)


@pytest.mark.spec("CLT-01")
@pytest.mark.parametrize("token", ["a\nb", "a b", "é", "a\0"])
def test_a_key_that_no_header_can_carry_is_refused(token):
    with pytest.raises(BadRequest, match=r"^token: "):
        onetrip.aconnect("http://127.0.0.1:1", token)
