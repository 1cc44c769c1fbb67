"""The protocol, whole and cut in every place, and what it does with nonsense."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onetrip import wire
from onetrip.wire import (
    Blocked,
    Display,
    Done,
    Execute,
    Goodbye,
    GuestProtocol,
    Hello,
    HostProtocol,
    Ready,
    Refused,
    Shutdown,
    ToolCall,
    ToolDrop,
    ToolResult,
    Tools,
    Violation,
    packets,
)
from onetrip.wire.messages import GUEST_KINDS, HOST_KINDS

READY = Ready(wire.VERSION, "3.11.2", ("seccomp",))
HOST_MESSAGES = [
    Hello({"modules": {"allow": None, "deny": []}}),
    Execute("nonce", 1, False, (b"1 + 1", b"{}")),
    Execute("n", 2, True, (b"x" * 200_000, b"")),
    Shutdown(),
    Tools((b'[{"name": "find"}]',)),
    ToolResult("nonce", 7, False, (b"x" * 200_000,)),
    ToolResult("nonce", 1, True, (b'{"message": "no"}',)),
]
GUEST_MESSAGES = [
    READY,
    Refused("mount /proc", 1, "Operation not permitted"),
    Display("nonce", ("text/plain", "image/png"), True, (b"x", b"\x89PNG" * 40_000)),
    Done("nonce", (b"{}",)),
    Goodbye(),
    ToolCall("nonce", 1, "shop.find", ".1.2", 1, (b'{"name": "pen"}',)),
    ToolDrop("nonce", 1),
    Blocked("nonce", 1, 0),
]


def running(*, calls: int = 0) -> HostProtocol:
    """A host's end in the middle of the run `nonce`, which has called tools so often."""
    protocol = HostProtocol(state="idle")
    list(protocol.execute(Execute("nonce", 1, False, (b"", b""))))
    protocol.calls = calls
    return protocol


def prepared(message) -> HostProtocol:
    """A host's end in a state in which this message may come."""
    if isinstance(message, Ready | Refused):
        return HostProtocol()
    if isinstance(message, Goodbye):
        return HostProtocol(state="idle")
    return running(calls=1 if isinstance(message, ToolDrop | Blocked) else 0)


def feed(protocol, raw_packets):
    """Every packet; the messages that they complete."""
    return [message for packet in raw_packets if (message := protocol.receive(packet)) is not None]


def raw(header, payload: bytes = b"", flags: int = 3) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return bytes([flags]) + struct.pack(">II", len(encoded), len(payload)) + encoded + payload


def call(**fields) -> bytes:
    """A ToolCall with what no honest guest writes."""
    return raw(
        {"kind": "tool_call", "parts": [2], "run": "nonce", "number": 1, "tool": "t", "path": "", "ordinal": 1, **fields}, b"{}"
    )


def recut(raw_packets: list[bytes], sizes: list[int]) -> list[bytes]:
    """The same frame in pieces of other sizes, as another implementation might cut it."""
    prefix, body = raw_packets[0][1:9], raw_packets[0][9:] + b"".join(packet[1:] for packet in raw_packets[1:])
    pieces: list[bytes] = []
    at = 0
    for size in [*sizes, len(body)]:
        piece = body[at : at + size]
        at += size
        if piece or not pieces:
            pieces.append(piece)
    last = len(pieces) - 1
    return [
        bytes([(1 if number == 0 else 0) | (2 if number == last else 0)]) + (prefix if number == 0 else b"") + piece
        for number, piece in enumerate(pieces)
    ]


# ---------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("message", HOST_MESSAGES)
def test_what_the_host_sends_arrives(message):
    assert feed(GuestProtocol(), packets(message)) == [message]


@pytest.mark.parametrize("message", GUEST_MESSAGES)
def test_what_the_guest_sends_arrives(message):
    assert feed(prepared(message), packets(message)) == [message]


@pytest.mark.parametrize("message", HOST_MESSAGES + GUEST_MESSAGES)
def test_no_packet_is_larger_than_agreed(message):
    sizes = [len(packet) for packet in packets(message)]
    assert max(sizes) <= wire.PACKET_BYTES
    assert all(size == wire.PACKET_BYTES for size in sizes[:-1])


@pytest.mark.parametrize(
    "size", [0, 1, wire.PACKET_BYTES - 200, wire.PACKET_BYTES, wire.PACKET_BYTES * 2, wire.PACKET_BYTES * 3 - 57]
)
def test_every_size_around_the_packets_edges_arrives(size):
    for near in range(max(0, size - 80), size + 80, 7):
        message = Execute("r", 1, False, (bytes(near), b"y"))
        assert feed(GuestProtocol(), packets(message)) == [message]


@given(st.lists(st.integers(0, 300), max_size=40), st.sampled_from([m for m in GUEST_MESSAGES if len(b"".join(m.parts)) < 1000]))
def test_a_frame_cut_anywhere_is_the_same_frame(sizes, message):
    assert feed(prepared(message), recut(list(packets(message)), sizes)) == [message]


@given(st.lists(st.binary(max_size=2000), max_size=wire.MAX_PARTS))
def test_any_parts_arrive(parts):
    message = Execute("r", 1, True, tuple(parts))
    assert feed(GuestProtocol(), packets(message)) == [message]


@given(st.text(max_size=200))
def test_any_text_arrives_in_a_header(text):
    message = Refused(text, 0, text)
    assert feed(HostProtocol(), packets(message)) == [message]


def test_a_second_frame_after_the_first_is_its_own():
    protocol = GuestProtocol()
    assert feed(protocol, [*packets(HOST_MESSAGES[2]), *packets(HOST_MESSAGES[1])]) == [HOST_MESSAGES[2], HOST_MESSAGES[1]]


@pytest.mark.parametrize(
    "message",
    [
        Execute("r", 1, False, (bytes(wire.MAX_PAYLOAD_BYTES + 1),)),
        Execute("r", 1, False, (b"",) * (wire.MAX_PARTS + 1)),
        Hello({"x": "y" * wire.MAX_HEADER_BYTES}),
    ],
)
def test_what_is_too_large_is_not_sent(message):
    with pytest.raises(ValueError, match="over the protocol's limits"):
        list(packets(message))


# ---------------------------------------------------------------------------------------------------- nonsense


@given(st.lists(st.binary(max_size=400), max_size=8))
@example([b""])
@example([b"\x03" + bytes(8)])
@example([raw(b"[" * 60_000)])
@example([raw(b"9" * 60_000)])
@example([raw(b'{"kind": "done", "parts": [1e999]}')])
@example([raw(b'{"kind": "done", "parts": [true]}', b"x")])
@example([raw(b'{"kind": {}, "parts": []}')])
@example([raw(b'{"kind": "\\ud800", "parts": []}')])
@settings(max_examples=400)
def test_garbage_is_a_violation_or_nothing(garbage):
    for protocol in (HostProtocol(), running(), GuestProtocol()):
        try:
            for packet in garbage:
                protocol.receive(packet)
        except Violation:
            pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=8
)  # fmt: skip


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "kind": st.sampled_from(sorted(GUEST_KINDS | HOST_KINDS)) | JSON,
            "parts": st.lists(st.integers(-2, 40), max_size=4) | JSON,
            "run": st.just("nonce") | JSON,
            "mimes": JSON,
            "is_result": JSON,
            "version": JSON,
            "python": JSON,
            "held": JSON,
            "number": st.integers(-1, 3) | JSON,
            "tool": JSON,
            "path": JSON,
            "ordinal": JSON,
            "asked": st.integers(-1, 3) | JSON,
            "answered": st.integers(-1, 3) | JSON,
        },
    ),
    st.binary(max_size=60),
)
@settings(max_examples=400)
def test_headers_of_any_json_are_a_message_or_a_violation(header, payload):
    for protocol in (HostProtocol(), running(), GuestProtocol()):
        try:
            message = protocol.receive(raw(header, payload))
        except Violation:
            continue
        assert isinstance(message, wire.GuestMessage | wire.HostMessage)


@given(st.sampled_from(GUEST_MESSAGES[:2] + GUEST_MESSAGES[3:]), st.data())
def test_a_frame_with_one_byte_changed_is_a_message_or_a_violation(message, data):
    (packet,) = packets(message)
    at = data.draw(st.integers(0, len(packet) - 1))
    changed = packet[:at] + bytes([data.draw(st.integers(0, 255))]) + packet[at + 1 :]
    try:
        prepared(message).receive(changed)
    except Violation:
        pass


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ([b""], "an empty packet"),
        ([b"\x04"], "unknown packet flags"),
        ([b"\x01"], "without its sizes"),
        ([b"\x00x"], "a continuation without a first packet"),
        ([b"\x02x"], "a continuation without a first packet"),
        ([raw(b"{}", b"xx", flags=1)[:-1], raw(b"{}")], "a frame began inside another"),
        ([raw(b"{}", b"xx", flags=1)[:-1], b"\x00"], "a continuation without bytes"),
        ([raw(b"{}", b"xx", flags=1)[:-1], b"\x00xx"], "longer than announced"),
        ([raw(b"{}", b"xx", flags=1)[:-1], b"\x00x"], "went on after its last byte"),
        ([raw(b"{}", b"xx", flags=3)[:-1]], "shorter than announced"),
        ([raw(b"{}") + b"x"], "longer than announced"),
        ([b"\x03" + struct.pack(">II", 1, 0) + b"{"], "over the limit"),
        ([b"\x01" + struct.pack(">II", wire.MAX_HEADER_BYTES + 1, 0)], "over the limit"),
        ([b"\x01" + struct.pack(">II", 2, wire.MAX_PAYLOAD_BYTES + 1)], "over the limit"),
        ([raw(b"no")], "not JSON"),
        ([raw(b"\xff\xff")], "not JSON"),
        ([raw([])], "not an object"),
        ([raw({"parts": []})], "unknown kind"),
        ([raw({"kind": "dance", "parts": []})], "unknown kind"),
        ([raw({"kind": "goodbye"})], "part lengths"),
        ([raw({"kind": "goodbye", "parts": [True]}, b"x")], "part lengths"),
        ([raw({"kind": "goodbye", "parts": [-1, 1]})], "part lengths"),
        ([raw({"kind": "goodbye", "parts": [0] * (wire.MAX_PARTS + 1)})], "part lengths"),
        ([raw({"kind": "goodbye", "parts": [1]})], "do not add up"),
        ([raw({"kind": "done", "parts": []})], "wrong fields"),
        ([raw({"kind": "goodbye", "parts": [], "run": "nonce"})], "wrong fields"),
        ([raw({"kind": "done", "parts": [], "run": 1})], "wrong type or size"),
        ([raw({"kind": "done", "parts": [], "run": "x" * 5000})], "wrong type or size"),
        ([raw({"kind": "display", "parts": [], "run": "nonce", "mimes": "text", "is_result": True})], "not a list of names"),
        ([raw({"kind": "display", "parts": [], "run": "nonce", "mimes": ["a\nb"], "is_result": True})], "not a list of names"),
        ([raw({"kind": "display", "parts": [], "run": "nonce", "mimes": ["x" * 201], "is_result": True})], "not a list of names"),
        ([raw({"kind": "display", "parts": [], "run": "nonce", "mimes": [], "is_result": 1})], "wrong type or size"),
        ([raw({"kind": "tool_call", "parts": [], "run": "nonce"})], "wrong fields"),
        ([call(tool="x" * 4097)], "wrong type or size"),
        ([call(path="x" * 4097)], "wrong type or size"),
        ([call(tool=["x"])], "wrong type or size"),
        ([call(number=True)], "wrong type or size"),
        ([call(number=1.0)], "wrong type or size"),
        ([raw({"kind": "blocked", "parts": [], "run": "nonce", "asked": "0", "answered": 0})], "wrong type or size"),
    ],
)
def test_each_kind_of_nonsense_is_named(sent, words):
    protocol = running()
    with pytest.raises(Violation, match=words):
        feed(protocol, sent)


def test_sizes_are_refused_before_anything_is_allocated():
    """In a process that could not allocate what the packet announces."""
    program = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import wire
resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))
for sizes in ((2, 0xFFFFFFFF), (0xFFFFFFFF, 0), (2, wire.MAX_PAYLOAD_BYTES)):
    try:
        got = wire.HostProtocol().receive(b"\\x01" + b"".join(size.to_bytes(4, "big") for size in sizes) + b"{")
    except wire.Violation:
        got = "refused"
    print(got)
"""
    folder = str(Path(wire.__file__).parents[1])
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", program, folder], capture_output=True, text=True, check=False)
    assert (ran.stdout.split(), ran.stderr) == (["refused", "refused", "None"], "")


# ---------------------------------------------------------------------------------------------------- the order of messages

MAY_COME = {  # state → kinds that the guest may send
    "starting": {"ready", "refused"},
    "idle": {"goodbye"},
    "running": {"display", "done", "tool_call", "tool_drop", "blocked"},
    "moving": {"refused"},  # Kept and Live are in the tests of timelines
    "ended": set(),
}


@pytest.mark.parametrize("state", MAY_COME)
@pytest.mark.parametrize("message", GUEST_MESSAGES, ids=lambda message: message.KIND)
def test_a_message_at_the_wrong_time_is_a_violation(state, message):
    protocol = (
        running(calls=1 if isinstance(message, ToolDrop | Blocked) else 0) if state == "running" else HostProtocol(state=state)
    )
    if message.KIND in MAY_COME[state]:
        assert feed(protocol, packets(message)) == [message]
    else:
        with pytest.raises(Violation):
            feed(protocol, packets(message))


def test_the_states_follow_each_other():
    protocol = HostProtocol()
    seen = [protocol.state]
    feed(protocol, packets(READY))
    seen.append(protocol.state)
    list(protocol.execute(Execute("a", 1, False)))
    seen.append(protocol.state)
    feed(protocol, packets(Display("a", (), False)))
    seen.append(protocol.state)
    feed(protocol, packets(Done("a", (b"{}",))))
    seen.append(protocol.state)
    feed(protocol, packets(Goodbye()))
    seen.append(protocol.state)
    assert seen == ["starting", "idle", "running", "running", "idle", "ended"]
    refused = HostProtocol()
    feed(refused, packets(Refused("s", 1, "d")))
    assert refused.state == "ended"


@pytest.mark.parametrize(
    "message",
    [
        Done("other", (b"{}",)),
        Done("nonce"),
        Done("nonce", (b"{}", b"{}")),
        Display("other", ("text/plain",), False, (b"x",)),
        Display("nonce", ("text/plain",), False),
        Display("nonce", (), False, (b"x",)),
        ToolCall("other", 1, "t", "", 1, (b"{}",)),
        ToolCall("nonce", 1, "t", "", 1),
        ToolCall("nonce", 1, "t", "", 1, (b"{}", b"{}")),
        ToolCall("nonce", 1, "t", "", -1, (b"{}",)),
        ToolCall("nonce", 0, "t", "", 1, (b"{}",)),
        ToolCall("nonce", 2, "t", "", 1, (b"{}",)),
        ToolCall("nonce", -1, "t", "", 1, (b"{}",)),
        ToolDrop("nonce", 1),
        ToolDrop("nonce", 0),
        Blocked("nonce", 1, 0),
        Blocked("nonce", 0, 1),
        Blocked("nonce", 0, -1),
        Blocked("other", 0, 0),
    ],
)
def test_an_answer_to_another_run_or_of_another_shape_is_a_violation(message):
    with pytest.raises(Violation):
        feed(running(), packets(message))


def test_a_second_answer_is_a_violation():
    protocol = running()
    feed(protocol, packets(Done("nonce", (b"{}",))))
    with pytest.raises(Violation, match="nobody waits for"):
        feed(protocol, packets(Done("nonce", (b"{}",))))


def test_calls_are_counted_from_one_in_each_run():
    protocol = running()
    for number in (1, 2, 3):
        feed(protocol, packets(ToolCall("nonce", number, "t", "", 1, (b"{}",))))
    for message in (ToolDrop("nonce", 3), ToolDrop("nonce", 3), Blocked("nonce", 3, 3)):  # a second drop is the host's to ignore
        assert feed(protocol, packets(message)) == [message]
    with pytest.raises(Violation, match="not counted"):
        feed(protocol, packets(ToolCall("nonce", 3, "t", "", 1, (b"{}",))))
    protocol = running()
    feed(protocol, packets(ToolCall("nonce", 1, "t", "", 1, (b"{}",))))
    feed(protocol, packets(Done("nonce", (b"{}",))))
    list(protocol.execute(Execute("next", 2, False)))
    for message in (ToolDrop("next", 1), ToolCall("nonce", 1, "t", "", 1, (b"{}",))):
        with pytest.raises(Violation):
            feed(protocol, packets(message))
    assert feed(protocol, packets(ToolCall("next", 1, "t", "", 1, (b"{}",))))


def test_the_host_answers_calls_of_the_open_run_only():
    assert feed(GuestProtocol(), running().tool_result(3, failed=True, body=b"{}")) == [ToolResult("nonce", 3, True, (b"{}",))]
    for state in ("starting", "idle", "moving", "ended"):
        with pytest.raises(RuntimeError, match=state):
            HostProtocol(state=state).tool_result(1, failed=False, body=b"1")


def test_ready_of_another_version_is_a_violation():
    with pytest.raises(Violation, match="another version"):
        feed(HostProtocol(), packets(Ready(wire.VERSION + 1, "3", ())))


@pytest.mark.parametrize("state", ["starting", "ended"])
def test_the_host_itself_may_only_execute_when_idle(state):
    with pytest.raises(RuntimeError, match=state):
        HostProtocol(state=state).execute(Execute("n", 1, False))
    with pytest.raises(RuntimeError, match="running"):
        running().execute(Execute("n", 1, False))


@given(st.lists(st.sampled_from(GUEST_MESSAGES), max_size=6))
def test_any_order_of_messages_is_taken_or_a_violation(messages):
    protocol = HostProtocol()
    try:
        for message in messages:
            feed(protocol, packets(message))
            if protocol.state == "idle":
                list(protocol.execute(Execute("nonce", 1, False)))
    except Violation:
        pass


def test_the_guest_refuses_its_own_kinds():
    with pytest.raises(Violation, match="unknown kind"):
        feed(GuestProtocol(), packets(READY))
