"""Many equal records of whole numbers in one block of memory.

Ten thousand files as Python objects are a hundred thousand. When they are gone, something that stays was put among them, in most of the
arenas that Python's allocator holds, and it gives back only arenas that are empty: so the process stays as large as it once was.
"""

import struct
from typing import Any


class Rows:
    """Rows by number. `form` is for struct(3); a row of which a number does not fit lies beside, as it is."""

    __slots__ = ("_form", "_odd", "_packed", "_size")

    def __init__(self, form: struct.Struct) -> None:
        self._form, self._size = form, form.size
        self._packed = bytearray()
        self._odd: dict[int, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._packed) // self._size

    def append(self, row: tuple[int, ...]) -> None:
        try:
            self._packed += self._form.pack(*row)
        except struct.error:  # a program may give a file a time thousands of years away
            self._odd[len(self)] = row
            self._packed += bytes(self._size)

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        if self._odd and number in self._odd:
            return self._odd[number]
        return self._form.unpack_from(self._packed, number * self._size)

    def raw(self, number: int) -> bytes | None:
        """A row as it is packed; None where it lies beside."""
        at = number * self._size
        return None if self._odd and number in self._odd else bytes(self._packed[at : at + self._size])

    def append_raw(self, raw: bytes) -> None:
        self._packed += raw

    def __setitem__(self, number: int, row: tuple[int, ...]) -> None:
        self._odd.pop(number, None)
        try:
            self._form.pack_into(self._packed, number * self._size, *row)
        except struct.error:
            self._odd[number] = row
