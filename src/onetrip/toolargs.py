"""What a caller gives as `tools=` → tools, and who answers those that are functions of the caller's own."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec

from onetrip.errors import BadRequest
from onetrip.model import Tool

if TYPE_CHECKING:
    from onetrip.seam import Ask
    from onetrip.tools import Toolbox

ToolLike = Callable[..., Any] | Tool | Mapping[str, Any]


class Given:
    """`tools` to be told to the program; `ask` answers those that are functions. `close` in any case."""

    def __init__(self, given: Iterable[ToolLike] | None) -> None:
        functions: list[Callable[..., Any]] = []
        declared: list[Tool] = []
        for i, one in enumerate(given or ()):
            if isinstance(one, Tool):
                declared.append(_clients(one))
            elif isinstance(one, Mapping):
                declared.append(_declared(cast("Mapping[str, Any]", one), f"tools[{i}]"))
            elif callable(one):
                functions.append(one)
            else:
                raise BadRequest(
                    f"tools[{i}]: a function, a `Tool` or a dictionary is expected, not {type(one).__name__}", field=f"tools[{i}]"
                )
        self._toolbox = _toolbox(functions) if functions else None
        own = self._toolbox.tools if self._toolbox is not None else ()
        self.tools: tuple[Tool, ...] = (*own, *declared)
        self.ask: Ask | None = self._toolbox.ask if self._toolbox is not None else None

    def close(self) -> None:
        if self._toolbox is not None:
            self._toolbox.close()


def _toolbox(functions: list[Callable[..., Any]]) -> "Toolbox":
    from onetrip.tools import Toolbox  # noqa: PLC0415 -- most callers have none

    return Toolbox(functions)


def _clients(tool: Tool) -> Tool:
    return msgspec.structs.replace(tool, side="client")


def _declared(given: Mapping[str, Any], where: str) -> Tool:
    try:
        return _clients(msgspec.convert(dict(given), Tool))
    except (msgspec.ValidationError, TypeError) as err:
        raise BadRequest(f"{where}: {err}", field=where) from err
