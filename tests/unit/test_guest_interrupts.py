"""Signals that come while the guest's own code blocks them: nobody's mask is lost."""

import signal

import pytest

from onetrip.guest.interrupts import block_again, block_all, restore

ROUNDS = 400


class Alarm(BaseException):
    pass


@pytest.fixture
def alarms():
    def on_alarm(_signal, _frame):
        raise Alarm

    before = signal.signal(signal.SIGALRM, on_alarm)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def now_blocked():
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.spec("TOL-67")
def test_a_signal_at_any_moment_leaves_the_mask_that_the_program_had(alarms):
    raised = 0
    usual = now_blocked()
    for at in range(ROUNDS):
        signal.setitimer(signal.ITIMER_REAL, 50e-6 + at % 97 * 1e-6)
        try:
            while True:
                mask = block_all()
                restore(mask)
        except Alarm:
            raised += 1
        assert now_blocked() == usual
    assert raised == ROUNDS


@pytest.mark.spec("TOL-67")
def test_a_signal_while_signals_are_blocked_again_leaves_them_blocked(alarms):
    usual = now_blocked()
    for at in range(ROUNDS):
        signal.setitimer(signal.ITIMER_REAL, 50e-6 + at % 97 * 1e-6)
        try:
            while True:
                try:
                    restore(usual)
                finally:
                    block_again()
        except Alarm:
            assert signal.SIGALRM in now_blocked()
        finally:
            restore(usual)
