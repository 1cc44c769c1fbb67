"""References of a batch, `call_1.items[0]["a b"]`: read into steps, and looked up in the JSON that an item gave.

What is looked up stays the bytes that it was: numbers keep their digits, and nothing is decoded that nobody asked for. Values come from
tools and programs, so what is said about them is bounded and printable.
"""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

import msgspec

from onetrip.texts import shown

Step: TypeAlias = str | int

ITEM_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_TEXT: Final = 1000  # characters of one reference
MAX_STEPS: Final = 32
_STEP: Final = re.compile(
    r'\.(?P<name>[^\s\x00-\x1f\x7f.\[\]"\\{}$]+)|\[(?P<index>-?[0-9]{1,9})\]|\[(?P<key>"(?:[^"\\\x00-\x1f]|\\.)*")\]'
)
_PLAIN: Final = re.compile(r"[^\W\d]\w*")
_SHOWN_KEYS: Final = 20
_HOW: Final = 'Write `item.name`, `item.list[0]` (`[-1]` is the last) or `item["any key"]`.'


class Reference(NamedTuple):
    """A place in what an item gave: keys of objects, and positions in lists. No steps: the whole of it."""

    item: str
    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        return self.item + "".join(map(_written, self.steps))


class Missing(NamedTuple):
    """There is no such place; `message` says what is there instead."""

    message: str


def parse(text: object) -> Reference:
    """Read a reference. Raises ValueError, which says from where on it cannot be read."""
    if not isinstance(text, str):
        raise ValueError(f"a reference is a text, not {type(text).__name__}. {_HOW}")  # noqa: TRY004 -- as for every other fault
    if len(text) > MAX_TEXT:
        raise ValueError(f"a reference of {len(text):,} characters; the most is {MAX_TEXT:,}")
    begin = ITEM_ID.match(text)
    if begin is None:
        raise ValueError(f"{shown(text)!r} does not begin with the id of an item. {_HOW}")
    steps: list[Step] = []
    at = begin.end()
    while at < len(text):
        found = _STEP.match(text, at)
        if found is None:
            raise ValueError(f"{shown(text)!r} cannot be read from {shown(text[at:])!r} on (character {at + 1}). {_HOW}")
        steps.append(_step(found, text))
        at = found.end()
    if len(steps) > MAX_STEPS:
        raise ValueError(f"{shown(text)!r} has {len(steps)} steps; the most is {MAX_STEPS}")
    return Reference(begin[0], tuple(steps))


def _step(found: re.Match[str], text: str) -> Step:
    if found["index"] is not None:
        return int(found["index"])
    if found["name"] is not None:
        return found["name"]
    try:
        return msgspec.json.decode(found["key"], type=str)
    except (msgspec.DecodeError, UnicodeEncodeError) as err:
        raise ValueError(f"{shown(text)!r}: the key {shown(found['key'])} is no JSON string") from err


def find(value: bytes, references: Iterable[Reference]) -> dict[Reference, bytes | Missing]:
    """Look up many places of one value, which is JSON. What they have in common is read once, however many they are."""
    answers: dict[Reference, bytes | Missing] = {}
    todo: list[tuple[bytes, int, list[Reference]]] = [(value.strip(), 0, list(references))]
    while todo:
        here, depth, wanted = todo.pop()
        further: dict[Step, list[Reference]] = {}
        for reference in wanted:
            if len(reference.steps) == depth:
                answers[reference] = here
            else:
                further.setdefault(reference.steps[depth], []).append(reference)
        if not further:
            continue
        parts = _parts(here)
        for step, group in further.items():
            part = _part(parts, step)
            if part is not None:
                todo.append((bytes(part), depth + 1, group))
                continue
            place = Reference(group[0].item, group[0].steps[:depth])
            message = f"{place}{_instead(parts, here, step, place)}"
            answers.update(dict.fromkeys(group, Missing(message)))
    return answers


_Parts: TypeAlias = dict[str, msgspec.Raw] | list[msgspec.Raw] | None


def _parts(value: bytes) -> _Parts:
    """Of an object or a list; None where there are none."""
    try:
        if value[:1] == b"{":
            return msgspec.json.decode(value, type=dict[str, msgspec.Raw])
        if value[:1] == b"[":
            return msgspec.json.decode(value, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # the same answer as for what has no parts
    return None


def _part(parts: _Parts, step: Step) -> msgspec.Raw | None:
    if isinstance(parts, dict):
        return parts.get(step) if isinstance(step, str) else None
    if isinstance(parts, list) and isinstance(step, int) and -len(parts) <= step < len(parts):
        return parts[step]
    return None


def _instead(parts: _Parts, here: bytes, step: Step, place: Reference) -> str:
    if isinstance(parts, list):
        if isinstance(step, int):
            return f" is a list of length {len(parts)}: it has no [{step}]"
        return f" is a list of length {len(parts)}: say which, such as {place}[0]{_written(step)}"
    if parts is None:
        kinds = {b"{": "an object", b"[": "a list", b'"': "a text", b"t": "true", b"f": "false", b"n": "null"}
        kind = kinds.get(here[:1], "a number")
        return f" is {kind}{' that cannot be read' if here[:1] in (b'{', b'[') else ''}: it has no {_written(step)}"
    keys = ", ".join(shown(key) for key in [*parts][:_SHOWN_KEYS]) or "none"
    more = f", and {len(parts) - _SHOWN_KEYS} more" if len(parts) > _SHOWN_KEYS else ""
    return f" has no {_written(step)}; its keys: {keys}{more}"


def _written(step: Step) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{shown(step)}" if _PLAIN.fullmatch(step) else f"[{msgspec.json.encode(shown(step)).decode()}]"
