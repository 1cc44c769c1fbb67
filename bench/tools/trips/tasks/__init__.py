"""The forty tasks, ten for each tool set."""

import dataclasses

from trips.task import Task
from trips.tasks.calendar import TASKS as CALENDAR
from trips.tasks.files import TASKS as FILES
from trips.tasks.shop import TASKS as SHOP
from trips.tasks.travel import TASKS as TRAVEL

TASKS: dict[str, Task] = {
    task.name: dataclasses.replace(task, space=space)
    for space, tasks in {"shop": SHOP, "calendar": CALENDAR, "fs": FILES, "travel": TRAVEL}.items()
    for task in tasks
}

__all__ = ["TASKS"]
