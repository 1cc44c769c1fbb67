"""What a program leaves running between cells: it gets no more than a cell does."""

import pytest

import onetrip
from onetrip.errors import SessionGone

BURN = """
import threading

def burn():
    while True:
        pass

threading.Thread(target=burn, daemon=True).start()
"""
SWELL = """
import os, threading, time

def swell():
    for _ in range(6):
        if os.fork() == 0:
            kept = b"1" * (80 << 20)
            time.sleep(60)

threading.Thread(target=swell, daemon=True).start()
"""


def reason_of_the_end(session, wait_until) -> str:
    """Why the session ended by itself. Asks nothing of it meanwhile, for a cell would give it new time."""
    assert wait_until(lambda: session._async.engine._sessions[session.id].worker.ended is not None)
    with pytest.raises(SessionGone) as gone:
        session.run("1")
    return str(gone.value)


@pytest.mark.spec("LIM-10")
def test_a_thread_left_behind_cannot_burn_cpu_time_for_ever(wait_until):
    with onetrip.local(warm=0) as ot, ot.session(limits={"cpu_s": 0.5}) as session:
        assert session.run(BURN).ok
        assert (
            reason_of_the_end(session, wait_until) == "the session ended: between cells it used more than the cpu limit of 0.5 s"
        )


@pytest.mark.spec("LIM-10")
def test_children_that_swell_between_cells_are_stopped(wait_until):
    with onetrip.local(warm=0) as ot, ot.session(limits={"memory_mb": 200}) as session:
        level = session.run(SWELL).isolation.mechanisms
        if "watchdog" in level:
            reason = reason_of_the_end(session, wait_until)
            assert reason == "the session ended: between cells it went over the memory limit of 200 MB"
        else:  # the kernel kills one of them as soon as the group is full; the session lives, within its limit
            assert session.run("1", timeout_s=5).usage.peak_memory_bytes <= 200 << 20
