"""What the programs of a session can call, and who answers them."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from onetrip.checks import check_tools
from onetrip.guards import Guard, GuardLimits
from onetrip.model import SessionSpec, Tool
from onetrip.schemas import Validator
from onetrip.seam import Ask

PROGRAMS: Final = 10  # whose calls a session may make at least
_encode: Final = msgspec.json.Encoder().encode


class Binding:
    """What the program of a session can call, and who answers. `validators` are made once for each client tool."""

    def __init__(self, tools: Sequence[Tool], ask: Ask | None, *, wait_s: float, guard: Guard | None = None) -> None:
        self.tools: dict[str, Tool] = {tool.name: tool for tool in tools}
        self.ask, self.wait_s, self.guard = ask, wait_s, guard
        self._validators: dict[str, Validator] = {}

    @classmethod
    def of(cls, spec: SessionSpec, ask: Ask | None) -> "Binding":
        """For a session, or a one-shot, that is made of this."""
        calls = max(GuardLimits().session_calls, PROGRAMS * spec.limits.tool_calls)
        return cls(spec.tools, ask, wait_s=spec.wait_s, guard=Guard(GuardLimits(session_calls=calls)))

    def with_tools(self, tools: Sequence[Tool]) -> "Binding":
        """The same with more tools, for one run; of two with one name the later is meant. Raises BadRequest for names that cannot be together."""
        if not tools:
            return self
        together = {**self.tools, **{tool.name: tool for tool in tools}}
        check_tools(tuple(together.values()))  # each list is right for itself, but a tool of one may be a namespace of the other
        return Binding(tuple(together.values()), self.ask, wait_s=self.wait_s, guard=self.guard)

    def branch(self) -> "Binding":
        """For a branch of the session, which goes its own way from now on."""
        guard = self.guard.branch() if self.guard is not None else None
        return Binding(tuple(self.tools.values()), self.ask, wait_s=self.wait_s, guard=guard)

    def catalogue(self) -> bytes:
        """The tools as the guest is told them; empty without any."""
        return b"" if not self.tools else _encode(list(self.tools.values()))

    def problem(self, tool: Tool, arguments: Any) -> str | None:
        """What is wrong with these arguments of a client tool, with its path. Whoever answers a server tool checks for itself."""
        if tool.side == "server" or not tool.input_schema:
            return None
        validator = self._validators.get(tool.name)
        if validator is None:
            validator = self._validators[tool.name] = Validator(tool.input_schema)
        return validator.problem(arguments)
