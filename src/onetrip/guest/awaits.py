"""placeholder until merged"""

import ast
from typing import Any


def is_async(tree: Any) -> bool:
    return any(isinstance(n, (ast.Await, ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith)) for n in ast.walk(tree))


def repair(tree: Any, names: frozenset[str]) -> list[str]:
    return []
