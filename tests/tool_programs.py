"""Random programs that call tools, each with what must come of it: the calls that it makes, how each ends, and its value.

A program is a tree. `Node.emit` writes it as Python, one function per node; `Node.expect` interprets the same tree here. Arguments and the
final value are computed from answers, so an answer that went to the wrong call, came twice, or was lost shows in both. What a call answers
depends on its arguments alone (`answer`). Calls that are to be *held* are never answered: the program cancels them itself.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOD = 1_000_003
OK, ERROR, DENIED, TIMEOUT, HELD = range(5)  # the last digit of a call's `n`: how it ends
NAMES = {ERROR: "ToolError", DENIED: "ToolDenied", TIMEOUT: "ToolTimeout"}
STATUS = {OK: "ok", ERROR: "error", DENIED: "denied", TIMEOUT: "timeout", HELD: "cancelled"}
CATCHES = {"ToolError": {ERROR, DENIED, TIMEOUT}, "PermissionError": {DENIED}, "TimeoutError": {TIMEOUT}}
CLIENT = {
    "name": "ask",
    "input_schema": {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "x": {"type": "integer"}},
        "required": ["n", "x"],
    },
}
HEAD = """import asyncio, threading
from concurrent.futures import ThreadPoolExecutor
CODES = {"ToolError": 101, "ToolDenied": 102, "ToolTimeout": 103}
def code(e): return CODES[type(e).__name__]
"""
Key = tuple[str, int, int]  # tool, n, x


def is_held(arguments: Mapping[str, Any]) -> bool:
    return arguments["n"] % 10 == HELD


def answer(tool: str, n: int, x: int) -> int | Exception:
    """What a tool gives; an exception to be raised."""
    match n % 10:
        case 1:
            return ValueError(f"no {n}")
        case 2:
            return PermissionError(f"no {n}")
        case 3:
            return TimeoutError(f"no {n}")
        case _:
            return (n * 31 + x * 17 + (5 if tool == "ask" else 7)) % MOD


class Raised(Exception):
    def __init__(self, kind: int) -> None:
        self.kind = kind

    @property
    def code(self) -> int:
        return 100 + self.kind


@dataclass
class Node:
    """`kind` says what it does with the nodes below it; `tool` and `n` are of a call."""

    kind: str
    below: list["Node"] = field(default_factory=list)
    tool: str = ""
    n: int = 0
    word: str = ""  # the exception that is caught
    number: int = 0  # of its function
    awaits: bool = True

    # ------------------------------------------------------------------ as Python

    def emit(self, lines: list[str], numbers: "Numbers") -> str:
        """Write its function and those below; gives its name."""
        names = [node.emit(lines, numbers) for node in self.below]
        self.number = numbers.next()
        name = f"f{self.number}"
        body = _EMIT[self.kind](self, names)
        lines.append(f"{'async ' if self.awaits else ''}def {name}(v):")
        lines += [f"    {line}" for line in body]
        return name

    # ------------------------------------------------------------------ what comes of it

    def expect(self, v: int, calls: list[Key]) -> int:
        """Its value, with the calls that it makes. Raises Raised."""
        below = self.below
        match self.kind:
            case "call":
                return _call(self.tool, self.n, v, calls)
            case "loop":
                for i in range(3):
                    v = _call(self.tool, self.n + 10 * i, v, calls)
                return v
            case "sequence":
                for node in below:
                    v = node.expect(v, calls)
                return v
            case "calm":
                return _calm(below[0], v, calls)
            case "gather" | "group" | "completed" | "pool" | "threads":
                return sum(_calm(node, v + i, calls) for i, node in enumerate(below)) % MOD
            case "spawn":
                try:
                    w = below[1].expect(v, calls)
                finally:
                    t = below[0].expect(v, calls)
                return (w + 3 * t) % MOD
            case "try":
                try:
                    v = below[0].expect(v, calls)
                except Raised as err:
                    if err.kind not in CATCHES[self.word]:
                        raise
                    v = below[1].expect(v + err.code, calls)
                finally:
                    last = _calm(below[2], v, calls)
                return (v + last) % MOD
            case "wait_for" | "thread" | "poll":
                return below[0].expect(v, calls)
            case "cancel":
                calls.append((self.tool, self.n, v))
                w = _calm(below[0], v, calls)
                return (w + _calm(below[1], v, calls)) % MOD
            case "fails":  # a group whose last task fails while the others are held
                calls += [(self.tool, self.n, v), (self.tool, self.n + 10, v)]
                try:
                    w = below[0].expect(v, calls)
                    _call(self.tool, self.n + 20 - HELD + ERROR, w, calls)
                except Raised as err:
                    return v + err.code
                raise AssertionError
            case "impatient":
                calls.append((self.tool, self.n, v))
                return v + 104
            case _:
                raise AssertionError(self.kind)


def _call(tool: str, n: int, x: int, calls: list[Key]) -> int:
    calls.append((tool, n, x))
    given = answer(tool, n, x)
    if isinstance(given, Exception):
        raise Raised(n % 10)
    return given


def _calm(node: Node, v: int, calls: list[Key]) -> int:
    try:
        return node.expect(v, calls)
    except Raised as err:
        return err.code


# ---------------------------------------------------------------------------------------------------- as Python


def _do(node: Node, name: str, v: str = "v") -> str:
    return f"{'await ' if node.awaits else ''}{name}({v})"


def _spread(names: list[str]) -> str:
    return ", ".join(f"{name}(v + {i})" for i, name in enumerate(names))


def _emit_call(node: Node, _: list[str]) -> list[str]:
    return [f"return {'await ' if node.awaits else ''}{node.tool}(n={node.n}, x=v)"]


def _emit_loop(node: Node, _: list[str]) -> list[str]:
    call = f"{'await ' if node.awaits else ''}{node.tool}(n={node.n} + 10 * i, x=v)"
    return ["for i in range(3):", f"    v = {call}", "return v"]


def _emit_sequence(node: Node, names: list[str]) -> list[str]:
    return [*(f"v = {_do(node, name)}" for name in names), "return v"]


def _emit_calm(node: Node, names: list[str]) -> list[str]:
    return ["try:", f"    return {_do(node, names[0])}", "except ToolError as e:", "    return code(e)"]


def _emit_gather(_: Node, names: list[str]) -> list[str]:
    return [
        f"found = await asyncio.gather({_spread(names)}, return_exceptions=True)",
        f"return sum(code(r) if isinstance(r, BaseException) else r for r in found) % {MOD}",
    ]


def _emit_group(_: Node, names: list[str]) -> list[str]:
    made = [f"    ts.append(g.create_task({name}(v + {i})))" for i, name in enumerate(names)]
    return ["ts = []", "async with asyncio.TaskGroup() as g:", *made, f"return sum(t.result() for t in ts) % {MOD}"]


def _emit_completed(_: Node, names: list[str]) -> list[str]:
    return [
        "total = 0",
        f"for one in asyncio.as_completed([{_spread(names)}]):",
        "    total += await one",
        f"return total % {MOD}",
    ]


def _emit_spawn(_: Node, names: list[str]) -> list[str]:
    return [
        f"t = asyncio.create_task({names[0]}(v))",
        "try:",
        f"    w = await {names[1]}(v)",
        "finally:",
        "    t = await t",
        f"return (w + 3 * t) % {MOD}",
    ]


def _emit_try(node: Node, names: list[str]) -> list[str]:
    return [
        "try:",
        f"    v = {_do(node, names[0])}",
        f"except {node.word} as e:",
        f"    v = {_do(node, names[1], 'v + code(e)')}",
        "finally:",
        f"    last = {_do(node, names[2])}",
        f"return (v + last) % {MOD}",
    ]


def _emit_cancel(node: Node, names: list[str]) -> list[str]:
    return [
        "async def held():",
        "    try:",
        f"        await {node.tool}(n={node.n}, x=v)",
        "    except BaseException:",
        f"        made.append(await {names[1]}(v))",
        "        raise",
        "made = []",
        "t = asyncio.create_task(held())",
        "await asyncio.sleep(0)",
        f"w = await {names[0]}(v)",
        "t.cancel()",
        "try:",
        "    await t",
        "except asyncio.CancelledError:",
        f"    return (w + made[0]) % {MOD}",
    ]


def _emit_fails(node: Node, names: list[str]) -> list[str]:
    n = node.n
    return [
        "async def fail():",
        f"    await {node.tool}(n={n + 20 - HELD + ERROR}, x=await {names[0]}(v))",
        "try:",
        "    async with asyncio.TaskGroup() as g:",
        f"        g.create_task({node.tool}(n={n}, x=v))",
        f"        g.create_task({node.tool}(n={n + 10}, x=v))",
        "        g.create_task(fail())",
        "except* ToolError as found:",
        "    v += sum(code(e) for e in found.exceptions)",
        "return v",
    ]


def _emit_impatient(node: Node, _: list[str]) -> list[str]:
    return [
        "try:",
        f"    await asyncio.wait_for({node.tool}(n={node.n}, x=v), 0.05)",
        "except TimeoutError:",
        "    return v + 104",
    ]


def _emit_poll(_: Node, names: list[str]) -> list[str]:
    return [f"t = asyncio.create_task({names[0]}(v))", "await asyncio.wait({t}, timeout=0.02)", "return await t"]


def _emit_pool(_: Node, names: list[str]) -> list[str]:
    return [
        f"with ThreadPoolExecutor({max(2, len(names) - 1)}) as pool:",
        f"    found = [pool.submit(f, v + i) for i, f in enumerate([{', '.join(names)}])]",
        f"    return sum(f.result() for f in found) % {MOD}",
    ]


def _emit_threads(_: Node, names: list[str]) -> list[str]:
    return [
        "found = []",
        f"ts = [threading.Thread(target=lambda f=f, i=i: found.append(f(v + i))) for i, f in enumerate([{', '.join(names)}])]",
        "for t in ts: t.start()",
        "for t in ts: t.join()",
        f"return sum(found) % {MOD}",
    ]


_EMIT: dict[str, Callable[[Node, list[str]], list[str]]] = {
    "call": _emit_call, "loop": _emit_loop, "sequence": _emit_sequence, "calm": _emit_calm, "gather": _emit_gather,
    "group": _emit_group, "completed": _emit_completed, "spawn": _emit_spawn, "try": _emit_try, "cancel": _emit_cancel,
    "fails": _emit_fails, "impatient": _emit_impatient, "poll": _emit_poll, "pool": _emit_pool, "threads": _emit_threads,
    "wait_for": lambda _, names: [f"return await asyncio.wait_for({names[0]}(v), 3600)"],
    "thread": lambda _, names: [f"return await asyncio.to_thread({names[0]}, v)"],
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------- random ones


class Numbers:
    def __init__(self) -> None:
        self.last = 0

    def next(self, count: int = 1) -> int:
        self.last += count
        return self.last - count + 1


class _Maker:
    def __init__(self, rng: random.Random, calls: int) -> None:
        self._rng, self._left, self._numbers = rng, calls, Numbers()

    def call(self, how: int | None = None, *, awaits: bool, count: int = 1, tool: str | None = None) -> dict[str, Any]:
        """What makes a call: its tool, and a number that no other has."""
        self._left -= count
        if how is None:
            how = self._rng.choice([OK, OK, OK, OK, ERROR, DENIED, TIMEOUT])
        tool = tool or self._rng.choice(["ask", "ask", "compute"])
        return {"tool": tool, "n": self._numbers.next(count) * 10 + how, "awaits": awaits}

    def many(self, depth: int, *, awaits: bool, calm: bool = False) -> list[Node]:
        nodes = [self.node(depth + 1, awaits=awaits) for _ in range(self._rng.randint(2, 4))]
        return [Node("calm", [node], awaits=awaits) for node in nodes] if calm else nodes

    def node(self, depth: int = 0, *, awaits: bool) -> Node:
        if depth >= 5 or self._left <= 0:
            return Node("call", **self.call(awaits=awaits))
        kinds = ["call", "loop", "sequence", "sequence", "try", "calm", "pool"]
        if awaits:
            kinds += [
                "gather",
                "gather",
                "group",
                "completed",
                "spawn",
                "wait_for",
                "thread",
                "cancel",
                "fails",
                "impatient",
                "poll",
            ]
            kinds.remove("pool")
        elif depth <= 1:  # threads of threads are named in the order in which they come to be
            kinds += ["threads", "pool"]
        kind = self._rng.choice(kinds[2:] if depth <= 1 else kinds)
        match kind:
            case "call":
                return Node(kind, **self.call(awaits=awaits))
            case "loop":
                return Node(kind, **self.call(OK, awaits=awaits, count=3))
            case "sequence" | "gather":
                return Node(kind, self.many(depth, awaits=awaits), awaits=awaits)
            case "group" | "completed" | "pool" | "threads":
                return Node(kind, self.many(depth, awaits=awaits, calm=True), awaits=awaits)
            case "try":
                below = [self.node(depth + 1, awaits=awaits) for _ in range(3)]
                below[2] = Node("calm", [below[2]], awaits=awaits)
                return Node(kind, below, word=self._rng.choice(list(CATCHES)), awaits=awaits)
            case "thread":
                return Node(kind, [self.node(max(depth + 1, 2), awaits=False)])
            case "spawn":
                return Node(kind, [self.node(depth + 1, awaits=True) for _ in range(2)])
            case "cancel":
                below = [Node("calm", [self.node(depth + 1, awaits=True)]) for _ in range(2)]
                return Node(kind, below, **self.call(HELD, awaits=True, tool="ask"))
            case "fails":
                held = self.call(HELD, awaits=True, count=3, tool="ask")
                return Node(kind, [self.node(depth + 1, awaits=True)], **held)
            case "impatient":
                return Node(kind, **self.call(HELD, awaits=True, tool="ask"))
            case _:  # calm, wait_for, poll
                return Node(kind, [self.node(depth + 1, awaits=awaits)], awaits=awaits)


@dataclass(frozen=True)
class Program:
    """`value`: what its last line gives. `calls`: how often each is made, which is once."""

    seed: int
    code: str
    value: list[Any]
    calls: Counter[Key]

    @property
    def asked(self) -> set[Key]:
        """Those that the client must answer."""
        return {key for key in self.calls if key[0] == "ask" and key[1] % 10 != HELD}

    def problems(self, result: Any, seen: Mapping[str, Key]) -> list[str]:
        """What is wrong with a final result. `seen`: calls that ever waited, by id."""
        wrong: list[str] = []
        if result.status != "completed" or result.value != self.value:
            wrong.append(f"{result.status} {result.value!r} instead of {self.value!r}; {result.error} {result.limit}")
        made = {call.id: (call.tool, call.arguments["n"], call.arguments["x"]) for call in result.tool_calls}
        if len(made) != len(result.tool_calls):
            wrong.append("two calls with one id")
        if Counter(made.values()) != self.calls:
            counted = Counter(made.values())
            wrong.append(f"calls that should not be: {counted - self.calls}; that are missing: {self.calls - counted}")
        ends = {call.id: call.status for call in result.tool_calls}
        wrong += [f"{key} is {ends[name]}" for name, key in made.items() if ends[name] != STATUS[key[1] % 10]]
        if strange := {name: key for name, key in seen.items() if made.get(name) != key}:
            wrong.append(f"waited, and never made: {strange}")
        if unseen := self.asked - set(seen.values()):
            wrong.append(f"never waited: {unseen}")
        return wrong


def program(seed: int, *, calls: int = 24, awaits: bool | None = None) -> Program:
    """The program of this seed, of some `calls` calls."""
    rng = random.Random(seed)
    awaits = rng.random() < 0.75 if awaits is None else awaits
    root = Node("sequence", [], awaits=awaits)
    maker = _Maker(rng, calls)
    while maker._left > 0:
        root.below.append(Node("calm", [maker.node(1, awaits=awaits)], awaits=awaits))
    root.below.append(Node("call", **maker.call(awaits=awaits, tool="ask")))  # of which nobody knows yet whether it is caught
    made: list[Key] = []
    try:
        value: list[Any] = ["gave", root.expect(1, made)]
    except Raised as err:
        value = ["raised", NAMES[err.kind]]
    lines: list[str] = []
    name = root.emit(lines, Numbers())
    end = f"try:\n    r = ['gave', {_do(root, name, '1')}]\nexcept ToolError as e:\n    r = ['raised', type(e).__name__]\nr\n"
    return Program(seed, HEAD + "\n".join(lines) + "\n" + end, value, Counter(made))


def compute(n: int, x: int) -> int:
    """As a tool of a server."""
    given = answer("compute", n, x)
    if isinstance(given, Exception):
        raise given
    return given
