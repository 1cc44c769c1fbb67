"""What the client says and reads, without a socket: requests, answers, errors, events byte by byte, and when it asks again."""

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetrip import errors, schema
from onetrip.client import core, events
from onetrip.client.events import Record, Records
from onetrip.client.retries import Retries
from onetrip.errors import BadRequest, OnetripError, Overloaded, PlatformError, QuotaExceeded, Unavailable
from onetrip.model import (
    Cell,
    Displayed,
    Done,
    Isolation,
    Limits,
    ModulePolicy,
    Policy,
    Result,
    SessionSpec,
    Started,
    Stderr,
    Stdout,
)

# ---------------------------------------------------------------------------------------------------- requests


def decoded(ask: core.Ask, kind):
    """As the server does it."""
    return msgspec.json.decode(ask.body, type=kind)


@pytest.mark.spec("CLT-02")
def test_what_equals_the_default_is_not_sent_so_that_the_server_decides():
    ask, later = core.open_session(SessionSpec(), {}, "k")
    assert (ask.method, ask.path, msgspec.json.decode(ask.body), later) == (
        "POST",
        "v1/sessions",
        {"limits": {}, "policy": {}},
        {},
    )
    assert ask.all_headers() == {"Content-Type": "application/json", "Idempotency-Key": "k"}
    shot = core.shot(SessionSpec(), Cell(code="1"), {}, "k")
    assert msgspec.json.decode(shot.body) == {"code": "1", "stream": True, "limits": {}, "policy": {}}


@pytest.mark.spec("CLT-02")
def test_all_that_is_named_is_sent_and_understood():
    policy = Policy(modules=ModulePolicy(allow=("json",), deny=("socket",)))
    spec = SessionSpec(
        environment="plots", limits=Limits(wall_s=5, memory_mb=256), policy=policy, metadata={"user": "é"}, idle_timeout_s=9.0,
        isolation_floor="reduced", checkpoints=3, on_error="rollback", threads=2,
    )  # fmt: skip
    files = {"a.txt": "é".encode(), "b.bin": b"\xff\x00"}
    found = decoded(core.open_session(spec, files, "k")[0], schema.SessionRequest)
    assert found.limits == schema.LimitsRequest(wall_s=5, memory_mb=256)
    assert (found.environment, found.policy.modules, found.metadata) == ("plots", policy.modules, {"user": "é"})
    assert (found.idle_timeout_s, found.isolation_floor, found.checkpoints) == (9.0, "reduced", 3)
    assert (found.on_error, found.threads) == ("rollback", 2)
    assert found.files == (
        schema.FileContent("a.txt", "é"),
        schema.FileContent("b.bin", base64.b64encode(b"\xff\x00").decode(), "base64"),
    )
    cell = decoded(core.cell("ses_1", Cell(code="n", inputs={"n": [1]}, timeout_s=2, final=True), "k"), schema.CellRequest)
    assert (cell.code, cell.inputs, cell.timeout_s, cell.final, cell.stream) == ("n", {"n": [1]}, 2, True, True)
    assert decoded(core.rewind("ses_1", 3, "k", forward=True), schema.UndoRequest).cells == 3
    assert decoded(core.fork("ses_1", 5, "k"), schema.ForkRequest).count == 5


@pytest.mark.spec("CLT-02")
def test_files_that_are_too_much_for_one_request_follow_it(monkeypatch):
    monkeypatch.setattr(core, "INLINE_BYTES", 10)
    ask, later = core.open_session(SessionSpec(), {"a": b"12345", "b": b"123456", "c": b"12345"}, "k")
    assert [file.path for file in decoded(ask, schema.SessionRequest).files] == ["a", "c"]
    assert later == {"b": b"123456"}


@pytest.mark.spec("CLT-02")
@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("a b/é.txt", "a%20b/%C3%A9%2Etxt"),
        ("../etc/passwd", "%2E%2E/etc/passwd"),
        ("/etc", "/etc"),
        ("a/./b//c", "a/%2E/b//c"),
        ("a\nb?c#d%2e", "a%0Ab%3Fc%23d%252e"),
        ("", ""),
    ],
)
def test_a_path_arrives_as_it_is_and_never_as_another(path, sent):
    assert core.file("ses_1", path).path == f"v1/sessions/ses_1/files/{sent}"
    assert core.session(f"../{path}").path.count("/") == 2  # an id is one part, whatever is in it


@pytest.mark.spec("CLT-02")
@pytest.mark.parametrize(
    "ask",
    [
        lambda: core.cell("s", Cell(code="'\ud800'"), "k"),
        lambda: core.cell("s", Cell(code=b"1"), "k"),
        lambda: core.cell("s", Cell(code="1", inputs={"a": object()}), "k"),
        lambda: core.cell("s", Cell(code="1", timeout_s=-1), "k"),
        lambda: core.shot(SessionSpec(), Cell(code="1"), {"\ud800": b""}, "k"),
        lambda: core.open_session(SessionSpec(metadata={"a": "\ud800"}), {}, "k"),
        lambda: core.open_session(SessionSpec(limits=Limits(memory_mb=1)), {}, "k"),
        lambda: core.file("s", "\ud800"),
        lambda: core.rewind("s", True, "k", forward=False),
        lambda: core.fork("s", 0, "k"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_it_is_sent(ask):
    with pytest.raises(BadRequest):
        ask()


# ---------------------------------------------------------------------------------------------------- answers


@pytest.mark.spec("CLT-03")
@pytest.mark.parametrize("code", [code for code in errors.STATUS if code != "internal"])
def test_every_error_of_the_server_is_the_same_class_here(code):
    body = {"type": "…", "title": "…", "status": 1, "detail": "what", "code": code, "hint": "do", "request_id": "r", "field": "f"}
    found = core.error(errors.STATUS[code][0], {"retry-after": "7"}, msgspec.json.encode(body))
    assert type(found) is errors.named(code)
    assert (str(found), found.code, found.hint, found.field, found.retry_after_s) == ("what", code, "do", "f", 7)


@pytest.mark.spec("CLT-03")
@pytest.mark.parametrize(
    ("status", "kind"), [(404, errors.NotFound), (503, Unavailable), (418, PlatformError), (500, PlatformError)]
)
def test_an_error_that_only_a_newer_server_knows_is_told_by_its_status(status, kind):
    found = core.error(status, {}, b'{"detail":"d","code":"brand_new","more":[1]}')
    assert (type(found), str(found)) == (kind, "d")
    assert found.hint


@pytest.mark.spec("CLT-03")
@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (502, b"<html>Bad gateway</html>", Unavailable),
        (401, b"", errors.Unauthorized),
        (404, b"\x1b[31m\xff\xfe\x00", errors.NotFound),
        (302, b"{}", PlatformError),
        (500, b"[" * 100_000, PlatformError),
        (429, b'{"detail": 5}', QuotaExceeded),
    ],
)
def test_an_answer_of_something_else_is_an_error_of_ours_that_says_so(status, body, kind):
    found = core.error(status, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, body)
    assert type(found) is kind
    assert f"{status} from something that is not Onetrip" in str(found)
    assert str(found).isprintable()
    assert len(str(found)) < 400
    assert found.retry_after_s is None


@pytest.mark.spec("CLT-03")
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"id": 1}', b"null", b'{"id":' + b"[" * 5000])
def test_a_success_that_cannot_be_read_is_our_error(body):
    for read in (core.session_id, core.branches, core.rewound, core.listing, core.result, core.support):
        with pytest.raises(PlatformError, match="cannot be read"):
            read(body)


# ---------------------------------------------------------------------------------------------------- events

LINES = b"""\xef\xbb\xbf: hello
id: 1
event: started
data: {"run_id":"r"}

: still here

id:2
event:stdout
data:a
data: b
retry: 5
unknown

data: c

id: 9
event: nothing

data: cut"""


@pytest.mark.spec("CLT-04")
def test_a_record_is_cut_anywhere_and_lines_end_in_any_way():
    for end in (b"\n", b"\r\n", b"\r"):
        stream = LINES.replace(b"\n", end)
        whole = Records().feed(stream)
        assert whole == [Record(1, "started", b'{"run_id":"r"}'), Record(2, "stdout", b"a\nb"), Record(2, "message", b"c")]
        for size in range(1, len(stream)):
            parser = Records()
            assert [record for at in range(0, len(stream), size) for record in parser.feed(stream[at : at + size])] == whole, size


@pytest.mark.spec("CLT-04")
@given(
    data=st.lists(st.binary(min_size=1, max_size=20).map(lambda raw: raw.translate(None, b"\r\n") or b"x"), max_size=6),
    cuts=st.lists(st.integers(0, 400), max_size=12),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_whatever_the_data_and_the_cuts_each_record_comes_once_and_whole(data, cuts, end):
    stream = b"".join(b"id: %d%bevent: x%bdata: %b%b%b" % (n, end, end, raw, end, end) for n, raw in enumerate(data, 1))
    parser, found, at = Records(), [], 0
    for cut in [*sorted(cut for cut in cuts if cut < len(stream)), len(stream)]:
        found += parser.feed(stream[at:cut])
        at = cut
    assert found == [Record(number, "x", raw) for number, raw in enumerate(data, 1)]


def feed_for_ever(parser: Records, piece: bytes) -> None:
    for _ in range(60):
        assert parser.feed(piece) == []


@pytest.mark.spec("CLT-04")
def test_a_record_without_end_is_given_up():
    for piece in (b"x" * 60, b"data: x\n" * 9, b"x"):
        parser = Records(max_bytes=50)
        with pytest.raises(PlatformError, match="more than 50 bytes"):
            feed_for_ever(parser, piece)
    parser = Records(max_bytes=50)
    assert sum(len(parser.feed(b": a comment is not kept\n" * 9 + b"data: 1\n\n")) for _ in range(99)) == 99


@pytest.mark.spec("CLT-04")
def test_records_are_the_events_of_a_run():
    result = Result(
        id="run_1", session_id=None, status="completed", text="2", value=[1.5], isolation=Isolation("jail", "strict", ())
    )
    display = b'{"type":"display","display":{"data":{"text/plain":"x"},"is_result":true}}'
    found = [
        events.event(Record(1, name, data))
        for name, data in (
            ("started", b'{"type":"started","run_id":"run_1"}'), ("stdout", b'{"type":"stdout","text":"o"}'),
            ("stderr", b'{"type":"stderr","text":"e"}'), ("display", display), ("done", msgspec.json.encode(result)),
            ("from_a_newer_server", b"{}"), ("message", b"x"),
        )
    ]  # fmt: skip
    assert found[:3] == [Started("run_1"), Stdout("o"), Stderr("e")]
    assert isinstance(found[3], Displayed)
    assert found[4:] == [Done(result), None, None]


@pytest.mark.spec("CLT-03", "CLT-04")
@pytest.mark.parametrize(
    ("name", "data"), [("started", b"{}"), ("stdout", b"\xff"), ("done", b'{"id":"run_1"}'), ("done", b'{"status":"new"}')]
)
def test_an_event_that_cannot_be_read_is_our_error(name, data):
    with pytest.raises(PlatformError):
        events.event(Record(1, name, data))


# ---------------------------------------------------------------------------------------------------- asking again


@pytest.mark.spec("CLT-05")
def test_a_server_that_never_answered_is_not_asked_again():
    assert Retries(30).after_break(0.0, was_reached=False) is None


@pytest.mark.spec("CLT-05")
@given(budget=st.floats(0, 100), lengths=st.lists(st.floats(0, 5), max_size=40))
def test_asking_again_ends_with_the_budget_and_never_hurries(budget, lengths):
    retries, spent, pauses = Retries(budget), 0.0, []
    for length in lengths:
        spent += length
        pause = retries.after_break(spent, was_reached=True)
        if pause is None:
            break
        spent += pause
        pauses.append(pause)
    assert all(pause >= 0.05 for pause in pauses)
    assert pauses == sorted(pauses)
    assert not pauses or spent <= budget + 5


@pytest.mark.spec("CLT-05")
def test_a_refusal_is_asked_again_when_it_says_so_and_there_is_time():
    retries = Retries(30)
    assert retries.after_refusal(Overloaded("busy", retry_after_s=3), 0) == 3
    assert retries.after_refusal(QuotaExceeded("too many", retry_after_s=0), 0) == 0.05
    assert retries.after_refusal(QuotaExceeded("for today", retry_after_s=3600), 0) is None
    assert retries.after_refusal(Overloaded("busy", retry_after_s=3), 28) is None
    assert retries.after_refusal(Unavailable("who knows"), 0) is None
    others: list[OnetripError] = [errors.IsolationUnavailable("no", retry_after_s=1), errors.SandboxFailed("no", retry_after_s=1)]
    assert [retries.after_refusal(other, 0) for other in others] == [None, None]  # something may have begun, or never will
