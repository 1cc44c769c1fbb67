"""The session's policy on modules: which the program may import. Guidance for whoever wrote it, not a wall.

Only imports that the program's own code asks for are looked at: its cells, and modules in its workspace. What an allowed
module imports for itself is its own business, and modules that are loaded already are denied as well, so this is a wrapper
around `__import__` and not an import finder.
"""

import builtins
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .own import OWN as __builtins__  # noqa: F401  # see own.py

_import: Final = builtins.__import__
_import_module: Final = importlib.import_module
_frame: Final = sys._getframe  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001  # importlib itself does it so


class ModulePolicy:
    """`allow` None: everything that is not denied. The workspace is the working directory when the session begins."""

    def __init__(self, allow: Sequence[str] | None, deny: Sequence[str]) -> None:
        self._allow = None if allow is None else frozenset(allow)
        self._deny = frozenset(deny)
        self._workspace = os.getcwd()

    @classmethod
    def of(cls, session: Mapping[str, Any]) -> "ModulePolicy | None":
        """From `Hello.session`; None when everything is allowed, so that such a session pays nothing."""
        rules: dict[str, Any] = session.get("modules") or {}
        allow, deny = rules.get("allow"), rules.get("deny") or ()
        return None if allow is None and not deny else cls(allow, deny)

    def install(self) -> None:
        builtins.__import__ = self._checked_import
        importlib.import_module = self._checked_import_module

    def _checked_import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002  # the names of builtins.__import__
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> Any:
        if level == 0 and self._is_programs(globals):
            self._check(name)
        return _import(name, globals, locals, fromlist, level)

    def _checked_import_module(self, name: str, package: str | None = None) -> Any:
        if not name.startswith(".") and self._is_programs(_frame(1).f_globals):
            self._check(name)
        return _import_module(name, package)

    def _is_programs(self, importer: Mapping[str, Any] | None) -> bool:
        if importer is None:
            return False
        if importer.get("__name__") == "__main__":
            return True
        file = importer.get("__file__")
        return isinstance(file, str) and os.path.abspath(file).startswith(self._workspace + "/")

    def _check(self, name: str) -> None:
        top = name.partition(".")[0]
        if top in self._deny:
            raise ImportError(f"import of {top!r} is not allowed by this session's policy (policy.modules.deny)", name=top)
        if self._allow is not None and top not in self._allow and not self._is_in_workspace(top):
            allowed = ", ".join(sorted(self._allow)) or "nothing"
            raise ImportError(
                f"import of {top!r} is not allowed by this session's policy (policy.modules.allow); allowed: {allowed}", name=top
            )

    def _is_in_workspace(self, top: str) -> bool:
        path = os.path.join(self._workspace, top)
        return os.path.isfile(path + ".py") or os.path.isdir(path)
