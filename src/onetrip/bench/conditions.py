"""Under what conditions a run of the bench was made: what a reader needs to judge its numbers."""

import contextlib
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime

from onetrip.environments import Environment
from onetrip.model import Isolation


@dataclass(frozen=True, slots=True)
class Conditions:
    onetrip: str
    when: str  # UTC, to the minute
    kernel: str
    machine: str  # processor, and the hypervisor if the kernel names one
    cpus: int  # that this process may use
    memory_mb: int
    python: str  # of the sandboxes
    packages: str  # numpy's and pandas's versions
    user: str
    isolation: str
    load_before: float  # processes that wanted a CPU in the minute before, on average
    load_after: float


def collect(environment: Environment, isolation: Isolation, version: str, load_before: float) -> Conditions:
    packages = [package for package in environment.packages if package.partition("==")[0] in ("numpy", "pandas")]
    return Conditions(
        onetrip=version,
        when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        kernel=f"{platform.system()} {platform.release()}",
        machine=_processor(),
        cpus=len(os.sched_getaffinity(0)),
        memory_mb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6,
        python=environment.python.version,
        packages=", ".join(packages).replace("==", " "),
        user="root" if os.geteuid() == 0 else "an ordinary user",
        isolation=f"{isolation.tier}, {isolation.level}: {', '.join(isolation.mechanisms)}",
        load_before=load_before,
        load_after=load(),
    )


def load() -> float:
    return round(os.getloadavg()[0], 2)


def _processor() -> str:
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    name = fields.get("model name") or platform.machine()
    return f"{name}, virtual" if "hypervisor" in fields.get("flags", "").split() else name
