"""The interface itself: sessions, files, policy, many at once, cancelling."""

import asyncio
import hashlib
import inspect
import io
import random
import threading
import time

import pytest

import onetrip
from onetrip import asynchronous, blocking, embedded
from onetrip.model import Done, Stdout


@pytest.mark.spec("API-02")
def test_both_shapes_have_the_same_methods_with_the_same_parameters():
    def methods(cls) -> dict[str, list[str]]:
        found = {name: member for name, member in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}
        return {name: list(inspect.signature(member).parameters) for name, member in found.items()}

    for waiting, awaited in ((embedded.Session, embedded.AsyncSession), (blocking.Files, asynchronous.AsyncFiles)):
        ours, theirs = methods(waiting), methods(awaited)
        shared = set(ours) & set(theirs)
        assert {"run", "stream", "interrupt"} <= shared or {"read", "write", "list", "delete"} <= shared
        assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}
    assert set(methods(embedded.Local)) - {"close"} == set(methods(embedded.AsyncLocal)) - {"aclose"}


@pytest.mark.spec("API-05")
def test_files_go_in_and_out(session, value):
    session.files.write("in.bin", bytes(range(256)))
    session.files.write("d/text.txt", "é")
    assert value("[len(open('in.bin', 'rb').read()), open('d/text.txt', encoding='utf-8').read()]") == [256, "é"]
    assert session.run("open('out.csv', 'w').write('a,b')").ok
    assert session.files.read("out.csv") == b"a,b"
    assert [file.path for file in session.files.list()] == ["d/text.txt", "in.bin", "out.csv"]
    session.files.delete("out.csv")
    assert value("import os; os.path.exists('out.csv')") is False
    with pytest.raises(onetrip.NotFound):
        session.files.read("out.csv")


@pytest.mark.spec("API-05")
def test_a_program_can_change_and_remove_what_it_was_given(ot):
    result = ot.run("open('a', 'a').write('!'); x = open('a').read(); import os; os.remove('a'); x", files={"a": "given"})
    assert result.text == "'given!'"


@pytest.mark.spec("API-05", "ISO-13")
def test_what_a_program_planted_is_not_followed_nor_opened(session):
    source = "import os\nos.symlink('/etc/passwd', 'link'); os.symlink('..', 'up'); os.mkfifo('fifo'); os.symlink('/dev/zero', 'zero'); os.symlink('fifo', 'to_fifo')"
    assert session.run(source).ok
    for path in ("link", "up/etc/passwd", "fifo", "zero", "to_fifo", "../etc/passwd", "/etc/passwd"):
        with pytest.raises(onetrip.BadRequest):
            session.files.read(path)
    for path in ("up/x", "../x", "/x"):
        with pytest.raises(onetrip.BadRequest):
            session.files.write(path, b"")
    assert session.files.list() == []


@pytest.mark.spec("BAD-07", "LIM-05")
def test_a_full_workspace_is_said_and_keeps_what_was_there(ot):
    with ot.session(limits={"disk_mb": 2}) as session:
        session.files.write("a", b"kept")
        with pytest.raises(onetrip.WorkspaceFull):
            session.files.write("a", bytes(3 << 20))
        assert session.files.read("a") == b"kept"
        assert [file.path for file in session.files.list()] == ["a"]


@pytest.mark.spec("POL-01", "POL-02")
def test_the_policy_on_modules(ot):
    with ot.session(policy={"modules": {"deny": ["socket", "subprocess"]}}) as session:
        denied = session.run("import subprocess")
        assert (denied.status, denied.error.type) == ("failed", "ImportError")
        assert "policy" in denied.error.message
        assert session.run("import asyncio, json; 1").ok  # asyncio needs socket and subprocess inside
    allowed = ot.run("import json, math; json.dumps(math.pi)", policy={"modules": {"allow": ["json", "math"]}})
    assert allowed.ok
    assert ot.run("import os", policy={"modules": {"allow": ["json"]}}).error.type == "ImportError"


@pytest.mark.spec("CEL-03", "API-01")
def test_a_session_that_was_closed_is_gone(ot):
    with ot.session() as session:
        session.run("1")
    with pytest.raises(onetrip.OnetripError):
        session.run("1")
    with pytest.raises(onetrip.OnetripError):
        session.files.read("a")


@pytest.mark.spec("API-01", "LIM-08")
def test_a_session_whose_process_ended_says_how(ot):
    with ot.session(checkpoints=0) as session:
        result = session.run("import os; os._exit(7)")
        assert result.session.survived is False
        assert result.session.note
        for call in (lambda: session.run("1"), lambda: session.files.read("a"), session.files.list):
            with pytest.raises(onetrip.SessionGone):
                call()


@pytest.mark.spec("ISO-12")
def test_a_result_is_complete(ot):
    result = ot.run("print('x'); 1")
    assert result.id.startswith("run_")
    assert result.session_id is None
    assert result.ok
    usage = result.usage
    assert usage.wall_ms > 0
    assert usage.cpu_ms >= 0
    assert usage.output_bytes == 2
    assert (result.pending, result.tool_calls) == ((), ())
    with ot.session() as session:
        inside = session.run("1")
        assert inside.session_id == session.id
        assert session.id.startswith("ses_")


# ---------------------------------------------------------------------------------------------------- many at once


@pytest.mark.spec("API-06")
def test_many_runs_from_many_threads():
    with onetrip.local(warm=2) as ot:
        results = {}

        def work(number: int) -> None:
            with ot.session() as session:
                session.run(f"x = {number}")
                results[number] = [session.run("x").text, ot.run(f"{number} * 2").text]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {number: [str(number), str(number * 2)] for number in range(12)}


@pytest.mark.spec("API-06")
def test_many_runs_from_many_tasks():
    async def main() -> list[str | None]:
        async with onetrip.alocal(warm=2) as ot:
            results = await asyncio.gather(*(ot.run(f"print({number}); {number}") for number in range(40)))
            assert [result.stdout for result in results] == [f"{number}\n" for number in range(40)]
            return [result.text for result in results]

    assert asyncio.run(main()) == [str(number) for number in range(40)]


@pytest.mark.spec("API-06")
def test_cells_of_one_session_run_one_after_the_other():
    async def main() -> None:
        async with onetrip.alocal(warm=0) as ot, ot.session() as session:
            await session.run("running, most, order = 0, 0, []")
            source = "running += 1; most = max(most, running); order.append({n})\nimport time; time.sleep(0.05)\nrunning -= 1"
            results = await asyncio.gather(*(session.run(source.format(n=number)) for number in range(5)))
            assert all(result.ok for result in results)
            assert results[-1].usage.queue_ms > 100
            assert (await session.run("most, order")).value == [1, [0, 1, 2, 3, 4]]

    asyncio.run(main())


@pytest.mark.spec("API-06")
def test_a_session_that_is_busy_holds_up_no_other():
    async def main() -> None:
        async with onetrip.alocal(warm=0) as ot, ot.session() as busy, ot.session() as other:
            slow = asyncio.create_task(busy.run("import time; time.sleep(1.5); 'slow'"))
            began = time.monotonic()
            assert (await other.run("'quick'")).text == "'quick'"
            assert time.monotonic() - began < 1
            assert (await slow).text == "'slow'"

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------- cancelling


@pytest.mark.spec("END-03", "LIM-09")
def test_cancelling_a_cell_interrupts_it_and_the_session_goes_on():
    async def main() -> None:
        async with onetrip.alocal(warm=0) as ot, ot.session() as session:
            started = asyncio.Event()

            async def work() -> None:
                async for event in session.stream("kept = 1\nprint('on', flush=True)\nimport time\nwhile True: time.sleep(0.1)"):
                    if isinstance(event, Stdout):
                        started.set()

            task = asyncio.create_task(work())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await session.run("kept")).text == "1"

    asyncio.run(main())


@pytest.mark.spec("END-03")
def test_closing_a_session_under_a_running_cell_ends_the_cell():
    async def main() -> None:
        async with onetrip.alocal(warm=0) as ot:
            session = await ot.session()
            results = []

            async def work() -> None:
                async for event in session.stream("print('on', flush=True)\nimport time; time.sleep(60)"):
                    if isinstance(event, Stdout):
                        closing.set()
                    if isinstance(event, Done):
                        results.append(event.result)

            closing = asyncio.Event()
            task = asyncio.create_task(work())
            await closing.wait()
            await session.aclose()
            await task
            assert [(result.status, result.session.survived) for result in results] == [("interrupted", False)]

    asyncio.run(main())


@pytest.mark.spec("END-03", "API-01")
def test_an_engine_that_was_closed_says_so():
    ot = onetrip.local(warm=0)
    ot.close()
    with pytest.raises(onetrip.PlatformError, match="closed"):
        ot.run("1")


# ---------------------------------------------------------------------------------------------------- files of the caller, attaching


@pytest.mark.spec("API-07")
def test_files_of_the_caller_go_in_and_out_in_pieces(session, value, tmp_path):
    given = random.Random(7).randbytes(5_000_000)
    (tmp_path / "given").write_bytes(given)
    session.files.upload("d/by_name", tmp_path / "given")
    session.files.upload("by_file", io.BytesIO(given))
    look = "import hashlib; [hashlib.sha256(open(n, 'rb').read()).hexdigest() for n in ('d/by_name', 'by_file')]"
    assert value(look) == [hashlib.sha256(given).hexdigest()] * 2
    assert session.run("1").files == ()  # what the caller put there is no change by a cell
    session.files.download("d/by_name", tmp_path / "back")
    back = io.BytesIO()
    session.files.download("by_file", back)
    assert (tmp_path / "back").read_bytes() == back.getvalue() == given
    session.files.upload("empty", io.BytesIO())
    session.files.download("empty", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b""


@pytest.mark.spec("API-07")
def test_what_cannot_go_in_or_out_leaves_things_as_they_were(ot, tmp_path):
    (tmp_path / "kept").write_bytes(b"kept")
    with ot.session(limits={"disk_mb": 2}) as session:
        session.files.write("a", b"kept")
        with pytest.raises(onetrip.WorkspaceFull):
            session.files.upload("a", io.BytesIO(bytes(3 << 20)))
        assert session.files.read("a") == b"kept"
        assert [file.path for file in session.files.list()] == ["a"]
        assert session.run("import os; os.mkfifo('fifo'); os.symlink('/etc/passwd', 'link')").ok
        for path, error in (
            ("../a", onetrip.BadRequest),
            ("link", onetrip.BadRequest),
            ("fifo", onetrip.BadRequest),
            ("b", onetrip.NotFound),
        ):
            with pytest.raises(error):
                session.files.download(path, tmp_path / "kept")
        with pytest.raises(onetrip.BadRequest, match=r"^source: "):
            session.files.upload("a", tmp_path / "missing")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("kept", b"kept")]


@pytest.mark.spec("API-08")
def test_a_session_is_found_again_by_its_id(ot):
    with ot.session() as session:
        session.run("x = 1")
        again = ot.attach(session.id)
        assert again.run("x").value == 1
        assert again.id == session.id
    for _ in range(2):
        again.close()
    with pytest.raises((onetrip.NotFound, onetrip.SessionGone)):
        ot.attach(session.id)
    for made_up in ("ses_no", "", "../x", "é\n"):
        with pytest.raises(onetrip.NotFound):
            ot.attach(made_up)


@pytest.mark.spec("API-08")
def test_what_an_interface_can_isolate_is_known(ot):
    support = ot.support()
    assert (support.tier, support.level) == ("jail", ot.run("1").isolation.level)
    ot.start()
    with pytest.raises(onetrip.UnknownEnvironment):
        ot.start("there-is-none")
