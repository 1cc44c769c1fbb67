"""What a process that holds an engine sets for itself: open files, and where its threads allocate."""

import contextlib
import ctypes
import resource
from typing import Final

M_ARENA_MAX: Final = -8  # malloc.h of glibc


def raise_descriptor_limit() -> None:
    """Let this process open as many files as it may: a sandbox takes up to 12, and the usual soft limit of 1,024 is soon reached."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def share_one_heap() -> None:
    """Have threads that begin from now on allocate from the process's heap, instead of one of their own for each (mallopt(3)).

    glibc gives back the top of a thread's own heap rarely, and not for malloc_trim(3) either: megabytes for each thread of the event loop's
    executor that once held a large listing. Python's threads gain nothing by heaps of their own: they allocate one at a time.
    """
    with contextlib.suppress(AttributeError):  # a libc that has no such setting, and no such heaps
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
