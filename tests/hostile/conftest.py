"""Real sandboxes for guests that lie: one engine per file, and a session beside that must not notice."""

import textwrap

import pytest

import onetrip

# What a program needs to speak to the host in the guest's place: the open run's nonce, and packets of the protocol.
LIAR = textwrap.dedent("""
    import json, os, signal, socket, struct, sys, threading, time

    def nonce():
        for frame in sys._current_frames().values():
            while frame is not None:
                if hasattr(frame.f_locals.get("execute"), "run"):
                    return frame.f_locals["execute"].run
                frame = frame.f_back
        raise LookupError("the guest hides its message")

    def packet(header, *parts, flags=3, lengths=None):
        body = b"".join(parts)
        raw = json.dumps({**header, "parts": [len(part) for part in parts] if lengths is None else lengths}).encode()
        return bytes([flags]) + struct.pack(">II", len(raw), len(body)) + raw + body

    def send(raw):
        os.write(3, raw)

    def done(account, run=None):
        send(packet({"kind": "done", "run": run or nonce()}, account if isinstance(account, bytes) else json.dumps(account).encode()))

    def display(mimes, *parts, run=None, is_result=False):
        send(packet({"kind": "display", "run": run or nonce(), "mimes": mimes, "is_result": is_result}, *parts))

    FINE = {"text": "forged", "value": 1, "has_value": True, "error": None, "interrupted": False, "limit": None}
""")


@pytest.fixture(scope="module")
def ot():
    with onetrip.local(warm=0) as engine:
        yield engine


@pytest.fixture
def bystander(ot):
    """Another session of the same engine: after the test it still has its variable, and the next one-shot works."""
    with ot.session() as other:
        assert other.run("kept = 'here'").ok
        yield other
        assert other.run("kept").text == "'here'"
        assert ot.run("1 + 1").text == "2"


@pytest.fixture
def liars_words():
    return LIAR


@pytest.fixture
def liar(ot, bystander):
    """A session whose program knows how to lie."""
    with ot.session(limits=onetrip.Limits(wall_s=5, output_mb=2)) as session:
        assert session.run(LIAR).ok
        yield session


@pytest.fixture
def mortal_liar(ot, bystander):
    """The same without checkpoints: it ends with its process."""
    with ot.session(limits=onetrip.Limits(wall_s=5, output_mb=2), checkpoints=0) as session:
        assert session.run(LIAR).ok
        yield session
