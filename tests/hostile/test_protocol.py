"""Programs that speak to the host in the guest's place: they lose their own session and nothing else happens."""

import contextlib
import os
import textwrap
import threading
import time

import msgspec
import pytest

import onetrip
from onetrip.errors import SessionGone
from onetrip.model import Done


def outcome(result) -> tuple[str, str | None, bool]:
    return result.status, result.error.type if result.error else None, result.session.survived


def wait_gone(session) -> None:
    """The next cell may still be sent to a process that is ending; it does not answer."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            assert session.run("1").status == "failed"
        except onetrip.SessionGone:
            return
    raise AssertionError("the session goes on")


VIOLATIONS = {
    "an answer to no question": "done(FINE, run='0' * 16)",
    "a byte": "send(b'x')",
    "zeros": "send(bytes(1000))",
    "unknown flags": "send(b'\\xff' + bytes(100))",
    "a first packet without sizes": "send(b'\\x01\\x00')",
    "a header of 4 GB": "send(b'\\x01' + b'\\xff' * 8)",
    "a payload of 4 GB": "send(b'\\x01' + struct.pack('>II', 100, 0xFFFFFFFF) + b'{')",
    "a continuation of nothing": "send(b'\\x00abc')",
    "a frame inside a frame": "send(b'\\x01' + struct.pack('>II', 100, 100) + b'{'); send(b'\\x01' + struct.pack('>II', 100, 100) + b'{')",
    "a frame longer than announced": "send(b'\\x03' + struct.pack('>II', 2, 0) + b'{}xxxxxxxxx')",
    "a frame shorter than announced": "send(b'\\x03' + struct.pack('>II', 50, 0) + b'{}')",
    "empty packets for ever": "send(b'\\x01' + struct.pack('>II', 2, 10) + b'{')\nfor _ in range(100): send(b'\\x00')",
    "no JSON": "send(b'\\x03' + struct.pack('>II', 7, 0) + b'not you')",
    "JSON too deep": "send(b'\\x03' + struct.pack('>II', 60000, 0) + b'[' * 60000)",
    "a number too long": "send(b'\\x03' + struct.pack('>II', 60000, 0) + b'9' * 60000)",
    "a list for a header": "send(b'\\x03' + struct.pack('>II', 2, 0) + b'[]')",
    "an unknown kind": "send(packet({'kind': 'tool_call'}))",
    "a kind that is no text": "send(packet({'kind': ['done']}))",
    "a message of the host's": "send(packet({'kind': 'shutdown'}))",
    "a field too many": "send(packet({'kind': 'done', 'run': nonce(), 'extra': 1}, b'{}'))",
    "a field too few": "send(packet({'kind': 'done'}, b'{}'))",
    "a field of another type": "send(packet({'kind': 'done', 'run': 5}, b'{}'))",
    "a negative part": "send(packet({'kind': 'done', 'run': nonce()}, b'{}', lengths=[3, -1]))",
    "a part of another type": "send(packet({'kind': 'done', 'run': nonce()}, b'{}', lengths=['2']))",
    "parts that do not add up": "send(packet({'kind': 'done', 'run': nonce()}, b'{}', lengths=[1]))",
    "too many parts": "send(packet({'kind': 'display', 'run': nonce(), 'mimes': ['a'] * 100, 'is_result': False}, *[b''] * 100))",
    "an answer without a part": "send(packet({'kind': 'done', 'run': nonce()}))",
    "an answer of two parts": "send(packet({'kind': 'done', 'run': nonce()}, b'{}', b'{}'))",
    "Ready again": "send(packet({'kind': 'ready', 'version': 1, 'python': '3', 'held': []}))",
    "Refused in a run": "send(packet({'kind': 'refused', 'step': 's', 'errno': 1, 'detail': 'd'}))",
    "Goodbye in a run": "send(packet({'kind': 'goodbye'}))",
    "a display of another run": "display(['text/plain'], b'x', run='0' * 16)",
    "a display with more types than parts": "display(['text/plain', 'text/html'], b'x')",
    "a type that is no text": "display([5], b'x')",
    "a type with a line break": "display(['text/plain\\r\\nX-Header: 1'], b'x')",
    "a type with a lone surrogate": "display(['text/\\udcff'], b'x')",
    "an account that is no JSON": "done(b'no')",
    "an account that is a list": "done([])",
    "an account too deep": "done(b'[' * 100_000)",
    "an account too deep in its value": "done(b'{\"text\": null, \"value\": ' + b'[' * 100_000 + b']' * 100_000 + b'}')",
    "a text that is a number": "done({**FINE, 'text': 5})",
    "an error that is a text": "done({**FINE, 'error': 'x'})",
    "an error without a type": "done({**FINE, 'error': {'message': 'x'}})",
    "a limit that does not exist": "done({**FINE, 'limit': 'patience'})",
}


@pytest.mark.spec("ISO-13", "ISO-09")
@pytest.mark.parametrize("lie", VIOLATIONS)
def test_the_host_hears(liar, lie):
    result = liar.run(VIOLATIONS[lie] + "\ntime.sleep(60)")
    assert outcome(result) == ("failed", "ProtocolViolation", False)
    assert result.usage.wall_ms < 3000
    msgspec.json.encode(result)
    with pytest.raises(onetrip.SessionGone):
        liar.run("1")


@pytest.mark.spec("ISO-13")
def test_a_forged_answer_is_the_programs_own_word_and_the_real_one_ends_the_session(liar):
    result = liar.run("done(FINE)\ntime.sleep(0.2)\n'real'")
    assert (result.status, result.text, result.value) == ("completed", "forged", 1)
    wait_gone(liar)


@pytest.mark.spec("ISO-13")
def test_an_answer_given_twice_ends_the_session(liar):
    result = liar.run("run = nonce()\ndone(FINE, run)\ndone(FINE, run)\ntime.sleep(60)")
    assert result.status in ("completed", "failed")
    wait_gone(liar)


@pytest.mark.spec("ISO-09", "ISO-13")
def test_a_child_that_kept_the_channel_cannot_answer_for_a_later_cell(liar):
    program = """
        kept, gone = os.dup(3), nonce()
        if os.fork() == 0:
            time.sleep(0.5)
            os.write(kept, packet({"kind": "done", "run": gone}, json.dumps(FINE).encode()))
            os._exit(0)
        os.close(kept)
        'first'
    """
    assert liar.run(textwrap.dedent(program)).text == "'first'"
    result = liar.run("time.sleep(5); 'second'")
    assert outcome(result) == ("failed", "ProtocolViolation", False)
    assert result.text is None


ENDS = [
    "send(b'\\x01' + struct.pack('>II', 100, 100) + b'{'); os._exit(0)",
    "os.dup2(0, 3); 1",
    "os.execv('/bin/sh', ['sh', '-c', 'exec 3>&-; exit 1'])",
    "os._exit(0)",
    "os.kill(os.getpid(), signal.SIGSEGV)",
]
HANG_UPS = ["os.close(3); time.sleep(60)", "os.execv('/bin/sh', ['sh', '-c', 'sleep 60'])"]
SHUT = "socket.socket(fileno=3).shutdown(socket.SHUT_RDWR); time.sleep(60)"


@pytest.mark.spec("ISO-13")
@pytest.mark.parametrize("end", [*ENDS, *HANG_UPS, SHUT])
def test_a_guest_that_dies_or_hangs_up_is_a_failed_run(mortal_liar, end):
    result = mortal_liar.run(end)
    assert outcome(result) == ("failed", "ProcessDied", False)
    assert result.usage.wall_ms < 3000


@pytest.mark.spec("ISO-13", "UND-07")
@pytest.mark.parametrize("end", ENDS)
def test_a_guest_that_dies_is_taken_back(liar, end):
    assert liar.run("kept = 1").ok
    result = liar.run(f"kept = 2\n{end}")
    assert (*outcome(result), result.session.rolled_back) == ("failed", "ProcessDied", True, True)
    assert result.usage.wall_ms < 3000
    assert liar.run("kept").value == 1


@pytest.mark.slow
@pytest.mark.spec("ISO-13", "UND-01")
@pytest.mark.parametrize("end", HANG_UPS)
def test_a_guest_that_hangs_up_and_lives_is_taken_back_when_its_time_is_over(liar, end):
    """Its checkpoint has the channel open, too, so the host hears nothing of it."""
    assert liar.run("kept = 1").ok
    result = liar.run(f"kept = 2\n{end}", timeout_s=0.2)
    assert (result.status, result.limit.name, result.session.rolled_back) == ("limit_exceeded", "wall", True)
    assert liar.run("kept").value == 1


@pytest.mark.spec("ISO-13", "UND-19")
def test_a_channel_that_was_shut_down_is_shut_for_the_checkpoints_too(liar):
    """It is one socket. Nobody is harmed but the session."""
    assert outcome(liar.run(SHUT)) == ("failed", "ProcessDied", False)
    with pytest.raises(SessionGone):
        liar.run("1")


CHILD_KEEPS = """
    import ctypes
    if ctypes.PyDLL(None).fork() == 0:  # not os.fork, in which the guest lets go of the channel
        ctypes.CDLL(None).sleep(60)
    os._exit(3)
"""


@pytest.mark.spec("ISO-13")
def test_a_child_that_keeps_the_channel_open_does_not_hide_the_end_of_its_parent(mortal_liar):
    result = mortal_liar.run(textwrap.dedent(CHILD_KEEPS))
    assert outcome(result) == ("failed", "ProcessDied", False)
    assert "status 3" in result.error.message
    assert result.usage.wall_ms < 3000


@pytest.mark.spec("ISO-13", "UND-18")
def test_a_child_that_keeps_the_channel_open_ends_with_the_cell_that_is_taken_back(liar):
    result = liar.run(textwrap.dedent(CHILD_KEEPS))
    assert (*outcome(result), result.session.rolled_back) == ("failed", "ProcessDied", True, True)
    assert "status 3" in result.error.message
    assert result.usage.wall_ms < 3000
    assert liar.run("'ctypes' in globals()").value is False


LAST_BREATH = "kept = 2\ndone(FINE)\nos._exit(0)"


@pytest.mark.spec("ISO-13")
def test_an_answer_given_with_the_last_breath_counts(mortal_liar):
    result = mortal_liar.run(LAST_BREATH)
    assert (result.status, result.text) == ("completed", "forged")
    # The answer may be read before the process is gone, so whether the session survived is known with the next cell at the latest.
    with contextlib.suppress(SessionGone):
        assert not mortal_liar.run("1").session.survived
    with pytest.raises(SessionGone):
        mortal_liar.run("1")


@pytest.mark.spec("ISO-13", "UND-14")
def test_an_answer_given_with_the_last_breath_counts_and_the_state_is_that_before(liar):
    """Whether the process lives is known at once or with the next cell, which then says that the session went back."""
    assert liar.run("kept = 1").ok
    result = liar.run(LAST_BREATH)
    assert (result.status, result.text, result.session.survived) == ("completed", "forged", True)
    after = liar.run("kept")
    assert after.session.survived is True
    assert [result.session.rolled_back, after.session.rolled_back] in ([True, False], [False, True])
    assert liar.run("kept").value == 1


@pytest.mark.spec("ISO-13")
def test_an_empty_packet_is_an_end(liar):
    result = liar.run("socket.socket(fileno=os.dup(3)).send(b''); time.sleep(60)")
    assert (result.status, result.session.survived) == ("failed", False)
    assert result.usage.wall_ms < 3000


@pytest.mark.spec("ISO-13", "LIM-09")
def test_never_answering_ends_with_the_wall_limit(liar, mortal_liar):
    for session, survives in ((liar, True), (mortal_liar, False)):
        result = session.run("signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: time.sleep(1)", timeout_s=0.3)
        assert (result.status, result.limit.name, result.session.survived) == ("limit_exceeded", "wall", survives)
        assert result.session.rolled_back is survives


@pytest.mark.spec("ISO-13")
@pytest.mark.parametrize("keeps", [True, False])
def test_a_guest_that_stops_reading_does_not_hold_up_the_host(liar, mortal_liar, keeps):
    session = liar if keeps else mortal_liar
    stop = "if os.fork() == 0:\n    time.sleep(0.3)\n    os.kill(os.getppid(), signal.SIGSTOP)\n    os._exit(0)"
    session.run(stop)
    time_before = time.monotonic()
    result = session.run("time.sleep(1)  #" + "x" * 8_000_000, timeout_s=1.5)
    assert (result.status, result.limit.name) == ("limit_exceeded", "wall")
    assert (result.session.survived, result.session.rolled_back) == (keeps, keeps)
    assert time.monotonic() - time_before < 6
    if keeps:  # what it did not read, nobody reads after it
        assert session.run("'FINE' in globals()").value is True


@pytest.mark.spec("CEL-10", "ISO-13")
def test_lone_surrogates_and_odd_numbers_in_an_account_are_made_presentable(liar):
    account = r"""
        raw = b'{"text": "a\ud800b", "value": ["\udfff", NaN, Infinity, -Infinity, 1e999], "error": null}'
        done(raw)
        time.sleep(0.1)
    """
    result = liar.run(textwrap.dedent(account))
    assert result.status == "completed", result
    assert result.text in {"a?b", "a\ufffdb"}
    assert msgspec.json.encode(result)


@pytest.mark.spec("LIM-06", "ISO-13")
def test_an_account_too_large_is_refused(liar):
    program = """
        body = b'{"text": "' + b'x' * 20_000_000 + b'"}'
        header = json.dumps({"kind": "done", "run": nonce(), "parts": [len(body)]}).encode()
        raw = header + body
        send(b"\\x01" + struct.pack(">II", len(header), len(body)) + raw[:60000])
        for at in range(60000, len(raw), 60000):
            send((b"\\x02" if at + 60000 >= len(raw) else b"\\x00") + raw[at:at + 60000])
        time.sleep(60)
    """
    assert outcome(liar.run(textwrap.dedent(program))) == ("failed", "ProtocolViolation", False)


# ---------------------------------------------------------------------------------------------------- floods

FLOODS = {
    "displays without content": "display([], run=run)",
    "displays of empty parts": "display(['text/plain'] * 60, *[b''] * 60, run=run)",
    "displays of one byte": "display(['text/plain'], b'x', run=run)",
    "large displays": "display(['text/plain'], b'x' * 60_000, run=run)",
    "pieces of a frame that never ends": "os.write(3, b'\\x00' + b'x' * 1000) if started else started.append(os.write(3, b'\\x01' + struct.pack('>II', 100, 60_000_000) + b'x'))",
}


@pytest.mark.spec("ISO-13", "LIM-06")
@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of(ot, liar, bystander, flood):
    """From several processes at once, so that the channel is never empty: the others are served all the same."""
    program = f"""
        run, started = nonce(), []
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        channel = os.dup(3)
        for _ in range(3):
            os.fork()
        os.dup2(channel, 3)  # ours closes it in a child
        while True:
            {FLOODS[flood]}
    """
    before = resident_bytes()
    results = []
    thread = threading.Thread(target=lambda: results.append(liar.run(textwrap.dedent(program), timeout_s=3)))
    thread.start()
    slowest = 0.0
    while thread.is_alive():
        began = time.monotonic()
        assert bystander.run("1 + 1").text == "2"
        slowest = max(slowest, time.monotonic() - began)
    thread.join()
    assert results[0].status in ("limit_exceeded", "failed")
    is_violation = flood == "pieces of a frame that never ends"
    assert (results[0].session.survived, results[0].session.rolled_back) == (not is_violation, not is_violation)
    assert slowest < 2
    assert resident_bytes() - before < 100 << 20
    assert results[0].usage.wall_ms < 8000
    if not is_violation:
        result = liar.run("'FINE' in globals()")  # nothing of the flood is left in the channel
        assert (result.value, result.displays, result.stdout) == (True, (), "")


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.spec("ISO-13", "ISO-08")
def test_descriptors_that_a_guest_sends_do_not_arrive(mortal_liar):
    """Without checkpoints, each of which is a socket and a handle here."""
    before = len(os.listdir("/proc/self/fd"))
    program = """
        end = socket.socket(fileno=os.dup(3))
        raw = packet({"kind": "display", "run": nonce(), "mimes": ["text/plain"], "is_result": False}, b"x")
        for _ in range(50):
            socket.send_fds(end, [raw], [0] * 20)
        'sent'
    """
    result = mortal_liar.run(textwrap.dedent(program))
    assert (result.status, len(result.displays)) == ("completed", 50)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.spec("ISO-13")
def test_pipes_that_a_guest_turned_inside_out_do_no_harm(liar):
    program = """
        import fcntl
        os.write(1, b"\\xff\\xfe caf\\xc3")
        fcntl.fcntl(1, fcntl.F_SETFL, os.O_NONBLOCK)
        own = os.open("/proc/self/fd/1", os.O_RDWR)
        os.close(1); os.close(2)
        os.write(own, b"\\xa9 end")
    """
    result = liar.run(textwrap.dedent(program))
    assert (result.status, result.stdout) == ("completed", "\ufffd\ufffd café end")
    assert liar.run("'and on'").text == "'and on'"


@pytest.mark.spec("CEL-10", "ISO-13")
def test_twins_made_by_fork_give_one_answer(liar):
    results = [event.result for event in liar.stream("os.fork()\n'both'") if isinstance(event, Done)]
    assert [(result.status, result.text) for result in results] == [("completed", "'both'")]
    assert liar.run("'next'").text == "'next'"
