"""The interface is the same blocking and awaited, keeps its promises about errors, files and independence, and the policy speaks."""

import asyncio
import threading

import pytest

import onetrip
from onetrip import asynchronous, blocking
from onetrip.errors import BadRequest, NotFound, OnetripError, SessionGone
from onetrip.model import Done, Started, Stdout


@pytest.mark.spec("API-02")
def test_blocking_and_awaited_give_the_same(either):
    result = either.run("print(n)\nn * 2", inputs={"n": 21})
    assert (result.text, result.value, result.stdout, result.session_id) == ("42", 42, "42\n".replace("42", "21"), None)
    events = [type(event) for event in either.stream("print('x')")]
    assert events == [Started, Stdout, Done]


@pytest.mark.spec("API-02")
def test_both_faces_have_the_same_methods():
    def public(cls):
        return {name for name in dir(cls) if not name.startswith("_")} - {"aclose", "open", "engine"}

    for waiting, awaited in (("Local", "AsyncLocal"), ("Session", "AsyncSession"), ("Files", "AsyncFiles")):
        faces = public(getattr(blocking, waiting)), public(getattr(asynchronous, awaited))
        assert faces[0] - {"close"} == faces[1] - {"close"}


@pytest.mark.spec("API-03")
@pytest.mark.parametrize(
    "code", ["1 / 0", "import os; os._exit(7)", "import os; os.kill(os.getpid(), 9)", "raise BaseException", "x ="]
)
def test_a_program_that_fails_is_a_result(either, code):
    assert either.run(code).status == "failed"


@pytest.mark.spec("API-03")
def test_what_comes_after_the_end_of_a_session_is_our_exception(ot):
    with ot.session(checkpoints=0) as session:
        assert not session.run("import os; os._exit(0)").session.survived
        with pytest.raises(SessionGone) as gone:
            session.run("1")
    assert isinstance(gone.value, OnetripError)
    assert gone.value.hint


@pytest.mark.spec("API-05")
def test_files_are_written_read_listed_and_deleted(session):
    session.files.write("a/b.txt", "text")
    assert session.files.read("a/b.txt") == b"text"
    assert [info.path for info in session.files.list()] == ["a/b.txt"]
    assert session.run("open('a/b.txt', 'a').write('!'); open('a/b.txt').read()").text == "'text!'"
    session.files.delete("a/b.txt")
    with pytest.raises(NotFound):
        session.files.read("a/b.txt")


@pytest.mark.spec("API-05")
@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", "a\nb", "x" * 300, "link/passwd", "fifo"])
def test_paths_that_leave_the_workspace_and_pipes_are_refused(session, path):
    session.run("import os\nos.symlink('/etc', 'link')\nos.mkfifo('fifo')")
    with pytest.raises((BadRequest, NotFound)):
        session.files.read(path)


@pytest.mark.spec("API-06")
def test_sessions_run_side_by_side_from_many_threads(ot):
    texts: dict[int, str | None] = {}

    def work(number: int) -> None:
        with ot.session() as session:
            session.run("mine = number", inputs={"number": number})
            texts[number] = session.run("mine * 10").text

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert texts == {number: str(number * 10) for number in range(8)}


@pytest.mark.spec("API-06")
def test_cancelling_a_run_ends_its_sandbox_and_leaves_the_others():
    async def main() -> list[str | None]:
        async with onetrip.alocal(warm=0) as ot, ot.session() as bystander:
            await bystander.run("x = 1")
            started = asyncio.Event()

            async def endless() -> None:
                async for event in ot.stream("print('go')\nwhile True: pass"):
                    if isinstance(event, Stdout):
                        started.set()

            task = asyncio.create_task(endless())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return [(await bystander.run("x")).text, (await ot.run("2")).text]

    assert asyncio.run(main()) == ["1", "2"]


@pytest.mark.spec("ENV-09")
def test_a_program_is_forked_from_the_node_that_has_its_imports(ot):
    loaded = "import sys; 'pandas' in sys.modules"
    assert ot.run(loaded).text == "False"
    assert ot.run(f"if False:\n    import pandas\n{loaded}").text == "True"


@pytest.mark.spec("POL-01")
@pytest.mark.parametrize("policy", [{"modules": {"deny": ["json"]}}, {"modules": {"allow": ["math"]}}])
def test_a_denied_import_names_the_policy(either, policy):
    error = either.run("import json", policy=policy).error
    assert error.type == "ImportError"
    assert "policy" in error.message
    assert "json" in error.message


@pytest.mark.spec("POL-02")
def test_what_an_allowed_module_needs_inside_is_not_denied(either):
    assert either.run("import statistics; statistics.mean([1, 3])", policy={"modules": {"allow": ["statistics"]}}).text == "2"
