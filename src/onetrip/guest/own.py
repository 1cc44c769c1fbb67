"""Our own copy of the builtins, and the repair of the program's after a cell that broke them.

Guest code shares its interpreter with the program, which may delete or replace any builtin.  Each module of the guest
therefore begins with `from .own import OWN as __builtins__`: CPython looks names up in the `__builtins__` that a function's
globals held when the function was made, so our functions never see the program's changes.  The same dictionary marks our
frames: `frame.f_builtins is OWN` (see `tracebacks`).  The standard library has no such copy; `Keeper` mends what it needs.
"""

import builtins
from typing import Any, Final, cast

OWN: Final[dict[str, Any]] = dict(vars(builtins))
__builtins__ = OWN

_LIVE: Final = cast("dict[str, Any]", vars(builtins))
_MISSING: Final = object()
# What wire and the modules under it use where nothing fails.
_NEEDED: Final = (
    "isinstance", "issubclass", "len", "getattr", "type", "bytes", "str", "int", "bool", "dict", "list", "tuple", "set", "sum",
    "map", "all", "range", "memoryview", "bytearray", "bin", "ValueError", "RecursionError", "TypeError",
)  # fmt: skip


class Keeper:
    """Remembers how the builtins should be. The program's changes hold while its cells run, and only then."""

    def __init__(self) -> None:
        self._good = dict(_LIVE)
        self._needed = tuple((name, self._good[name]) for name in _NEEDED)
        self._theirs: dict[str, Any] = {}

    def mend_needed(self) -> None:
        """After a cell that went well: `mend` if one is broken that the standard library needs to send an answer.

        Looking at all of them would write to some sixty pages of memory that a fork shares with its zygote (reference counts).
        """
        for name, value in self._needed:
            if _LIVE.get(name) is not value:
                self.mend()
                return

    def mend(self) -> None:
        """Put every changed or deleted builtin back, and remember the change. Names the program added stay."""
        for name, value in self._good.items():
            now = _LIVE.get(name, _MISSING)
            if now is not value:
                self._theirs[name] = now
                _LIVE[name] = value

    def give_back(self) -> None:
        """Before a cell: the builtins as the program left them, since it may have changed them on purpose."""
        if not self._theirs:
            return
        for name, value in self._theirs.items():
            if value is _MISSING:
                _LIVE.pop(name, None)
            else:
                _LIVE[name] = value
        self._theirs = {}
