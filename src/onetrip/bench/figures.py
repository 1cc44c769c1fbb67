"""What a measurement is: samples, the figure made of them, and the target that it is held against.

A figure is always a median with its 99th percentile and the number of samples; a ratio is made of two medians of one run.
Milliseconds, and MB of 10⁶ bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

Unit = Literal["ms", "MB", "GB", "MB/s", "1/s", "×"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One result. `p99` is None where it has no meaning: a rate, a ratio, a mean of CPU time."""

    key: str
    title: str
    unit: Unit
    value: float
    n: int
    p99: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should reach: at most `bound`, or at least `bound`."""

    key: str
    bound: float
    at_most: bool


TARGETS: Final[tuple[Target, ...]] = (
    Target("oneshot_async", 1.5, at_most=True),
    Target("oneshot_sync", 1.5, at_most=True),
    Target("oneshot_empty", 5.0, at_most=True),
    Target("warm_async", 0.3, at_most=True),
    Target("warm_sync", 0.3, at_most=True),
    Target("cpu_ratio", 1.5, at_most=True),
    Target("rate_ratio", 0.6, at_most=False),
    Target("undo_ratio", 1.3, at_most=True),
    Target("fork_frame", 10.0, at_most=True),
    Target("fork_many", 500.0, at_most=True),
    Target("memory", 6.0, at_most=True),
    Target("branch_memory", 3.0, at_most=True),
    Target("print_once", 50.0, at_most=False),
    Target("print_lines", 50.0, at_most=False),
    Target("tool_call", 0.15, at_most=True),
    Target("tool_call_sync", 0.15, at_most=True),
    Target("tool_parallel", 100.0, at_most=True),
    Target("http_warm", 1.0, at_most=True),
    Target("http_warm_ratio", 3.0, at_most=True),
    Target("http_oneshot", 5.0, at_most=True),
    Target("http_rate_ratio", 0.5, at_most=False),
    Target("http_up", 200.0, at_most=False),
    Target("http_down", 200.0, at_most=False),
    Target("http_sessions", 8.0, at_most=True),
    Target("http_sessions_undo", 8.0, at_most=True),
)


def of_samples(key: str, title: str, unit: Unit, samples: Sequence[float], note: str = "") -> Figure | None:
    """The figure of these samples; None without any. For rates the bad side is the low one, so p99 is the slowest percent."""
    if not samples:
        return None
    slow = 0.01 if unit in {"MB/s", "1/s"} else 0.99
    return Figure(key, title, unit, percentile(samples, 0.5), len(samples), percentile(samples, slow), note)


def percentile(samples: Sequence[float], share: float) -> float:
    """By nearest rank: a value that was measured, never one between two. Raises ValueError without samples."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def ratio(key: str, title: str, over: Figure | None, under: Figure | None, note: str = "") -> Figure | None:
    if over is None or under is None or under.value == 0:
        return None
    return Figure(key, title, "×", over.value / under.value, min(over.n, under.n), None, note)


def is_met(figure: Figure, target: Target) -> bool:
    return figure.value <= target.bound if target.at_most else figure.value >= target.bound


def factor(figure: Figure, target: Target) -> float:
    """How often the target fits into what was measured, so that above 1 is missed and 2 is twice as bad as wanted."""
    if target.at_most:
        return figure.value / target.bound
    return target.bound / figure.value if figure.value else math.inf


def target_of(key: str) -> Target | None:
    return next((target for target in TARGETS if target.key == key), None)


def verdict(figure: Figure) -> str:
    """ "" without a target, "met", or by how much it was missed."""
    target = target_of(figure.key)
    if target is None:
        return ""
    return "met" if is_met(figure, target) else f"missed by {factor(figure, target):.2f} ×"


def bound_text(figure: Figure) -> str:
    target = target_of(figure.key)
    return "" if target is None else f"{'≤' if target.at_most else '≥'} {target.bound:g} {figure.unit}"


def number_text(value: float | None) -> str:
    """Three significant digits: more would only show the noise."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
