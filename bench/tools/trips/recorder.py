"""Tools that remember how they were called and when."""

import functools
import inspect
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from trips.sets import Function, ToolSet
from trips.sets.base import NotFoundError

Wait = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Call:
    """One call, as a model would write it: an argument that is the default is left out."""

    tool: str
    arguments: dict[str, Any]
    value: Any  # what came back, as JSON has it

    def key(self) -> str:
        return json.dumps([self.tool, self.arguments], sort_keys=True)


class Recorder:
    """The tools of a fresh set. `calls`: in the order in which they began; `began`: when, by `clock`, in seconds."""

    def __init__(self, kind: type[ToolSet], wait: Wait, clock: Callable[[], float]) -> None:
        self.set = kind()
        self.calls: list[Call] = []
        self.began: list[float] = []
        self._wait, self._clock = wait, clock

    def tools(self) -> dict[str, Function]:
        """Name → an async function with the signature and docstring of the tool, which takes as long as `wait` does."""
        return {name: self._wrapped(name, function) for name, function in self.set.tools().items()}

    def _wrapped(self, name: str, function: Function) -> Function:
        signature = inspect.signature(function)

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            place = len(self.calls)
            said = {key: value for key, value in given.items() if value != signature.parameters[key].default}
            arguments = json.loads(json.dumps(said))
            self.calls.append(Call(name, arguments, None))
            self.began.append(self._clock())
            await self._wait()
            try:
                value = function(*args, **kwargs)
            except NotFoundError as err:
                self.calls[place] = Call(name, arguments, {"error": str(err)})
                raise
            self.calls[place] = Call(name, arguments, json.loads(json.dumps(value)))
            return value

        return call
