"""Turn the policy data into a seccomp filter, and install it.

The filter first checks the architecture: a call through another one (`int 0x80`) kills the process, since no 64-bit program makes
one by accident.  Then a binary search over the sorted numbers leads to a verdict or to a rule on arguments.  x32 numbers (bit 30
set) lie above every known number and are answered ENOSYS.  A verdict that does not look at arguments costs nothing at run time:
the kernel works it out once per number when the filter is installed (kernel/seccomp.c, seccomp_cache_prepare).

Classic BPF jumps only forward, and a conditional jump by at most 255 instructions, so the program is emitted from its end to its
beginning: every target is known when the jump to it is written.

What this layer does not do: it cannot look behind pointers (path names, socket addresses); mounts and Landlock decide those.
"""

import ctypes
import functools
import os
import struct
from errno import ENOSYS, EPERM
from typing import Final

from . import calls, syscalls
from .policy import ALLOW, OWN_PID, REDUCED, Allow, OneOf, Rule, Switch
from .refusals import REFUSE

# linux/audit.h: EM_X86_64 62, EM_AARCH64 183, with the bits for 64-bit and little-endian
AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# linux/seccomp.h
RET_KILL_PROCESS: Final = 0x80000000
RET_ERRNO: Final = 0x00050000
RET_ALLOW: Final = 0x7FFF0000
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data; an argument has 8 bytes, its low half first
# linux/bpf_common.h
_LOAD, _AND, _JUMP, _JEQ, _JGE, _RET = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
_INSTRUCTION: Final = struct.Struct("<HBBI")  # struct sock_filter: code, jump if true, jump if false, operand
_NEAR: Final = 250  # of the 255 that fit; the rest leaves room for the instructions that bridge longer ways


class UnknownArchitecture(Exception):
    """The policy has no numbers for this architecture: no filter, hence no sandbox."""


Verdict = int | Rule  # a value for the kernel to return, or rules on arguments


@functools.cache
def program(arch: str | None = None, *, reduced: bool = False) -> bytes:
    """Give the filter for `arch` (default: this machine's) as an array of `struct sock_filter`.

    Takes milliseconds the first time: call it before forking. With `reduced` it holds a place for the pid of its process: call `bind_own_pid` before `install`.
    Raises UnknownArchitecture.
    """
    arch = arch or os.uname().machine
    if arch not in AUDIT_ARCH:
        raise UnknownArchitecture(f"no system call numbers for {arch}")
    code = _Emitter()
    verdicts = _verdicts(arch, reduced=reduced)
    for verdict in verdicts.values():
        code.verdict(verdict)  # the rules first, at the end of the program, so that the tree stays narrow
    segments: list[tuple[int, Verdict]] = [(0, verdicts.get(0, RET_ERRNO | ENOSYS))]
    for nr in range(1, max(verdicts) + 2):
        verdict = verdicts.get(nr, RET_ERRNO | ENOSYS)
        if verdict != segments[-1][1]:
            segments.append((nr, verdict))
    entry = code.search(segments)
    code.emit(_LOAD, _NR, goto=entry)
    start = code.here
    code.branch(_JEQ, AUDIT_ARCH[arch], start, code.ret(RET_KILL_PROCESS))
    code.emit(_LOAD, _ARCH)
    return code.assemble()


def bind_own_pid(filter_program: bytes, pid: int) -> bytes:
    """Put `pid` where the reduced program names its own process. Takes some 50 µs: only the reduced level needs it."""
    bound = bytearray(filter_program)
    for at in range(0, len(bound), _INSTRUCTION.size):
        code, yes, no, operand = _INSTRUCTION.unpack_from(bound, at)
        if code == _JEQ and operand == OWN_PID:
            _INSTRUCTION.pack_into(bound, at, code, yes, no, pid)
    return bytes(bound)


def add_to(steps: calls.CallList, step: str) -> None:
    """Put the process that runs the list under the filter of level `strict`, as `install` does."""
    code = program()
    fprog = calls.Data(struct.pack("=HxxxxxxQ", len(code) // _INSTRUCTION.size, 0), {8: calls.Data(code).at(0)})
    steps.add(step, "seccomp", syscalls.SECCOMP_SET_MODE_FILTER, 0, fprog.at(0))


def install(filter_program: bytes) -> None:
    """Put the calling process under the filter, for good, and all that it forks or executes.

    Precondition: no_new_privs is set, and the process has one thread. Raises OSError named `seccomp`; then no filter is on.
    """
    count = len(filter_program) // _INSTRUCTION.size
    fprog = _SockFprog(count, ctypes.cast(ctypes.c_char_p(filter_program), ctypes.c_void_p))
    syscalls.seccomp_set_filter(ctypes.byref(fprog))


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _verdicts(arch: str, *, reduced: bool) -> dict[int, Verdict]:
    """Number → verdict for every call that the policy names."""
    verdicts: dict[int, Verdict] = {}
    column = ("x86_64", "aarch64").index(arch)
    for group in REFUSE:
        for numbers in group.calls.values():
            if (nr := numbers[column]) is not None:
                verdicts[nr] = RET_ERRNO | EPERM
    for entry in ALLOW:
        if (nr := (entry.x86_64, entry.aarch64)[column]) is not None:
            verdicts[nr] = _verdict(entry, reduced=reduced)
    return verdicts


def _verdict(entry: Allow, *, reduced: bool) -> Verdict:
    if reduced and (other := REDUCED.get(entry.name)):
        return RET_ERRNO | other.answer if other.answer is not None else other.rule
    return entry.rule or RET_ALLOW


class _Emitter:
    """Instructions from last to first. A position counts from the end, so it stays true while code is put in front."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []
        self._known: dict[Verdict, int] = {}  # verdict → position of the code that gives it

    @property
    def here(self) -> int:
        """Position of the first instruction so far."""
        return len(self._code)

    def assemble(self) -> bytes:
        return b"".join(_INSTRUCTION.pack(*instruction) for instruction in reversed(self._code))

    def emit(self, code: int, operand: int, *, goto: int | None = None) -> int:
        """Put one instruction in front; with `goto` it continues at that position and not at what follows it."""
        if goto is not None and goto != self.here:
            self.emit(_JUMP, self.here - goto)
        self._code.append((code, 0, 0, operand))
        return self.here

    def branch(self, code: int, operand: int, yes: int, no: int) -> int:
        """Put a conditional jump in front. Targets out of reach get a bridge of one plain jump."""
        if self.here - no > _NEAR:
            no = self.emit(_JUMP, self.here - no)
        if self.here - yes > _NEAR:
            yes = self.emit(_JUMP, self.here - yes)
        self._code.append((code, self.here - yes, self.here - no, operand))
        return self.here

    def ret(self, value: int) -> int:
        """Give the position of code that returns `value`, near enough for a conditional jump."""
        known = self._known.get(value)
        if known is None or self.here - known > _NEAR:
            known = self._known[value] = self.emit(_RET, value)
        return known

    def verdict(self, verdict: Verdict) -> int:
        if isinstance(verdict, int):
            return self.ret(verdict)
        known = self._known.get(verdict)
        if known is None:
            known = self._known[verdict] = self.rule(verdict, self.ret(RET_ALLOW))
        return known

    def rule(self, rule: Rule, then: int) -> int:
        """Emit all checks of a rule, which lead to `then` or to an errno."""
        for check in reversed(rule):
            then = self.switch(check) if isinstance(check, Switch) else self.one_of(check, then)
        return then

    def one_of(self, check: OneOf, then: int) -> int:
        otherwise = following = self.ret(RET_ERRNO | check.otherwise)
        for first, last in reversed(_runs(check.values)):
            if last - first < 2:
                for value in range(last, first - 1, -1):
                    following = self.branch(_JEQ, value, then, following)
            else:
                inside = self.branch(_JGE, last + 1, following, then)
                following = self.branch(_JGE, first, inside, otherwise)
        if check.mask != 0xFFFFFFFF:
            following = self.emit(_AND, check.mask, goto=following)
        return self.emit(_LOAD, _ARGS + 8 * check.arg, goto=following)

    def switch(self, check: Switch) -> int:
        """Emit a choice by argument. Each case ends in a verdict, so a `Switch` is the last check of its rule."""
        cases = [(value, self.rule(checks, self.ret(RET_ALLOW))) for value, checks in check.cases]
        following = self.ret(RET_ERRNO | check.otherwise)
        for value, then in reversed(cases):
            following = self.branch(_JEQ, value, then, following)
        return self.emit(_LOAD, _ARGS + 8 * check.arg, goto=following)

    def search(self, segments: list[tuple[int, Verdict]]) -> int:
        """Emit a balanced tree over segments (first number, verdict), sorted, the first starting at 0."""
        if len(segments) == 1:
            return self.verdict(segments[0][1])
        middle = len(segments) // 2
        above = self.search(segments[middle:])
        below = self.search(segments[:middle])
        return self.branch(_JGE, segments[middle][0], above, below)


def _runs(values: tuple[int, ...]) -> list[tuple[int, int]]:
    """Sorted runs (first, last) of consecutive values: two comparisons do for a run of any length."""
    runs: list[tuple[int, int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], value)
        else:
            runs.append((value, value))
    return runs
