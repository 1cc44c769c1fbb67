"""Words of strangers → pieces of Python source that stay what they are: names, literals, lines of comments and docstrings.

Names, descriptions and schemas come from tenants and from servers of others. Nothing that is made here holds a line break, a control
or format character (such as those that turn the direction of text), or a quote that could end what it stands in.
"""

import keyword
import math
import unicodedata
from typing import Any, Final, cast

_MAX_NAME_CHARS: Final = 128
_MAX_INT: Final = 10**18
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_RIGHT_TO_LEFT: Final = frozenset({"R", "AL"})


def is_name(text: str) -> bool:
    """Whether Python takes this for a name, and everybody reads the same one."""
    return (
        0 < len(text) <= _MAX_NAME_CHARS
        and text.isidentifier()
        and not keyword.iskeyword(text)
        and text != "__debug__"
        and (text.isascii() or (unicodedata.normalize("NFKC", text) == text and not _turns(text)))
    )


def is_dotted(text: str) -> bool:
    """Whether this is a name of a tool that a program can write: `find`, `shop.find`."""
    return len(text) <= _MAX_NAME_CHARS and all(is_name(part) for part in text.split("."))


def line(text: str, limit: int) -> str:
    """Prose as one line for a comment or a docstring, at most `limit` characters."""
    head = text[: 8 * limit]
    shown = "".join(" " if unicodedata.category(char) in _HIDDEN else char for char in head)
    words = " ".join(shown.split()).replace("\\", "/").replace('"', "'")
    if len(words) <= limit and len(head) == len(text):
        return words
    return words[: limit - 1].rpartition(" ")[0].rstrip(" .,;:") + "…" if " " in words[: limit - 1] else words[: limit - 1] + "…"


def quoted(text: str) -> str:
    """A text as a Python literal on one line, in ASCII where it would not be seen as it is."""
    shown = repr(text)
    return ascii(text) if _turns(shown) else shown


def literal(value: Any, limit: int, depth: int = 2) -> str | None:
    """A JSON value as a Python literal of at most `limit` characters; None if there is none so short."""
    if value is None or isinstance(value, bool):
        found = repr(value)
    elif isinstance(value, str):
        found = quoted(value) if len(value) <= limit else None
    elif isinstance(value, int):
        found = repr(value) if abs(value) < _MAX_INT else None
    elif isinstance(value, float):
        found = repr(value) if math.isfinite(value) else None
    elif isinstance(value, list) and depth and len(cast("list[Any]", value)) <= limit:
        parts = [literal(each, limit, depth - 1) for each in cast("list[Any]", value)]
        found = None if None in parts else f"[{', '.join(map(str, parts))}]"
    elif isinstance(value, dict) and depth and len(cast("dict[Any, Any]", value)) <= limit:
        pairs = [
            (literal(key, limit, 0), literal(each, limit, depth - 1))
            for key, each in sorted(cast("dict[Any, Any]", value).items(), key=str)
        ]
        found = None if any(None in pair for pair in pairs) else "{" + ", ".join(f"{key}: {each}" for key, each in pairs) + "}"
    else:
        found = None
    return found if found is not None and len(found) <= limit else None


def _turns(text: str) -> bool:
    return not text.isascii() and any(unicodedata.bidirectional(char) in _RIGHT_TO_LEFT for char in text)
