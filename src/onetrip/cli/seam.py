"""What the commands need of the Python interface, as protocols: the real one by default, another through click's `obj`."""

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import click

from onetrip.model import Event, FileChange, Level, Limits, Policy, Rewound, Support


class Files(Protocol):
    def write(self, path: str, data: bytes | str) -> object: ...
    def read(self, path: str) -> bytes: ...
    def list(self) -> Iterable[FileChange | Any]: ...
    def delete(self, path: str) -> object: ...


class Session(Protocol):
    @property
    def files(self) -> Files: ...
    def stream(
        self, code: str, *, inputs: Mapping[str, Any] | None = None, timeout_s: float | None = None, final: bool = False
    ) -> Iterator[Event]: ...
    def undo(self, cells: int = 1) -> Rewound: ...
    def redo(self, cells: int = 1) -> Rewound: ...
    def fork(self) -> "Session": ...
    def interrupt(self) -> object: ...
    def close(self) -> object: ...


class Local(Protocol):
    def session(
        self,
        *,
        environment: str = "default",
        limits: Limits | None = None,
        policy: Policy | None = None,
        files: Mapping[str, bytes | str] | None = None,
        isolation_floor: Level = "strict",
        checkpoints: int = 8,
        on_error: Literal["keep", "rollback"] = "keep",
    ) -> AbstractContextManager[Session]: ...


class Embedded(Protocol):
    """The module `onetrip.embedded`, or a test's stand-in."""

    def local(self) -> AbstractContextManager[Local]: ...
    def probe(self) -> Support: ...


@dataclass(frozen=True)
class Seam:
    embedded: Embedded


def embedded(context: click.Context) -> Embedded:
    if isinstance(context.obj, Seam):
        return context.obj.embedded
    module: Any = importlib.import_module("onetrip.embedded")  # when a command needs it: `env` and `--help` do not
    return module


def names(values: Sequence[str]) -> tuple[str, ...]:
    """Options that may be repeated or hold commas: both `-x a -x b` and `-x a,b`."""
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())
