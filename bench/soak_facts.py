"""What the soak knows of the processes that it harms, from the host alone: /proc, and a file that each sandbox was given.

Whoever asks for a sandbox puts a file `mark` with a name of its own into the workspace. Before a kill the workspaces of all rooms that it
will end are opened through /proc/<pid>/root; after it, when nothing of them runs any more, the marks in them are read. What died
with the kill is exactly what is marked there: neither the server nor a program is asked.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from counts import descendants

MARK = "mark"
STOP_S = 60.0  # for a signal to have done its work; milliseconds when nothing is wrong


@dataclass
class Kills:
    """What was killed so far. `lock` is held from before a kill until it is known what it took along."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    zygotes: dict[str, float] = field(default_factory=dict)  # mark → when the kill of its zygote began
    guests: dict[str, int] = field(default_factory=dict)  # mark → how many of its processes were killed
    times: list[float] = field(default_factory=list)

    def between(self, since: float, until: float) -> int:
        return sum(since <= when <= until for when in self.times)

    async def zygote(self, family: set[int], dice: random.Random) -> int:
        """Kill one of them with all that lives in its house; how many marked sandboxes that were, -1 where there was no zygote."""
        async with self.lock:
            zygotes = [pid for pid in family if len(numbers(pid)) == 2 and numbers(pid)[-1] == 1]
            if not zygotes:
                return -1
            with contextlib.ExitStack() as held:
                pid = dice.choice(zygotes)
                try:
                    handle = os.pidfd_open(pid)
                except ProcessLookupError:  # it ended by itself meanwhile: replaced, and its last session closed
                    return -1
                held.callback(os.close, handle)
                # Stopped first: then no room is given to anybody between the look at its rooms and the kill.
                signal.pidfd_send_signal(handle, signal.SIGSTOP)
                await until(lambda: state(pid) in "TZ", "the zygote did not stop")
                rooms = [child for child in descendants(pid) if len(numbers(child)) == 3 and numbers(child)[-1] == 1]
                workspaces = [fd for room in rooms for fd in workspace(room, held)]
                workspaces += ending(family, held)
                begun = time.monotonic()
                self.times.append(begun)
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                # Being PID 1 of its house, it is gone only when everything in there is (pid_namespaces(7)).
                await ended(handle)
                marks = [mark for fd in workspaces if (mark := read_mark(fd))]
                self.zygotes.update(dict.fromkeys(marks, begun))
                return len(marks)

    async def guest(self, family: set[int], dice: random.Random) -> bool:
        """Kill one process of a sandbox: the live one, a checkpoint, or one that waits in the pool. Whether it was anybody's."""
        async with self.lock:
            guests = [pid for pid in family if len(numbers(pid)) == 3 and numbers(pid)[-1] > 1 and state(pid) != "Z"]
            if not guests:
                return False
            with contextlib.ExitStack() as held:
                pid = dice.choice(guests)
                try:
                    handle = os.pidfd_open(pid)
                except ProcessLookupError:
                    return False
                held.callback(os.close, handle)
                workspaces = list(workspace(pid, held))
                if state(pid) in "Z?":  # it ended by itself, so the folder may be that of another one with its number
                    return False
                self.times.append(time.monotonic())
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                await ended(handle)
                marks = {mark for fd in workspaces if (mark := read_mark(fd))}
                for mark in marks:
                    self.guests[mark] = self.guests.get(mark, 0) + 1
                return bool(marks)


def workspace(pid: int, held: contextlib.ExitStack) -> Iterator[int]:
    """The folder as the process sees it; none where it is just being made, so that nobody has it."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        fd = os.open(f"/proc/{pid}/root/workspace", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        held.callback(os.close, fd)
        yield fd


def ending(family: set[int], held: contextlib.ExitStack) -> list[int]:
    """Workspaces in which nothing lives any more, and which the node still holds: it waits to be told how their program ended.

    Only their zygote can tell it, being the parent (waitpid(2)); so they die with it, too, although no process of theirs does.
    """
    living = {os.fstat(fd).st_dev for room in family if len(numbers(room)) == 3 for fd in workspace(room, held)}
    found: list[int] = []
    for node in (pid for pid in family if "onetrip.node" in command(pid)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for name in os.listdir(f"/proc/{node}/fd"):
                with contextlib.suppress(OSError):  # a pipe, or closed meanwhile
                    fd = os.open(f"/proc/{node}/fd/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                    held.callback(os.close, fd)
                    if os.fstat(fd).st_dev not in living:
                        found.append(fd)
    return found


def read_mark(folder: int) -> str:
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(MARK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
        with open(fd, encoding="utf-8", errors="replace") as file:
            return file.read(100)
    return ""


async def until(condition: Callable[[], bool], what: str) -> None:
    """Poll for what gives no event."""
    give_up = time.monotonic() + STOP_S
    while not condition():
        if time.monotonic() > give_up:
            sys.exit(what)
        await asyncio.sleep(0.001)


def ended(handle: int) -> Awaitable[None]:
    """The end of the process of this pidfd."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def told() -> None:
        loop.remove_reader(handle)
        done.set_result(None)

    loop.add_reader(handle, told)
    return done


def numbers(pid: int) -> list[int]:
    """Of a process, in each PID namespace from ours down: a zygote is the first of the second, an init the first of a third."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return [int(number) for number in line.split()[1:]]
    return [0]


def state(pid: int) -> str:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    return "?"


def command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""
