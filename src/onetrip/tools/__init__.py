"""Server tools: functions, HTTP interfaces and MCP servers that programs call through the server, which keeps their secrets."""

from onetrip.tools.base import CurrentCall, Options, ServerTool, ToolFailed, current_call
from onetrip.tools.functions import from_function, tool
from onetrip.tools.toolbox import Observer, Toolbox

__all__ = [
    "CurrentCall",
    "Observer",
    "Options",
    "ServerTool",
    "ToolFailed",
    "Toolbox",
    "current_call",
    "from_function",
    "tool",
]
