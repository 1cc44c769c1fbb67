"""The JSON form of a cell's result, where it has one; and JSON text that is always valid.

| of the program | in JSON |
|---|---|
| None, bool, int (up to 4096 bits), str | itself; a lone surrogate becomes `\\udXXX` as text |
| float | itself; inside a container NaN and infinities become null, as in pandas and JavaScript. A result that *is* NaN or infinite has no JSON form: null would say None |
| list, tuple and their subclasses | array |
| dict and its subclasses | object; keys str, or bool, int, float, None as their text, as `json.dumps` does |
| date, time, datetime, Timestamp, datetime64 | ISO 8601 text; NaT, NA: null |
| Decimal | its digits, as text |
| numpy scalar and array (b i u f U M O) | scalar, nested arrays |
| pandas Series / Index / DataFrame | {"name", "index", "data"} / array / {"columns", "index", "data": rows} |

Everything else (sets, bytes, complex, objects) has none.  A form of more than `MAX_NODES` values, `MAX_BYTES` or `MAX_DEPTH`
levels is not given at all: half a value would be a lie.  No code of the program is called: subclasses are read through the
methods of the builtin type, and numpy and pandas objects only when they are exactly of the library's own class.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable
from datetime import date, datetime, time, timezone
from decimal import Decimal
from json import encoder as json_encoder
from json.encoder import encode_basestring_ascii
from typing import Any, Final, cast

from .own import OWN as __builtins__  # noqa: F401  # see own.py

MAX_NODES: Final = 100_000
MAX_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 32
_MAX_INT_BITS: Final = 4096  # below the interpreter's own limit for turning an int into digits (4300 digits)
_INFINITY: Final = float("inf")

# The encoder in C that `json` itself uses: the program may have broken json's own code, or a builtin that it needs.
# Arguments: markers, default, encoder, indent, key and item separator, sort_keys, skipkeys, allow_nan.
_encode_parts: Final[Any] = getattr(json_encoder, "c_make_encoder")(  # noqa: B009  # no stub has it
    None, None, encode_basestring_ascii, None, ":", ",", False, False, False
)


def _encode(plain: object) -> str:
    return "".join(_encode_parts(plain, 0))


_type_of: Final = cast("Callable[[object], type[Any]]", type)  # the same call, with a type that says what it gives
_LIST_ITEMS: Final[Any] = vars(list)["__iter__"]
_TUPLE_ITEMS: Final[Any] = vars(tuple)["__iter__"]
_DICT_ITEMS: Final[Any] = vars(dict)["items"]
_ORDERED_ITEMS: Final[Any] = vars(OrderedDict)["items"]


class _NoForm(Exception):
    """There is no JSON form, or it would be too large."""


def json_form(value: Any) -> str | None:
    """The value as JSON text in ASCII; None when it has no JSON form."""
    if type(value) is float and not -_INFINITY < value < _INFINITY:
        return None
    try:
        plain = _Walk().plain(value, 0)
        if plain is None and value is not None:
            return None  # NaT, NA, numpy's NaN
        text = _encode(plain)
    # Whoever asks for the form of a value can do without it; numpy and pandas raise many things on odd contents.
    except Exception:  # noqa: BLE001
        return None
    return text if len(text) <= MAX_BYTES else None


def quote(text: str) -> str:
    """Text as a JSON string in ASCII, valid also when there are lone surrogates in it."""
    return encode_basestring_ascii(unicode_scalars(text))


def unicode_scalars(text: str) -> str:
    """The text, with each lone surrogate written as `\\udXXX`."""
    if text.isascii():
        return str.__str__(text)
    return str.encode(text, "utf-8", "backslashreplace").decode()


class _Walk:
    """Builds the plain form: exact builtin types only, within the caps."""

    def __init__(self) -> None:
        self._nodes_left = MAX_NODES
        self._chars_left = MAX_BYTES

    def plain(self, value: Any, depth: int) -> Any:
        self._nodes_left -= 1
        kind = _type_of(value)
        if value is None or kind is bool:
            return value
        if self._nodes_left < 0 or depth > MAX_DEPTH:
            raise _NoForm
        # `issubclass` on the type, not `isinstance`: the latter asks the object for its __class__, which may be the program's.
        if issubclass(kind, str):
            return self._text(str.__str__(value))
        if issubclass(kind, int):
            if int.bit_length(value) > _MAX_INT_BITS:
                raise _NoForm
            return int.__int__(value)
        if issubclass(kind, float):
            number = float.__float__(value)
            return number if -_INFINITY < number < _INFINITY else None
        if issubclass(kind, list):
            return [self.plain(item, depth + 1) for item in _LIST_ITEMS(value)]
        if issubclass(kind, tuple):
            return [self.plain(item, depth + 1) for item in _TUPLE_ITEMS(value)]
        if issubclass(kind, dict):
            items = _ORDERED_ITEMS(value) if issubclass(kind, OrderedDict) else _DICT_ITEMS(value)
            return {self._key(key): self.plain(item, depth + 1) for key, item in items}
        return self._known(value, kind, depth)

    def _text(self, text: str) -> str:
        self._chars_left -= len(text)
        if self._chars_left < 0:
            raise _NoForm
        return unicode_scalars(text)

    def _key(self, key: Any) -> str:
        kind = _type_of(key)
        if issubclass(kind, str):
            return self._text(str.__str__(key))
        plain = self.plain(key, 0)
        if type(plain) is str:
            return plain  # a date or a Decimal
        if plain is None or type(plain) in (bool, int, float):
            return _encode(plain)
        raise _NoForm

    def _known(self, value: Any, kind: type[Any], depth: int) -> Any:
        if kind in (date, time, datetime) or _is(kind, "pandas", "Timestamp"):
            zone = getattr(value, "tzinfo", None)
            if zone is not None and type(zone) is not timezone and type(zone).__module__.partition(".")[0] not in _ZONES:
                raise _NoForm  # a time zone of the program's own: its methods are the program's
            return self._text(kind.isoformat(value))  # type: ignore[attr-defined]  # each of the four has it
        if kind is Decimal:
            return str(value)
        module = kind.__module__.partition(".")[0]
        if module == "numpy":
            return self._numpy(value, kind, depth)
        if module == "pandas":
            return self._pandas(value, kind, depth)
        raise _NoForm

    def _numpy(self, value: Any, kind: type[Any], depth: int) -> Any:
        numpy = sys.modules["numpy"]
        if kind is numpy.ndarray:
            if value.size > self._nodes_left or value.dtype.kind not in "biufUMO":
                raise _NoForm
            if value.dtype.kind == "M":
                return self.plain(numpy.datetime_as_string(value).tolist(), depth)
            is_finite = value.dtype.kind in "biu" or (value.dtype.kind == "f" and numpy.isfinite(value).all())
            if is_finite and value.dtype.itemsize <= 8:
                self._nodes_left -= value.size
                return value.tolist()
            if value.dtype.kind == "f":
                value = value.astype(float)
            return self.plain(value.tolist(), depth)
        if issubclass(kind, numpy.generic):
            if issubclass(kind, numpy.datetime64):
                return None if numpy.isnat(value) else self._text(str(value))
            if issubclass(kind, numpy.floating):
                return self.plain(float(value), depth)
            if issubclass(kind, numpy.bool_ | numpy.integer):
                return self.plain(value.item(), depth)
        raise _NoForm

    def _pandas(self, value: Any, kind: type[Any], depth: int) -> Any:
        pandas = sys.modules["pandas"]
        if value is pandas.NaT or value is pandas.NA:
            return None
        if kind is pandas.DataFrame:
            rows, columns = value.shape
            if rows * max(columns, 1) > self._nodes_left:
                raise _NoForm
            by_column = [value.iloc[:, i].tolist() for i in range(columns)]
            return {
                "columns": self.plain(value.columns.tolist(), depth + 1),
                "index": self.plain(value.index.tolist(), depth + 1),
                "data": self.plain([list(row) for row in zip(*by_column, strict=True)] if columns else [[]] * rows, depth + 1),
            }
        if kind is pandas.Series or issubclass(kind, pandas.Index):
            if len(value) > self._nodes_left:
                raise _NoForm
            data = self.plain(value.tolist(), depth + 1)
            if kind is not pandas.Series:
                return data
            return {"name": self.plain(value.name, depth + 1), "index": self.plain(value.index.tolist(), depth + 1), "data": data}
        if kind in (pandas.Timedelta, pandas.Period, pandas.Interval):
            return self._text(str(value))
        raise _NoForm


_ZONES: Final = frozenset({"zoneinfo", "pytz", "dateutil", "datetime"})


def _is(kind: type[Any], module: str, name: str) -> bool:
    """Whether this is exactly a class of that library, without importing the library."""
    library = sys.modules.get(module)
    return library is not None and kind is getattr(library, name, None)
