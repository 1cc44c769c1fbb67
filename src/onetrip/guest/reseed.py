"""Give a forked process randomness of its own.

All forks of a zygote share what it had computed before. `os.fork` would have `random` reseeded and the thread's id renewed by
CPython; the zygote forks without these handlers, so that is done here as well. What matters is how little memory a fork touches
for it: generators whose state is a plain array get it from the kernel directly, by one `getrandom` each (`places`), and what can
be forgotten is forgotten before the fork. Process ids repeat across PID namespaces, so checks of the kind "has my pid changed" do
not notice the fork. What cannot be changed: hash seed, address layout, stack canary.
"""

import ctypes
import re
import sys
from array import array
from collections.abc import Callable
from os import urandom
from types import ModuleType
from typing import Any, Final

from .own import OWN as __builtins__  # noqa: F401  # see own.py

_MT_BYTES: Final = 4 * 624  # the state of a Mersenne Twister
_HEADER_BYTES: Final = object.__basicsize__
_RANDOM_AT: Final = _HEADER_BYTES + 4  # Modules/_randommodule.c, RandomObject: the index, then the state
_BYTES_AT: Final = bytes.__basicsize__ - 1  # Include/cpython/bytesobject.h: ob_sval


def _random(module: Any) -> tuple[int, int]:
    return _twister(module._inst)  # noqa: SLF001  # the module's functions are its methods


def _sympy(module: Any) -> tuple[int, int]:
    return _twister(module.rng)


def _twister(generator: Any) -> tuple[int, int]:
    generator.seed()  # also forgets the second half of a pair of normal numbers
    state = b"".join(number.to_bytes(4, sys.byteorder) for number in generator.getstate()[1][:-1])
    return _checked(id(generator) + _RANDOM_AT, state)


def _numpy(module: Any) -> tuple[int, int]:
    # The legacy global generator; default_rng() asks the kernel each time.
    module.seed()
    generator = module.mtrand._rand._bit_generator  # noqa: SLF001  # it has no other name
    return _checked(generator.ctypes.state_address, generator.state["state"]["key"].tobytes())


def _multiprocessing(module: Any) -> tuple[int, int]:
    key = module.current_process().authkey = urandom(32)  # pyright: ignore[reportUnusedVariable]
    return _checked(id(module.current_process().authkey) + _BYTES_AT, key)


def _checked(address: int, state: bytes) -> tuple[int, int]:
    if ctypes.string_at(address, len(state)) != state:
        raise _Elsewhere
    return address, len(state)


class _Elsewhere(Exception):
    """The state does not lie where this interpreter or library was expected to have it."""


# Places that hold nothing but the state of a generator.
PLACES: Final[dict[str, Callable[[Any], tuple[int, int]]]] = {
    "random": _random,
    "numpy.random": _numpy,
    "multiprocessing.process": _multiprocessing,
    "sympy.core.random": _sympy,
}


def _forget_uuid(module: Any) -> None:
    module._node = module._last_timestamp = None  # noqa: SLF001  # the cache has no other name


def _forget_tempfile(module: Any) -> None:
    module._name_sequence = None  # noqa: SLF001  # its generator compares pids
    module.tempdir = None  # was chosen in the zygote's file tree


FORGET: Final[dict[str, Callable[[Any], None]]] = {"uuid": _forget_uuid, "tempfile": _forget_tempfile}


def _draw_random(module: Any) -> None:
    module.seed()


def _draw_numpy(module: Any) -> None:
    # A state of random bytes costs a third of seed(); it also forgets the second half of a pair of normal numbers.
    module.set_state(("MT19937", array("I", urandom(_MT_BYTES)), _MT_BYTES // 4, 0, 0.0))


def _draw_sympy(module: Any) -> None:
    module.rng.seed()


def _draw_multiprocessing(module: Any) -> None:
    module.current_process().authkey = urandom(32)


def _draw_ssl(module: Any) -> None:
    module.RAND_add(urandom(32), 32.0)


def _renew_thread(module: Any) -> None:
    module.main_thread()._set_native_id()  # noqa: SLF001  # what threading's own handler does after a fork


# The same by calls into the library, where the places are not known; `_ssl` has none.
DRAW: Final[dict[str, Callable[[Any], None]]] = {
    "random": _draw_random,
    "numpy.random": _draw_numpy,
    "multiprocessing.process": _draw_multiprocessing,
    "sympy.core.random": _draw_sympy,
    "_ssl": _draw_ssl,
}
_left: Final[list[tuple[Callable[[Any], None], Any]]] = []  # for `finish`


def places(own_pid: int | None) -> tuple[tuple[int, int], ...]:
    """In the zygote: forget what may not be common, and say where each fork needs random bytes; the rest is for `finish`."""
    _left.clear()
    found: list[tuple[int, int]] = []
    for name, draw in DRAW.items():
        if (module := sys.modules.get(name)) is None:
            continue
        try:
            found.append(PLACES[name](module))
        except (_Elsewhere, KeyError, AttributeError, TypeError):
            _left.append((draw, module))
    for name, forget in FORGET.items():
        if (module := sys.modules.get(name)) is not None:
            forget(module)
    if (threading := sys.modules.get("threading")) is not None:
        if own_pid is None:
            _left.append((_renew_thread, threading))
        else:
            threading.main_thread()._native_id = own_pid  # noqa: SLF001  # the first thread's id is the process's
    return tuple(found)


def finish() -> None:
    """In the fork, before any code of the program: what `places` could not prepare."""
    for draw, module in _left:
        draw(module)


# A library's name in a source, before its `seed(` or `set_state(`.
_SEEDING: Final = re.compile(rb"(?:([\w.]+)\s*\.\s*)?(?:seed|set_?state)\s*\(")
_LIBRARY_OF: Final = {b"np.random": "numpy.random", b"numpy.random": "numpy.random", b"random": "random"}


def seeded_by(source: bytes) -> set[str]:
    """The generators that this source seeds, as far as its text shows; an unqualified or unknown `seed(` may be any of them."""
    found: set[str] = set()
    for (name,) in (match.groups() for match in _SEEDING.finditer(source)):
        found |= {_LIBRARY_OF[name]} if name in _LIBRARY_OF else {"random", "numpy.random", "sympy.core.random"}
    return found


def branch(seeded: frozenset[str]) -> None:
    """In a branch of a session: no random number, uuid or key of another branch again, unless the program asked for it by a seed."""
    for table in (DRAW, FORGET):
        for name, action in table.items():
            if name not in seeded and (module := sys.modules.get(name)) is not None:
                action(module)
    numpy_random = sys.modules.get("numpy.random")
    main = sys.modules.get("__main__")
    if numpy_random is not None and main is not None:
        for value in list(vars(main).values()):
            if type(value) is numpy_random.Generator:
                _renew_generator(value)


def _renew_generator(generator: Any) -> None:
    """One that the operating system seeded: its entropy is a number of 128 bits, which nobody writes down."""
    bits = generator.bit_generator
    entropy = getattr(getattr(bits, "seed_seq", None), "entropy", None)
    if isinstance(entropy, int) and entropy.bit_length() > _WRITTEN_BITS:
        bits.state = type(bits)().state


_WRITTEN_BITS: Final = 96


def reseed(modules: dict[str, ModuleType] | None = None) -> None:
    """Everything by calls into the libraries, in this process. For a process that was not prepared."""
    loaded = sys.modules if modules is None else modules
    for table in (DRAW, FORGET):
        for name, action in table.items():
            if (module := loaded.get(name)) is not None:
                action(module)
    if (threading := loaded.get("threading")) is not None:
        _renew_thread(threading)
