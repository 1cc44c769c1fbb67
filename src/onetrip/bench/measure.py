"""The course of a bench: what is measured, how often, in which order, and what is made of it.

All measures take turns, a few samples each in every round, and every second round goes backwards: what disturbs the machine
hits all alike, so that ratios hold where absolute figures do not. Throughput takes turns in the same way afterwards.
"""

import asyncio
import contextlib
import os
import statistics
from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Final

from onetrip import environments
from onetrip.errors import BadRequest, OnetripError
from onetrip.model import Isolation

from . import branches, conditions, http, others, report, tool_calls, undo
from .branches import Branches
from .figures import Figure, of_samples, ratio
from .http import Http
from .others import Alternative, Skipped
from .ours import BARE, CELL, PANDAS, PRINT_BYTES, PRINT_LINES, PRINT_ONCE, Ours
from .peers import Echo, ForkServer
from .progress import Progress
from .tool_calls import ToolCalls
from .undo import THINK_S, Rewrite, Undo

ECHO_BYTES: Final = 100  # about what an `Execute` and a `Done` of a small cell have


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int
    oneshots: int  # per round and face
    cells: int  # per round and face
    rate_rounds: int
    rate_s: float
    sessions: int  # for the memory
    alternatives: bool
    thoughts: int  # warm cells with think time before them, per round, with undo and without
    large_rounds: int  # of what is large: cells that rewrite `rewrite_mb`, `branches` at once
    rewrite_mb: int
    branches: int
    http_sessions: int  # live at once
    tool_calls: int  # per round, one after another
    tools_at_once: int


FULL: Final = Size(
    rounds=25,
    oneshots=10,
    cells=50,
    rate_rounds=5,
    rate_s=1.5,
    sessions=20,
    alternatives=True,
    thoughts=10,
    large_rounds=8,
    rewrite_mb=500,
    branches=100,
    http_sessions=1000,
    tool_calls=40,
    tools_at_once=tool_calls.PARALLEL,
)
QUICK: Final = Size(
    rounds=2,
    oneshots=3,
    cells=20,
    rate_rounds=1,
    rate_s=0.4,
    sessions=2,
    alternatives=False,
    thoughts=5,
    large_rounds=1,
    rewrite_mb=50,
    branches=10,
    http_sessions=10,
    tool_calls=20,
    tools_at_once=50,
)


@dataclass(slots=True)
class Taken:
    """Samples by key, and what broke."""

    samples: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    broken: dict[str, str] = field(default_factory=dict[str, str])  # alternative, or measure → why it stopped working on the way

    @contextlib.contextmanager
    def unless_broken(self, what: str) -> Generator[None]:
        """For a measure that this machine, or this version, may not have: the first failure is noted, the others follow from it."""
        try:
            yield
        except PermissionError as err:
            self.broken.setdefault(what, f"the kernel does not let us look: {err.strerror}")
        except OnetripError as err:
            self.broken.setdefault(what, str(err))


@dataclass(frozen=True, slots=True)
class Outcome:
    figures: tuple[Figure, ...]
    alternatives: tuple[report.Row, ...]
    skipped: tuple[Skipped, ...]
    conditions: conditions.Conditions


def main(*, as_json: bool = False, quick: bool = False, update: Sequence[str] = (), environment: str = "default") -> int:
    """Measure, print the outcome to stdout, and write it between the markers of the files in `update`. Returns the exit status.

    A target that is missed is an outcome, not a failure. Raises what `onetrip.local` raises, and BadRequest for a file in `update`
    that has no markers, before anything is measured.
    """
    for path in update:
        report.check_markers(Path(path))
    outcome = asyncio.run(run(QUICK if quick else FULL, environment))
    if as_json:
        print(report.as_json(outcome.figures, outcome.alternatives, outcome.skipped, outcome.conditions))
    else:
        report.print_tables(outcome.figures, outcome.alternatives, outcome.skipped, outcome.conditions)
    text = report.as_markdown(outcome.figures, outcome.alternatives, outcome.skipped, outcome.conditions)
    for path in update:
        report.write_between_markers(Path(path), text)
    return 0


async def run(size: Size, name: str) -> Outcome:
    environment = environments.find(name)
    if not {"numpy", "pandas"} <= {package.partition("==")[0] for package in environment.packages}:
        raise BadRequest(f"the environment {name!r} lacks numpy or pandas, which the bench imports", field="environment")
    load_before = conditions.load()
    taken = Taken()
    with contextlib.ExitStack() as stack, Progress() as progress:
        progress.say("starting what is measured")
        cpus = len(os.sched_getaffinity(0))
        forks = [stack.enter_context(ForkServer(environment, ("numpy", "pandas"), PANDAS)) for _ in range(cpus)]
        bare = stack.enter_context(ForkServer(environment, (), BARE))
        echo = stack.enter_context(Echo(environment))
        alternatives, skipped = stack.enter_context(others.found(environment)) if size.alternatives else ([], [])
        helpers = {peer.pid for peer in (*forks, bare, echo)} | {pid for other in alternatives for pid in other.pids}
        async with Ours(name, helpers) as ours, contextlib.AsyncExitStack() as closing:
            isolation = (await ours.asynchronous.run(BARE, environment=name)).isolation
            undoing = await closing.enter_async_context(Undo(ours.asynchronous, name))
            web = await closing.enter_async_context(Http(name))
            helpers |= web.pids
            calling = await closing.enter_async_context(ToolCalls(ours.asynchronous, name))
            branching = await closing.enter_async_context(Branches(ours.asynchronous, name, helpers))
            batches = _batches(ours, forks[0], bare, echo, alternatives, size, taken)
            batches += _undo_batches(undoing, branching, size, taken)
            batches += [*_http_batches(web, size, taken), *_tool_batches(calling, size, taken)]
            for at in range(size.rounds):
                progress.step("taking turns", at, size.rounds)
                for every, batch in batches if at % 2 == 0 else reversed(batches):
                    if at % every == 0:
                        await batch()
            for at in range(size.rate_rounds):
                progress.step("throughput", at, size.rate_rounds)
                await _rates(ours, web, forks, size, taken, forks_first=at % 2 == 0)
            async with Rewrite(ours.asynchronous, name, size.rewrite_mb) as rewriting:
                for at in range(size.large_rounds):
                    progress.step("much memory, many branches", at, size.large_rounds)
                    await _large(rewriting, branching, size, taken, undo_first=at % 2 == 0)
            progress.say("memory of idle sessions")
            await _memory(ours, branching, size.sessions, taken)
            for checkpoints, key in ((0, "http_sessions"), (8, "http_sessions_undo")):
                progress.say(f"{size.http_sessions} sessions at once")
                with taken.unless_broken(f"{size.http_sessions} sessions at once"):
                    taken.samples[key].append(await web.many_sessions(size.http_sessions, checkpoints))
    skipped += [Skipped(broken, why) for broken, why in taken.broken.items()]
    rows = report.rows(taken.samples, [other for other in alternatives if other.name not in taken.broken])
    return Outcome(_figures(taken, size), tuple(rows), tuple(skipped), _conditions(environment, isolation, load_before))


def _conditions(environment: environments.Environment, isolation: Isolation, load_before: float) -> conditions.Conditions:
    return conditions.collect(environment, isolation, metadata.version("onetrip"), load_before)


Batch = tuple[int, Callable[[], Awaitable[None]]]


def _batches(
    ours: Ours, fork: ForkServer, bare: ForkServer, echo: Echo, alternatives: Sequence[Alternative], size: Size, taken: Taken
) -> list[Batch]:
    """(In each how many-th round, the measure.)"""
    samples = taken.samples

    async def forks() -> None:
        wall, used = fork.latency(size.oneshots)
        samples["fork"] += wall
        samples["fork_cpu"].append(used / size.oneshots)

    async def oneshots() -> None:
        samples["oneshot_async"] += await ours.oneshots(ours.asynchronous, PANDAS, size.oneshots)
        # One sample is one batch, divided: a single one-shot is too short for the clock of /proc.
        samples["oneshot_cpu"].append(await ours.oneshots_cpu_ms(PANDAS, size.oneshots) / size.oneshots)

    async def other_oneshots() -> None:
        samples["fork_bare"] += bare.latency(size.oneshots)[0]
        samples["oneshot_sync"] += ours.plain_oneshots(PANDAS, size.oneshots)
        samples["oneshot_bare"] += await ours.oneshots(ours.asynchronous, BARE, size.oneshots)
        samples["oneshot_empty"] += await ours.oneshots(ours.empty, PANDAS, size.oneshots)
        samples["session_start"].append(await ours.session_start(checkpoints=0))
        samples["session_start_undo"].append(await ours.session_start(checkpoints=8))

    async def cells() -> None:
        samples["echo"] += echo.blocking(size.cells, ECHO_BYTES)
        samples["warm_async"] += await ours.warm_cells(size.cells)
        samples["echo_async"] += await echo.asynchronous(size.cells, ECHO_BYTES)
        samples["warm_sync"] += ours.plain_warm_cells(size.cells)

    async def prints() -> None:
        for how, code in (("once", PRINT_ONCE), ("lines", PRINT_LINES)):
            samples[f"pipe_{how}"].append(fork.print_mb_s(how, PRINT_BYTES))
            samples[f"print_{how}"].append(await ours.print_mb_s(code))

    batches: list[Batch] = [(1, forks), (1, oneshots), (1, other_oneshots), (1, cells), (1, prints)]
    for other in alternatives:
        for task, measure in other.measures.items():
            batches.append((other.every, _batch_of(other, task, measure, taken)))
    return batches


def _undo_batches(undoing: Undo, branching: Branches, size: Size, taken: Taken) -> list[Batch]:
    samples = taken.samples

    async def thoughts() -> None:
        samples["warm_think"] += await undoing.warm_cells(size.thoughts, undo=False, think_s=THINK_S)
        samples["warm_undo"] += await undoing.warm_cells(size.thoughts, undo=True, think_s=THINK_S)

    async def back_to_back() -> None:
        samples["warm_undo_back"] += await undoing.warm_cells(size.thoughts, undo=True, think_s=0)

    async def moves() -> None:
        samples["undo"].append(await undoing.undo())
        samples["rollback"].append(await undoing.rollback())

    async def fork() -> None:
        with taken.unless_broken("fork of a session"):
            samples["fork_frame"].append(await branching.first_result())

    return [(1, thoughts), (1, back_to_back), (1, moves), (1, fork)]


def _http_batches(web: Http, size: Size, taken: Taken) -> list[Batch]:
    samples = taken.samples

    async def cells() -> None:
        samples["http_echo"] += await web.echoes(size.cells)
        samples["http_warm"] += await web.warm_cells(size.cells)

    async def oneshots() -> None:
        samples["http_oneshot"] += await web.oneshots(size.oneshots)

    async def files() -> None:
        up, down = await web.file_mb_s()
        samples["http_up"].append(up)
        samples["http_down"].append(down)

    return [(1, cells), (1, oneshots), (1, files)]


def _tool_batches(calling: ToolCalls, size: Size, taken: Taken) -> list[Batch]:
    samples = taken.samples

    async def one_by_one() -> None:
        samples["tool_call"] += await calling.one_by_one("plus_one", size.tool_calls)
        samples["tool_call_sync"] += await calling.one_by_one("plus_one_blocking", size.tool_calls)

    async def beside_each_other() -> None:
        samples["tool_parallel"].append(await calling.beside_each_other(size.tools_at_once))

    return [(1, one_by_one), (1, beside_each_other)]


async def _large(rewriting: Rewrite, branching: Branches, size: Size, taken: Taken, *, undo_first: bool) -> None:
    for has_undo in (undo_first, not undo_first):
        key = "rewrite_undo" if has_undo else "rewrite"
        taken.samples[key].append(await rewriting.rewrite(undo=has_undo))
    with taken.unless_broken(f"{size.branches} branches of a session"):
        taken.samples["fork_many"].append(await branching.all_results(size.branches))


def _batch_of(other: Alternative, task: str, measure: Callable[[], list[float]], taken: Taken) -> Callable[[], Awaitable[None]]:
    async def batch() -> None:
        if other.name in taken.broken:
            return
        try:
            # In a thread: our own side goes on, as it would beside any other program.
            taken.samples[f"{other.name}/{task}"] += await asyncio.to_thread(measure)
        except (OSError, ValueError, others.Gone) as err:
            taken.broken[other.name] = f"it failed on the way: {err}"

    return batch


async def _rates(ours: Ours, web: Http, forks: Sequence[ForkServer], size: Size, taken: Taken, *, forks_first: bool) -> None:
    def fork_rate() -> None:
        for fork in forks:
            fork.ask_rate(size.rate_s)
        taken.samples["fork_rate"].append(sum(fork.read_rate() for fork in forks))

    if forks_first:
        fork_rate()
    taken.samples["oneshot_rate"].append(await ours.oneshot_rate(size.rate_s, in_flight=4 * len(forks)))
    taken.samples["http_rate"].append(await web.oneshot_rate(size.rate_s))
    if not forks_first:
        fork_rate()


async def _memory(ours: Ours, branching: Branches, sessions: int, taken: Taken) -> None:
    samples = taken.samples
    with taken.unless_broken("memory of idle sessions"):
        samples["memory"], samples["page_tables"] = await ours.idle_memory(sessions, checkpoints=0)
        samples["memory_undo"], samples["page_tables_undo"] = await ours.idle_memory(sessions, checkpoints=8)
    with taken.unless_broken("memory of branches"):
        memory, tables = await branching.memory(sessions)
        samples["branch_memory"].append(memory)
        samples["branch_tables"].append(tables)


def _figures(taken: Taken, size: Size) -> tuple[Figure, ...]:
    """In the order of the report."""

    def of(key: str, title: str, note: str = "") -> Figure | None:
        return of_samples(key, title, "ms", taken.samples[key], note)

    def cpu(key: str, title: str, note: str) -> Figure | None:
        # The mean, not the median: the clock of /proc counts in ticks of 10 ms, which only even out over all batches.
        batches = taken.samples[key]
        return Figure(key, title, "ms", statistics.fmean(batches), len(batches), None, note) if batches else None

    def memory(key: str, title: str, tables: str) -> Figure | None:
        beside = statistics.median(taken.samples[tables]) if taken.samples[tables] else 0.0
        return of_samples(key, title, "MB", taken.samples[key], f"pandas imported; page tables besides: {beside:.2f} MB")

    fork_cpu = cpu("fork_cpu", "CPU of one bare fork", "parent and child; mean of n batches, one after the other")
    oneshot_cpu = cpu(
        "oneshot_cpu",
        "CPU of one one-shot",
        "host, zygotes and sandbox, dead or alive, by /proc; mean of n batches, one after the other",
    )
    fork_rate = of_samples(
        "fork_rate", "bare forks, sustained", "1/s", taken.samples["fork_rate"], "as many forking processes as CPUs"
    )
    oneshot_rate = of_samples("oneshot_rate", "one-shots, sustained", "1/s", taken.samples["oneshot_rate"], "4 callers per CPU")
    wanted = [
        of("fork", "bare os.fork(), numpy and pandas imported", "fork, run the compiled cell, reap: the limit"),
        of("oneshot_async", "one-shot from the pool, async", "numpy and pandas imported"),
        of("oneshot_sync", "one-shot from the pool, sync", "the same"),
        of("oneshot_empty", "one-shot, empty pool", "the same"),
        of("fork_bare", "bare os.fork(), nothing imported", "the limit"),
        of("oneshot_bare", "one-shot from the pool, nothing imported"),
        of("session_start", "open a session, first result, no undo"),
        of("session_start_undo", "open a session, first result, undo", "the first cell waits for its checkpoint"),
        fork_cpu,
        oneshot_cpu,
        ratio("cpu_ratio", "CPU, one-shot : bare fork", oneshot_cpu, fork_cpu),
        fork_rate,
        oneshot_rate,
        ratio("rate_ratio", "sustained, one-shots : bare forks", oneshot_rate, fork_rate),
        of("echo", "echo over a packet socket, plain", f"{ECHO_BYTES} bytes there and back: the limit"),
        of("echo_async", "echo over a packet socket, asyncio", "the same with an event loop on our side"),
        of("warm_async", f"warm cell `{CELL}`, no undo, async", "one after the other"),
        of("warm_sync", f"warm cell `{CELL}`, no undo, sync", "the same"),
        *undo.figures(taken.samples, size.rewrite_mb),
        *branches.figures(taken.samples, size.branches, size.sessions),
        memory("memory", "private memory of an idle session, no undo", "page_tables"),
        memory("memory_undo", "private memory of an idle session, undo", "page_tables_undo"),
        of_samples(
            "pipe_once", "plain Python prints 10 MB at once", "MB/s", taken.samples["pipe_once"], "into a pipe: the limit"
        ),
        of_samples("print_once", "a cell prints 10 MB at once", "MB/s", taken.samples["print_once"]),
        of_samples(
            "pipe_lines",
            "plain Python prints 10 MB in lines",
            "MB/s",
            taken.samples["pipe_lines"],
            "100 bytes each, block-buffered: the limit",
        ),
        of_samples("print_lines", "a cell prints 10 MB in lines", "MB/s", taken.samples["print_lines"], "streamed as they come"),
        *tool_calls.figures(taken.samples, size.tools_at_once),
        *http.figures(taken.samples, size.http_sessions, fork_rate),
    ]
    return tuple(figure for figure in wanted if figure is not None)
