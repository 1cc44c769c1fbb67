"""What a batch asks for, checked before anything is called: ids, references, order, no cycle. Raises BadRequest that names the place.

    {"items": [{"id": "a", "tool": "shop.find", "arguments": {"what": "tea"}},
               {"id": "b", "code": "max(prices)", "inputs": {"prices": {"$ref": "a.prices"}}},
               {"id": "c", "tool": "shop.order", "arguments": {"at": {"$ref": "b.value"}}, "after": ["a"]}]}

An object with `$ref` alone is replaced by what it refers to: of a tool its value, of a cell a part of its result. It may stand anywhere in
`arguments` or `inputs`, or be the whole of them, and the item then waits for the one it refers to. `{"$literal": x}` is `x` as it stands.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from itertools import accumulate, pairwise
from typing import Annotated, Any, Final, TypeAlias, TypeVar, cast

import msgspec
from msgspec import Meta

from onetrip import checks
from onetrip.errors import BadRequest
from onetrip.texts import shown
from onetrip.tools.references import ITEM_ID, Missing, Reference, parse

MAX_ITEMS: Final = 1000
MAX_REFERENCES: Final = 10_000  # of a whole batch
DEFAULT_TIMEOUT_S: Final = 600.0
CELL_PARTS: Final = ("value", "text", "stdout", "stderr", "displays", "files")  # what a reference may take from a cell's result
_TOOL: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_TEXTS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NOT_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")
_STEPS_DOWN: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_SHOWN_OF_CYCLE: Final = 12
T = TypeVar("T")


class BatchItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A call of a tool (`tool`, `arguments`), or a cell (`code`, `inputs`): in a session, or in a sandbox of its own without `session_id`."""

    id: str  # up to 64 letters, digits, `_` and `-`
    tool: str | None = None
    arguments: dict[str, Any] | None = None
    code: str | None = None
    inputs: dict[str, Any] | None = None
    session_id: str | None = None  # cells of one session run one after the other, in the order listed
    timeout_s: float | None = None
    after: tuple[str, ...] = ()  # ids of items that must have succeeded before

    @property
    def is_cell(self) -> bool:
        return self.code is not None


class BatchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    items: tuple[BatchItem, ...]
    stream: bool = False
    concurrency: Annotated[int, Meta(ge=1, le=MAX_ITEMS)] | None = None  # None: as much as the server allows
    timeout_s: float | None = None  # of the whole batch; None: ten minutes


class Hole:
    """Stands in a template where a value is to be put. Not a struct, so that msgspec asks us what it is."""

    __slots__ = ("reference",)

    def __init__(self, reference: Reference) -> None:
        self.reference = reference


class Planned(msgspec.Struct, frozen=True):
    """An item, and which ones it waits for, by position."""

    item: BatchItem
    where: str  # "items[3].arguments" or "items[3].inputs"
    template: Any  # the arguments or inputs, with a `Hole` for every reference
    references: tuple[tuple[str, Reference], ...]  # with their places, such as "items[3].arguments.to"; one may occur many times
    needs: frozenset[int]  # they must succeed
    behind: frozenset[int]  # they must be over: cells of the same session, listed before

    def arguments(self, found: Mapping[Reference, bytes | Missing]) -> bytes:
        """As a JSON object, with what was found put in. Raises BadRequest: a place is missing, or the whole is too large or deep."""
        size = 0
        for place, reference in self.references:
            part = found[reference]
            if isinstance(part, Missing):
                raise BadRequest(f"{place}: {reference}: {part.message}", field=place)
            size += len(part)  # before anything is put together: a thousand references to one large value are a small request
            _check_size(self.where, size)
        encoded = encode(self.template, lambda hole: msgspec.Raw(cast("bytes", found[hole.reference])))
        _check_size(self.where, len(encoded))
        if not encoded.startswith(b"{"):
            raise BadRequest(
                f"{self.where}: {self.template.reference} is not an object, and the whole is to be one", field=self.where
            )
        if self.references and too_deep(encoded):
            raise BadRequest(f"{self.where}: nested more than {checks.MAX_INPUT_DEPTH} deep", field=self.where)
        return encoded


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A request that can be carried out."""

    items: tuple[Planned, ...]
    concurrency: int | None
    timeout_s: float


def plan(request: BatchRequest) -> Batch:
    """Check a request. Raises BadRequest whose message and `field` name the place, such as `items[3].arguments.to`."""
    if not 0 < len(request.items) <= MAX_ITEMS:
        raise BadRequest(f"items: {len(request.items):,} items; a batch has 1 to {MAX_ITEMS:,}.", field="items")
    timeout_s = checks.check_timeout(request.timeout_s)
    positions = _positions(request.items)
    latest: dict[str, int] = {}  # session → its cell listed last
    planned: list[Planned] = []
    count = 0
    for position, item in enumerate(request.items):
        where = f"items[{position}]"
        _check_item(where, item)
        where_arguments = f"{where}.{'inputs' if item.is_cell else 'arguments'}"
        template, references = _template(where_arguments, (item.inputs if item.is_cell else item.arguments) or {})
        count += len(references)
        if count > MAX_REFERENCES:
            raise BadRequest(f"{where_arguments}: over {MAX_REFERENCES:,} references in one batch", field=where_arguments)
        if item.is_cell:
            _check_names(where, template)
        needs = {_known(positions, name, f"{where}.after[{index}]") for index, name in enumerate(item.after)}
        for place, reference in references:
            needs.add(_referred(request.items, positions, reference, place))
        behind: set[int] = set()
        if item.session_id is not None:
            if item.session_id in latest:
                behind.add(latest[item.session_id])
            latest[item.session_id] = position
        planned.append(Planned(item, where_arguments, template, references, frozenset(needs), frozenset(behind)))
    _check_cycles(planned)
    return Batch(
        items=tuple(planned),
        concurrency=request.concurrency,
        timeout_s=DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s,
    )


def _positions(items: tuple[BatchItem, ...]) -> dict[str, int]:
    positions: dict[str, int] = {}
    for position, item in enumerate(items):
        field = f"items[{position}].id"
        if not ITEM_ID.fullmatch(item.id):
            raise BadRequest(f"{field}: {shown(item.id)!r} is no id: use up to 64 letters, digits, `_` and `-`", field=field)
        if item.id in positions:
            raise BadRequest(f"{field}: items[{positions[item.id]}] has the id {item.id!r}, too", field=field)
        positions[item.id] = position
    return positions


def _check_item(where: str, item: BatchItem) -> None:
    if (item.tool is None) == (item.code is None):
        raise BadRequest(f"{where}: an item has either `tool` or `code`", field=where)
    foreign = ("arguments",) if item.is_cell else ("inputs", "session_id")
    for name in foreign:
        if getattr(item, name) is not None:
            kind = "a cell takes `inputs`" if item.is_cell else "a call of a tool takes `arguments`"
            raise BadRequest(f"{where}.{name}: {kind}, not `{name}`", field=f"{where}.{name}")
    if item.tool is not None and (len(item.tool) > 256 or not _TOOL.fullmatch(item.tool)):
        raise BadRequest(f"{where}.tool: {shown(item.tool)!r} is no name of a tool", field=f"{where}.tool")
    if item.code is not None:
        _placed(where, lambda: checks.check_source(item.code))
    _placed(where, lambda: checks.check_timeout(item.timeout_s))


def _placed(where: str, check: Callable[[], T]) -> T:
    """A check of something within an item; what it says begins with the item."""
    try:
        return check()
    except BadRequest as err:
        raise BadRequest(f"{where}.{err}", hint=err.hint, field=f"{where}.{err.field}") from err


def _check_names(where: str, template: object) -> None:
    if isinstance(template, dict):
        names: Iterable[str] = cast("dict[str, object]", template)
        _placed(where, lambda: checks.check_inputs(dict.fromkeys(names)))


# A path is made of links (parent, step), and written only when something is wrong there: most never are.
_Path: TypeAlias = tuple["_Path | str", str | int]


def _at(path: _Path | str) -> str:
    steps: list[str | int] = []
    while not isinstance(path, str):
        path, step = path
        steps.append(step)
    written = str(Reference(path, tuple(reversed(steps))))
    return written if len(written) <= 1000 else f"{written[:1000]}…"


def _template(where: str, arguments: dict[str, Any]) -> tuple[Any, tuple[tuple[str, Reference], ...]]:
    """A copy with holes, and the references with their places. Without recursion: depth is the caller's."""
    top: list[Any] = [None]
    references: list[tuple[str, Reference]] = []
    todo: list[tuple[Any, Any, str | int, _Path | str, int]] = [(arguments, top, 0, where, 0)]
    while todo:
        value, into, key, path, depth = todo.pop()
        if depth > checks.MAX_INPUT_DEPTH:
            raise BadRequest(f"{where}: nested more than {checks.MAX_INPUT_DEPTH} deep", field=where)
        if isinstance(value, dict):
            found = cast("dict[str, Any]", value)
            special = next((name for name in ("$ref", "$literal") if name in found), None)
            if special is None:
                copy: Any = dict.fromkeys(found)
                into[key] = copy
                todo += [(inner, copy, name, (path, name), depth + 1) for name, inner in found.items()]
                continue
            if len(found) > 1:
                raise BadRequest(
                    f"{_at(path)}: `{special}` stands alone in its object; here is more",
                    hint='An object that has such a key by itself is written as {"$literal": {…}}.',
                    field=_at(path),
                )
            if special == "$literal":
                into[key] = found["$literal"]
                continue
            try:
                reference = parse(found["$ref"])
            except ValueError as err:
                raise BadRequest(
                    f"{_at(path)}: {err}",
                    hint='A literal object with the key "$ref" is written as {"$literal": {"$ref": …}}.',
                    field=_at(path),
                ) from err
            references.append((_at(path), reference))
            into[key] = Hole(reference)
        elif isinstance(value, list | tuple):
            inside = cast("list[Any]", value)
            copy = [None] * len(inside)
            into[key] = copy
            todo += [(inner, copy, index, (path, index), depth + 1) for index, inner in enumerate(inside)]
        else:
            into[key] = value
    _check_encodes(where, top[0])
    return top[0], tuple(references)


def _check_encodes(where: str, template: object) -> None:
    if not isinstance(template, dict | Hole):
        raise BadRequest(f"{where}: is to be an object", field=where)
    try:
        encoded = encode(cast("object", template), lambda _: None)
    except (TypeError, ValueError, RecursionError) as err:
        raise BadRequest(f"{where}: not JSON: {shown(str(err), 200)}", field=where) from err
    _check_size(where, len(encoded))
    if too_deep(encoded):  # what stands in a `$literal`
        raise BadRequest(f"{where}: nested more than {checks.MAX_INPUT_DEPTH} deep", field=where)


def encode(template: object, fill: Callable[[Hole], object]) -> bytes:
    """As JSON, with what `fill` gives for each hole. Raises TypeError for what is not JSON."""

    def hook(value: object) -> object:
        if isinstance(value, Hole):
            return fill(value)
        raise TypeError(f"a {type(value).__name__}")

    return msgspec.json.encode(template, enc_hook=hook)


def _check_size(where: str, size: int) -> None:
    if size > checks.MAX_INPUT_BYTES:
        raise BadRequest(
            f"{where}: over {checks.MAX_INPUT_BYTES:,} bytes of JSON",
            hint="Refer to a part of the value, or pass large data as a file.",
            field=where,
        )


def too_deep(encoded: bytes) -> bool:
    """Whether JSON is nested deeper than programs and tools are given it."""
    if encoded.count(b"[") + encoded.count(b"{") <= checks.MAX_INPUT_DEPTH:
        return False
    brackets = _TEXTS.sub(b"", encoded).translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEPS_DOWN.__getitem__, brackets)), default=0) > checks.MAX_INPUT_DEPTH


def _known(positions: Mapping[str, int], name: str, place: str) -> int:
    if name not in positions:
        near = get_close_matches(name[:64], positions, n=1)
        raise BadRequest(
            f"{place}: there is no item {shown(name)!r}{f'; did you mean {near[0]!r}?' if near else ''}",
            field=place,
        )
    return positions[name]


def _referred(items: tuple[BatchItem, ...], positions: Mapping[str, int], reference: Reference, place: str) -> int:
    position = _known(positions, reference.item, place)
    if items[position].is_cell and (not reference.steps or reference.steps[0] not in CELL_PARTS):
        choices = ", ".join(f"{reference.item}.{part}" for part in CELL_PARTS)
        raise BadRequest(f"{place}: {reference}: of a cell say which part: {choices}", field=place)
    return position


def _check_cycles(planned: list[Planned]) -> None:
    """Take away what waits for nothing, until nothing more goes: what is left has a cycle in it, or waits for one."""
    waits = [planned_item.needs | planned_item.behind for planned_item in planned]
    missing = [len(before) for before in waits]
    followers: list[list[int]] = [[] for _ in planned]
    for position, before in enumerate(waits):
        for one in before:
            followers[one].append(position)
    free = [position for position, count in enumerate(missing) if not count]
    while free:
        for follower in followers[free.pop()]:
            missing[follower] -= 1
            if not missing[follower]:
                free.append(follower)
    left = [position for position, count in enumerate(missing) if count]
    if not left:
        return
    path, seen, here = list[int](), set[int](), left[0]
    while here not in seen:
        seen.add(here)
        path.append(here)
        here = min(one for one in waits[here] if missing[one])
    cycle = [*path[path.index(here) :], here]
    names = [planned[position].item.id for position in cycle]
    if len(names) > _SHOWN_OF_CYCLE:
        names = [*names[: _SHOWN_OF_CYCLE - 2], f"({len(names) - _SHOWN_OF_CYCLE + 1} more)", names[-1]]
    listed = any(after not in planned[position].needs for position, after in pairwise(cycle))
    raise BadRequest(
        f"items[{cycle[0]}]: a cycle, in which each waits for the next: {' → '.join(names)}"
        f"{' (cells of one session wait for those listed before)' if listed else ''}",
        hint="Take away one `after` or `$ref` of these, or list the cells of the session in another order.",
        field=f"items[{cycle[0]}]",
    )
