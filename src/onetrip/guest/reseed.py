"""Give a forked process randomness of its own.

All forks of a zygote share what it had computed before.  `os.fork` would have `random` reseeded and the thread's id renewed by
CPython; the zygote forks without these handlers, so that is done here as well.
Process ids repeat across PID namespaces, so checks of the kind "has my pid changed" do not notice the fork.
What cannot be changed: hash seed, address layout, stack canary.
"""

import sys
from array import array
from collections.abc import Callable
from os import urandom
from types import ModuleType
from typing import Any, Final

from .own import OWN as __builtins__  # noqa: F401  # see own.py

_MT_WORDS: Final = 624  # the state of a Mersenne Twister


def _numpy(module: Any) -> None:
    # The legacy global generator; default_rng() asks the kernel each time. A state of random bytes costs a third of seed().
    module.set_state(("MT19937", array("I", urandom(_MT_WORDS * 4)), _MT_WORDS, 0, 0.0))


def _random(module: Any) -> None:
    module.seed()


def _threading(module: Any) -> None:
    module.main_thread()._set_native_id()  # noqa: SLF001  # what threading's own handler does after a fork


def _uuid(module: Any) -> None:
    module._node = module._last_timestamp = None  # noqa: SLF001  # the cache has no other name


def _tempfile(module: Any) -> None:
    module._name_sequence = None  # noqa: SLF001  # its generator compares pids
    module.tempdir = None  # was chosen in the zygote's file tree


def _ssl(module: Any) -> None:
    module.RAND_add(urandom(32), 32.0)


def _multiprocessing(module: Any) -> None:
    module.current_process().authkey = urandom(32)


def _sympy(module: Any) -> None:
    module.rng.seed()


RESEED: Final[dict[str, Callable[[Any], None]]] = {
    "random": _random,
    "threading": _threading,
    "numpy.random": _numpy,
    "uuid": _uuid,
    "tempfile": _tempfile,
    "_ssl": _ssl,
    "multiprocessing.process": _multiprocessing,
    "sympy.core.random": _sympy,
}


def reseed(modules: dict[str, ModuleType] | None = None) -> None:
    """Reseed every generator among the loaded modules. Call in the child, before any code of the program."""
    loaded = sys.modules if modules is None else modules
    for name, action in RESEED.items():
        if (module := loaded.get(name)) is not None:
            action(module)
