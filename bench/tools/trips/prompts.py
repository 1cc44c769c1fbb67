"""What the simulated model is told: the instructions and the tools, as JSON for a tool loop and as Python stubs for programs."""

from typing import Final

from onetrip.demo.simulated import compact
from onetrip.tools import from_function, stubs
from trips.sets import ToolSet

_DO: Final = "You are an assistant. Use the tools to find out what is asked, then answer as JSON and with nothing else."
_BUDGET: Final = 10_000  # tokens; no set needs so many, so that nothing is left out

_RUN_PYTHON: Final = {
    "name": "run_python",
    "description": "Run a Python program in a sandbox. The tools below can be called in it.",
    "input_schema": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
}


def for_calls(tools: ToolSet) -> str:
    """Instructions, and a JSON definition of each tool, as the interfaces of hosted models take them."""
    described = [from_function(function).tool for function in tools.tools().values()]
    return "\n".join(
        [
            _DO,
            compact(
                [{"name": tool.name, "description": tool.description, "input_schema": tool.input_schema} for tool in described]
            ),
        ]
    )


def for_programs(tools: ToolSet) -> str:
    """Instructions, the one tool that runs programs, and the stubs that Onetrip makes of the functions (`onetrip tools stubs`)."""
    described = [from_function(function).tool for function in tools.tools().values()]
    return "\n".join([_DO, compact(_RUN_PYTHON), stubs.render(described, budget_tokens=_BUDGET).text])
