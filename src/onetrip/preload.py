"""Chooses the zygote node for a program: the smallest whose imports cover what the source imports.

The source is untrusted, so it is not parsed here, only searched: a pattern in linear time over a bounded prefix. What it misses
costs an import inside the sandbox, nothing else.
"""

import functools
import re
from collections.abc import Mapping
from typing import Final

from onetrip.environments import Node

SEARCHED_CHARS: Final = 200_000
_IMPORT: Final = re.compile(r"^[ \t]*(?:import[ \t]+([^#;\n]+)|from[ \t]+([A-Za-z_]\w*))", re.MULTILINE)
_NAME: Final = re.compile(r"[A-Za-z_]\w*")


def imports_of(source: str) -> frozenset[str]:
    """Top-level names that lines of the source seem to import."""
    found: set[str] = set()
    for listed, origin in _IMPORT.findall(source[:SEARCHED_CHARS]):
        if origin:
            found.add(origin)
        for part in listed.split(","):
            if name := _NAME.match(part.strip()):
                found.add(name.group())
    return frozenset(found)


def choose(nodes: tuple[Node, ...], source: str) -> str:
    """The name of the node to fork from. Of two that cover equally much, the one with fewer imports of its own line."""
    held = _cumulative(nodes)
    wanted = imports_of(source) & frozenset().union(*held.values())
    return min(held, key=lambda name: (-len(wanted & held[name]), len(held[name])))


@functools.cache
def _cumulative(nodes: tuple[Node, ...]) -> Mapping[str, frozenset[str]]:
    """What each node has imported, its ancestors' imports included. Parents come before children."""
    held: dict[str, frozenset[str]] = {}
    for node in nodes:
        inherited = held[node.parent] if node.parent else frozenset[str]()
        held[node.name] = inherited | {name.partition(".")[0] for name in node.imports}
    return held
