"""Init, the first process of a room: a static program of some 200 bytes that runs one list of calls and then only waits.

It is executed and not merely forked, so nothing of the zygote is in its memory and no Python is in PID 1; starting it copies
no page table and costs the zygote no page. The list arrives on descriptor 0, already laid out for the address at which the
program keeps it; descriptor 1 is a packet socket for its report: whatever the list sends, or 16 bytes that say where it failed.

elf(5); the process's own view of descriptors and memory is described in execve(2).
"""

import os
import platform
import struct
from typing import Final

from . import calls, syscalls
from .steps import StepFailed

_CODE_AT: Final = 0x40_0000
_LIST_AT: Final = 0x50_0000  # also in the code below
_LIST_BYTES: Final = 0x4000
_CODE: Final = bytes.fromhex(
    {
        "x86_64":
        "31c031ffbe00005000ba004000000f054885c07e35bf400050008b342500005000e8300000004885c07509b8220000000f05ebf752504889"
        "e6ba10000000bf01000000b8010000000f05bf01000000b8e70000000f055355415441554889fb4889f54989fc4989f54885ed0f84810000"
        "00488b03488b7b08488b7310488b53184c8b53204c8b43284c8b4b30480fbae02073028b3f89c00f05488b4b38488901488b0b4885c0783c"
        "741f480fbae1217241480fbae12672094883c34048ffcdeba74c89e34c89edeb9f480fbae1247222480fbae12573da488b5b30488b2b4883"
        "c340eb84480fbae12272c6480fbae123720d4889c24889e8415d415c5d5bc3bf7f000000b8e70000000f05",
        "aarch64":
        "000080d2010aa0d2020088d2e80780d2010000d41f0000f16d020054000aa0d2010040f90000019112000094000100b5000080d2010080d2"
        "020080d2030080d2280980d2010000d4faffff17e007bfa9e1030091020280d2200080d2080880d2010000d4200080d2c80b80d2010000d4"
        "e90300aaea0301aaee0300aaef0301aa0b0080d2ea0300b4280140f9208540a9228d41a9249542a9480000b6000040b9e803082a010000d4"
        "eb0300aa2c1d40f9800100f92d0140f90002f8b7200100b40d0208b78d0030b7290101914a0500d1edffff17e9030eaaea030faaeaffff17"
        "0d0120b70dff2fb6291940f92a0140f929010191e4ffff176dfe17b78d0018b7e1030baae0030aaac0035fd6e00f80d2c80b80d2010000d4",
    }.get(platform.machine(), "")
)  # fmt: skip
_MACHINE_NUMBER: Final = {"x86_64": 62, "aarch64": 183}.get(platform.machine(), 0)  # elf.h: EM_X86_64, EM_AARCH64
_HEADERS: Final = 64 + 3 * 56


def program() -> bytes:
    """The program as an ELF file: one segment of code that nobody can write to, one for the list that nobody can execute."""
    ident = b"\x7fELF" + bytes((2, 1, 1, 0)) + bytes(8)  # 64 bits, little-endian, version 1, System V
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 2, _MACHINE_NUMBER, 1, _CODE_AT + _HEADERS, 64, 0, 0, 64, 56, 3, 64, 0, 0
    )  # fmt: skip
    size = _HEADERS + len(_CODE)
    load, stack = 1, 0x6474E551  # PT_LOAD, PT_GNU_STACK
    return b"".join(
        (
            header,
            struct.pack("<IIQQQQQQ", load, 5, 0, _CODE_AT, _CODE_AT, size, size, 0x1000),
            struct.pack("<IIQQQQQQ", load, 6, 0, _LIST_AT, _LIST_AT, 0, _LIST_BYTES, 0x1000),
            struct.pack("<IIQQQQQQ", stack, 6, 0, 0, 0, 0, 0, 16),
            _CODE,
        )
    )


class Starter:
    """Starts inits from this process, the zygote. Holds the program in memory that belongs to no file."""

    def __init__(self, namespaces: int) -> None:
        """`namespaces`: the CLONE_NEW… of every room."""
        memory = os.memfd_create("init", os.MFD_CLOEXEC)
        os.write(memory, program())
        start = calls.CallList()
        # Shares our memory until it executes the program, while we are held (vfork(2)): nothing is copied for it.
        shared = syscalls.CLONE_VM | syscalls.CLONE_VFORK
        start.add("fork init", "clone", namespaces | shared | syscalls.SIGCHLD, 0, 0, 0, 0, flags=calls.FORK)
        start.add("fork init", "dup3", calls.Later("list"), 0, 0, flags=calls.LEAVE)
        start.add("fork init", "dup3", calls.Later("report"), 1, 0, flags=calls.LEAVE)
        nothing = calls.Data(bytes(8)).at(0)  # no arguments, no environment
        start.add("execute init", "execveat", memory, b"", nothing, nothing, _AT_EMPTY_PATH, flags=calls.LEAVE)
        self._start = start.prepare()

    def start(self, image: bytes, report_fd: int) -> int:
        """Start one; returns its pid. Its report comes on the other end of the packet socket `report_fd`. Raises StepFailed."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            os.write(write_end, image)  # a pipe holds 64 KiB
            stop = self._start.stop(self._start.run(list=read_end, report=report_fd))
        finally:
            os.close(read_end)
            os.close(write_end)
        if stop.failure is not None:
            raise stop.failure
        return stop.result


class Image:
    """A list of steps as init gets it, laid out once; `of` puts an owner's id where the list has a place for it."""

    def __init__(self, steps: calls.CallList, uid_text: str) -> None:
        self._steps = steps
        image, later = steps.image(_LIST_AT)
        if len(image) > _LIST_BYTES:
            raise StepFailed("fork init", 0, f"a list of {len(image)} bytes is too long")
        self._image, self._numbers = image, later.get("uid", [])
        text = uid_text.encode()
        self._texts = [at for at in range(len(image)) if image.startswith(text, at)] if self._numbers else []

    def of(self, uid: int) -> bytes:
        """`uid` has as many digits as the text that stands for it; where the list has no place for it, it does not matter."""
        for at in self._numbers:
            struct.pack_into("<Q", self._image, at, uid)
        text = str(uid).encode()
        for at in self._texts:
            self._image[at : at + len(text)] = text
        return bytes(self._image)

    def failure(self, report: bytes) -> StepFailed | None:
        """What init said instead of the list's own message: the step that failed."""
        if len(report) != _FAILURE.size:
            return None
        left, result = _FAILURE.unpack(report)
        return calls.failure(self._steps.step_at(len(self._steps) - left), -result)


_FAILURE: Final = struct.Struct("<qq")
_AT_EMPTY_PATH: Final = 0x1000  # linux/fcntl.h
