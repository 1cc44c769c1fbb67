"""JSON forms, notebook text and parsing of cells, one by one and in this process."""

import json
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from datetime import UTC, date, datetime, time, tzinfo
from decimal import Decimal
from types import SimpleNamespace

import pytest
from guest_process import link_island

from onetrip.guest import pretty, reseed, source, tracebacks, values

Point = namedtuple("Point", "x y")  # noqa: PYI024  # as programs make them


class HostileInt(int):
    def __getattribute__(self, name):
        raise RuntimeError(name)

    __repr__ = __str__ = __int__ = __index__ = lambda self: 1 / 0


class HostileList(list):
    def __iter__(self):
        raise RuntimeError

    __len__ = __getitem__ = __iter__


class HostileDict(dict):
    def items(self):
        raise RuntimeError

    __iter__ = keys = items


class OwnZone(tzinfo):
    def utcoffset(self, when):
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (None, None),
        (True, True),
        (2**100, 2**100),
        (1.5, 1.5),
        ("ü\ud800", "ü\\ud800"),
        ([1, (2, [3.0])], [1, [2, [3.0]]]),
        ([float("nan"), float("inf"), -float("inf")], [None, None, None]),
        ({1: "b", None: "c", 1.5: "d", "s": "e"}, {"1": "b", "null": "c", "1.5": "d", "s": "e"}),
        (Point(1, 2), [1, 2]),
        (Counter("aab"), {"a": 2, "b": 1}),
        (defaultdict(list, {"k": [1]}), {"k": [1]}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (date(2020, 1, 2), "2020-01-02"),
        (time(3, 4), "03:04:00"),
        (datetime(2020, 1, 2, 3, 4, tzinfo=UTC), "2020-01-02T03:04:00+00:00"),
        (Decimal("1.10"), "1.10"),
        (HostileInt(5), 5),
        (HostileList([1, 2]), [1, 2]),
        (HostileDict(a=1), {"a": 1}),
        ({date(2020, 1, 2): 1}, {"2020-01-02": 1}),
    ],
    ids=lambda v: type(v).__name__,
)
def test_json_form(value, form):
    text = values.json_form(value)
    assert text is not None
    assert text.isascii()
    assert json.loads(text) == form


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


cyclic = []
cyclic.append(cyclic)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        {1, 2},
        b"x",
        1j,
        object(),
        int,
        2**5000,
        range(3),
        cyclic,
        nested(40),
        [0] * 100_001,
        "x" * (1 << 20) + "y",
        ["\x00" * 200_000],
        {(1, 2): 3},
        [object()],
        deque([1]),
        datetime(2020, 1, 1, tzinfo=OwnZone()),
    ],
    ids=lambda v: type(v).__name__,
)
def test_no_json_form(value):
    assert values.json_form(value) is None


def test_caps_are_the_documented_ones():
    assert json.loads(values.json_form([0] * 99_999)) == [0] * 99_999
    assert json.loads(values.json_form(nested(31))) == nested(31)
    assert values.json_form(nested(33)) is None


@pytest.mark.parametrize("text", ["plain", "ü", "\ud800", 'quote " and \\ and \n', "\x00"])
def test_quote_is_always_valid_json(text):
    assert json.loads(values.quote(text)).encode() == text.encode("utf-8", "backslashreplace")


class Plain: ...


class Grouped:
    def _repr_pretty_(self, p, cycle):
        with p.group(2, "Grouped(", ")"):
            for i in range(3):
                p.text("item" * 8)
                p.breakable()
                p.pretty([i])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        ("a\nb", "'a\\nb'"),
        ([1, [2]], "[1, [2]]"),
        ((1,), "(1,)"),
        ((), "()"),
        ({}, "{}"),
        (set(), "set()"),
        (frozenset(), "frozenset()"),
        ({3, 1, 2}, "{1, 2, 3}"),
        ({1, "a"}, "{1, 'a'}"),
        (frozenset([1]), "frozenset({1})"),
        ({"b": 1, "a": int}, "{'b': 1, 'a': int}"),
        (Plain, f"{__name__}.Plain"),
        (len, "<function len(obj, /)>"),
        (ValueError("x", 1), "ValueError('x', 1)"),
        (defaultdict(int, a=1), "defaultdict(int, {'a': 1})"),
        (OrderedDict(a=1), "OrderedDict([('a', 1)])"),
        (Counter("aab"), "Counter({'a': 2, 'b': 1})"),
        (deque([1], 2), "deque([1], maxlen=2)"),
        (Point(1, 2), "Point(x=1, y=2)"),
        (cyclic, "[[...]]"),
        (Grouped(), "Grouped(" + "item" * 8 + "\n  [0]" + "item" * 8 + "\n  [1]" + "item" * 8 + "\n  [2])"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_text_as_in_a_notebook(value, text):
    assert pretty.pretty(value) == text


def test_object_without_a_repr_of_its_own_has_no_word_object():
    value = Plain()
    assert pretty.pretty([value]) == f"[<{__name__}.Plain at 0x{id(value):x}>]"


def test_long_containers_are_broken_and_very_long_ones_cut():
    assert pretty.pretty(["x" * 30] * 3) == "[" + ",\n ".join([repr("x" * 30)] * 3) + "]"
    assert pretty.pretty(list(range(5000))).endswith(" 999,\n ...]")


def test_only_a_line_the_parser_stumbled_at_is_translated():
    program = source.compile_cell("x = '''\n!ls\n'''\n%matplotlib inline\nx", "<cell 1>", 0)
    space = {}
    exec(program.body, space)
    assert eval(program.last, space) == "\n!ls\n"


def test_future_flags_are_passed_on():
    flags = source.compile_cell("from __future__ import annotations", "<cell 1>", 0).futures
    assert source.compile_cell("x", "<cell 2>", flags).futures == flags != 0


def test_shorten_keeps_both_ends_and_says_how_much_is_missing():
    assert tracebacks.shorten("a" * 60 + "b" * 60, 100) == "a" * 50 + "\n… [20 characters left out] …\n" + "b" * 50
    assert tracebacks.shorten("short", 100) == "short"


def test_reseed_touches_only_what_is_loaded():
    seeded = []
    reseed.reseed({"numpy.random": SimpleNamespace(set_state=lambda _: seeded.append("numpy")), "other": sys})
    assert seeded == ["numpy"]
    reseed.reseed({})


FILL = """
import ctypes, multiprocessing, os, random, sys
from ot_island.guest import reseed
if len(sys.argv) > 2:
    random._inst = random.Random()  # not what the module's functions are methods of
    class Odd(random.Random):
        __slots__ = ()
        def getstate(self):
            state = super().getstate()
            return (state[0], (1, *state[1][1:]), *state[2:])
    random._inst = Odd(); random.seed = random._inst.seed; random.random = random._inst.random
places = reseed.places(None)
before = random.getstate()
for address, size in places:
    ctypes.memmove(address, b"\x01" * size, size)
key = multiprocessing.current_process().authkey
draws = [random.random() for _ in range(3)]
reseed.finish()
print(len(places), key == b"\x01" * 32, sum(random._inst.getstate()[1][:-1]) != 0, draws)
"""


def test_random_state_lies_where_the_fork_has_it_filled(tmp_path):
    """Two processes whose places hold the same bytes draw the same numbers: nothing else is in it."""
    link_island(tmp_path)
    command = [sys.executable, "-c", "import sys; sys.path.append(sys.argv[1]);" + FILL, str(tmp_path)]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first == second
    assert first.startswith("2 True True")


def test_state_that_lies_elsewhere_is_drawn_by_a_call_instead(tmp_path):
    link_island(tmp_path)
    command = [sys.executable, "-c", "import sys; sys.path.append(sys.argv[1]);" + FILL, str(tmp_path), "odd"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first.startswith("1 True True")
    assert first != second
