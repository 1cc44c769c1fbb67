"""Guards: no write is made twice, what is reused is what was recorded, and what goes round is told so and stopped."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from onetrip.guards import Guard, GuardLimits, Instead, Verdict
from onetrip.model import ProgramError, Tool, ToolAnswer, ToolCall, ToolFailure

READ, WRITE, PURE = (Tool(name=f"shop.{effect}", effect=effect) for effect in ("read", "write", "pure"))
OTHER = Tool(name="log.append")
TOOLS = {tool.name: tool for tool in (READ, WRITE, PURE, OTHER)}
TIMEOUT = ToolFailure("no answer in 5 s", "timeout")
BROKEN = ToolFailure("broken")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def arguments(**values) -> bytes:
    return json.dumps(values, sort_keys=True).encode()


NO_ARGUMENTS = arguments()


def call(guard, tool, answer=b"1", args=NO_ARGUMENTS):
    """A whole call: what the program gets for it, and whether it was made."""
    instead = guard.before(tool, args)
    if instead is not None:
        return (instead.error.code if instead.error else instead.value), False
    answered = ToolAnswer("call_1", error=answer) if isinstance(answer, ToolFailure) else ToolAnswer("call_1", answer)
    guard.after(tool, args, answered)
    return (answer.message if isinstance(answer, ToolFailure) else answer), True


def made(guard, tool, answer=b"1", args=NO_ARGUMENTS):
    return call(guard, tool, answer, args)[1]


def fails(guard, status="failed", source="x", kind="ValueError", message="bad", line=1, ledger=()) -> Verdict:
    return guard.program_ended(status, ProgramError(kind, message, line=line), source, ledger)


def completes(guard, ledger=()) -> Verdict:
    return guard.program_ended("completed", None, "x", ledger)


def line(tool, status="ok", **changes):
    return ToolCall(**{"id": "c", "tool": tool, "arguments": {}, "status": status, "started_ms": 0, "duration_ms": 0, **changes})


# ---------------------------------------------------------------------------------------------------- reuse: any history


FIRST = random.Random(0)


class Reuse(RuleBasedStateMachine):
    """Programs that make calls, one beside the other, and end in every way, against a model that looks at the whole history each time."""

    limits = GuardLimits(session_calls=10**9, circuit_after=10**9, record_bytes=1 << 30)
    exact = True  # nothing is dropped for space

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.guard = Guard(self.limits, clock=self.clock)
        self.time, self.changes, self.values = 0, [], 0  # a count of events; when writes began and ended; values given
        self.successes = []  # of the chain of programs: (tool, args, value, begun, clock)
        self.doubts = set()
        self.new_program()
        self.flying, self.late = [], []
        self.attempts, self.most, self.written = {}, {}, {}

    def new_program(self):
        self.used, self.told, self.new_doubts = {}, set(), set()

    def tick(self):
        self.time += 1
        return self.time

    def valid(self, tool, args):
        """What is recorded of a call, by the rule as it is written down."""
        found = [one for one in self.successes if one[:2] == (tool.name, args)]
        if tool is READ:
            last = self.changes[-1] if self.changes else 0
            found = [one for one in found if one[3] > last]
            if found and self.clock.now - found[0][4] > self.limits.read_s:
                found = []
                self.successes = [one for one in self.successes if one[:2] != (tool.name, args)]
                self.used.pop((tool.name, args), None)
        return found

    @rule(tool=st.sampled_from([READ, WRITE, PURE, OTHER]), number=st.integers(0, 1))
    def begin(self, tool, number):
        args = arguments(n=number)
        key = (tool.name, args)
        recorded = self.valid(tool, args)
        instead = self.guard.before(tool, args)
        if tool.effect == "write":
            self.attempts[key] = self.attempts.get(key, 0) + 1
        used = self.used.get(key, 0)
        if self.exact:
            if used < len(recorded):
                assert instead == Instead(recorded[used][2])
            elif key in self.doubts:
                assert instead.error.code == "write_in_doubt"
            else:
                assert instead is None
        if instead is None:
            if tool.effect == "write":
                self.changed()
            self.flying.append((tool.name, args, self.tick()))
        elif instead.error is None:
            assert instead.value in {one[2] for one in self.successes if one[:2] == key}
            self.used[key] = used + 1
        elif instead.error.code == "write_in_doubt":
            self.told.add(key)
        else:
            assert (self.exact, instead.error.code) == (False, "write_already_made")
            self.used[key] = used + 1

    def changed(self):
        self.changes.append(self.tick())
        for key in [key for key in self.used if key[0] == READ.name]:
            del self.used[key]

    @precondition(lambda self: self.flying)
    @rule(
        which=st.randoms(use_true_random=False), how=st.sampled_from(["ok", "ok", "ok", "error", "timeout", "again", "cancelled"])
    )
    def end(self, which, how):
        name, args, begun = self.flying[which.randrange(len(self.flying))]
        tool = TOOLS[name]
        twins = [one for one in self.flying if one[:2] == (tool.name, args)]
        self.flying.remove(
            twins[-1]
        )  # which of the same calls this is nobody can tell; the guard takes the earliest beginning for all
        begun = twins[0][2]
        self.values += 1
        value = f'"{self.values:0100}"'.encode()
        failure = {
            "ok": None,
            "error": BROKEN,
            "timeout": TIMEOUT,
            "again": ToolFailure("late", "timeout", retryable=True),
            "cancelled": ToolFailure("stopped", code="cancelled"),
        }[how]
        self.guard.after(tool, args, ToolAnswer("c", error=failure) if failure else ToolAnswer("c", value))
        fresh = not self.changes or begun > self.changes[-1]
        if tool.effect == "write":
            self.changed()
        if how == "ok":
            if tool.effect == "write":
                self.written[name, args] = self.written.get((name, args), 0) + 1
            if tool is not READ or fresh:
                self.valid(tool, args)
                self.successes.append((tool.name, args, value, begun, self.clock.now))
                self.used[name, args] = self.used.get((name, args), 0) + 1
        elif how in {"timeout", "cancelled"} and tool.effect == "write":
            self.new_doubts.add((name, args))

    @rule(status=st.sampled_from(["failed", "failed", "limit_exceeded", "interrupted", "completed", "waiting"]))
    def program_ends(self, status):
        self.guard.program_ended(status, ProgramError("E", "m"), "x", ())
        if status == "waiting":
            return
        for key, count in self.attempts.items():
            self.most[key] = max(count, self.most.get(key, 0))
        under_way = {one[:2] for one in self.flying if TOOLS[one[0]].effect == "write"}
        if status == "completed":
            self.successes, self.doubts, self.written, self.most = [], set(), {}, {}
        else:
            if under_way:
                self.changed()
            self.doubts = (self.doubts - self.told) | self.new_doubts | under_way
        self.late += self.flying
        self.flying, self.attempts = [], {}
        self.new_program()

    @precondition(lambda self: [one for one in self.late if one[:2] not in {other[:2] for other in self.flying}])
    @rule()
    def an_answer_comes_late(self):
        name, args, _ = next(one for one in self.late if one[:2] not in {other[:2] for other in self.flying})
        self.late = [one for one in self.late if one[:2] != (name, args)]
        self.guard.after(TOOLS[name], args, ToolAnswer("c", b'"late"'))

    @rule(tools=st.lists(st.sampled_from([READ, WRITE, PURE, OTHER]), max_size=8))
    def a_program_is_sent_again(self, tools):
        """One call after the other, and then it fails: twice the same."""
        for _ in range(2):
            if not self.flying:
                for number, tool in enumerate(tools):
                    self.begin(tool, number % 2)
                    if self.flying:
                        self.end(FIRST, "ok")
                self.program_ends("failed")

    @rule(seconds=st.sampled_from([1, 300, 601]))
    def time_passes(self, seconds):
        self.clock.now += seconds

    @rule()
    def the_session_is_branched(self):
        if not self.flying:
            self.guard = self.guard.branch()

    @invariant()
    def no_write_is_made_more_often_than_one_program_wants_it(self):
        for key, count in self.written.items():
            assert count <= max(self.most.get(key, 0), self.attempts.get(key, 0))


class ReuseInLittleSpace(Reuse):
    limits = GuardLimits(session_calls=10**9, circuit_after=10**9, record_bytes=500)
    exact = False


TestReuse = pytest.mark.slow(pytest.mark.spec("TOL-47", "TOL-48")(Reuse.TestCase))
TestReuse.settings = settings(max_examples=150, stateful_step_count=60, deadline=None, database=None)
TestReuseInLittleSpace = pytest.mark.slow(pytest.mark.spec("TOL-47", "TOL-49")(ReuseInLittleSpace.TestCase))
TestReuseInLittleSpace.settings = settings(max_examples=100, stateful_step_count=60, deadline=None, database=None)


# ---------------------------------------------------------------------------------------------------- reuse: what it means


@pytest.mark.spec("TOL-47")
def test_a_program_that_is_sent_again_makes_no_write_again_and_gets_the_results():
    guard = Guard(clock=Clock())
    assert [call(guard, WRITE, b'{"order":1}'), call(guard, WRITE, b'{"order":2}')] == [
        (b'{"order":1}', True),
        (b'{"order":2}', True),
    ]
    assert fails(guard).notes == (
        "Already made, and not made again if the program is sent again (it gets their results): shop.write ×2.",
    )
    assert [call(guard, WRITE), call(guard, WRITE)] == [(b'{"order":1}', False), (b'{"order":2}', False)]
    assert made(guard, WRITE), "a third one is new"
    fails(guard)
    assert [made(guard, WRITE) for _ in range(4)] == [False, False, False, True]
    completes(guard)
    assert made(guard, WRITE), "after a program that completed it is meant again"


@pytest.mark.spec("TOL-48")
def test_a_read_is_reused_only_if_nothing_was_written_since():
    clock = Clock()
    guard = Guard(clock=clock)
    call(guard, READ, b'"before"')
    call(guard, PURE, b'"pi"')
    call(guard, WRITE)
    call(guard, READ, b'"after"', arguments(other=1))
    fails(guard)
    assert call(guard, READ, b'"now"') == (b'"now"', True)
    assert call(guard, PURE) == (b'"pi"', False)
    assert call(guard, READ, args=arguments(other=1)) == (b'"after"', False)
    fails(guard)
    assert made(guard, OTHER), "a write of any tool"
    assert made(guard, READ)
    assert made(guard, READ, args=arguments(other=1))
    assert not made(guard, PURE)
    fails(guard)
    clock.now += 601
    assert made(guard, READ), "and only for ten minutes"


@pytest.mark.spec("TOL-48")
def test_a_read_during_a_write_is_not_reused_and_within_one_program_nothing_is():
    guard = Guard(clock=Clock())
    assert guard.before(READ, NO_ARGUMENTS) is None
    assert made(guard, WRITE)
    guard.after(READ, NO_ARGUMENTS, ToolAnswer("c", b'"old or new"'))
    assert [made(guard, READ) for _ in range(3)] == [True] * 3, "whoever polls gets news"
    fails(guard)
    assert guard.before(WRITE, arguments(new=1)) is None
    assert made(guard, READ)
    guard.after(WRITE, arguments(new=1), ToolAnswer("c"))
    fails(guard)
    assert made(guard, READ)


@pytest.mark.spec("TOL-48")
@pytest.mark.parametrize("earliest_ends_first", [True, False])
def test_of_two_same_reads_at_once_the_one_that_began_before_a_write_counts_for_both(earliest_ends_first):
    guard = Guard(clock=Clock())
    assert guard.before(READ, NO_ARGUMENTS) is None
    assert made(guard, WRITE)
    assert guard.before(READ, NO_ARGUMENTS) is None
    values = [b'"old"', b'"new"'] if earliest_ends_first else [b'"new"', b'"old"']
    for value in values:
        guard.after(READ, NO_ARGUMENTS, ToolAnswer("c", value))
    fails(guard)
    assert made(guard, READ)


@pytest.mark.spec("TOL-48")
def test_a_read_beside_a_write_that_nobody_saw_end_is_not_reused():
    guard = Guard(clock=Clock())
    assert guard.before(WRITE, NO_ARGUMENTS) is None
    assert made(guard, READ)
    fails(guard)
    assert made(guard, READ)


@pytest.mark.spec("TOL-47")
@pytest.mark.parametrize(
    ("failure", "again"),
    [
        (TIMEOUT, "write_in_doubt"),
        (ToolFailure("stopped", code="cancelled"), "write_in_doubt"),
        (ToolFailure("late", "timeout", retryable=True), None),
        (BROKEN, None),
        (ToolFailure("no", "denied"), None),
    ],
)
def test_a_write_that_may_have_been_made_is_not_repeated_without_a_word(failure, again):
    guard = Guard(clock=Clock())
    assert made(guard, WRITE, failure)
    assert made(guard, WRITE, failure), "a program may try again: it knows"
    fails(guard)
    for _ in range(3 if again else 1):
        assert call(guard, WRITE, b'"new"')[0] == (again or b'"new"')
    fails(guard)
    assert call(guard, WRITE, b'"new"') == (b'"new"', again is not None)


@pytest.mark.spec("TOL-47")
def test_a_write_whose_program_ended_first_is_in_doubt_also_if_its_answer_comes_late():
    guard = Guard(clock=Clock())
    assert guard.before(WRITE, NO_ARGUMENTS) is None
    verdict = fails(guard, "interrupted", ledger=[line("shop.write", "pending")])
    assert "Whether they took effect is not known: shop.write." in verdict.notes[0]
    guard.after(WRITE, NO_ARGUMENTS, ToolAnswer("c", b'"late"'))
    assert call(guard, WRITE)[0] == "write_in_doubt"


@pytest.mark.spec("TOL-49")
def test_a_write_whose_result_was_too_much_to_keep_is_still_not_made_again():
    guard = Guard(GuardLimits(record_bytes=1000), clock=Clock())
    assert made(guard, WRITE, b'"' + b"x" * 400 + b'"', arguments(n="large"))
    for number in range(20):
        assert made(guard, WRITE, b'"' + b"x" * 98 + b'"', arguments(n=number))
        assert made(guard, PURE, b'"' + b"x" * 98 + b'"', arguments(n=number))
    verdict = fails(guard)
    assert any("too large to be kept for the next program: shop.pure ×20, shop.write ×11" in note for note in verdict.notes)
    assert call(guard, WRITE, args=arguments(n="large")) == ("write_already_made", False)
    again = [call(guard, WRITE, args=arguments(n=number)) for number in range(20)]
    assert again == [("write_already_made", False)] * 10 + [(b'"' + b"x" * 98 + b'"', False)] * 10
    assert made(guard, PURE, args=arguments(n=0)), "what changes nothing is made again"
    assert len(guard._record._heavy) <= 10
    completes(guard)
    assert made(guard, WRITE, args=arguments(n="large"))


@pytest.mark.spec("TOL-47")
def test_a_tool_that_is_declared_anew_as_harmless_stays_a_write_where_it_was_one():
    guard = Guard(clock=Clock())
    harmless = Tool(name=WRITE.name, effect="read")
    call(guard, harmless, b"1")
    call(guard, WRITE, b"2")
    call(guard, harmless, b"3")
    fails(guard)
    call(guard, OTHER)
    assert [call(guard, harmless)[0] for _ in range(2)] == [b"2", b"3"], "the first was forgotten when something was written"
    for effects in (("pure", "read", "write"), ("write", "pure"), ("read", "pure")):
        small = Guard(GuardLimits(record_bytes=300), clock=Clock())
        for effect in effects * 3:
            call(small, Tool(name="t", effect=effect), b'"' + b"x" * 60 + b'"')
        fails(small)


@pytest.mark.spec("TOL-47")
def test_a_branch_of_a_session_makes_no_write_of_its_origin_again_and_they_go_on_apart():
    guard = Guard(clock=Clock())
    call(guard, WRITE, b"1")
    fails(guard)
    branch = guard.branch()
    assert [call(one, WRITE) for one in (guard, branch)] == [(b"1", False)] * 2
    completes(branch)
    assert made(branch, WRITE)
    fails(guard)
    assert not made(guard, WRITE)


# ---------------------------------------------------------------------------------------------------- circuits and budgets


@pytest.mark.spec("TOL-50")
def test_the_same_call_that_fails_the_same_way_three_times_is_not_made_a_fourth_time():
    guard = Guard(clock=Clock())
    for number in range(3):
        assert made(guard, READ, ToolFailure(f"no  table 'x' (request {number}, at 0x7f{number}a)"))
        completes(guard)
    instead = guard.before(READ, NO_ARGUMENTS)
    assert instead.error.code == "circuit_open"
    assert not instead.error.retryable
    assert instead.error.message == (
        "shop.read has failed 3 times in the same way with these arguments (error: no  table 'x' (request 2, at 0x7f2a)), so it was not "
        "called again. Change the arguments, or go on without it."
    )
    assert made(guard, READ, args=arguments(other=1)), "other arguments are another call"
    assert call(guard, READ)[0] == "circuit_open", "and their success does not close it"
    assert call(guard.branch(), READ)[0] == "circuit_open"


@pytest.mark.spec("TOL-50")
def test_failures_of_several_kinds_are_counted_apart_and_a_success_forgets_them():
    guard = Guard(clock=Clock())
    for failure in (BROKEN, TIMEOUT, BROKEN, TIMEOUT):
        assert made(guard, READ, failure)
    assert made(guard, READ)
    for failure in (BROKEN, TIMEOUT, BROKEN, TIMEOUT, BROKEN):
        assert made(guard, READ, failure)
    assert not made(guard, READ)


@pytest.mark.spec("TOL-50")
def test_what_may_succeed_later_is_tried_again_later_one_at_a_time():
    clock = Clock()
    guard = Guard(clock=clock)
    busy = ToolFailure("busy", retryable=True)
    for _ in range(3):
        assert made(guard, READ, busy)
    clock.now += 59
    instead = guard.before(READ, NO_ARGUMENTS)
    assert (instead.error.code, instead.error.retryable) == ("circuit_open", True)
    assert "It is tried again in 1 s." in instead.error.message
    clock.now += 1
    assert guard.before(READ, NO_ARGUMENTS) is None
    assert guard.before(READ, NO_ARGUMENTS).error.code == "circuit_open", "while that one is under way"
    guard.after(READ, NO_ARGUMENTS, ToolAnswer("c", error=busy))
    assert not made(guard, READ), "it failed: a minute again"
    clock.now += 60
    assert made(guard, READ)
    assert made(guard, READ), "it succeeded: closed"


@pytest.mark.spec("TOL-50")
def test_what_another_tool_writes_may_have_removed_the_cause_but_not_for_ever():
    guard = Guard(clock=Clock())
    for _ in range(3):
        assert made(guard, READ, BROKEN)
    assert not made(guard, READ)
    for _ in range(3):
        assert made(guard, OTHER)
        assert made(guard, READ, BROKEN)
        assert not made(guard, READ)
    assert made(guard, OTHER)
    assert not made(guard, READ)


@pytest.mark.slow
@pytest.mark.spec("TOL-50")
def test_a_program_that_fails_in_ever_new_ways_fills_no_memory():
    guard = Guard(clock=Clock())
    for number in range(3000):
        call(guard, READ, ToolFailure("x" * 10_000 + chr(97 + number % 26)), arguments(n=number))
        call(guard, PURE, ToolFailure("".join(chr(97 + int(digit)) for digit in str(number))))
    circuits = guard._circuits._circuits
    assert len(circuits) == 1000
    assert max(len(circuit.ways) for circuit in circuits.values()) <= 8


@pytest.mark.spec("TOL-51")
def test_a_session_makes_so_many_calls_and_no_more_and_says_what_is_left():
    guard = Guard(GuardLimits(session_calls=12), clock=Clock())
    assert [made(guard, WRITE, args=arguments(n=number)) for number in range(10)] == [True] * 10
    assert "Calls of tools left in this session: 2." in fails(guard, ledger=[line("shop.write")]).notes
    assert [made(guard, WRITE, args=arguments(n=number)) for number in range(10)] == [False] * 10
    assert guard.calls_left == 2, "what is reused is no call"
    assert [made(guard, READ, args=arguments(n=number)) for number in range(2)] == [True] * 2
    instead = guard.before(READ, arguments(n=7))
    assert (instead.error.code, instead.error.message) == ("session_calls", "this session has made all of its 12 calls of tools")
    assert completes(guard, [line("shop.read")]).notes == ("Calls of tools left in this session: 0.",)
    assert completes(guard) == Verdict()


# ---------------------------------------------------------------------------------------------------- failures that go round

SOURCE = "rows = shop.read(x='a')\n\nprint(rows[0]['price'] + df2)  # {}\n"


@pytest.mark.spec("TOL-52")
def test_the_same_failure_gets_a_hint_then_a_stronger_one_and_the_third_is_a_loop():
    guard = Guard(clock=Clock())
    sources = [
        "rows = 1\nprint(rows[0]['price'])",
        '# again\nrows = 2\n\nprint( rows[10]["cost"] )  # other text',
        "print(rows[5]['']) # x",
    ]
    first, second, third = (
        fails(guard, source=source, kind="KeyError", message="'k'", line=source.count("\n") + 1) for source in sources
    )
    assert (first.notes, first.loop, first.code) == ((), False, None)
    (note,) = second.notes
    assert note == (
        'The same failure again (KeyError in `print( rows[10]["cost"] )  # other text`): do not send this line again. '
        "Look first: print the values that it uses, in a program of their own."
    )
    assert (third.loop, third.code) == (True, "loop_detected")
    assert third.notes[0].startswith(
        "loop_detected: KeyError in `print(rows[5]['']) # x`, 3 times. Do not send another program with this line"
    )
    assert fails(guard, source=sources[0], kind="KeyError", message="'k'", line=2).loop
    completes(guard)
    assert not fails(guard, source=sources[0], kind="KeyError", message="'k'", line=2).loop


@pytest.mark.spec("TOL-52")
@pytest.mark.parametrize(
    "other",
    [
        {"kind": "IndexError"},
        {"source": "print(cols[0]['price'])"},
        {"source": "tools.shop.read()[0]", "ledger": [line("shop.read")]},
    ],
)
def test_another_type_line_or_tool_is_another_failure(other):
    guard = Guard(clock=Clock())
    same = {"source": "print(rows[0]['price'])", "kind": "KeyError", "message": "'k'"}
    for _ in range(2):
        fails(guard, **same)
    assert not fails(guard, **{**same, **other}).loop
    assert fails(guard, **same).loop


@pytest.mark.spec("TOL-52")
def test_programs_that_fail_in_ever_new_ways_are_a_loop_in_the_end():
    guard = Guard(GuardLimits(failed_in_a_row=5), clock=Clock())
    verdicts = [fails(guard, source=f"{name}()") for name in "abcde"]
    assert [verdict.loop for verdict in verdicts] == [False] * 4 + [True]
    assert verdicts[2].notes == ("3 programs in a row failed: take a smaller step, and look at what comes of it.",)
    assert verdicts[4].notes == (
        "loop_detected: 5 programs in a row failed, the last with ValueError in `e()`. Stop, and say what is missing.",
    )


@pytest.mark.spec("TOL-52")
def test_an_interrupt_a_lost_sandbox_and_a_program_that_waits_are_no_failures_of_the_program():
    guard = Guard(clock=Clock())
    call(guard, WRITE)
    for _ in range(5):
        for status in ("interrupted", "lost"):
            verdict = guard.program_ended(status, ProgramError("KeyboardInterrupt", ""), "x", ())
            assert not verdict.loop
            assert verdict.notes == (
                "Already made, and not made again if the program is sent again (it gets their results): shop.write.",
            )
        assert guard.program_ended("waiting", None, "x", ()) == Verdict()
        assert not made(guard, WRITE)


@pytest.mark.spec("TOL-52")
def test_a_limit_three_times_in_a_row_is_a_loop_though_no_line_is_known():
    guard = Guard(clock=Clock())
    verdicts = [
        fails(guard, "limit_exceeded", kind="LimitExceeded", message="stopped: over the wall limit of 60 s", line=None)
        for _ in range(3)
    ]
    assert [verdict.loop for verdict in verdicts] == [False, False, True]
    assert verdicts[0].notes == ("Do less in one program: fewer rows, fewer rounds, several cells.",)


ORDER = Tool(
    name="shop.order",
    input_schema={"properties": {"item": {"type": "string"}, "count": {"type": "integer"}, "any": {}}, "required": ["item"]},
)
FIND = Tool(name="shop.find", effect="read")

HINTS = [
    (
        "KeyError",
        "'price'",
        "print(r['price'])",
        "If this is about a result of shop.find: print it first, the last one was a list of length 2, its first item an object with the keys name, cost.",
    ),
    ("KeyError", "'cost'", "d['cost']", None),
    (
        "AttributeError",
        "'Record' object has no attribute 'price'",
        "r.price",
        "If this is about a result of shop.find: print it first",
    ),
    ("AttributeError", "module 'math' has no attribute 'x'", "math.x", None),
    (
        "TypeError",
        "list indices must be integers or slices, not str",
        "r['name']",
        "If this is about a result of shop.find: print it first",
    ),
    ("TypeError", "unsupported operand type(s) for +: 'int' and 'str'", "1 + ''", None),
    (
        "TypeError",
        "'coroutine' object is not subscriptable",
        "find()[0]",
        "A call of a tool is a coroutine here: write `await` before it.",
    ),
    (
        "NameError",
        "name 'finds' is not defined",
        "finds()",
        "Did you mean the tool shop.find? `tools.search('finds')` finds others.",
    ),
    ("NameError", "name 'shop.fnd' is not defined", "x", "Did you mean the tool shop.find?"),
    ("NameError", "name 'zzzz' is not defined", "zzzz", "There is no such name; `tools.search('zzzz')` finds tools."),
    (
        "ToolArgumentError",
        "no parameter 'x'",
        "shop.order(x=1)",
        "Call it as shop.order(item: str, count: int = …, any: Any = …).",
    ),
    ("tools.ToolDenied", "no", "shop.order()", "shop.order may not be called here: go on without it."),
    ("ToolTimeout", "late", "shop.order()", "shop.order did not answer in time: ask it for less, or make sure what it did."),
    (
        "ModuleNotFoundError",
        "No module named 'shop'",
        "import shop",
        "Tools need no import: call them by name, or as `tools.name`.",
    ),
    ("ModuleNotFoundError", "No module named 'torch.nn'", "import torch.nn", "This environment does not have that module"),
]


@pytest.mark.spec("TOL-53")
@pytest.mark.parametrize(("kind", "message", "source", "said"), HINTS, ids=range(len(HINTS)))
def test_failures_that_are_known_get_a_hint_at_once(kind, message, source, said):
    guard = Guard(clock=Clock())
    guard.know([FIND, ORDER])
    call(guard, FIND, b'[{"name":"tea","cost":3},{"name":"mug"}]')
    ledger = [line("shop.find"), line("shop.order", "error")]
    note = fails(guard, source=source, kind=kind, message=message, ledger=ledger).notes[0]
    assert note.startswith(said) if said else note.startswith("Calls of tools left")


@pytest.mark.spec("TOL-53")
def test_a_failed_result_says_what_was_done_what_is_not_known_and_what_is_left():
    guard = Guard(clock=Clock())
    guard.know([FIND, ORDER])
    call(guard, FIND)
    call(guard, ORDER)
    call(guard, ORDER, TIMEOUT, arguments(item="mug"))
    verdict = fails(guard, ledger=[line("shop.find", "timeout"), line("shop.order"), line("shop.order", "timeout")])
    assert verdict.notes == (
        "Already made, and not made again if the program is sent again (it gets their results): shop.order.",
        "Whether they took effect is not known: shop.order. Make sure before you call them again.",
        "Calls of tools left in this session: 9,997.",
    )


# ---------------------------------------------------------------------------------------------------- attacks


@pytest.mark.slow
@pytest.mark.spec("TOL-54")
@given(
    kind=st.text(max_size=50) | st.sampled_from([kind for kind, *_ in HINTS]),
    message=st.text(max_size=300) | st.sampled_from([message for _, message, *_ in HINTS]),
    source=st.text(max_size=300),
    number=st.none() | st.integers(-5, 10) | st.integers(),
    value=st.binary(max_size=50)
    | st.sampled_from([b"null", b"[]", b"{}", b"1", b'"x"', b"[[1]]", b'{"\\u001b[2J":1}', b"[" * 5000]),
    schema=st.recursive(
        st.none() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["properties", "required", "type", "x"]), inner),
    ),
    tool=st.sampled_from(["t", "shop.find", "ünï_1"]),
)
def test_whatever_a_program_says_the_notes_are_short_and_printable(kind, message, source, number, value, schema, tool):
    guard = Guard(clock=Clock())
    declared = Tool(name=tool, input_schema={"properties": schema, "required": schema})
    guard.know([declared])
    call(guard, declared, value)
    ledger = [line(declared.name, "error"), line("never\x1b[2Jknown", "timeout")]
    for status in ("failed", "limit_exceeded", "interrupted", "failed", "failed"):
        verdict = fails(guard, status, source, kind, message, number, ledger)
        for note in verdict.notes:
            assert note.isprintable()
            assert len(note) <= 601
        assert len(verdict.notes) <= 8


@pytest.mark.spec("TOL-54")
@pytest.mark.parametrize(
    "source",
    ["x" * 10_000_000, "\n" * 10_000_000, "'" * 1_000_000, '"\\' * 500_000, "a." * 1_000_000, "9" * 1_000_000, "#" * 1_000_000],
)
@pytest.mark.parametrize("number", [1, 999_999_999, -1, 0])
def test_sources_made_to_be_slow_are_judged_at_once(source, number):
    guard = Guard(clock=Clock())
    for _ in range(2):
        verdict = fails(guard, source=source, line=number, kind="KeyError" * 10_000, message="'k'" * 1_000_000)
    assert sum(map(len, verdict.notes)) < 2000


@pytest.mark.slow
@pytest.mark.spec("TOL-54")
def test_a_long_life_of_failures_fills_no_memory():
    guard = Guard(GuardLimits(failed_in_a_row=10**9), clock=Clock())
    for number in range(1200):
        name = "".join(chr(97 + int(digit)) for digit in str(number))
        tool = Tool(name=name)
        guard.know([tool])
        call(guard, tool, b'"' + b"x" * 60_000 + b'"')
        fails(guard, source=f"{name}()")
    assert (len(guard._failures), len(guard._tools), len(guard._results)) == (256, 1000, 32)
    assert guard._record._bytes <= 4 << 20
