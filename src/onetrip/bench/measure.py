"""The course of a bench: what is measured, how often, in which order, and what is made of it.

All measures take turns, a few samples each in every round, and every second round goes backwards: what disturbs the machine
hits all alike, so that ratios hold where absolute figures do not. Throughput takes turns in the same way afterwards.
"""

import asyncio
import contextlib
import os
import statistics
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Final

from onetrip import environments
from onetrip.errors import BadRequest
from onetrip.model import Isolation

from . import conditions, others, report
from .figures import Figure, of_samples, ratio
from .others import Alternative, Skipped
from .ours import BARE, CELL, PANDAS, PRINT_BYTES, PRINT_LINES, PRINT_ONCE, Ours
from .peers import Echo, ForkServer
from .progress import Progress

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


FULL: Final = Size(rounds=25, oneshots=10, cells=50, rate_rounds=5, rate_s=1.5, sessions=20, alternatives=True)
QUICK: Final = Size(rounds=2, oneshots=3, cells=20, rate_rounds=1, rate_s=0.4, sessions=2, alternatives=False)


@dataclass(slots=True)
class _Taken:
    """Samples by key, and what broke."""

    samples: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    broken: dict[str, str] = field(default_factory=dict[str, str])  # alternative → why it stopped working on the way


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
    taken = _Taken()
    with contextlib.ExitStack() as stack, Progress() as progress:
        progress.say("starting what is measured")
        cpus = len(os.sched_getaffinity(0))
        forks = [stack.enter_context(ForkServer(environment, ("numpy", "pandas"), PANDAS)) for _ in range(cpus)]
        bare = stack.enter_context(ForkServer(environment, (), BARE))
        echo = stack.enter_context(Echo(environment))
        alternatives, skipped = stack.enter_context(others.found(environment)) if size.alternatives else ([], [])
        helpers = {peer.pid for peer in (*forks, bare, echo)} | {pid for other in alternatives for pid in other.pids}
        async with Ours(name, helpers) as ours:
            isolation = (await ours.asynchronous.run(BARE, environment=name)).isolation
            batches = _batches(ours, forks[0], bare, echo, alternatives, size, taken)
            for at in range(size.rounds):
                progress.step("taking turns", at, size.rounds)
                for every, batch in batches if at % 2 == 0 else reversed(batches):
                    if at % every == 0:
                        await batch()
            for at in range(size.rate_rounds):
                progress.step("throughput", at, size.rate_rounds)
                await _rates(ours, forks, size, taken, forks_first=at % 2 == 0)
            progress.say("memory of idle sessions")
            await _memory(ours, size.sessions, taken)
    skipped += [Skipped(broken, why) for broken, why in taken.broken.items()]
    rows = report.rows(taken.samples, [other for other in alternatives if other.name not in taken.broken])
    return Outcome(_figures(taken), tuple(rows), tuple(skipped), _conditions(environment, isolation, load_before))


def _conditions(environment: environments.Environment, isolation: Isolation, load_before: float) -> conditions.Conditions:
    return conditions.collect(environment, isolation, metadata.version("onetrip"), load_before)


Batch = tuple[int, Callable[[], Awaitable[None]]]


def _batches(
    ours: Ours, fork: ForkServer, bare: ForkServer, echo: Echo, alternatives: Sequence[Alternative], size: Size, taken: _Taken
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
        samples["session_start"].append(await ours.session_start())

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


def _batch_of(other: Alternative, task: str, measure: Callable[[], list[float]], taken: _Taken) -> Callable[[], Awaitable[None]]:
    async def batch() -> None:
        if other.name in taken.broken:
            return
        try:
            # In a thread: our own side goes on, as it would beside any other program.
            taken.samples[f"{other.name}/{task}"] += await asyncio.to_thread(measure)
        except (OSError, ValueError, others.Gone) as err:
            taken.broken[other.name] = f"it failed on the way: {err}"

    return batch


async def _rates(ours: Ours, forks: Sequence[ForkServer], size: Size, taken: _Taken, *, forks_first: bool) -> None:
    def fork_rate() -> None:
        for fork in forks:
            fork.ask_rate(size.rate_s)
        taken.samples["fork_rate"].append(sum(fork.read_rate() for fork in forks))

    if forks_first:
        fork_rate()
    taken.samples["oneshot_rate"].append(await ours.oneshot_rate(size.rate_s, in_flight=4 * len(forks)))
    if not forks_first:
        fork_rate()


async def _memory(ours: Ours, sessions: int, taken: _Taken) -> None:
    try:
        memory, tables = await ours.idle_memory(sessions)
    except PermissionError as err:
        taken.broken["memory of idle sessions"] = f"the kernel does not let us look: {err.strerror}"
    else:
        taken.samples["memory"], taken.samples["page_tables"] = memory, tables


def _figures(taken: _Taken) -> tuple[Figure, ...]:
    """In the order of the report."""

    def of(key: str, title: str, note: str = "") -> Figure | None:
        return of_samples(key, title, "ms", taken.samples[key], note)

    def cpu(key: str, title: str, note: str) -> Figure | None:
        # The mean, not the median: the clock of /proc counts in ticks of 10 ms, which only even out over all batches.
        batches = taken.samples[key]
        return Figure(key, title, "ms", statistics.fmean(batches), len(batches), None, note) if batches else None

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
    tables = statistics.median(taken.samples["page_tables"]) if taken.samples["page_tables"] else 0.0
    wanted = [
        of("fork", "bare os.fork(), numpy and pandas imported", "fork, run the compiled cell, reap: the limit"),
        of("oneshot_async", "one-shot from the pool, async", "numpy and pandas imported"),
        of("oneshot_sync", "one-shot from the pool, sync", "the same"),
        of("oneshot_empty", "one-shot, empty pool", "the same"),
        of("fork_bare", "bare os.fork(), nothing imported", "the limit"),
        of("oneshot_bare", "one-shot from the pool, nothing imported"),
        of("session_start", "open a session, first result"),
        fork_cpu,
        oneshot_cpu,
        ratio("cpu_ratio", "CPU, one-shot : bare fork", oneshot_cpu, fork_cpu),
        fork_rate,
        oneshot_rate,
        ratio("rate_ratio", "sustained, one-shots : bare forks", oneshot_rate, fork_rate),
        of("echo", "echo over a packet socket, plain", f"{ECHO_BYTES} bytes there and back: the limit"),
        of("echo_async", "echo over a packet socket, asyncio", "the same with an event loop on our side"),
        of("warm_async", f"warm cell `{CELL}`, async"),
        of("warm_sync", f"warm cell `{CELL}`, sync"),
        of_samples(
            "memory",
            "private memory of an idle session, pandas imported",
            "MB",
            taken.samples["memory"],
            f"page tables besides: {tables:.2f} MB",
        ),
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
    ]
    return tuple(figure for figure in wanted if figure is not None)
