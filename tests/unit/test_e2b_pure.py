"""The parts of the E2B dialect that do no I/O: envelopes, errors, and what two looks at a folder tell."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetrip import errors
from onetrip.compat.e2b import connect, programs, shapes
from onetrip.compat.e2b.connect import Envelopes, RpcError, envelope
from onetrip.compat.e2b.filesystem import changes
from onetrip.compat.e2b.interpreters import answer
from onetrip.compat.e2b.shapes import Entry
from onetrip.model import DisplayData, Isolation, Result

JAIL = Isolation("jail", "strict", ())


@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers(-5, 5), max_size=3), max_size=5), st.integers(1, 7))
@pytest.mark.spec("ETB-08")
def test_envelopes_are_found_however_their_bytes_are_cut(messages, step):
    raw = b"".join(map(envelope, messages)) + connect.end()
    reader, found = Envelopes(), []
    for at in range(0, len(raw), step):
        found += [json.loads(message) for message in reader.feed(raw[at : at + step])]
    assert (found, reader.rest) == (messages, 0)


@given(st.binary(max_size=64))
@pytest.mark.spec("ETB-08")
def test_any_bytes_are_messages_or_an_error_of_the_protocol(raw):
    try:
        for message in Envelopes().feed(raw):
            connect.decode(message, shapes.Start)
    except RpcError as err:
        assert err.code in connect.STATUS  # noqa: PT017 - or there is none


@pytest.mark.spec("ETB-08")
def test_every_error_of_ours_has_a_name_in_connects_words():
    for code in errors.STATUS:
        assert RpcError.of(errors.named(code)("why")).status >= 400
    assert RpcError("made up", "x").code == "internal"


def _entry(path: str, **fields) -> Entry:
    given = {
        "folder": False,
        "size": 1,
        "mode": 0o644,
        "owner": "u",
        "group": "u",
        "modified_ns": 1,
        "target": None,
        "inode": hash(path),
    }
    return Entry(name=path, path=path, **{**given, **fields})


@pytest.mark.spec("ETB-05")
def test_two_looks_tell_what_was_made_written_renamed_and_removed():
    before = {path: _entry(path) for path in ("same", "written", "gone", "old", "mode")}
    now = {
        "same": before["same"],
        "written": _entry("written", modified_ns=2),
        "new": _entry("new", inode=before["old"].inode),
        "mode": _entry("mode", mode=0o600),
        "made": _entry("made", folder=True),
        "file": _entry("file"),
    }
    assert sorted((kind, one.path) for kind, one in changes(before, now)) == [
        ("CHMOD", "mode"),
        ("CREATE", "file"),
        ("CREATE", "made"),
        ("CREATE", "new"),
        ("REMOVE", "gone"),
        ("RENAME", "old"),
        ("WRITE", "file"),
        ("WRITE", "written"),
    ]
    assert changes(now, now) == []


@pytest.mark.spec("ETB-02")
@pytest.mark.parametrize(
    ("text", "shown"), [("'a'", "a"), ('"it\'s"', "it's"), ("'a\\n'", "'a\\n'"), ("[1]", "[1]"), ("'a' 'b'", "'a' 'b'"), ("", "")]
)
def test_a_plain_string_is_shown_without_its_quotes(text, shown):
    assert shapes.unquoted(text) == shown


@pytest.mark.spec("ETB-08")
def test_what_a_helper_answers_is_a_strangers_word():
    for value in (None, 1, {"entries": 5}, {"entries": [{}]}, {"error": 1}, {"code": "x"}, [{}]):
        with pytest.raises(RpcError, match="meddled"):
            answer(Result(id="r", session_id=None, status="completed", value=value, isolation=JAIL))
    with pytest.raises(RpcError) as caught:
        answer(Result(id="r", session_id=None, status="completed", value={"error": "made up", "message": "m"}, isolation=JAIL))
    assert caught.value.code == "internal"


@pytest.mark.spec("ETB-08")
def test_a_display_that_lies_about_its_json_stays_text():
    line = shapes.shown(DisplayData({shapes.CHART: "{", "text/plain": "'x'"}), is_main=False)
    assert (line["text"], line["extra"], "chart" in line) == ("x", {shapes.CHART: "{"}, False)
    assert msgspec.json.encode(line)


def test_programs_are_source_that_compiles():
    for name in ("command", "courier", "entries", "setup"):
        compile(programs.text(name), name, "exec")
