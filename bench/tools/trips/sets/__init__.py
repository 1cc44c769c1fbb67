"""The four tool sets: plain typed Python functions over data in memory, the same in every run."""

from collections.abc import Callable
from typing import Any

from trips.sets.base import ToolSet
from trips.sets.calendar import Calendar
from trips.sets.files import Files
from trips.sets.shop import Shop
from trips.sets.travel import Travel

SETS: dict[str, type[ToolSet]] = {"shop": Shop, "calendar": Calendar, "fs": Files, "travel": Travel}

Function = Callable[..., Any]

__all__ = ["SETS", "Function", "ToolSet"]
