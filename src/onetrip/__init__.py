"""Onetrip runs the Python that a model writes, next to the model, in a sandbox on your own machine."""

from typing import TYPE_CHECKING, Any

from onetrip.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    IsolationUnavailable,
    NotFound,
    OnetripError,
    Overloaded,
    PlatformError,
    PreconditionFailed,
    QuotaExceeded,
    RangeUnsatisfiable,
    SandboxFailed,
    SessionGone,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnknownEnvironment,
    WorkspaceFull,
)

__version__ = "0.1.0"  # the same as in pyproject.toml, by test

if TYPE_CHECKING:
    from onetrip.embedded import alocal, local
    from onetrip.model import Limits, ModulePolicy, Policy, Result, Tool
    from onetrip.remote import aconnect, connect
    from onetrip.tools.functions import tool

__all__ = [
    "BadRequest",
    "Conflict",
    "Forbidden",
    "IsolationUnavailable",
    "Limits",
    "ModulePolicy",
    "NotFound",
    "OnetripError",
    "Overloaded",
    "PlatformError",
    "Policy",
    "PreconditionFailed",
    "QuotaExceeded",
    "RangeUnsatisfiable",
    "Result",
    "SandboxFailed",
    "SessionGone",
    "TooLarge",
    "Tool",
    "Unauthorized",
    "Unavailable",
    "UnknownEnvironment",
    "WorkspaceFull",
    "aconnect",
    "alocal",
    "connect",
    "local",
    "tool",
]


def __getattr__(name: str) -> Any:
    # asyncio and the engine cost 60 ms: a caller who only catches our errors, or asks for `--help`, need not pay for them
    if name in {"local", "alocal"}:
        from onetrip import embedded as module  # noqa: PLC0415 -- on first use, see above
    elif name in {"connect", "aconnect"}:
        from onetrip import remote as module  # noqa: PLC0415 -- on first use, see above
    elif name in {"Limits", "ModulePolicy", "Policy", "Result", "Tool"}:
        from onetrip import model as module  # noqa: PLC0415 -- on first use, see above
    elif name == "tool":
        from onetrip.tools import functions as module  # noqa: PLC0415 -- on first use, see above
    else:
        raise AttributeError(f"module 'onetrip' has no attribute {name!r}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return __all__
