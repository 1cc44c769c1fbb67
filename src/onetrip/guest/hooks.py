"""Joins libraries to our displays when they are imported: matplotlib's backend, and IPython's `display`.

No environment variable is needed for it. MPLBACKEND stays unset, so that Python processes that the program starts find a
backend of their own, and one that the program sets before it imports matplotlib wins.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Final

from .display import FIGURES, Displays
from .own import OWN as __builtins__  # noqa: F401  # see own.py

_NOTEBOOK_COLUMNS: Final = 20  # pandas/core/config_init.py


class Hook:
    """An import hook. The guest has one, before all other finders."""

    def __init__(self) -> None:
        self.displays: Displays | None = None
        self._notebook = False
        self._patches: Final[dict[str, Callable[[Any], None]]] = {
            "matplotlib": self._matplotlib,
            "IPython.core.display_functions": self._ipython,
            "pandas": self._pandas,
        }

    def install(self) -> None:
        """Put the hook in its place; twice does no harm. Patches what is loaded already."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)  # type: ignore[arg-type]  # a finder by its methods
            for name, patch in self._patches.items():
                if name in sys.modules:
                    patch(sys.modules[name])

    def be_notebook(self) -> None:
        """From the first cell of a session on (not for a one-shot): libraries print as in a notebook, not as in a script."""
        if not self._notebook:
            self._notebook = True
            if (pandas := sys.modules.get("pandas")) is not None:
                self._pandas(pandas)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == FIGURES:
            return ModuleSpec(name, self)  # type: ignore[arg-type]  # a loader by its methods
        patch = self._patches.get(name)
        spec = PathFinder.find_spec(name, path, target) if patch is not None else None
        if patch is None or spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            patch(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def create_module(self, _spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        """The backend: Agg's canvas, and a `show` of ours. It calls through the hook, whose displays a fork may replace."""
        agg: Any = import_module("matplotlib.backends.backend_agg")
        module.FigureCanvas = agg.FigureCanvasAgg
        module.show = self.show

    def show(self, *_args: Any, **_options: Any) -> None:
        """`plt.show()`."""
        if self.displays is not None:
            self.displays.show_figures()

    def display(self, *objs: Any, **options: Any) -> None:
        """Show the objects, each in the richest form that the reader understands."""
        if self.displays is not None:
            self.displays.display(*objs, **options)

    def publish(self, data: Any, *_args: Any, **_options: Any) -> None:
        if self.displays is not None:
            self.displays.publish(data)

    def _matplotlib(self, module: Any) -> None:
        if not os.environ.get("MPLBACKEND"):
            module.rcParams["backend"] = f"module://{FIGURES}"

    def _ipython(self, module: Any) -> None:
        module.display = self.display
        module.publish_display_data = self.publish
        module.clear_output = _clear_output

    def _pandas(self, module: Any) -> None:
        # pandas chooses it by looking for a notebook's kernel: in a script, 0 means as many columns as fit the line.
        if self._notebook and module.get_option("display.max_columns") == 0:
            module.set_option("display.max_columns", _NOTEBOOK_COLUMNS)


def _clear_output(*_args: Any, **_options: Any) -> None:
    """IPython's: it clears the notebook's page, which a result does not have."""
