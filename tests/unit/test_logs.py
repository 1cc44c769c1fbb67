"""Log lines: one each, whole, and nobody else's; and a server that goes on when nobody reads them."""

import fcntl
import json
import logging
import os
import pty
import re
import resource
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetrip.telemetry import context, logs
from onetrip.telemetry.logs import LINE_BYTES, Log

FORGED = 'x\n{"level":"error","event":"forged"}\r\x1b[2J\x85\u2028\u202eevil\x7f\ud800'


class Pipe:
    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.open = True

    def text(self) -> str:
        os.set_blocking(self.read_end, False)
        try:
            return os.read(self.read_end, 1 << 20).decode("utf-8")
        except BlockingIOError:
            return ""

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.text().splitlines()]

    def hang_up(self) -> None:
        if self.open:
            os.close(self.read_end)
        self.open = False


@pytest.fixture
def pipe():
    pipe = Pipe()
    yield pipe
    pipe.hang_up()
    os.close(pipe.write_end)


@contextmanager
def logging_to(pipe, level="debug", **options):
    handler = logs.configure(level, fd=pipe.write_end, **{"human": False, **options})
    try:
        yield handler
    finally:
        logs.release(handler)


@pytest.mark.spec("TEL-03")
def test_a_line_is_one_json_object_with_time_level_event_and_fields(pipe):
    with logging_to(pipe):
        Log().info("run", run_id="run_1", duration_ms=1.5, status="completed", code=None)
    (line,) = pipe.lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {"level": "info", "event": "run", "run_id": "run_1", "duration_ms": 1.5, "status": "completed"}


@pytest.mark.spec("TEL-03")
def test_every_line_names_the_request_that_the_task_works_for_and_what_was_noted_of_it(pipe):
    with logging_to(pipe):
        token = context.CURRENT.set(context.RequestInfo("req_1"))
        try:
            context.note(tenant="acme", run_id="run_1")
            context.note(session_id="ses_1")
            Log().info("one")
            logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
        finally:
            context.CURRENT.reset(token)
        Log().info("two")
        context.note(tenant="nobody")  # outside of a request: nothing
    first, second, third = pipe.lines()
    assert {"request_id": "req_1", "tenant": "acme", "run_id": "run_1", "session_id": "ses_1"}.items() <= first.items()
    assert (second["request_id"], second["logger"], second["event"]) == ("req_1", "uvicorn.error", "library")
    assert "request_id" not in third


@pytest.mark.spec("TEL-03")
def test_text_of_strangers_forges_no_line_and_commands_no_terminal(pipe):
    with logging_to(pipe):
        Log().info("request", path=FORGED, level="error", time="never", event_="kept")
        logging.getLogger("uvicorn.error").warning("bad %s", FORGED)
    text = pipe.text()
    assert text.isascii()
    assert text.count("\n") == 2
    assert len(text.splitlines()) == 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    first, second = map(json.loads, text.splitlines())
    assert (first["level"], first["event"], first["path"]) == ("info", "request", FORGED)
    assert second["message"] == f"bad {FORGED}"


@pytest.mark.spec("TEL-03")
def test_text_of_strangers_forges_no_line_for_people_either(pipe):
    with logging_to(pipe, human=True):
        Log().info("request", path=FORGED)
        try:
            raise ValueError(FORGED)
        except ValueError as err:
            Log().error("exception", error=err)
    text = pipe.text()
    assert all(char.isprintable() or char == "\n" for char in text)
    starts = [line for line in text.split("\n") if line and not line.startswith("    ")]
    assert [line.split()[1:3] for line in starts] == [["info", "request"], ["error", "exception"]]


@pytest.mark.spec("TEL-03")
def test_code_and_output_are_in_no_line_unless_asked_for(pipe):
    with logging_to(pipe):
        Log().content("run", content={"source": "secret = 1", "stdout": "42"}, run_id="run_1")
    assert "secret" not in pipe.text()
    with logging_to(pipe, content=True):
        Log().content("run", content={"source": "secret = 1", "run_id": "forged"}, run_id="run_1")
    (line,) = pipe.lines()
    assert (line["source"], line["run_id"]) == ("secret = 1", "run_1")


@pytest.mark.spec("TEL-03")
@given(
    fields=st.dictionaries(
        st.sampled_from(["path", "a", "traceback", "n"]), st.text(max_size=9000) | st.integers() | st.floats(allow_nan=False)
    )
)
def test_every_line_fits_into_a_pipe_at_once_and_is_whole(fields):
    whole = {"time": "2026-01-01T00:00:00.000Z", "level": "info", "event": "e", "request_id": "r", **fields}
    line = logs.fitted(dict(whole), logs.json_line)
    assert len(line) < LINE_BYTES
    assert "\n" not in line
    decoded = json.loads(line)
    assert (decoded["event"], decoded["request_id"]) == ("e", "r")
    assert len(logs.fitted(dict(whole), logs.human_line).encode("utf-8", "backslashreplace")) < LINE_BYTES


def test_a_traceback_keeps_its_end_where_the_error_is(pipe):
    def deep(n):
        return deep(n - 1) if n else 1 / 0

    with logging_to(pipe):
        try:
            deep(40)
        except ZeroDivisionError as err:
            err.add_note("what it was about " * 10)
            Log().error("exception", error=err, path="p" * 5000, code="c" * 5000)
        Log().error("odd", value={"a": ["x" * 9000]})  # no text that could be cut
    first, second = pipe.lines()
    assert first["error"] == "ZeroDivisionError"
    assert "ZeroDivisionError: division by zero\nwhat it was about" in first["traceback"]
    assert second["cut"]


def test_levels_below_the_one_asked_for_are_silent_and_libraries_say_only_what_matters(pipe):
    with logging_to(pipe, level="warning"):
        Log().info("no")
        Log().warning("yes")
        logging.getLogger("uvicorn.error").info("no")
    with logging_to(pipe, level="debug"):
        Log().debug("yes")
        logging.getLogger("asyncio").info("no")
        logging.getLogger("uvicorn.access").warning("no")
        logging.getLogger("opentelemetry.sdk").warning("yes")
    assert [line.get("message", line["event"]) for line in pipe.lines()] == ["yes", "yes", "yes"]


@pytest.mark.spec("TEL-04")
def test_a_reader_that_is_stuck_costs_lines_which_are_counted_and_never_blocks(pipe):
    fcntl.fcntl(pipe.write_end, fcntl.F_SETPIPE_SZ, 2 * LINE_BYTES)
    with logging_to(pipe) as handler:
        for number in range(200):
            Log().info("line", number=number, text="x" * 1000)
        lost = handler.dropped
        assert lost > 150
        taken = pipe.lines()
        Log().info("again")
        after = pipe.lines()
    assert [line["number"] for line in taken] == list(range(200 - lost))
    assert [(line["event"], line.get("count")) for line in after] == [("log_lines_dropped", lost), ("again", None)]


@pytest.mark.spec("TEL-04")
def test_a_reader_that_went_away_is_no_error(pipe):
    with logging_to(pipe) as handler:
        pipe.hang_up()
        Log().info("line")
        assert handler.dropped == 1


def test_a_full_disk_is_no_error():
    with open("/dev/full", "wb") as full:
        handler = logs.configure("info", fd=full.fileno(), human=False)
        try:
            Log().info("line")
        finally:
            logs.release(handler)
    assert handler.dropped == 1


def test_a_line_that_the_disk_took_half_of_spoils_no_other(tmp_path):
    """A file that may not grow beyond a size is the disk that is nearly full."""
    path = tmp_path / "log"
    with open(path, "wb") as file:
        handler = logs.configure("info", fd=file.fileno(), human=False)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # Python ignores the signal that comes with it
            Log().info("half", text="x" * 200)
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            Log().info("whole")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            logs.release(handler)
    torn, said, whole = path.read_text("utf-8").splitlines()
    assert len(torn) == 100
    assert (json.loads(said)["count"], json.loads(whole)["event"], handler.dropped) == (1, "whole", 1)


def test_a_terminal_gets_lines_for_people():
    main_end, terminal = pty.openpty()
    handler = logs.configure("info", fd=terminal)
    try:
        Log().info("request", status=200, path="/v1/runs")
        assert re.fullmatch(rb"\d\d:\d\d:\d\d\.\d{3} info    request  status=200  path=/v1/runs\r\n", os.read(main_end, 4096))
    finally:
        logs.release(handler)
        os.close(terminal)
        os.close(main_end)


def test_release_gives_the_loggers_back(pipe):
    with logging_to(pipe):
        pass
    for name in ("onetrip", "uvicorn", "asyncio", "opentelemetry"):
        assert logging.getLogger(name).handlers == []
        assert logging.getLogger(name).propagate


@pytest.mark.parametrize("offered", ["abc", "0af7651916cd43dd8448eb211c80319c", "A-b_c.d~e:f/g+h=", "x" * 128])
@pytest.mark.spec("TEL-02")
def test_a_harmless_request_id_is_kept(offered):
    assert context.request_id(offered) == offered


@pytest.mark.parametrize("offered", [None, "", "a b", "x" * 129, "a\nb", "é", 'a"b', "<b>", "١"])
@pytest.mark.spec("TEL-02")
def test_any_other_request_id_is_replaced(offered):
    made = context.request_id(offered)
    assert re.fullmatch(r"req_[0-9a-f]{24}", made)
    assert context.request_id(offered) != made
