"""Rich outputs: an object → MIME types and bytes, `display()`, and matplotlib's figures.

The rules are IPython's: which methods are asked (`_ipython_display_`, `_repr_mimebundle_`, `_repr_*_`), that a class has none, that
a figure without axes has no image, and that an error in one of them leaves out that type only.
"""

import sys
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, Final, cast

from .. import wire
from .own import OWN as __builtins__  # noqa: F401  # see own.py
from .pretty import pretty
from .tracebacks import shorten
from .values import json_form, unicode_scalars

MAX_TEXT_CHARS: Final = 1024 * 1024  # of a text/plain
_MAX_TYPES: Final = 60  # below wire.MAX_PARTS
_METHODS: Final = (
    ("_repr_html_", "text/html"),
    ("_repr_markdown_", "text/markdown"),
    ("_repr_svg_", "image/svg+xml"),
    ("_repr_png_", "image/png"),
    ("_repr_jpeg_", "image/jpeg"),
    ("_repr_pdf_", "application/pdf"),
    ("_repr_latex_", "text/latex"),
    ("_repr_javascript_", "application/javascript"),
    ("_repr_json_", "application/json"),
)
_BINARY: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf"})
# No need to ask these for anything.
_PLAIN: Final = frozenset({int, float, str, bytes, bool, list, tuple, dict, set, frozenset, complex, type(None)})

Send = Callable[[Mapping[str, bytes], bool], bool]


def plain_text(value: object) -> str:
    """The text of a result, cut in the middle when it is very long. Raises what the object's own methods raise."""
    return shorten(pretty(value), MAX_TEXT_CHARS)


class Displays:
    """Turns objects into display messages. `send` returns False when no cell is there to show them in."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.broken_figure: BaseException | None = None  # drawing a figure failed in this cell

    def display(self, *objs: Any, raw: bool = False, **_options: Any) -> None:
        """IPython's `display`. Options that only a notebook's page understands (display_id, metadata …) are accepted and ignored."""
        for obj in objs:
            if raw and isinstance(obj, dict):
                self._publish(_encoded(cast("Any", obj)), None)
            elif not _displays_itself(obj):
                self._publish({"text/plain": _bytes(_safe_text(obj)), **rich(obj)}, obj)

    def publish(self, data: Mapping[str, Any], *_args: Any, **_options: Any) -> None:
        """IPython's `publish_display_data`."""
        self._publish(_encoded(data), None)

    def result(self, value: object, text: str) -> None:
        """The value of a cell's last expression, if there is more to it than its text."""
        if type(value) in _PLAIN or _displays_itself(value):
            return
        if bundle := rich(value):
            self._send({"text/plain": _bytes(text), **bundle}, True)

    def show_figures(self, *_args: Any, **_options: Any) -> None:
        """Show matplotlib's open figures in their order, and close them: `plt.show()`, and the end of a cell."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None or not (numbers := pyplot.get_fignums()) or pyplot.get_backend() != f"module://{FIGURES}":
            return  # the program may have chosen another backend: then, as in a notebook, its figures are its own business
        try:
            for number in numbers:
                figure = pyplot.figure(number)
                try:
                    image = _draw(figure)
                # As in a notebook: the program goes on, the error is shown with the cell.
                except Exception as error:  # noqa: BLE001
                    self.broken_figure = error
                    continue
                more = _encoded(_ask(figure, "_repr_mimebundle_", include=None, exclude=None))
                bundle = {"text/plain": _bytes(_safe_text(figure)), **more}
                if image is not None:
                    bundle["image/png"] = image
                self._send(bundle, False)
        finally:
            pyplot.close("all")

    def _publish(self, bundle: Mapping[str, bytes], obj: object) -> None:
        if not self._send(bundle, False):
            # A process or thread that outlived its cell, or a forked child: its text still has somewhere to go.
            print(bundle.get("text/plain", b"").decode() or _safe_text(obj))


FIGURES: Final = "onetrip_figures"  # the name of matplotlib's backend here; see hooks.py


def rich(obj: Any) -> dict[str, bytes]:
    """Everything but text/plain that the object offers."""
    if type(obj) in _PLAIN or issubclass(type(obj), type):
        return {}
    try:
        claims_everything = getattr(obj, "_ipython_canary_method_should_not_exist_", None) is not None
    except Exception:  # noqa: BLE001  # the program's own __getattr__
        return {}
    bundle: dict[str, bytes] = {}
    if not claims_everything:
        bundle |= _encoded(_ask(obj, "_repr_mimebundle_", include=None, exclude=None))
        for name, mime in _METHODS:
            if mime not in bundle and (data := _ask(obj, name)) is not None:
                bundle |= _encoded({mime: data})
    if "image/png" not in bundle and _is_figure(obj):
        try:
            image = _draw(obj)
        except Exception:  # noqa: BLE001  # an error leaves out this type only
            image = None
        if image is not None:
            bundle["image/png"] = image
    return bundle


def _ask(obj: Any, name: str, **options: Any) -> Any:
    """What the method of this name returns, its metadata cut off; None when there is none, or it fails."""
    try:
        method = getattr(obj, name, None)
        data: Any = method(**options) if callable(method) else None
        return data[0] if type(data) is tuple and data else data  # pyright: ignore[reportUnknownVariableType]
    except Exception:  # noqa: BLE001  # an error leaves out this type only
        return None


def _displays_itself(obj: Any) -> bool:
    if type(obj) in _PLAIN or issubclass(type(obj), type):
        return False
    try:
        method = getattr(obj, "_ipython_display_", None)
        if not callable(method) or getattr(obj, "_ipython_canary_method_should_not_exist_", None) is not None:
            return False
        method()
    except Exception:  # noqa: BLE001  # IPython falls back to the other methods too
        return False
    return True


def _encoded(data: Any) -> dict[str, bytes]:
    """A MIME bundle as the program gives it → bytes. What has no proper name or content is left out."""
    bundle: dict[str, bytes] = {}
    if isinstance(data, dict):
        for mime, content in cast("dict[Any, Any]", data).items():
            if len(bundle) < _MAX_TYPES and isinstance(mime, str) and wire.is_name(mime):
                encoded = _content(mime, content)
                if encoded is not None:
                    bundle[mime] = encoded
    return bundle


def _content(mime: str, content: Any) -> bytes | None:
    if mime.endswith("json") and not isinstance(content, str | bytes):
        form = json_form(content)
        return None if form is None else form.encode()
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(cast("Any", content))
    if not isinstance(content, str):
        return None
    if mime in _BINARY:
        try:
            return a2b_base64(content)
        except (Base64Error, ValueError):
            return None
    return _bytes(content)


def _bytes(text: str) -> bytes:
    return unicode_scalars(text).encode()


def _safe_text(obj: object) -> str:
    try:
        return plain_text(obj)
    except Exception as error:  # noqa: BLE001  # the program's own __repr__; the other types may still be good
        return f"<{type(obj).__name__}: its repr() raised {type(error).__name__}>"


def _is_figure(obj: Any) -> bool:
    module = sys.modules.get("matplotlib.figure")
    return module is not None and isinstance(obj, module.Figure)


def _draw(figure: Any) -> bytes | None:
    """PNG of a figure; None for an empty one, as in IPython."""
    if not figure.axes and not figure.lines:
        return None
    with BytesIO() as file:
        figure.savefig(file, format="png", bbox_inches="tight")
        return file.getvalue()
