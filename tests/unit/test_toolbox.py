"""The toolbox: calls are bounded in time, number, pace and size, and whatever a tool does, the program gets an answer."""

import asyncio
import logging
import subprocess
import sys
import threading
import time
import tracemalloc

import msgspec
import pytest

from onetrip.errors import BadRequest
from onetrip.model import ToolRequest
from onetrip.tools import Options, ServerTool, Toolbox, ToolFailed, current_call, from_function

SECRET = "hunter2"


def request(tool, call="call_1", **arguments):
    return ToolRequest(call, tool, msgspec.json.encode(arguments), "run_1", "ses_1")


def run(scenario):
    async def bounded():
        async with asyncio.timeout(20):
            return await scenario()

    return asyncio.run(bounded())


@pytest.fixture
def boxes():
    made = []

    def make(*tools, **options):
        made.append(Toolbox(tools, **options))
        return made[-1]

    yield make
    for box in made:
        box.close()


@pytest.fixture
def gate():
    """Something that blocking tools hang on, until the test is over."""
    event = threading.Event()
    yield event
    event.set()


async def add(a: int, b: int = 2) -> int:
    return a + b


def multiply(a: int, b: int = 2) -> int:
    return a * b


@pytest.mark.spec("TOL-05")
def test_functions_that_await_and_functions_that_block_answer(boxes):
    async def scenario():
        box = boxes(add, multiply)
        answers = await asyncio.gather(box.ask(request("add", a=1)), box.ask(request("multiply", "call_2", a=3)))
        return [(answer.id, answer.value, answer.error) for answer in answers]

    assert run(scenario) == [("call_1", b"3", None), ("call_2", b"6", None)]


def fail(how: str) -> None:
    if how == "exit":
        sys.exit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "unprintable":

        class Unprintable(Exception):
            def __str__(self):
                raise RuntimeError

        raise Unprintable
    raise {
        "value": ValueError("no such city"),
        "denied": PermissionError("not yours"),
        "timeout": TimeoutError("the database is slow"),
        "failed": ToolFailed("come back later", retryable=True, code="later"),
        "long": ValueError("x" * 100_000),
        "cancelled": asyncio.CancelledError(),
    }[how]


async def fail_async(how: str) -> None:
    fail(how)


@pytest.mark.spec("TOL-06")
@pytest.mark.parametrize("tool", ["fail", "fail_async"])
@pytest.mark.parametrize(
    ("how", "type_", "message"),
    [
        ("value", "error", "ValueError: no such city"),
        ("denied", "denied", "PermissionError: not yours"),
        ("timeout", "timeout", "TimeoutError: the database is slow"),
        ("failed", "error", "come back later"),
        ("exit", "error", "SystemExit: 3"),
        ("interrupt", "error", "KeyboardInterrupt"),
        ("unprintable", "error", "Unprintable"),
        ("cancelled", "error", ""),
    ],
)
def test_whatever_a_tool_raises_the_program_gets_its_type_and_message_and_no_traceback(boxes, caplog, tool, how, type_, message):
    async def scenario():
        box = boxes(fail, fail_async, add)
        failed = await box.ask(request(tool, how=how))
        assert (await box.ask(request("add", a=1))).value == b"3"  # and the toolbox lives
        return failed.error

    with caplog.at_level(logging.WARNING, "onetrip.tools"):
        failure = run(scenario)
    assert failure.type == type_
    assert failure.message == message or how == "cancelled"
    assert failure.retryable == (how == "failed")
    assert "Traceback" not in failure.message
    if how == "value":
        assert "in fail" in caplog.text  # the operator has it


def test_a_long_message_is_cut(boxes):
    assert len(run(lambda: boxes(fail).ask(request("fail", how="long"))).error.message) == 2000


@pytest.mark.spec("TOL-06")
def test_unknown_tools_and_wrong_arguments_are_said(boxes):
    async def scenario():
        box = boxes(add)
        return [(await box.ask(one)).error for one in (request("ad", a=1), request("add", a="x"), request("add"))]

    unknown, wrong, missing = run(scenario)
    assert unknown.message == "There is no tool 'ad'. Did you mean 'add'?"
    assert unknown.code == "unknown_tool"
    assert (wrong.type, wrong.message) == ("arguments", "arguments.a: expected `int`, got `str`")
    assert (missing.type, missing.message) == ("arguments", "arguments: object missing required field `a`")


@pytest.mark.spec("TOL-05")
@pytest.mark.parametrize("effect", ["read", "write"])
def test_a_tool_that_hangs_costs_its_deadline_and_blocks_nobody(boxes, gate, effect):
    def hang():
        gate.wait()

    async def hang_async():
        await asyncio.Event().wait()

    async def hold_on():  # against being cancelled
        while not gate.is_set():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.Event().wait()

    async def scenario():
        box = boxes(
            multiply, *(from_function(one, Options(timeout_s=0.05, effect=effect)) for one in (hang, hang_async, hold_on))
        )
        tasks = [asyncio.ensure_future(box.ask(request(name))) for name in ("hang", "hang_async", "hold_on")]
        assert (await box.ask(request("multiply", a=2))).value == b"4"
        return [(await task).error for task in tasks]

    for failure in run(scenario):
        assert (failure.type, failure.code, failure.retryable) == ("timeout", "deadline", effect == "read")
        assert failure.message.startswith("The tool did not answer within 0.05 s.")


@pytest.mark.spec("TOL-05")
def test_each_call_of_a_tool_has_its_own_deadline_and_nothing_is_kept_of_those_that_are_over(boxes):
    async def hang_or_not(a: int) -> int:
        return a or await asyncio.Event().wait()

    async def scenario():
        box = boxes(from_function(hang_or_not, Options(timeout_s=0.05)))
        first = asyncio.ensure_future(box.ask(request("hang_or_not", a=0)))
        assert [(await box.ask(request("hang_or_not", a=a))).value for a in (1, 2)] == [b"1", b"2"]
        second = asyncio.ensure_future(box.ask(request("hang_or_not", a=0)))
        given_up = asyncio.ensure_future(box.ask(request("hang_or_not", a=0)))
        given_up.cancel()
        assert [(await call).error.code for call in (first, second)] == ["deadline", "deadline"]
        assert (await box.ask(request("hang_or_not", a=0))).error.code == "deadline"  # begun after the others were over
        return box._shelf.entries["hang_or_not"]._deadlines

    assert run(scenario) == {}


@pytest.mark.spec("TOL-05")
def test_calls_over_the_number_at_once_wait_and_threads_that_hang_keep_their_place(boxes, gate):
    entered = threading.Semaphore(0)

    def hang():
        entered.release()
        gate.wait()

    async def scenario():
        box = boxes(multiply, from_function(hang, Options(timeout_s=0.2, concurrency=2)))
        first = [asyncio.ensure_future(box.ask(request("hang"))) for _ in range(2)]
        await asyncio.gather(*(asyncio.to_thread(entered.acquire) for _ in range(2)))
        late = (await box.ask(request("hang"))).error
        assert [(await one).error.code for one in first] == ["deadline", "deadline"]
        assert (late.type, late.code, late.retryable) == ("timeout", "busy", True)
        assert "for its turn" in late.message
        assert not entered.acquire(blocking=False)  # the third was never made
        assert (await box.ask(request("multiply", a=2))).value == b"4"
        gate.set()
        assert (await box.ask(request("hang"))).error is None  # the places came back

    run(scenario)


@pytest.mark.spec("TOL-05")
def test_calls_of_an_async_tool_run_at_once_up_to_its_number(boxes):
    async def scenario():
        inside, most, go = 0, 0, asyncio.Event()

        async def visit() -> None:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            if inside == 3:
                go.set()
            await go.wait()
            inside -= 1

        box = boxes(from_function(visit, Options(concurrency=3)))
        answers = await asyncio.gather(*(box.ask(request("visit", f"call_{n}")) for n in range(30)))
        return most, {answer.error for answer in answers}

    assert run(scenario) == (3, {None})


def test_a_call_that_is_cancelled_gives_its_place_back_also_before_it_began(boxes):
    async def scenario():
        box = boxes(from_function(add, Options(concurrency=1)))
        for steps in range(4):
            task = asyncio.ensure_future(box.ask(request("add", a=1)))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        return (await box.ask(request("add", a=1))).value

    assert run(scenario) == b"3"


@pytest.mark.spec("TOL-05")
def test_a_rate_paces_calls_and_refuses_those_that_would_come_too_late(boxes):
    async def scenario():
        box = boxes(from_function(add, Options(rate=20, timeout_s=0.5)))
        began = time.monotonic()
        answers = await asyncio.gather(*(box.ask(request("add", a=1)) for _ in range(60)))
        return time.monotonic() - began, [answer.error for answer in answers]

    took, errors = run(scenario)
    refused = [error for error in errors if error]
    assert 28 <= len(errors) - len(refused) <= 32  # 20 saved up, and 0.5 s of 20 per second
    assert 0.4 < took < 2
    assert {(error.code, error.retryable) for error in refused} == {("rate_limited", True)}
    assert "20 calls per second" in refused[0].message


@pytest.mark.spec("TOL-07")
@pytest.mark.parametrize("deep", [False, True])
def test_a_result_of_a_gigabyte_is_refused_and_not_copied(boxes, deep):
    huge = "x" * (200 << 20)

    async def give():
        return [[huge]] if deep else huge

    async def scenario():
        box = boxes(give)
        tracemalloc.start()
        try:
            return (await box.ask(request("give"))).error, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    failure, peak = run(scenario)
    assert failure.code == "result_too_large"
    assert "the most is 8,388,608 bytes" in failure.message
    assert peak < (500 << 20 if deep else 1 << 20)


@pytest.mark.spec("TOL-06")
def test_a_tool_knows_the_call_that_it_answers(boxes):
    def look() -> dict[str, str]:
        call = current_call()
        return {"id": call.id, "tool": call.tool, "run": call.run_id, "session": call.session_id or ""}

    async def look_async() -> float:
        assert current_call().id == "call_9"
        return current_call().deadline - time.monotonic()

    async def scenario():
        box = boxes(look, look_async)
        return [msgspec.json.decode((await box.ask(request(name, "call_9"))).value) for name in ("look", "look_async")]

    known, left = run(scenario)
    assert known == {"id": "call_9", "tool": "look", "run": "run_1", "session": "ses_1"}
    assert 29 < left <= 30
    with pytest.raises(LookupError, match="while a tool answers"):
        current_call()


@pytest.mark.spec("TOL-08")
def test_a_view_has_only_the_tools_that_its_patterns_name_also_of_those_that_come_later(boxes):
    async def scenario():
        box = boxes(*(from_function(add, Options(name=name)) for name in ("shop.find", "shop.buy", "mail.send", "ping")))
        shop = box.allowed(["shop.*", "ping"])
        narrow = shop.allowed(["*.find", "mail.*"])
        assert [tool.name for tool in shop.tools] == ["ping", "shop.buy", "shop.find"]
        assert [tool.name for tool in narrow.tools] == ["shop.find"]
        assert (await shop.ask(request("mail.send", a=1))).error.code == "unknown_tool"
        assert (await narrow.ask(request("shop.buy", a=1))).error.message == "There is no tool 'shop.buy'."
        assert (await narrow.ask(request("shop.find", a=1))).value == b"3"
        box.replace({"shop.find", "shop.buy"}, [from_function(add, Options(name="shop.new"))])
        assert [tool.name for tool in shop.tools] == ["ping", "shop.new"]
        assert box.allowed([]).tools == ()
        with pytest.raises(BadRequest, match="two with the name 'ping'"):
            box.replace({"shop.new"}, [from_function(add, Options(name="ping"))])
        assert [tool.name for tool in shop.tools] == ["ping", "shop.new"]

    run(scenario)


@pytest.mark.spec("TOL-08")
def test_overrides_win_over_what_tools_say_and_can_take_them_away(boxes):
    box = boxes(
        from_function(add, Options(name="shop.find", effect="read")),
        from_function(add, Options(name="shop.buy")),
        from_function(add, Options(name="mail.send")),
        overrides={"shop.*": Options(timeout_s=3, approval="required"), "shop.find": Options(effect="pure"), "mail.*": None},
    )
    buy, find = box.tools
    assert (buy.timeout_s, buy.approval, buy.effect) == (3, "required", "write")
    assert (find.timeout_s, find.approval, find.effect) == (3, "required", "pure")
    assert run(lambda: box.ask(request("mail.send", a=1))).error.code == "unknown_tool"


def test_names_that_are_taken_are_refused(boxes):
    with pytest.raises(BadRequest, match="two with the name 'add'"):
        boxes(add, add)


def test_the_observer_is_told_of_every_call_and_cannot_spoil_it(boxes, caplog):
    seen = []

    def observe(asked, answer, seconds):
        seen.append((asked.tool, answer.error and answer.error.code, seconds >= 0))
        raise RuntimeError

    async def scenario():
        box = boxes(add, observer=observe)
        return [await box.ask(request("add", a=1)), await box.ask(request("nothing"))]

    assert run(scenario)[0].value == b"3"
    assert seen == [("add", None, True), ("nothing", "unknown_tool", True)]


@pytest.mark.spec("TOL-05")
def test_a_function_that_hangs_does_not_hold_up_the_end_of_the_process():
    program = """
import asyncio, threading
from onetrip.model import ToolRequest
from onetrip.tools import Options, Toolbox, from_function

def hang():
    threading.Event().wait()

async def main():
    box = Toolbox([from_function(hang, Options(timeout_s=0.05))])
    print((await box.ask(ToolRequest("c", "hang", b"{}", "r"))).error.code)

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("deadline\n", "", 0)


def test_a_tool_of_another_kind_is_called_with_json_and_its_limit(boxes):
    async def invoke(arguments, most):
        return msgspec.json.encode([arguments.decode(), most])

    async def scenario():
        box = boxes()
        box.add(ServerTool(tool=from_function(add).tool, invoke=invoke, max_result_bytes=77))
        return (await box.ask(request("add", a=1))).value

    assert run(scenario) == b'["{\\"a\\":1}",77]'
