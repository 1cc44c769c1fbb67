"""Forgotten `await`s: what is mended gives what was meant, and what was right stays as it was."""

import ast
import asyncio
import contextlib
import gc
import inspect
import io
import sys
import time
from types import SimpleNamespace

import await_cases
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onetrip.guest.awaits import BLOCKING, is_async, repair

NAMES = frozenset({"find", "price", "weather", "send", "total", "ids", "shop.find", "shop.stock.level", "log"})
FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
GOODS = {1: {"id": 1, "name": "pen", "price": 2, "tags": ["a", "b"]}, 2: {"id": 2, "name": "ink", "price": 5, "tags": ["b"]}}


class Record(dict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class FakeTool:
    """Called it gives a coroutine, as a tool does in an asynchronous program; `now` is its blocking form."""

    def __init__(self, now, calls):
        self.now, self.calls = now, calls

    async def __call__(self, *arguments, **named):
        await asyncio.sleep(0)
        return self.blocking(*arguments, **named)

    def blocking(self, *arguments, **named):
        for value in (*arguments, *named.values()):
            assert not asyncio.iscoroutine(value), "a tool got a coroutine for an argument"
        self.calls.append(1)
        return self.now(*arguments, **named)


def namespace():
    calls = []

    def tool(now):
        return FakeTool(now, calls)

    find = tool(lambda id=1: Record(GOODS[id]))  # noqa: A006 -- so are they called
    bare = {
        "find": find,
        "price": tool(lambda id=1, **_: GOODS[id]["price"]),  # noqa: A006
        "weather": tool(lambda city="Oslo", days=1: Record(city=city, days=days, temp=len(city))),
        "send": tool(lambda to="", text="": Record(ok=True, to=to, text=text)),
        "total": tool(lambda items=(): sum(len(str(item)) for item in items)),
        "ids": tool(lambda: [1, 2]),
        "log": tool(lambda text="": None),
        "shop": SimpleNamespace(find=find, stock=SimpleNamespace(level=tool(lambda id=1: id * 10))),  # noqa: A006
    }
    tools = SimpleNamespace(**bare, search=lambda query: [query])
    return bare | {"tools": tools, "__name__": "__main__", BLOCKING: lambda func, *a, **k: func.blocking(*a, **k)}, calls, tools


def execute(tree, monkeypatch):
    """What the program printed, its last value included."""
    space, calls, tools = namespace()
    monkeypatch.setitem(sys.modules, "tools", tools)
    monkeypatch.setitem(sys.modules, "tools.shop", tools.shop)
    tree = ast.parse(ast.unparse(tree)) if not hasattr(tree, "body") else tree
    runs = any(isinstance(node, ast.Attribute) and ast.unparse(node) == "asyncio.run" for node in ast.walk(tree))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    body = compile(tree, "<cell>", "exec", FLAGS)
    out = io.StringIO()

    async def run_all():
        value = eval(body, space)
        if asyncio.iscoroutine(value):
            await value
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval", FLAGS), space)
            print(repr(await value if asyncio.iscoroutine(value) and compiled_async(last) else value))

    def compiled_async(node):
        return bool(compile(ast.Expression(node.value), "<cell>", "eval", FLAGS).co_flags & 0x80)

    with contextlib.redirect_stdout(out):
        if runs:
            exec(body, space)  # it starts event loops of its own
            if last is not None:
                print(repr(eval(compile(ast.Expression(last.value), "<cell>", "eval", FLAGS), space)))
        else:
            asyncio.run(run_all())
    return out.getvalue(), len(calls)


def parse(source):
    # CPython before 3.11.5 fails when the collector runs somebody's code meanwhile (gh-106905), and other tests leave a lot to it.
    gc.disable()
    try:
        return compile(source, "<cell>", "exec", ast.PyCF_ONLY_AST | FLAGS)
    finally:
        gc.enable()


def shape(tree):
    return ast.unparse(tree)


@pytest.mark.spec("TOL-24")
@pytest.mark.parametrize(("forgotten", "right"), await_cases.FORGOTTEN)
def test_a_forgotten_await_is_put_where_the_program_can_mean_nothing_else(forgotten, right, monkeypatch):
    tree = parse(forgotten)
    assert is_async(tree)
    notes = repair(tree, NAMES)
    assert shape(tree) == shape(parse(right))
    assert notes
    assert all(note.startswith(("line ", "and ")) for note in notes)
    for node in ast.walk(tree):
        if isinstance(node, (ast.expr, ast.stmt)):
            assert node.lineno <= len(forgotten.splitlines())
    compile(tree, "<cell>", "exec", FLAGS)
    printed, calls = execute(tree, monkeypatch)
    assert "coroutine" not in printed
    assert (printed, calls) == execute(parse(right), monkeypatch)


@pytest.mark.spec("TOL-25")
@pytest.mark.parametrize("source", [*await_cases.RIGHT, *(right for _, right in await_cases.FORGOTTEN)])
def test_a_program_that_is_right_or_may_be_stays_the_same_tree(source):
    before = ast.dump(parse(source), include_attributes=True)
    tree = parse(source)
    assert repair(tree, NAMES) == []
    assert ast.dump(tree, include_attributes=True) == before


@pytest.mark.spec("TOL-25")
@pytest.mark.parametrize("source", await_cases.RIGHT_AND_RUN)
def test_right_programs_of_the_table_do_run(source, monkeypatch):
    execute(parse(source), monkeypatch)


def test_the_notes_name_line_and_call():
    tree = parse("async def f():\n    tools.shop.find(id=1)\n    return 1\ndef g():\n    return find()['name']\nprint(price())")
    assert repair(tree, NAMES) == [
        "line 2: added the missing `await` before tools.shop.find(...)",
        "line 5: find(...) waits for its result here, where no `await` can stand",
        "line 6: added the missing `await` before price(...)",
    ]


def test_many_notes_are_counted():
    tree = parse("await log()\n" + "log()\n" * 500)
    notes = repair(tree, NAMES)
    assert len(notes) == 13
    assert notes[-1] == "and 488 more of this kind"


def test_a_traceback_of_mended_code_points_at_the_call():
    source = "await log()\nx = 1\nfind(id=99)['name']\n"
    tree = parse(source)
    repair(tree, NAMES)
    space, _, _ = namespace()
    with pytest.raises(KeyError) as caught:
        asyncio.run(eval(compile(tree, "<cell>", "exec", FLAGS), space))
    frame = next(entry for entry in caught.traceback if str(entry.path) == "<cell>")
    assert frame.lineno + 1 == 3


@pytest.mark.parametrize(
    "source",
    [
        "await f()",
        "async def f(): pass",
        "def g():\n    async def f(): pass",
        "[x async for x in y]",
        "import asyncio\nasyncio.run(main())",
        "from asyncio import gather\ngather(a(), b())",
        "import asyncio as aio\naio.run(main())",
        "async with x: pass",
        "async for x in y: pass",
        "loop.run_until_complete(x)",
    ],
)
def test_asynchronous_programs_are_known(source):
    assert is_async(parse(source))


@pytest.mark.parametrize(
    "source", ["tools.find()", "import subprocess\nsubprocess.run(['ls'])", "run(1)", "'await x'", "# await", ""]
)
def test_programs_without_an_event_loop_are_known(source):
    assert not is_async(parse(source))


@pytest.mark.spec("TOL-25")
@pytest.mark.parametrize("depth", [20, 60, 150])
def test_programs_that_are_nested_too_deeply_are_left_alone(depth):
    source = "await log()\nfind()" + ".a()" * depth
    tree = parse(source)
    before = ast.dump(tree)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 120)
    try:
        notes = repair(tree, NAMES)
    finally:
        sys.setrecursionlimit(limit)
    assert bool(notes) == (ast.dump(tree) != before)
    assert depth != 150 or not notes


def test_a_long_program_is_looked_at_in_little_time():
    source = "await log()\n" + "".join(f"x{i % 7} = find(id=1)\nprint(x{i % 7}['name'], y)\n" for i in range(3000))
    tree = parse(source)
    began = time.process_time()
    repair(tree, NAMES)
    assert time.process_time() - began < 3


# ---------------------------------------------------------------------------------------- random programs

# In each `@` is a call of a tool that gives a number; the `await` before it may be forgotten.
_USES = st.sampled_from(
    [
        "print(@)", "x = f'{@}'", "total_ = @ + 1", "if @ > 1:\n    print('more')", "print([n for n in range(@)])", "log(text=@)",
        "print(sum(@ for _ in range(2)))", "print({'a': @})", "v = @\nprint(v + 1)", "a, b = @, @\nprint(a, b)", "@",
        "print(max([@ for _ in [1]]))", "w = @ or 3\nprint(w * 2)", "print('%s' % @)", "assert @", "n = 0\nn += @", "print(-@, not @)",
        "while @ < 0:\n    pass", "print(@ if @ else 0)", "print((lambda q: q)(1), @)", "print(str(@).upper())", "z: int = @\nprint(z)",
    ]
)  # fmt: skip
_LATER = st.sampled_from(
    [
        "t = price(id=2)\nprint(await t)", "import asyncio\nprint(await asyncio.gather(price(), find()))", "c = [price()]\nprint(await c[0])",
        "import asyncio\nk = asyncio.create_task(price())\nprint(await k)", "def give(): return price()\nprint(await give())",
    ]
)  # fmt: skip


@st.composite
def programs(draw):
    """(as it was meant, with awaits forgotten)."""
    meant, forgotten = ["await log()"], ["await log()"]
    for _ in range(draw(st.integers(1, 6))):
        block = draw(st.one_of(_USES, _LATER))
        right = wrong = block.replace("log(", "await log(") if block.startswith("log(") else block
        for _ in range(block.count("@")):
            call = draw(st.sampled_from(["price(id=1)", "tools.price(id=2)", "tools.shop.stock.level()", "shop.stock.level(2)"]))
            right = right.replace("@", f"await {call}" if block == "@" else f"(await {call})", 1)
            wrong = wrong.replace("@", call if draw(st.booleans()) else f"(await {call})", 1)
        if draw(st.booleans()):
            name = draw(st.sampled_from(["one", "two"]))
            right, wrong = (_wrap(name, text) for text in (right, wrong))
        meant.append(right)
        forgotten.append(wrong)
    return "\n".join(meant), "\n".join(forgotten)


def _wrap(name, text):
    return f"async def {name}():\n" + "\n".join("    " + line for line in text.splitlines()) + f"\nawait {name}()"


@pytest.mark.spec("TOL-24", "TOL-25")
@given(programs())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_programs_do_what_was_meant_however_many_awaits_are_forgotten(monkeypatch, program):
    meant, forgotten = program
    right, mended = parse(meant), parse(forgotten)
    before = ast.dump(right, include_attributes=True)
    wrong_generators = "sum((await" in meant
    assert wrong_generators or repair(right, NAMES) == []
    assert wrong_generators or ast.dump(right, include_attributes=True) == before
    if wrong_generators:
        repair(right, NAMES)
    repair(mended, NAMES)
    assert shape(mended) == shape(right)
    assert execute(mended, monkeypatch) == execute(right, monkeypatch)


_NAMES = st.sampled_from(["find", "price", "tools", "x", "asyncio", "print", "sum", "shop"])
_ATOMS = st.one_of(
    _NAMES, st.just("1"), st.just("tools.find()"), st.just("find(id=1)"), st.just("await price()"), st.just("shop.find()")
)
_EXPRESSIONS = st.recursive(
    _ATOMS,
    lambda inner: st.one_of(
        st.builds("{}({})".format, inner, inner), st.builds("[{} for x in {}]".format, inner, inner), st.builds("{}.a".format, inner),
        st.builds("({} if {} else {})".format, inner, inner, inner), st.builds("(lambda x: {})".format, inner),
        st.builds("sum({} for find in {})".format, inner, inner), st.builds("f(*{}, **{})".format, inner, inner),
        st.builds("({}, {})".format, inner, inner), st.builds("{}[{}]".format, inner, inner), st.builds("(y := {})".format, inner),
        st.builds("({} or {})".format, inner, inner), st.builds("{{'k': {}, **{}}}".format, inner, inner), st.builds("{}".format, inner),
    ),
    max_leaves=8,
)  # fmt: skip
_STATEMENTS = st.recursive(
    st.one_of(
        _EXPRESSIONS, st.builds("{} = {}".format, _NAMES, _EXPRESSIONS), st.builds("from tools import find as {}".format, _NAMES),
        st.builds("import {}".format, _NAMES), st.builds("a, b = {}".format, _EXPRESSIONS), st.builds("global {}".format, _NAMES),
        st.builds("del {}".format, _NAMES), st.builds("{}: {} = {}".format, _NAMES, _EXPRESSIONS, _EXPRESSIONS),
        st.builds("return {}".format, _EXPRESSIONS),
    ),
    lambda inner: st.builds(
        lambda head, body: head + "\n" + "\n".join("  " + line for part in body for line in part.splitlines()),
        st.one_of(
            st.builds("def {}(x={}):".format, _NAMES, _EXPRESSIONS), st.builds("async def {}({}):".format, _NAMES, _NAMES),
            st.builds("class {}({}):".format, _NAMES, _EXPRESSIONS), st.builds("for {} in {}:".format, _NAMES, _EXPRESSIONS),
            st.builds("async with {} as {}:".format, _EXPRESSIONS, _NAMES), st.builds("if {}:".format, _EXPRESSIONS),
        ),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.spec("TOL-25")
@given(st.lists(_STATEMENTS, min_size=1, max_size=5).map("\n".join))
@settings(max_examples=400, deadline=None)
def test_what_compiled_before_compiles_after_and_a_second_look_finds_nothing(source):
    try:
        compile(source, "<cell>", "exec", FLAGS)
    except SyntaxError:
        return
    tree = parse(source)
    repair(tree, NAMES)
    compile(tree, "<cell>", "exec", FLAGS)
    once = ast.dump(tree)
    assert repair(tree, NAMES) == []
    assert ast.dump(tree) == once
