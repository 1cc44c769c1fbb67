"""`calls.Calls` with a scripted guest: ids, bounds, the lease, answers that come late, and tools that do not end."""

import asyncio
import contextlib
import json
import time

import msgspec
import pytest

from onetrip import calls, wire
from onetrip.bindings import Binding
from onetrip.calls import Calls
from onetrip.errors import BadRequest, Conflict
from onetrip.guards import Guard
from onetrip.model import PendingCall, Tool, ToolAnswer, ToolAnswered, ToolCalled, ToolFailure

FIND = Tool(name="find", side="server")
PAY = Tool(name="pay", side="server", approval="required")
ASK = Tool(
    name="ask",
    input_schema={"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"], "additionalProperties": False},
)
EVENTS_S = 10.0  # until something that must happen is missed


class Run:
    """The calls of one run, with what they sent and told."""

    def __init__(self, *tools, limit=1000, wait_s=60.0, answer=None, name="run_1", guard=None) -> None:
        self.sent: list[tuple[int, bool, object]] = []
        self.told: list[ToolCalled | ToolAnswered] = []
        self.requests: list = []
        self.waits: list[bool] = []
        self.reads = True
        self.over = 0
        self.asked = self.taken = 0
        self._answer = answer
        self._changed = asyncio.Event()
        binding = Binding(tools or (FIND, PAY, ASK), self._ask, wait_s=wait_s, guard=guard)
        self.calls = Calls(
            name, "ses_1", binding, limit, send=self._sent, tell=self._told, over_limit=self._over, on_waiting=self.waits.append
        )

    async def _ask(self, request):
        self.requests.append(request)
        self._changed.set()
        if self._answer is None:
            return ToolAnswer(request.id, b'"found"')
        return await self._answer(request)

    def _sent(self, number, failed, body) -> bool:
        if not (failed or self.reads):
            return False
        self.sent.append((number, failed, json.loads(body) if len(body) < 100_000 else len(body)))
        self._changed.set()
        return True

    def _told(self, event, size) -> None:
        assert size >= len(event.call.preview or "")
        self.told.append(event)

    def _over(self) -> None:
        self.over += 1

    def call(self, tool="find", arguments=b"{}", path="", ordinal=None) -> int:
        self.asked += 1
        raw = arguments if isinstance(arguments, bytes) else json.dumps(arguments).encode()
        self.calls.hear(wire.ToolCall("n", self.asked, tool, path, self.asked if ordinal is None else ordinal, (raw,)))
        return self.asked

    def drop(self, number) -> None:
        self.calls.hear(wire.ToolDrop("n", number))

    def block(self, asked=None, answered=None) -> None:
        self.calls.hear(
            wire.Blocked("n", self.asked if asked is None else asked, len(self.sent) if answered is None else answered)
        )

    async def until(self, happened) -> None:
        async with asyncio.timeout(EVENTS_S):
            while not happened():
                self._changed.clear()
                if not happened():
                    await self._changed.wait()

    @property
    def statuses(self) -> list[str]:
        return [call.status for call in self.calls.ledger()]


# ---------------------------------------------------------------------------------------------------- ids


@pytest.mark.spec("TOL-59")
def test_an_id_is_that_of_the_place_and_not_of_the_moment():
    async def ids(order, **of_run):
        run = Run(**of_run)
        for path, ordinal, arguments in order:
            run.call(arguments=arguments, path=path, ordinal=ordinal)
        await run.until(lambda: len(run.sent) == len(order))
        found = {(call.arguments["n"]): call.id for call in run.calls.ledger()}
        assert {request.id for request in run.requests} == set(found.values())
        await run.calls.aclose()
        return found

    places = [(".1", 1, {"n": 1, "b": 0}), (".1", 2, {"n": 2}), (".2", 1, {"n": 3}), ("", 1, {"n": 4})]
    there = asyncio.run(ids(places))
    assert asyncio.run(ids(places[::-1])) == there
    assert asyncio.run(ids([(".1", 1, b'{"b" :0,"n":1}')])) == {1: there[1]}  # how the arguments are written is nothing
    assert set(asyncio.run(ids(places, name="run_2")).values()).isdisjoint(there.values())
    assert len(set(there.values())) == 4


@pytest.mark.spec("TOL-59", "TOL-63")
def test_the_same_place_given_again_and_again_costs_no_more_each_time():
    """A liar's: an honest program counts its calls. Each is a call of its own, and the ten-thousandth is as quick as the first."""

    async def main():
        run = Run(Tool(name="find", side="client"), limit=1_000_000)
        began = time.thread_time()
        for _ in range(20_000):
            run.call(ordinal=1)
        assert time.thread_time() - began < 20  # it took minutes when each looked at all before it
        pending = run.calls.pending()
        assert len({call.id for call in pending}) == 20_000
        await run.calls.aclose()

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------- bounds


@pytest.mark.spec("TOL-63")
@pytest.mark.parametrize(
    ("tool", "arguments", "kind", "words"),
    [
        ("nothing", b"{}", "denied", "there is no tool 'nothing'"),
        ("n" * 4000, b"{}", "denied", "there is no tool"),
        ("\udcff\x1b[2J\n", b"{}", "denied", "there is no tool"),
        ("find", b"", "arguments", "not JSON"),
        ("find", b"{", "arguments", "not JSON"),
        ("find", b'{"a": NaN}', "arguments", "not JSON"),
        ("find", b'{"a": "\xff"}', "arguments", "not JSON"),
        ("find", b'{"a": "\\udcff"}', "arguments", "not JSON"),
        ("find", b"[" * 100_000 + b"]" * 100_000, "arguments", "not JSON"),
        ("find", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "arguments", "not JSON"),
        ("find", b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}", "arguments", "nested"),
        ("find", b"[]", "arguments", "not an object"),
        ("find", b"null", "arguments", "not an object"),
        ("find", b'{"a": "' + b"x" * (2 << 20) + b'"}', "arguments", "2,097,161 bytes"),
        ("ask", b"{}", "arguments", "q"),
        ("ask", b'{"q": 1}', "arguments", "arguments.q"),
        ("ask", b'{"q": "", "\\u0000": 1}', "arguments", "arguments"),
    ],
)
def test_a_call_that_cannot_be_made_is_answered_and_not_made(tool, arguments, kind, words):
    async def main():
        run = Run()
        run.call(tool, arguments)
        ((number, failed, body),) = run.sent
        assert (number, failed, body["type"]) == (1, True, kind)
        assert words in body["message"]
        assert len(body["message"]) < 5000
        assert (run.requests, run.calls.pending()) == ([], ())
        msgspec.json.encode([run.told, run.calls.ledger()])  # whatever it said, a result can carry it
        await run.calls.aclose()

    asyncio.run(main())


@pytest.mark.spec("TOL-63")
def test_arguments_of_open_calls_are_bounded_together_and_room_comes_back():
    async def main():
        run = Run(ASK, limit=100_000)
        most = calls.MAX_OPEN_BYTES // (1 << 20)
        for round_ in range(3):
            before = len(run.sent)
            for _ in range(most + 5):
                run.call("ask", {"q": "x" * ((1 << 20) - 9)})
            refused = run.sent[before:]
            assert [body["code"] for _, _, body in refused] == ["too_large"] * 5, round_
            run.calls.answer([ToolAnswer(call.id, b"1") for call in run.calls.pending()])
        await run.calls.aclose()

    asyncio.run(main())


@pytest.mark.spec("TOL-63")
@pytest.mark.parametrize("text", [b"\\u00e9" * 100_000, b" " * 600_000 + b"x"], ids=["escapes", "spaces"])
def test_how_arguments_are_written_uses_no_room_up(text):
    """What is kept is smaller than what came; the difference was once counted for ever, until nothing fitted any more."""

    async def main():
        run = Run(FIND, limit=100_000)
        spaces, _, word = text.rpartition(b" ")
        for at in range(150):
            run.call("find", b'{"q": ' + spaces + b'"' + word + b'"}')
            await run.until(lambda at=at: len(run.sent) > at)
        assert {failed for _, failed, _ in run.sent} == {False}
        await run.calls.aclose()

    asyncio.run(main())


@pytest.mark.spec("TOL-58", "TOL-63")
def test_over_its_number_of_calls_a_program_is_stopped_once_and_costs_nothing_more():
    async def main():
        run = Run(FIND, limit=3)
        for _ in range(5000):
            run.call()
        await run.until(lambda: len(run.requests) == 3 and len(run.sent) >= 4)
        assert run.over >= 1
        assert len(run.told) < 20
        assert len(run.calls.ledger()) < 10
        assert [body["code"] for _, failed, body in run.sent if failed] == ["tool_calls"]
        await run.calls.aclose()

    asyncio.run(main())


@pytest.mark.spec("TOL-59", "TOL-63")
def test_the_ledger_is_bounded_in_calls_and_bytes():
    async def main():
        run = Run(FIND, limit=100_000)
        for at in range(calls.LEDGER_CALLS + 50):
            run.call(arguments={"n": at, "text": "x" * 2000})
        await run.until(lambda: len(run.sent) == run.asked)
        ledger = run.calls.ledger()
        assert (len(ledger), run.calls.untold) == (calls.LEDGER_CALLS, 50)
        assert ledger[0].arguments == {"n": 0, "text": "x" * 2000}
        kept = sum(call.arguments is not None for call in ledger)
        assert kept * 2000 <= calls.LEDGER_TOTAL_BYTES
        assert kept > 1000
        await run.calls.aclose()
        run = Run(FIND)
        run.call(arguments={"text": "x" * calls.LEDGER_BYTES})
        await run.until(lambda: run.sent)
        assert run.calls.ledger()[0].arguments is None
        await run.calls.aclose()

    asyncio.run(main())


@pytest.mark.spec("TOL-63")
def test_a_value_or_a_message_that_is_too_large_is_an_error_and_the_program_goes_on():
    async def main():
        async def large(request):
            return ToolAnswer(request.id, b'"' + b"x" * calls.MAX_VALUE_BYTES + b'"')

        run = Run(FIND, answer=large)
        run.call()
        await run.until(lambda: run.sent)
        assert run.sent[0][1:] == (True, run.sent[0][2])
        assert run.sent[0][2]["code"] == "too_large"
        await run.calls.aclose()

        async def wordy(request):
            return ToolAnswer(request.id, error=ToolFailure("\udcff" + "x" * (100 << 20)))

        run = Run(FIND, answer=wordy)
        run.call()
        await run.until(lambda: run.sent)
        (_, failed, body) = run.sent[0]
        assert failed
        assert len(body["message"]) < 100_000
        await run.calls.aclose()

        run = Run(ASK)
        run.call("ask", {"q": ""})
        ((pending,),) = (run.calls.pending(),)
        with pytest.raises(BadRequest, match="the most is"):
            run.calls.answer([ToolAnswer(pending.id, bytes(calls.MAX_VALUE_BYTES + 1))])
        assert run.calls.pending() == (pending,)
        await run.calls.aclose()

    asyncio.run(main())


@pytest.mark.spec("TOL-63")
def test_a_guest_that_reads_no_results_gets_failures_which_are_small():
    async def main():
        run = Run(FIND)
        run.reads = False
        run.call()
        await run.until(lambda: run.sent)
        assert run.sent[0][2]["code"] == "too_large"
        assert run.statuses == ["error"]
        await run.calls.aclose()

    asyncio.run(main())


@pytest.mark.spec("TOL-63")
def test_whatever_whoever_answers_raises_is_an_answer():
    async def main():
        async def broken(request):
            raise OSError("the line is dead")

        run = Run(FIND, answer=broken)
        run.call()
        await run.until(lambda: run.sent)
        assert run.sent[0][1] is True
        assert run.statuses == ["error"]
        await run.calls.aclose()

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------- waiting


@pytest.mark.spec("TOL-60", "TOL-64")
def test_a_claim_to_wait_is_believed_if_it_is_of_now_and_only_the_caller_is_missing():
    async def main():
        gate = asyncio.Event()

        async def later(request):
            await gate.wait()
            return ToolAnswer(request.id, b"1")

        run = Run(answer=later)
        run.block(0, 0)  # nothing is waited for
        first = run.call("ask", {"q": "a"})
        run.block(0, 0)  # of the past
        run.call("find")
        run.block()  # a tool of the server's is on its way
        assert (run.waits, run.calls.waiting, run.calls.waits) == ([], False, 0)
        gate.set()
        await run.until(lambda: len(run.sent) == 1)
        run.block(2, 0)  # before it had the answer
        assert run.waits == []
        run.block()
        run.block()
        assert (run.waits, run.calls.waits) == ([True], 1)
        run.call("find")
        assert run.waits == [True, False]
        run.drop(first)
        await run.until(lambda: len(run.sent) == 2)
        run.block()
        assert run.waits == [True, False]  # nobody is asked anything now
        await run.calls.aclose()

    asyncio.run(main())


@pytest.mark.spec("TOL-62")
def test_answers_are_all_taken_or_none():
    async def main():
        run = Run()
        numbers = [run.call("ask", {"q": q}) for q in "abc"]
        a, b, c = run.calls.pending()
        assert a == PendingCall(a.id, "ask", {"q": "a"}, "call")
        run.block()
        for wrong, refusal in (
            ([ToolAnswer(a.id, b"1"), ToolAnswer("call_none", b"1")], BadRequest),
            ([ToolAnswer(a.id, b"1"), ToolAnswer(a.id, b"1")], BadRequest),
            ([ToolAnswer("", b"1")], BadRequest),
        ):
            with pytest.raises(refusal):
                run.calls.answer(wrong)
        assert (run.calls.pending(), run.sent, run.calls.waiting) == ((a, b, c), [], True)
        run.calls.answer([ToolAnswer(c.id, b"3"), ToolAnswer(a.id, b"1")])
        assert run.sent == [(numbers[2], False, 3), (numbers[0], False, 1)]
        assert run.waits == [True, False]
        for late in (a, c):
            with pytest.raises(Conflict):
                run.calls.answer([ToolAnswer(b.id, b"2"), ToolAnswer(late.id, b"1")])
        run.drop(numbers[1])
        with pytest.raises(Conflict):
            run.calls.answer([ToolAnswer(b.id, b"2")])
        assert run.statuses == ["ok", "cancelled", "ok"]
        await run.calls.aclose()
        with pytest.raises(Conflict):
            run.calls.answer([ToolAnswer(b.id, b"2")])

    asyncio.run(main())


@pytest.mark.spec("TOL-60", "TOL-62")
def test_an_approval_is_given_once_and_then_the_tool_is_called():
    async def main():
        run = Run()
        run.call("pay", {"sum": 1})
        run.block()
        (call,) = run.calls.pending()
        assert (call.kind, run.requests, run.waits) == ("approval", [], [True])
        run.calls.answer([ToolAnswer(call.id, b"true")])
        with pytest.raises(Conflict):
            run.calls.answer([ToolAnswer(call.id, b"true")])
        await run.until(lambda: run.sent)
        assert (len(run.requests), run.sent, run.waits) == (1, [(1, False, "found")], [True, False])
        await run.calls.aclose()

    asyncio.run(main())


@pytest.mark.spec("TOL-60")
def test_the_lease_is_each_calls_own_and_ends_what_nobody_answered():
    async def main():
        run = Run(wait_s=0.5)
        run.call("ask", {"q": "early"})
        run.block()
        await asyncio.sleep(0.25)  # what is asked later may be answered later
        run.call("ask", {"q": "late"})
        run.block()
        late = run.calls.pending()[1]
        await run.until(lambda: len(run.sent) == 1)
        assert (run.sent[0][0], run.sent[0][2]["type"], run.sent[0][2]["retryable"]) == (1, "timeout", True)
        assert run.calls.pending() == (late,)
        assert not run.calls.waiting  # the program has something to do
        await run.until(lambda: len(run.sent) == 2)
        assert run.statuses == ["timeout", "timeout"]
        with pytest.raises(Conflict):
            run.calls.answer([ToolAnswer(late.id, b"1")])
        await run.calls.aclose()

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------- ends


@pytest.mark.spec("TOL-64")
def test_a_call_that_is_dropped_while_it_is_asked_is_cancelled_and_its_answer_is_nobodys():
    async def main():
        cancelled = asyncio.Event()

        async def stubborn(request):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(EVENTS_S)
            cancelled.set()
            return ToolAnswer(request.id, b'"too late"')

        run = Run(answer=stubborn)
        number = run.call("find")
        await run.until(lambda: run.requests)
        run.drop(number)
        run.drop(number)
        run.drop(number)
        async with asyncio.timeout(EVENTS_S):
            await cancelled.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        assert (run.sent, run.statuses) == ([], ["cancelled"])
        asked = run.call("ask", {"q": "next"})  # the count of answers is not disturbed
        run.block(asked, 0)
        assert run.waits == [True]
        await run.calls.aclose()

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.spec("TOL-64")
def test_a_tool_that_ignores_its_cancellation_does_not_hold_up_the_end():
    async def main():
        release = asyncio.Event()

        async def deaf(request):
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()
            return ToolAnswer(request.id, b"1")

        run = Run(answer=deaf)
        for _ in range(3):
            run.call("find")
        run.call("ask", {"q": ""})
        await run.until(lambda: len(run.requests) == 3)
        async with asyncio.timeout(calls.CANCEL_S + EVENTS_S):
            await run.calls.aclose()
        assert run.statuses == ["cancelled"] * 4
        told = len(run.told)
        release.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert (run.sent, len(run.told)) == ([], told)
        await run.calls.aclose()

    asyncio.run(main())


@pytest.mark.spec("TOL-64")
def test_after_the_end_nothing_is_called_any_more():
    """A child of the program may go on talking while the run is being wound up."""

    async def main():
        run = Run(guard=Guard())
        run.call("find")
        await run.until(lambda: run.sent)
        await run.calls.aclose()
        ledger = run.calls.ledger()
        run.call("find")
        run.call("ask", {"q": ""})
        run.drop(1)
        run.block()
        for _ in range(5):
            await asyncio.sleep(0)
        assert (len(run.requests), run.calls.pending(), run.calls.ledger(), run.waits) == (1, (), ledger, [])

    asyncio.run(main())
