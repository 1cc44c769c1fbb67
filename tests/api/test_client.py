"""`connect()` and a real server, which is killed, started again, and asked by several clients."""

import asyncio
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

import onetrip
import servers
from onetrip.client import core
from onetrip.errors import BadRequest, NotFound, SessionGone, Unauthorized, Unavailable
from onetrip.model import Done, Started, Stdout


@pytest.mark.spec("CLT-01")
def test_address_and_key_come_from_the_variables_if_nobody_says_them(shared_server, monkeypatch):
    monkeypatch.setenv("ONETRIP_URL", shared_server.url + "/")
    monkeypatch.setenv("ONETRIP_TOKEN", shared_server.token)
    with onetrip.connect() as ot:
        assert ot.run("1 + 1").text == "2"

    async def main() -> str | None:
        async with onetrip.aconnect() as ot:
            return (await ot.run("1 + 1")).text

    assert asyncio.run(main()) == "2"


@pytest.mark.spec("CLT-01")
def test_the_example_of_the_document_works_as_it_is_printed(shared_server, tmp_path):
    document = (Path(__file__).parents[2] / "docs" / "client.md").read_text("utf-8")
    example, output = re.findall(r"^```(?:python|text)\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)[:2]
    (tmp_path / "sales.csv").write_text("day,sold\nMon,3\nTue,4\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "ONETRIP_URL": shared_server.url, "ONETRIP_TOKEN": shared_server.token},
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)
    assert (tmp_path / "chart.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.spec("CLT-03")
@pytest.mark.parametrize("token", [None, "ot_wrong", "ot_" + "0" * 12 + "_" + "0" * 64])
def test_a_wrong_key_is_unauthorized_whatever_is_asked(shared_server, token, monkeypatch):
    monkeypatch.delenv("ONETRIP_TOKEN", raising=False)
    with onetrip.connect(shared_server.url, token) as ot:
        for ask in (lambda: ot.run("1"), ot.session, ot.support, lambda: ot.attach("ses_1"), ot.start):
            with pytest.raises(Unauthorized) as refused:
                ask()
            assert refused.value.hint


@pytest.mark.spec("CLT-09")
def test_a_session_lives_on_when_its_client_is_closed_and_ends_with_its_with(shared_server):
    with onetrip.connect(shared_server.url, shared_server.token) as ot:
        left = ot.session(metadata={"user": "7"})
        assert left.run("x = 1; open('f', 'w').write('kept')").ok
        with ot.session() as ended:
            pass
    with onetrip.connect(shared_server.url, shared_server.token) as ot:
        with ot.attach(left.id) as again:
            assert again.run("x, open('f').read()").value == [1, "kept"]
        for session in (left, ended):
            with pytest.raises(SessionGone, match="closed by its owner"):
                ot.attach(session.id)
        with pytest.raises(NotFound):
            ot.attach("ses_" + "0" * 24)


@pytest.mark.spec("CLT-07")
def test_interrupt_from_another_thread_ends_the_cell_and_not_the_session(shared_server):
    with onetrip.connect(shared_server.url, shared_server.token) as ot, ot.session() as session:
        events = session.stream("kept = 1\nprint('on', flush=True)\nimport time\nwhile True: time.sleep(0.1)")
        result = None
        for event in events:
            if isinstance(event, Stdout):
                threading.Thread(target=session.interrupt).start()
            if isinstance(event, Done):
                result = event.result
        assert (result.status, result.error.type) == ("interrupted", "KeyboardInterrupt")
        assert session.run("kept").value == 1


@pytest.mark.spec("CLT-07")
@pytest.mark.parametrize("shape", ["session", "one-shot"])
def test_a_run_that_is_cancelled_ends_on_the_server(shared_server, shape):
    code = "print('on', flush=True)\nimport time\nwhile True: time.sleep(0.1)"

    async def main() -> bytes:
        async with onetrip.aconnect(shared_server.url, shared_server.token) as ot, ot.session() as session:
            run_ids: list[str] = []
            on = asyncio.Event()

            async def follow() -> None:
                async for event in session.stream(code) if shape == "session" else ot.stream(code):
                    if isinstance(event, Started):
                        run_ids.append(event.run_id)
                    if isinstance(event, Stdout):
                        on.set()

            task = asyncio.create_task(follow())
            await on.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await session.run("1")).ok  # after the other one, whose turn it was
            link = session.engine._link  # there is no public way to ask for a result by its id
            return await link.ask(core.Ask("GET", f"v1/runs/{run_ids[0]}?wait_s=30"))

    assert msgspec.json.decode(asyncio.run(main()))["status"] == "interrupted"


@pytest.mark.spec("CLT-02")
def test_what_nobody_names_is_as_the_server_is_configured():
    with (
        servers.serving(config="[limits]\nwall_s = 0.5\n[caps]\nwall_s = 5\n") as server,
        onetrip.connect(server.url, server.token) as ot,
    ):
        result = ot.run("while True: pass")
        assert (result.status, result.limit.name, result.limit.limit) == ("limit_exceeded", "wall", 0.5)
        assert ot.run("import time; time.sleep(0.8)", limits={"wall_s": 4}).ok
        with pytest.raises(BadRequest, match="cap") as refused:
            ot.run("1", limits=onetrip.Limits(wall_s=6))
        assert refused.value.field == "limits.wall_s"


@pytest.mark.slow
@pytest.mark.spec("CLT-02")
def test_files_of_more_than_one_request_are_there_before_the_first_cell(shared_server):
    files = {f"f{number}": bytes([number]) * (9 << 20) for number in range(3)}
    with (
        onetrip.connect(shared_server.url, shared_server.token) as ot,
        ot.session(files=files, limits={"memory_mb": 2048}) as session,
    ):
        result = session.run("[(len(d := open(f'f{n}', 'rb').read()), d[-1]) for n in range(3)]")
        assert (result.value, result.files) == ([[9 << 20, number] for number in range(3)], ())


@pytest.mark.slow
@pytest.mark.spec("CLT-04", "CLT-05")
def test_a_run_outlives_the_kill_of_its_server_and_each_event_comes_once(server):
    """The program goes on when it is told to, which is after a new server has taken over."""
    code = "import os, time\nprint('one', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('two', flush=True)\n'end'"
    with onetrip.connect(server.url, server.token) as ot:
        session = ot.session()
        session.run("runs = 0")
        events, killed = [], False
        for event in session.stream(f"runs += 1\n{code}"):
            events.append(event)
            if isinstance(event, Stdout) and not killed:
                killed = True
                server.kill()
                server.start()
                assert server.adopted == 1
                session.files.write("go", b"")
        assert [event.text for event in events if isinstance(event, Stdout)] == ["one\n", "two\n"]
        assert isinstance(events[0], Started)
        assert (events[-1].result.text, events[-1].result.stdout) == ("'end'", "one\ntwo\n")
        assert session.run("runs").value == 1
        session.undo(2)
        assert session.run("runs").value == 0
        session.close()


@pytest.mark.slow
@pytest.mark.spec("CLT-05")
def test_what_is_asked_while_the_server_is_away_is_done_once_it_is_back(server):
    with onetrip.connect(server.url, server.token) as ot, ot.session() as session:
        session.run("n = 0")
        server.kill()
        results: list = []
        asking = [threading.Thread(target=lambda: results.append(session.run("n += 1; n").value)) for _ in range(4)]
        for thread in asking:
            thread.start()
        server.start()
        for thread in asking:
            thread.join()
        assert sorted(results) == [1, 2, 3, 4]


@pytest.mark.spec("CLT-03", "CLT-05")
def test_a_server_that_stays_away_is_said_and_closing_says_no_more_than_that(server):
    with onetrip.connect(server.url, server.token, retry_s=0.2) as ot:
        with pytest.raises(ZeroDivisionError), ot.session():  # what went wrong first is what is raised
            1 / server.stop()  # which is 0 when it ended well
        for ask in (lambda: ot.run("1"), ot.support, ot.session):
            with pytest.raises(Unavailable, match="cannot be reached"):
                ask()
        server.start()
        with ot.session() as session:  # nothing is raised at its end
            assert session.run("1").ok
            server.stop()
        with pytest.raises(Unavailable):
            session.close()


@pytest.mark.spec("CLT-10")
def test_many_threads_share_one_connection_pool(shared_server):
    with onetrip.connect(shared_server.url, shared_server.token) as ot:
        found: dict[int, object] = {}

        def work(number: int) -> None:
            with ot.session() as session:
                session.files.write("n", str(number))
                found[number] = [session.run("int(open('n').read())").value, ot.run(f"{number} * 2").value]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {number: [number, number * 2] for number in range(16)}
