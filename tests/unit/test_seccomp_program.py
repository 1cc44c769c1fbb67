"""The filter as a program: what a small BPF machine says for every number must be what the policy data says."""

import struct
from collections.abc import Iterator, Sequence
from errno import EAFNOSUPPORT, ENOSYS, EPERM

import pytest

from onetrip.jail import seccomp
from onetrip.jail.policy import ALLOW, OWN_PID, REDUCED, Allow, OneOf, Switch
from onetrip.jail.refusals import REFUSE

ARCHES = ("x86_64", "aarch64")
ALLOWED, KILLED = "allow", "kill"
Answer = str | int  # ALLOWED, KILLED, or an errno
NO_ARGUMENTS = (0, 0, 0, 0, 0, 0)


def answer_of(
    program: bytes, nr: int, arguments: Sequence[int] = NO_ARGUMENTS, *, arch: str, through: int | None = None
) -> Answer:
    """Run the filter as the kernel does (kernel/bpf: classic BPF; linux/seccomp.h: struct seccomp_data)."""
    code = list(struct.iter_unpack("<HBBI", program))
    entry = through or seccomp.AUDIT_ARCH[arch]
    data = struct.pack("<IIQ6Q", nr & 0xFFFFFFFF, entry, 0, *(word & (1 << 64) - 1 for word in arguments))
    at = accumulator = 0
    while True:
        operation, yes, no, operand = code[at]
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x05:
                at += operand
            case 0x15:
                at += yes if accumulator == operand else no
            case 0x35:
                at += yes if accumulator >= operand else no
            case 0x06:
                return _named(operand)
            case _:
                raise AssertionError(f"instruction {operation:#x} at {at - 1} is not one that we emit")


def _named(value: int) -> Answer:
    if value == seccomp.RET_ALLOW:
        return ALLOWED
    if value == seccomp.RET_KILL_PROCESS:
        return KILLED
    assert value & 0xFFFF0000 == seccomp.RET_ERRNO
    return value & 0xFFFF


def number(entry: Allow, arch: str) -> int | None:
    return entry.x86_64 if arch == "x86_64" else entry.aarch64


def said_by_policy(rule: Sequence[OneOf | Switch], arguments: Sequence[int]) -> Answer:
    for check in rule:
        word = arguments[check.arg] & 0xFFFFFFFF
        if isinstance(check, OneOf):
            if word & check.mask not in check.values:
                return check.otherwise
        else:
            return said_by_policy(dict(check.cases)[word], arguments) if word in dict(check.cases) else check.otherwise
    return ALLOWED


def interesting(rule: Sequence[OneOf | Switch]) -> Iterator[tuple[int, ...]]:
    """Arguments on and beside every value that a rule names, with its other arguments at each of their first values."""
    checks = [check for check in rule if isinstance(check, OneOf)]
    switches = [check for check in rule if isinstance(check, Switch)]
    bases = [list(NO_ARGUMENTS), [0xFFFFFFFFFFFFFFFF] * 6]
    for switch in switches:
        for value, inner in switch.cases:
            base = list(NO_ARGUMENTS)
            base[switch.arg] = value
            for check in inner:
                base[check.arg] = check.values[0]
            bases.append(base)
            bases.append([*base[: switch.arg], value + 1, *base[switch.arg + 1 :]])
            checks += inner
    for base in bases:
        yield tuple(base)
        for check in checks:
            for value in (*check.values, 0, check.mask):
                for beside in (value - 1, value, value + 1, value | 1 << 31, value | 1 << 32, value | (~check.mask & 0xFFFFFFFF)):
                    yield (*base[: check.arg], beside, *base[check.arg + 1 :])


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("reduced", [False, True], ids=["strict", "reduced"])
def test_every_number_gets_the_answer_that_the_policy_gives(arch: str, reduced: bool) -> None:
    program = seccomp.program(arch, reduced=reduced)
    rules = {}
    expected: dict[int, Answer] = dict.fromkeys(range(1024), ENOSYS)
    for group in REFUSE:
        expected |= {nr: EPERM for numbers in group.calls.values() if (nr := numbers[ARCHES.index(arch)]) is not None}
    for entry in ALLOW:
        nr = number(entry, arch)
        if nr is None:
            continue
        other = REDUCED.get(entry.name) if reduced else None
        if other and other.answer is not None:
            expected[nr] = other.answer
        else:
            rules[nr] = other.rule if other else entry.rule
            expected[nr] = said_by_policy(rules[nr], NO_ARGUMENTS)
    assert {nr: answer_of(program, nr, arch=arch) for nr in expected} == expected
    for nr, rule in rules.items():
        for arguments in interesting(rule):
            assert answer_of(program, nr, arguments, arch=arch) == said_by_policy(rule, arguments), (nr, arguments)


@pytest.mark.parametrize("arch", ARCHES)
def test_another_architectures_entry_kills(arch: str) -> None:
    others = (0x40000003, 0x40000028, seccomp.AUDIT_ARCH[ARCHES[1 - ARCHES.index(arch)]])  # i386, arm, the other one of ours
    assert [answer_of(seccomp.program(arch), 39, arch=arch, through=other) for other in others] == [KILLED] * 3


@pytest.mark.parametrize("nr", [0x40000000, 0x40000000 | 39, 0x400001FF, -1, 0x7FFFFFFF, 500, 100_000])
@pytest.mark.parametrize("arch", ARCHES)
def test_x32_and_unknown_numbers_do_not_exist(arch: str, nr: int) -> None:
    assert answer_of(seccomp.program(arch), nr, arch=arch) == ENOSYS


@pytest.mark.parametrize("arch", ARCHES)
def test_no_number_is_both_allowed_and_refused_or_named_twice(arch: str) -> None:
    column = ARCHES.index(arch)
    numbers = [number(entry, arch) for entry in ALLOW] + [pair[column] for group in REFUSE for pair in group.calls.values()]
    known = [nr for nr in numbers if nr is not None]
    assert sorted(known) == sorted(set(known))
    names = [entry.name for entry in ALLOW] + [name for group in REFUSE for name in group.calls]
    assert sorted(names) == sorted(set(names))


def test_every_entry_gives_a_reason() -> None:
    reasons = (
        [entry.reason for entry in ALLOW] + [group.reason for group in REFUSE] + [other.reason for other in REDUCED.values()]
    )
    assert [reason for reason in reasons if len(reason) < 5] == []


def test_the_reduced_level_only_takes_away() -> None:
    assert set(REDUCED) <= {entry.name for entry in ALLOW}


def test_program_is_small_enough_for_the_kernel() -> None:
    lengths = [len(seccomp.program(arch, reduced=reduced)) // 8 for arch in ARCHES for reduced in (False, True)]
    assert max(lengths) < 400  # BPF_MAXINSNS is 4096; every instruction costs about half a microsecond to install


@pytest.mark.parametrize("arch", ARCHES)
def test_reduced_program_lets_a_process_signal_itself_only(arch: str) -> None:
    own, other = 4242, 4243
    program = seccomp.bind_own_pid(seccomp.program(arch, reduced=True), own)
    by_name = {entry.name: number(entry, arch) for entry in ALLOW}
    answers = {
        (name, pid): answer_of(program, by_name[name] or 0, (pid, 0, 0, 0, 0, 0), arch=arch)
        for name in ("kill", "tgkill")
        for pid in (own, other, 0, -1, -own, OWN_PID)
    }
    assert answers == {(name, pid): ALLOWED if pid == own else EPERM for name, pid in answers}
    assert answer_of(program, by_name["socket"] or 0, (1, 1, 0, 0, 0, 0), arch=arch) == EAFNOSUPPORT


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(seccomp.UnknownArchitecture, match="^no system call numbers for riscv64$"):
        seccomp.program("riscv64")
