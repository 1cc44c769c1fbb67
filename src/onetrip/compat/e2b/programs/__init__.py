"""Programs that run inside of a sandbox, as cells of a sibling. Their texts are fixed; what varies comes as an input.

They are read as text and never imported: the last line of each asks for its input. What they give back is a stranger's word, because
other processes of the sandbox may have meddled with it.
"""

from functools import cache
from importlib.resources import files
from typing import Literal

Name = Literal["command", "courier", "entries", "setup"]


@cache
def text(name: Name) -> str:
    return files(__name__).joinpath(f"{name}.py").read_text("utf-8")
