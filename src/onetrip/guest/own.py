"""Our own copy of the builtins, and the repair of the program's after a cell that broke them.

Guest code shares its interpreter with the program, which may delete or replace any builtin.  Each module of the guest
therefore begins with `from .own import OWN as __builtins__`: CPython looks names up in the `__builtins__` that a function's
globals held when the function was made, so our functions never see the program's changes.  The same dictionary marks our
frames: `frame.f_builtins is OWN` (see `tracebacks`).  The standard library has no such copy; `Keeper` mends what it needs.
"""

import builtins
from operator import is_
from types import MappingProxyType
from typing import Any, Final, cast

OWN: Final[dict[str, Any]] = dict(vars(builtins))
__builtins__ = OWN

_LIVE: Final = cast("dict[str, Any]", vars(builtins))
_MISSING: Final = object()


class Keeper:
    """Remembers how the builtins should be. The program's changes hold while its cells run, and only then."""

    def __init__(self) -> None:
        self._good = MappingProxyType(dict(_LIVE))
        self._good_values = tuple(self._good.values())
        self._theirs: dict[str, Any] = {}

    def mend(self) -> None:
        """Put every changed or deleted builtin back, and remember the change. Names the program added stay."""
        # One pass in C for the ordinary case: nothing was deleted or replaced, additions come after the originals.
        if len(_LIVE) >= len(self._good_values) and all(map(is_, self._good_values, _LIVE.values())):
            return
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
