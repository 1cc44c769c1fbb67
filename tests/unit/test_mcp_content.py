"""How results look to a model, what tools take, and which addresses are files."""

import base64
import json

import jsonschema
import pytest

from onetrip.errors import BadRequest, Overloaded
from onetrip.mcp_server import resources, schema
from onetrip.mcp_server.content import MAX_IMAGES, cut, executed, failed, file_uri, pictures
from onetrip.mcp_server.tools import BY_NAME, SHOWN
from onetrip.model import DisplayData, FileChange, Isolation, LimitHit, ProgramError, Result, SessionState

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n...").decode()


def a_result(**fields):
    told = {"id": "run_1", "session_id": "ses_1", "status": "completed", "isolation": Isolation("jail", "strict", ())}
    return Result(**(told | fields))


@pytest.mark.spec("MCP-05")
def test_only_what_begins_as_its_type_says_is_a_picture():
    good = {
        "image/png": PNG,
        "image/jpeg": base64.b64encode(b"\xff\xd8\xff\xe0").decode(),
        "image/gif": base64.b64encode(b"GIF89a").decode(),
        "image/webp": base64.b64encode(b"RIFF\n\n\n\nWEBPVP8 ").decode(),
    }
    assert [found.mime_type for found in pictures(DisplayData({mime: data}) for mime, data in good.items())] == list(good)
    for mime in good:
        for data in (
            "",
            "%%%",
            "é",
            PNG[:-1] + "!",
            base64.b64encode(b"RIFF1234WAVE").decode(),
            base64.b64encode(b"<svg>").decode(),
        ):
            assert pictures([DisplayData({mime: data})]) == []
    assert pictures([DisplayData({"image/svg+xml": "<svg/>", "text/html": "<b>"})]) == []
    assert len(pictures([DisplayData({"image/jpeg": "?", "image/png": PNG})])) == 1  # another form of the same is good


@pytest.mark.spec("MCP-09")
def test_pictures_are_bounded():
    assert len(pictures([DisplayData({"image/png": PNG})] * 100)) == MAX_IMAGES
    big = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(4 << 20)).decode()
    assert len(pictures([DisplayData({"image/png": big})] * 3)) == 1


@pytest.mark.spec("MCP-09")
def test_what_is_left_out_of_a_long_text_is_counted():
    assert cut("a" * 100, 100) == "a" * 100
    assert cut("a" * 40 + "b" * 40 + "c" * 40, 80) == f"{'a' * 40}\n… 40 characters left out …\n{'c' * 40}"
    files = tuple(FileChange(f"{n}.txt", 1, "created") for n in range(1000))
    result = executed(a_result(files=files), "ses_1")
    assert len(result.structured_content["files"]) == 200
    assert "and 800 more" in result.content[0].text


@pytest.mark.spec("MCP-06")
def test_the_text_has_all_that_a_model_needs_to_go_on():
    told = executed(
        a_result(
            stdout="out\n",
            stderr="err\n",
            text="7",
            status="limit_exceeded",
            error=ProgramError("LimitExceeded", "too long"),
            limit=LimitHit("wall", 2, "s"),
            files=(FileChange("a b", 3, "created"), FileChange("c", 0, "deleted")),
            session=SessionState(survived=True, rolled_back=True, note="because"),
        ),
        "ses_1",
    )
    text = told.content[0].text
    for part in ("out", "[stderr]\nerr", "[value]\n7", "LimitExceeded: too long", "wall limit of 2 s", "a b (created, 3 bytes)", "rolled back", "because", "ses_1"):  # fmt: skip
        assert part in text
    assert [file["uri"] for file in told.structured_content["files"]] == ["sandbox://ses_1/files/a%20b", None]
    assert executed(a_result(), None).content[0].text.startswith("(no output)")
    gone = executed(a_result(session=SessionState(survived=False, note="it was killed")), None)
    assert "it ended: it was killed" in gone.content[0].text


@pytest.mark.spec("MCP-06")
def test_what_tools_give_is_json_and_what_their_schemas_say():
    result = a_result(value=[float("inf"), float("nan"), {"a": None}], text="x", displays=(DisplayData({"image/png": PNG}),))
    given = executed(result, "ses_1").structured_content
    assert given["value"] == [None, None, {"a": None}]
    json.dumps(given, allow_nan=False)
    for tool in SHOWN:
        for found in (tool.input_schema, tool.output_schema):
            jsonschema.Draft202012Validator.check_schema(found)
            assert found["type"] == "object"
    (run,) = (tool for tool in SHOWN if tool.name == "execute_python")
    jsonschema.validate(given, run.output_schema)


@pytest.mark.spec("MCP-06")
def test_an_error_of_ours_is_whole():
    error = Overloaded("too much", retry_after_s=3.0, hint="wait", field="queue")
    told = failed(error)
    assert told.is_error
    assert told.structured_content == {
        "error": {"code": "overloaded", "message": "too much", "hint": "wait", "field": "queue", "retry_after_s": 3.0}
    }
    assert told.content[0].text == "Error (overloaded): too much\nHint: wait"


@pytest.mark.spec("MCP-06")
@pytest.mark.parametrize(
    ("tool", "arguments", "named"),
    [
        ("execute_python", None, "code"),
        ("execute_python", {"code": ["1"]}, "code"),
        ("execute_python", {"code": "1", "evil": 1}, "evil"),
        ("execute_python", {"code": "1", "one_shot": "perhaps"}, "one_shot"),
        ("create_session", {"memory_mb": "much"}, "memory_mb"),
        ("create_session", {"on_error": "explode"}, "on_error"),
        ("undo", {"session_id": "s", "cells": 0}, "cells"),
        ("fork", {"session_id": "s", "count": 10**30}, "count"),
        ("read_file", {"session_id": "s"}, "path"),
    ],
)
def test_arguments_that_cannot_be_are_refused_by_name(tool, arguments, named):
    with pytest.raises(BadRequest, match=named):
        schema.decode(arguments, BY_NAME[tool].takes)


@pytest.mark.spec("MCP-07")
def test_addresses_of_files_say_exactly_one_path():
    from hypothesis import given, strategies

    @given(strategies.text(strategies.characters(exclude_categories=["Cs"]), min_size=1, max_size=300))
    def every(path):
        match = resources._URI.fullmatch(file_uri("ses_1", path))
        assert resources.unquote(match["path"]) == path

    every()
    for wrong in ("sandbox://s", "sandbox:///files/a", "sandbox://s/files/", "sandbox://s/files/a?b", "http://s/files/a", "sandbox://s/files/" + "a" * 10_000):  # fmt: skip
        assert resources._URI.fullmatch(wrong) is None
