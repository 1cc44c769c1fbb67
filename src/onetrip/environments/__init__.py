"""Named sets of packages that sandboxes run with, built once and kept apart from Onetrip's own packages."""

from onetrip.environments.build import build
from onetrip.environments.store import Environment, Interpreter, Node, find, list_all, remove

__all__ = ["Environment", "Interpreter", "Node", "build", "find", "list_all", "remove"]
