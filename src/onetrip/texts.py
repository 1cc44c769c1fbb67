"""Texts of strangers within messages of ours: cut to a length, and nothing in them that steers a terminal or cannot be encoded."""

from typing import Final

LENGTH: Final = 60


def shown(text: str, most: int = LENGTH) -> str:
    """At most `most` characters and an ellipsis; what cannot be printed (controls, lone surrogates, turns of direction) is `�`."""
    cut = text[:most] + "…" * (len(text) > most)
    return "".join(one if one.isprintable() else "�" for one in cut)
