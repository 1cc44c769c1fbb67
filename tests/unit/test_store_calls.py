"""The journal of calls that change something: begun once, answered once, forgotten when it is old."""

import asyncio
from types import SimpleNamespace

import pytest

from onetrip.service.janitor import KEEP_CALLS_S, Janitor
from onetrip.settings import Settings
from onetrip.store import FILE, Store


@pytest.mark.spec("TOL-78")
def test_a_call_is_new_once_and_then_begun_or_answered(tmp_path):
    with Store.open(tmp_path / FILE) as store:
        assert store.calls.begin("run_1", "call_1") == "new"
        assert store.calls.begin("run_1", "call_1") == "begun"
        assert store.calls.begin("run_2", "call_1") == "new"  # of another run
        store.calls.end("run_1", "call_1", b"answer")
        assert store.calls.begin("run_1", "call_1") == b"answer"
    with Store.open(tmp_path / FILE) as store:
        assert store.calls.begin("run_1", "call_1") == b"answer"
        assert store.calls.begin("run_2", "call_1") == "begun"


@pytest.mark.spec("TOL-78")
def test_the_janitor_forgets_calls_that_no_run_can_ask_for_any_more(tmp_path):
    now = [1_000_000.0]

    async def flush():
        pass

    async def round_of(store):
        nobody = SimpleNamespace(all=list, flush=flush)
        await Janitor(Settings(), store, nobody, nobody, lambda: now[0], lambda: 1e9).round()

    with Store.open(tmp_path / FILE, clock=lambda: now[0]) as store:
        for n in range(1200):  # more than are pruned in one transaction
            store.calls.begin("run_old", f"call_{n}")
        now[0] += KEEP_CALLS_S - 10
        store.calls.begin("run_young", "call")
        asyncio.run(round_of(store))
        assert store.calls.begin("run_old", "call_0") == "begun"
        now[0] += 20
        asyncio.run(round_of(store))
        assert store.calls.begin("run_old", "call_0") == "new"
        assert store.calls.begin("run_old", "call_1199") == "new"
        assert store.calls.begin("run_young", "call") == "begun"
