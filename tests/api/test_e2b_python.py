"""E2B's own Python clients, unmodified, against a server of ours over a real socket: their quick-start, and everything docs/e2b.md promises."""

import asyncio
import contextlib
import gzip
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

e2b = pytest.importorskip("e2b")
interpreter = pytest.importorskip("e2b_code_interpreter")
from e2b import (
    AuthenticationException,
    CommandExitException,
    FileNotFoundException,
    InvalidArgumentException,
    NotFoundException,
    SandboxException,
    TimeoutException,
)
from e2b.sandbox.filesystem.filesystem import FileType
from e2b.sandbox.filesystem.watch_handle import FilesystemEventType
from e2b_server import Server

ALL_S = 60.0  # for anything that a test waits for


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("e2b"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def shared(server):
    """One sandbox for tests that leave nothing in the way of others."""
    with interpreter.Sandbox.create(timeout=600, **server.options) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(server):
    with interpreter.Sandbox.create(timeout=600, **server.options) as made:
        yield made


def wait_until(condition, seconds=ALL_S):
    """For what tells nobody of its coming."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---------------------------------------------------------------------------------------------------- code


@pytest.mark.spec("ETB-01")
def test_the_quick_start_with_two_environment_variables(server):
    program = """
from e2b_code_interpreter import Sandbox
with Sandbox.create(timeout=60) as s:
    s.run_code("x = 41")
    out = []
    e = s.run_code("print('hi'); x + 1", on_stdout=lambda m: out.append(m.line))
    assert e.text == "42" and out == ["hi\\n"] and e.error is None
    assert s.run_code("1/0").error.name == "ZeroDivisionError"
    s.files.write("/home/user/a.txt", "hey"); assert s.files.read("/home/user/a.txt") == "hey"
    assert "a.txt" in [f.name for f in s.files.list("/home/user")]
    assert s.commands.run("echo ok").stdout == "ok\\n"
    c = s.create_code_context(cwd="/tmp"); assert s.run_code("import os; os.getcwd()", context=c).text == "/tmp"
"""
    variables = {"E2B_API_URL": f"{server.url}/e2b", "E2B_SANDBOX_URL": f"{server.url}/e2b", "E2B_API_KEY": server.token}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.spec("ETB-01")
def test_the_asynchronous_client_does_the_same(server):
    async def go() -> None:
        sandbox = await interpreter.AsyncSandbox.create(timeout=60, **server.options)
        try:
            await sandbox.run_code("x = 41")
            out: list[str] = []
            seen = await sandbox.run_code("print('hi'); x + 1", on_stdout=lambda message: out.append(message.line))
            assert (seen.text, out, seen.error) == ("42", ["hi\n"], None)
            await sandbox.files.write("/home/user/a.txt", "hey")
            assert await sandbox.files.read("/home/user/a.txt") == "hey"
            assert [file.name for file in await sandbox.files.list("/home/user")] == ["a.txt"]
            assert (await sandbox.commands.run("echo ok")).stdout == "ok\n"
            handle = await sandbox.commands.run("cat", background=True, stdin=True)
            await handle.send_stdin("given\n")
            await handle.close_stdin()
            assert (await handle.wait()).stdout == "given\n"
            events: list[str] = []
            arrived = asyncio.Event()

            def saw(event) -> None:
                events.append(event.name)
                arrived.set()

            watch = await sandbox.files.watch_dir("/home/user", on_event=saw)
            await sandbox.files.write("/home/user/b.txt", "b")
            await asyncio.wait_for(arrived.wait(), ALL_S)
            await watch.stop()
            assert events[0] == "b.txt"
        finally:
            assert await sandbox.kill() is True
        assert await sandbox.is_running() is False

    asyncio.run(go())


@pytest.mark.spec("ETB-02")
def test_output_arrives_while_the_code_runs(shared):
    order: list[tuple[str, str]] = []
    # The second line is printed only when the first has arrived here.
    shared.files.remove("/tmp/go")

    def line(message) -> None:
        order.append(("out", message.line))
        if message.line == "one\n":
            shared.files.write("/tmp/go", "")

    code = """
import os, sys, time
print('one')
while not os.path.exists('/tmp/go'): time.sleep(0.01)
print('two', file=sys.stderr)
"""
    shared.run_code(code, on_stdout=line, on_stderr=lambda message: order.append(("err", message.line)))
    assert order == [("out", "one\n"), ("err", "two\n")]


@pytest.mark.spec("ETB-02")
def test_results_have_every_form_and_the_last_one_is_the_main_one(shared):
    seen = shared.run_code(
        "display({'text/plain': 'p', 'text/html': '<b>h</b>', 'text/markdown': 'm', 'text/x-own': 'z'}, raw=True)\n'text'"
    )
    shown, main = seen.results
    assert (shown.text, shown.html, shown.markdown, shown.extra, shown.is_main_result) == (
        "p",
        "<b>h</b>",
        "m",
        {"text/x-own": "z"},
        False,
    )
    assert (main.text, main.is_main_result, seen.text) == ("text", True, "text")
    assert shared.run_code("None").results == []
    assert shared.run_code("'it\\'s'").text == "it's"
    assert [shared.run_code("1").execution_count + 1] == [shared.run_code("2").execution_count]


@pytest.mark.spec("ETB-02")
def test_an_error_has_name_value_and_traceback_and_the_state_stays(shared):
    shared.run_code("kept = 7")
    heard: list[str] = []
    error = shared.run_code("def f():\n    raise ValueError('bad')\nf()", on_error=lambda raised: heard.append(raised.name)).error
    assert (error.name, error.value) == ("ValueError", "bad")
    assert "raise ValueError('bad')" in error.traceback
    assert heard == ["ValueError"]
    assert shared.run_code("def f(:").error.name == "SyntaxError"
    assert shared.run_code("kept").text == "7"


@pytest.mark.spec("ETB-02")
def test_code_that_kills_its_interpreter_is_an_error_and_the_default_context_is_as_before(sandbox):
    sandbox.run_code("kept = 7")
    sandbox.commands.run("echo file > by-command.txt")
    error = sandbox.run_code("kept = 8; import os; os._exit(3)").error
    assert (error.name, "as it was before" in error.value) == ("ProcessDied", True)
    assert sandbox.run_code("kept").text == "7"
    assert sandbox.files.read("by-command.txt") == "file\n"
    context = sandbox.create_code_context()
    sandbox.run_code("other = 1", context=context)
    error = sandbox.run_code("os = __import__('os'); os._exit(3)", context=context).error
    assert (error.name, "started anew" in error.value) == ("ProcessDied", True)
    assert sandbox.run_code("'other' in globals()", context=context).text == "False"


@pytest.mark.spec("ETB-02")
def test_a_client_that_leaves_interrupts_its_code(sandbox):
    with pytest.raises(TimeoutException):
        sandbox.run_code(
            "import time\ntry:\n    while True: time.sleep(0.01)\nfinally: open('/tmp/ended', 'w').close()", timeout=1
        )
    wait_until(lambda: sandbox.files.exists("/tmp/ended"))
    assert sandbox.run_code("1 + 1").text == "2"


@pytest.mark.spec("ETB-02")
def test_variables_of_the_environment_hold_for_the_sandbox_or_for_one_execution(server):
    with interpreter.Sandbox.create(timeout=60, envs={"MINE": "sandbox"}, **server.options) as sandbox:
        look = "import os; os.environ.get('MINE'), os.environ.get('ONCE')"
        assert sandbox.run_code(look).text == "('sandbox', None)"
        assert sandbox.run_code(look, envs={"MINE": "now", "ONCE": "1"}).text == "('now', '1')"
        assert sandbox.run_code(look).text == "('sandbox', None)"
        assert sandbox.run_code(look, context=sandbox.create_code_context()).text == "('sandbox', None)"
        assert sandbox.commands.run("echo $MINE $ONCE", envs={"ONCE": "2"}).stdout == "sandbox 2\n"
        assert sandbox.run_code("sorted(n for n in globals() if 'e2b' in n or n in ('main', 'request'))").text == "[]"


@pytest.mark.spec("ETB-02")
def test_other_languages_are_refused_by_name(shared):
    with pytest.raises(SandboxException, match="'r' is not spoken here"):
        shared.run_code("1", language="r")
    assert shared.run_code("1", language="python").text == "1"


# ---------------------------------------------------------------------------------------------------- contexts


@pytest.mark.spec("ETB-03")
def test_contexts_have_variables_of_their_own_and_files_in_common(shared):
    first, second = shared.create_code_context(), shared.create_code_context(cwd="/tmp")
    shared.run_code("x = 1; open('shared.txt', 'w').write('s')", context=first)
    assert shared.run_code("'x' in globals()", context=second).text == "False"
    assert shared.run_code("open('/home/user/shared.txt').read()", context=second).text == "s"
    assert shared.run_code("import os; os.getcwd()", context=first).text == "/home/user"
    assert shared.run_code("import os; os.getcwd()", context=second).text == "/tmp"
    listed = {context.id: context.cwd for context in shared.list_code_contexts()}
    assert (listed[first.id], listed[second.id]) == ("/home/user", "/tmp")
    shared.restart_code_context(first)
    assert shared.run_code("'x' in globals()", context=first).text == "False"
    for context in (first, second):
        shared.remove_code_context(context)
    with pytest.raises(NotFoundException):
        shared.run_code("1", context=first)
    with pytest.raises(SandboxException, match="cwd"):
        shared.create_code_context(cwd="/not/there")


@pytest.mark.spec("ETB-03")
def test_contexts_run_beside_each_other(shared):
    context = shared.create_code_context()
    waiting = threading.Event()
    done: list[str] = []

    def wait_for_it() -> None:
        seen = shared.run_code(
            "import os\nos.path.exists('/tmp/gate') or os.mkfifo('/tmp/gate')\nprint('ready')\nopen('/tmp/gate').read()",
            context=context,
            on_stdout=lambda _: waiting.set(),
        )
        done.append(seen.text)

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    assert waiting.wait(ALL_S)
    shared.run_code("print('from the default context', file=open('/tmp/gate', 'w'), end='')")
    thread.join(ALL_S)
    assert done == ["from the default context"]
    shared.remove_code_context(context)


@pytest.mark.spec("ETB-03")
def test_the_default_context_can_be_started_anew(sandbox):
    sandbox.run_code("x = 1; open('f', 'w').write('kept')")
    (default,) = sandbox.list_code_contexts()
    sandbox.restart_code_context(default)
    assert sandbox.run_code("'x' in globals(), open('f').read()").text == "(False, 'kept')"


# ---------------------------------------------------------------------------------------------------- charts


@pytest.mark.spec("ETB-04")
@pytest.mark.parametrize(
    ("draw", "kind", "elements"),
    [
        ("ax.plot([1, 2], [3, 4], label='a')", "line", [("a", [(1, 3), (2, 4)])]),
        ("ax.scatter([1, 2], [3, 4], label='s')", "scatter", [("s", [(1.0, 3.0), (2.0, 4.0)])]),
        ("ax.bar(['x', 'y'], [3, 4], label='g')", "bar", [("x", 3, "g"), ("y", 4, "g")]),
        ("ax.pie([1, 3], labels=['p', 'q'])", "pie", [("p", 90.0), ("q", 270.0)]),
        (
            "ax.boxplot([[1, 2, 3, 4, 5], [2, 4, 6, 8, 10]])",
            "box_and_whisker",
            [(1.0, 2.0, 3.0, 4.0, 5.0), (2.0, 4.0, 6.0, 8.0, 10.0)],
        ),
    ],
)
def test_a_figure_tells_what_is_drawn_in_it(shared, draw, kind, elements):
    seen = shared.run_code(f"import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\n{draw}\nax.set_title('T')\nplt.show()")
    assert seen.error is None, seen.error
    (result,) = seen.results
    assert result.png.startswith("iVBOR")
    chart = result.chart
    assert (chart.type.value, chart.title) == (kind, "T")
    match kind:
        case "line" | "scatter":
            found = [(one.label, one.points) for one in chart.elements]
        case "bar":
            found = [(one.label, one.value, one.group) for one in chart.elements]
        case "pie":
            found = [(one.label, pytest.approx(one.angle, abs=0.01)) for one in chart.elements]
        case _:
            found = [(one.min, one.first_quartile, one.median, one.third_quartile, one.max) for one in chart.elements]
    assert found == elements


@pytest.mark.spec("ETB-04")
def test_several_axes_are_one_chart_of_charts_and_dates_and_frames_keep_their_meaning(shared):
    seen = shared.run_code(
        "import datetime, matplotlib.pyplot as plt\nfig, (a, b) = plt.subplots(1, 2)\na.plot([datetime.date(2026, 1, 2)], [1])\nb.bar(['x'], [1])\nplt.show()"
    )
    (result,) = seen.results
    assert (result.chart.type.value, [one.type.value for one in result.chart.elements]) == ("superchart", ["line", "bar"])
    assert result.chart.elements[0].x_scale.value == "datetime"
    assert result.chart.elements[0].elements[0].points[0][0].startswith("2026-01-02")
    frame = shared.run_code("import pandas as pd; pd.DataFrame({'a': [1, 2], 'b': ['x', None]})").results[0]
    assert (frame.data, "<table" in frame.html) == ({"a": [1, 2], "b": ["x", None]}, True)


# ---------------------------------------------------------------------------------------------------- files


@pytest.mark.spec("ETB-05")
@pytest.mark.parametrize("folder", ["/home/user/deep/er", "/tmp/deep/er", "relative/to/home"])
def test_files_are_written_and_read_in_every_way(shared, folder):
    written = shared.files.write(f"{folder}/a.txt", "höy")
    assert (written.name, written.path.endswith(f"{folder}/a.txt")) == ("a.txt", True)
    assert shared.files.read(f"{folder}/a.txt") == "höy"
    assert bytes(shared.files.read(f"{folder}/a.txt", format="bytes")) == "höy".encode()
    shared.files.write(f"{folder}/b.bin", bytes(range(256)))
    assert b"".join(shared.files.read(f"{folder}/b.bin", format="stream")) == bytes(range(256))
    shared.files.write(f"{folder}/c.gz", "packed", gzip=True)
    assert shared.files.read(f"{folder}/c.gz", gzip=True) == "packed"
    shared.files.write(f"{folder}/d.raw", io.BytesIO(b"raw"), use_octet_stream=True)
    assert shared.files.read(f"{folder}/d.raw") == "raw"
    shared.files.write(f"{folder}/empty", "")
    assert shared.files.read(f"{folder}/empty") == ""
    many = shared.files.write_files([{"path": f"{folder}/m{number}", "data": str(number)} for number in range(3)])
    assert [one.name for one in many] == ["m0", "m1", "m2"]
    assert shared.files.read(f"{folder}/m2") == "2"
    shared.files.write(f"{folder}/a.txt", "again")
    assert shared.files.read(f"{folder}/a.txt") == "again"
    assert not [one.name for one in shared.files.list(folder) if one.name.startswith(".")]
    shared.files.remove(folder)


@pytest.mark.spec("ETB-05")
@pytest.mark.parametrize("path", ["/home/user/big.bin", "/tmp/big.bin"])
def test_a_large_file_goes_up_and_down_as_it_is(shared, path):
    data = os.urandom(1 << 20) * 23 + b"odd"
    shared.files.write(path, io.BytesIO(data))
    assert b"".join(shared.files.read(path, format="stream")) == data
    shared.files.remove(path)


@pytest.mark.spec("ETB-05")
def test_folders_are_listed_made_moved_and_removed(shared):
    files = shared.files
    assert files.make_dir("/home/user/box/in") is True
    assert files.make_dir("/home/user/box/in") is False
    files.write("/home/user/box/in/f.txt", "12345")
    assert [(one.name, one.type) for one in files.list("/home/user/box")] == [("in", FileType.DIR)]
    assert [one.path for one in files.list("/home/user/box", depth=2)] == ["/home/user/box/in", "/home/user/box/in/f.txt"]
    info = files.get_info("/home/user/box/in/f.txt")
    assert (info.type, info.size, info.mode, info.permissions, info.owner) == (FileType.FILE, 5, 0o644, "-rw-r--r--", "user")
    moved = files.rename("/home/user/box/in/f.txt", "/tmp/moved/g.txt")
    assert (moved.name, moved.path, files.read("/tmp/moved/g.txt")) == ("g.txt", "/tmp/moved/g.txt", "12345")
    assert files.exists("/home/user/box/in/f.txt") is False
    shared.commands.run("ln -s /tmp/moved box/link")
    link = files.get_info("/home/user/box/link")
    assert (link.type, link.symlink_target) == (FileType.SYMLINK, "/tmp/moved")
    assert files.read("/home/user/box/link/g.txt") == "12345"
    files.write("/home/user/box/link/h.txt", "through the link")
    assert files.read("/tmp/moved/h.txt") == "through the link"
    files.remove("/home/user/box")
    assert files.exists("/home/user/box") is False
    assert files.exists("/tmp/moved/g.txt") is True
    files.remove("/tmp/moved")
    files.remove("/tmp/moved")  # again does no harm


@pytest.mark.spec("ETB-05")
def test_what_is_not_there_or_not_allowed_is_the_clients_own_error(shared):
    for path in ("/home/user/none", "/tmp/none", "/nowhere/none"):
        with pytest.raises(FileNotFoundException):
            shared.files.read(path)
        with pytest.raises(FileNotFoundException):
            shared.files.get_info(path)
        with pytest.raises(FileNotFoundException):
            shared.files.list(path)
    for path in ("/etc/new", "/opt/new"):
        with pytest.raises((InvalidArgumentException, SandboxException)):
            shared.files.write(path, "x")
    for path in ("/home/user", "/tmp", "/dev/zero"):
        with pytest.raises(InvalidArgumentException):
            shared.files.read(path)
    with pytest.raises(InvalidArgumentException):
        shared.files.list("/etc/passwd")
    with pytest.raises(FileNotFoundException):
        shared.files.rename("/home/user/none", "/home/user/other")
    for name in ("a\nb", "x" * 300):
        with contextlib.suppress(SandboxException, InvalidArgumentException):
            shared.files.write(f"/home/user/{name}", "x")
            assert shared.files.read(f"/home/user/{name}") == "x"
    assert shared.run_code("1").text == "1"


@pytest.mark.spec("ETB-05")
def test_a_full_disk_says_so(server, shared):
    with pytest.raises(SandboxException, match=r"(?i)space|disk"):
        shared.files.write("/home/user/huge", io.BytesIO(bytes(600 << 20)))
    assert shared.files.exists("/home/user/huge") is False


@pytest.mark.spec("ETB-05")
def test_a_watched_folder_tells_what_changed(shared):
    shared.files.make_dir("/home/user/watched/deep")
    shared.files.write("/home/user/watched/old", "1")
    flat = shared.files.watch_dir("/home/user/watched")
    deep = shared.files.watch_dir("/home/user/watched", recursive=True, include_entry=True)
    shared.files.write("/home/user/watched/new", "n")
    shared.commands.run("cd watched; echo more >> old; mv old moved; mkdir made; echo d > deep/file; chmod 600 new")
    kinds = FilesystemEventType
    seen = [(event.name, event.type) for event in flat.get_new_events()]
    assert {("new", kinds.CREATE), ("old", kinds.RENAME), ("moved", kinds.CREATE), ("made", kinds.CREATE)} <= set(seen)
    assert not [name for name, _ in seen if "/" in name]
    found = {event.name: event.entry for event in deep.get_new_events()}
    assert found["deep/file"].path == "/home/user/watched/deep/file"
    assert flat.get_new_events() == []
    shared.files.remove("/home/user/watched/new")
    assert [(event.name, event.type) for event in flat.get_new_events()] == [("new", kinds.REMOVE)]
    for handle in (flat, deep):
        handle.stop()
    with pytest.raises(FileNotFoundException):
        shared.files.watch_dir("/home/user/nowhere")


@pytest.mark.spec("ETB-05")
def test_a_signed_link_reads_and_writes_without_a_key(server, shared):
    shared.files.write("/home/user/linked.txt", "by link")
    path = shared.download_url("/home/user/linked.txt", use_signature_expiration=60).partition("/files")[2]
    url = f"{server.url}/e2b/files{path}"
    assert httpx.get(url).text == "by link"
    assert httpx.get(url.replace("linked", "other")).status_code == 401
    assert httpx.get(url.replace("signature=v1_", "signature=v1_x")).status_code == 401
    upload = f"{server.url}/e2b/files{shared.upload_url('/home/user/up.txt').partition('/files')[2]}"
    assert httpx.post(upload, files={"file": ("up.txt", b"up")}).status_code == 200
    assert shared.files.read("/home/user/up.txt") == "up"
    assert httpx.get(upload).status_code == 401  # for writing only


# ---------------------------------------------------------------------------------------------------- commands


@pytest.mark.spec("ETB-06")
def test_commands_have_output_exit_code_folder_and_shell(shared):
    done = shared.commands.run("echo out; echo err >&2")
    assert (done.stdout, done.stderr, done.exit_code) == ("out\n", "err\n", 0)
    with pytest.raises(CommandExitException) as caught:
        shared.commands.run("echo before; exit 3")
    assert (caught.value.exit_code, caught.value.stdout) == (3, "before\n")
    assert shared.commands.run("pwd").stdout == "/home/user\n"
    assert shared.commands.run("pwd", cwd="/tmp").stdout == "/tmp\n"
    assert shared.commands.run("a=(1 2 3); echo ${#a[@]} $BASH_VERSION").stdout.startswith("3 5")
    assert shared.commands.run("seq 3 | sort -r | tr '\\n' ' '").stdout == "3 2 1 "
    with pytest.raises(InvalidArgumentException, match="cwd"):
        shared.commands.run("true", cwd="/not/there")
    with pytest.raises(CommandExitException, match="not found"):
        shared.commands.run("no-such-program")


@pytest.mark.spec("ETB-06")
def test_output_of_a_command_arrives_while_it_runs(shared):
    shared.files.remove("/tmp/went")
    got: list[str] = []

    def line(text: str) -> None:
        got.append(text)
        shared.files.write("/tmp/went", "")

    done = shared.commands.run("echo one; while [ ! -e /tmp/went ]; do sleep 0.01; done; echo two", on_stdout=line)
    assert (got[0], done.stdout) == ("one\n", "one\ntwo\n")


@pytest.mark.spec("ETB-06")
def test_a_background_command_is_listed_spoken_to_joined_and_killed(shared):
    handle = shared.commands.run("cat; echo end", background=True, stdin=True)
    listed = {one.pid: one for one in shared.commands.list()}
    assert listed[handle.pid].args == ["-l", "-c", "cat; echo end"]
    joined = shared.commands.connect(handle.pid)
    shared.commands.send_stdin(handle.pid, "first\n")
    handle.send_stdin("x" * 200_000 + "\n")
    handle.close_stdin()
    assert handle.wait().stdout == "first\n" + "x" * 200_000 + "\nend\n"
    assert joined.wait().stdout.endswith("end\n")
    assert handle.pid not in [one.pid for one in shared.commands.list()]

    endless = shared.commands.run("sleep 1000", background=True)
    assert endless.kill() is True
    with pytest.raises(CommandExitException) as caught:
        endless.wait()
    assert caught.value.exit_code == -1
    assert shared.commands.kill(endless.pid) is False
    for call in (lambda: shared.commands.send_stdin(endless.pid, "x"), lambda: shared.commands.connect(endless.pid)):
        with pytest.raises(NotFoundException):
            call()


@pytest.mark.spec("ETB-06")
def test_commands_and_code_run_beside_each_other(shared):
    many = [
        shared.commands.run(f"mkfifo /tmp/r{number}; echo made; read line < /tmp/r{number}; echo $line", background=True)
        for number in range(4)
    ]
    shared.run_code(
        "import os, time\nwhile not all(os.path.exists(f'/tmp/r{n}') for n in range(4)): time.sleep(0.01)\nfor n in range(4): print(n * n, file=open(f'/tmp/r{n}', 'w'))"
    )
    assert [handle.wait().stdout for handle in many] == [f"made\n{number * number}\n" for number in range(4)]


@pytest.mark.spec("ETB-06")
def test_a_command_over_its_timeout_is_killed(shared):
    with pytest.raises(TimeoutException):
        shared.commands.run("sleep 1000; touch /tmp/never", timeout=1)
    wait_until(lambda: not [one for one in shared.commands.list() if "never" in one.args[-1]])


@pytest.mark.spec("ETB-06")
def test_a_server_left_by_a_command_lives_on_and_prints_into_no_other_command(shared):
    shared.commands.run("(while true; do echo noise; sleep 0.05; done) & echo started")
    for _ in range(3):
        assert shared.commands.run("sleep 0.1; echo clean").stdout == "clean\n"
    shared.commands.run("python3 -m http.server 8123 > /tmp/server.log 2>&1 &")
    look = "import urllib.request, time\nfor _ in range(500):\n    try: print(urllib.request.urlopen('http://127.0.0.1:8123').status); break\n    except OSError: time.sleep(0.02)"
    assert shared.run_code(look).logs.stdout == ["200\n"]


@pytest.mark.spec("ETB-06")
def test_terminals_are_refused_by_name(shared):
    with pytest.raises(SandboxException, match="no terminals"):
        shared.pty.create(size=e2b.PtySize(rows=24, cols=80))


# ---------------------------------------------------------------------------------------------------- control


@pytest.mark.spec("ETB-07")
def test_sandboxes_are_listed_by_metadata_inspected_connected_to_and_killed(server):
    made = [interpreter.Sandbox.create(timeout=300, metadata={"app": "list", "n": str(n)}, **server.options) for n in range(3)]
    query = e2b.SandboxQuery(metadata={"app": "list"})
    pages = interpreter.Sandbox.list(query=query, limit=2, **_api(server))
    found = [one.sandbox_id for one in pages.next_items()]
    assert len(found) == 2
    assert pages.has_next
    found += [one.sandbox_id for one in pages.next_items()]
    assert sorted(found) == sorted(one.sandbox_id for one in made)
    info = made[0].get_info()
    assert (info.metadata, info.state.value, info.template_id) == ({"app": "list", "n": "0"}, "running", "code-interpreter-v1")
    made[0].run_code("x = 5")
    again = interpreter.Sandbox.connect(made[0].sandbox_id, **server.options)
    assert again.run_code("x").text == "5"
    assert made[0].is_running() is True
    for one in made:
        assert one.kill() is True
        assert one.kill() is False
        assert one.is_running() is False
    with pytest.raises(NotFoundException):
        interpreter.Sandbox.connect(made[0].sandbox_id, **server.options)
    with pytest.raises(SandboxException, match=r"(?i)timeout|not found|not running"):
        made[0].run_code("1")


def _api(server):
    return {"api_url": server.options["api_url"], "api_key": server.token}


@pytest.mark.spec("ETB-07")
def test_a_sandbox_ends_at_its_time_and_the_time_can_be_moved(server):
    short = interpreter.Sandbox.create(timeout=2, **server.options)
    longer = interpreter.Sandbox.create(timeout=2, **server.options)
    longer.set_timeout(300)
    wait_until(lambda: not short.is_running())
    assert longer.is_running()
    ends_in = (longer.get_info().end_at - longer.get_info().started_at).total_seconds()
    assert 290 < ends_in < 310
    longer.kill()
    with pytest.raises(SandboxException, match="24 hours"):
        interpreter.Sandbox.create(timeout=100_000_000, **server.options)


@pytest.mark.spec("ETB-07")
def test_a_paused_sandbox_is_kept_and_goes_on_when_connected_to(server):
    sandbox = interpreter.Sandbox.create(timeout=300, **server.options)
    sandbox.run_code("x = 5")
    assert sandbox.pause() is True
    assert sandbox.pause() is False
    assert sandbox.is_running() is False
    states = {one.sandbox_id: one.state.value for one in interpreter.Sandbox.list(**_api(server)).next_items()}
    assert states[sandbox.sandbox_id] == "paused"
    again = sandbox.connect()
    assert again.run_code("x").text == "5"
    again.kill()


@pytest.mark.spec("ETB-07")
def test_a_fork_and_a_snapshot_begin_with_variables_and_files(server):
    origin = interpreter.Sandbox.create(timeout=300, **server.options)
    origin.run_code("x = [1]\nopen('f', 'w').write('origin')")
    forks = origin.fork(count=2)
    snapshot = origin.create_snapshot()
    origin.run_code("x.append(2)\nopen('f', 'w').write('changed')")
    origin.kill()
    made = interpreter.Sandbox.create(snapshot.snapshot_id, timeout=300, **server.options)
    for one in (*forks, made):
        assert one.run_code("x, open('f').read()").text == "([1], 'origin')"
        one.run_code("x.append(one := 3)\nopen('own', 'w').write('o')")
        assert one.files.read("/home/user/f") == "origin"
        assert sorted(file.name for file in one.files.list("/home/user")) == ["f", "own"]
        one.files.write("/home/user/g", "given")
        assert one.commands.run("cat f g; cat ~/own; cd /home/user 2>/dev/null; true").stdout == "origingiveno"
        context = one.create_code_context()
        assert one.run_code("open('own').read(), 'x' in globals()", context=context).text == "('o', False)"
        one.kill()
    assert snapshot.snapshot_id in [one.snapshot_id for one in interpreter.Sandbox.list_snapshots(**_api(server)).next_items()]
    assert interpreter.Sandbox.delete_snapshot(snapshot.snapshot_id, **_api(server)) is True
    with pytest.raises(SandboxException, match="no snapshot"):
        interpreter.Sandbox.create(snapshot.snapshot_id, timeout=60, **server.options)


@pytest.mark.spec("ETB-07")
def test_what_there_is_not_is_refused_with_a_reason(server, sandbox):
    for options in ({"allow_internet_access": True}, {"mcp": {"duckduckgo": {}}}):
        with pytest.raises(SandboxException, match="(?i)network|mcp"):
            interpreter.Sandbox.create(timeout=60, **options, **server.options)
    with pytest.raises(SandboxException, match="501"):
        sandbox.get_metrics()


@pytest.mark.spec("ETB-08")
def test_wrong_keys_and_tokens_and_sandboxes_of_others_are_refused(server, sandbox):
    with pytest.raises(AuthenticationException):
        interpreter.Sandbox.create(timeout=60, **{**server.options, "api_key": "e2b_0000"})
    where = f"{server.url}/e2b"
    named = {"E2b-Sandbox-Id": sandbox.sandbox_id}
    for headers, status in (
        ({}, 400),
        (named, 401),
        ({**named, "X-Access-Token": "wrong"}, 401),
        ({"E2b-Sandbox-Id": "0" * 24, "X-Access-Token": "x"}, 502),
    ):
        for method, path in (
            ("POST", "/execute"),
            ("GET", "/files?path=/home/user/a"),
            ("POST", "/contexts"),
            ("GET", "/health"),
        ):
            answer = httpx.request(method, where + path, headers=headers, json={"code": "1"} if method == "POST" else None)
            assert answer.status_code == status, (method, path, answer.text)
            assert answer.json()["code"] == status
        rpc = httpx.post(f"{where}/filesystem.Filesystem/Stat", headers=headers, json={"path": "/"})
        assert rpc.status_code == status
    other = {**_api(server), "api_key": server.other}
    assert sandbox.sandbox_id not in [one.sandbox_id for one in interpreter.Sandbox.list(**other).next_items()]
    assert interpreter.Sandbox.kill(sandbox.sandbox_id, **other) is False
    with pytest.raises(NotFoundException):
        interpreter.Sandbox.connect(sandbox.sandbox_id, **{**server.options, "api_key": other["api_key"]})


@pytest.mark.spec("ETB-08")
def test_bad_requests_get_an_error_of_the_table_and_harm_nothing(server, sandbox):
    where = f"{server.url}/e2b"
    info = httpx.post(f"{where}/sandboxes/{sandbox.sandbox_id}/connect", headers={"X-API-Key": server.token}, json={}).json()
    mine = {"E2b-Sandbox-Id": sandbox.sandbox_id, "X-Access-Token": info["envdAccessToken"]}
    stream = {**mine, "Content-Type": "application/connect+json"}
    cases = [
        ("/execute", mine, b"{", 400),
        ("/execute", mine, b'{"code": 1}', 400),
        ("/execute", mine, b'{"code": "1", "language": "python", "context_id": "default"}', 400),
        ("/execute", mine, b'{"code": "1", "context_id": "nobody"}', 404),
        ("/execute", mine, b"\xff\xfe", 400),
        ("/files?path=/home/user/x", mine, b"plain body", 200),
        ("/files?path=", mine, b"x", 400),
        ("/files?path=/home/user/x", {**mine, "Content-Encoding": "gzip"}, b"not gzip", 400),
        ("/files?path=/home/user/x", {**mine, "Content-Encoding": "br"}, b"x", 400),
        ("/files", {**mine, "Content-Type": "multipart/form-data; boundary=b"}, b"--b--\r\n", 400),
        ("/filesystem.Filesystem/Stat", {**mine, "Content-Type": "application/proto"}, b"", 501),
        ("/filesystem.Filesystem/ListDir", {**mine, "Content-Type": "application/json"}, b'{"path": "/tmp", "depth": 1000}', 400),
        ("/filesystem.Filesystem/Nothing", {**mine, "Content-Type": "application/json"}, b"{}", 404),
        ("/process.Process/Start", stream, b"", 400),
        ("/process.Process/Start", stream, b"\x01\x00\x00\x00\x02{}", 501),
        ("/process.Process/Start", stream, b"\x00\xff\xff\xff\xff{}", 400),
        ("/process.Process/Start", {**stream, "Connect-Timeout-Ms": "x"}, _envelope({"process": {"cmd": "true"}}), 400),
        ("/process.Process/Start", stream, _envelope({"process": {"cmd": "/no/such"}}), 404),
        ("/process.Process/Start", stream, _envelope({"process": {"cmd": "nul\0"}}), 400),
        (
            "/process.Process/SendSignal",
            {**mine, "Content-Type": "application/json"},
            b'{"process": {"pid": 1}, "signal": "SIGNAL_SIGKILL"}',
            404,
        ),
    ]
    for path, headers, body, status in cases:
        answer = httpx.post(where + path, headers=headers, content=body)
        assert answer.status_code == status, (path, body, answer.status_code, answer.text)
        if status >= 400 and "only one of" not in answer.text.lower():
            assert answer.json()["message"], path
    bomb = gzip.compress(bytes(600 << 20))
    answer = httpx.post(
        f"{where}/files?path=/home/user/bomb", headers={**mine, "Content-Encoding": "gzip"}, content=bomb, timeout=60
    )
    assert answer.status_code == 507, answer.text
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=ALL_S) as raw:  # what it says is enough to refuse it
        head = {**mine, "Host": host, "Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(600 << 20)}
        lines = ["POST /e2b/files HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
        raw.sendall("\r\n".join(lines).encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 413 ")
    assert sandbox.run_code("1 + 1").text == "2"


def _envelope(message) -> bytes:
    body = json.dumps(message).encode()
    return b"\0" + len(body).to_bytes(4) + body


@pytest.mark.spec("ETB-08")
def test_a_sandbox_that_meddles_with_our_helpers_harms_only_itself(server, sandbox):
    sandbox.commands.run("echo warm")
    sandbox.files.list("/tmp")
    attack = "import glob, os\nfor name in glob.glob('/tmp/.e2b-*') + glob.glob('/proc/[0-9]*/fd/*'):\n    try: open(name, 'wb', buffering=0).write(b'i\\xff\\xff\\xff\\xff' * 1000)\n    except OSError: pass"
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.run_code(attack, timeout=30)
    handle.kill()
    assert sandbox.run_code("1 + 1").text == "2"
    assert httpx.get(f"{server.url}/healthz").status_code == 200


@pytest.mark.slow
@pytest.mark.spec("ETB-09")
def test_a_server_that_is_killed_loses_no_sandbox_and_no_context(tmp_path):
    server = Server(tmp_path)
    try:
        sandbox = interpreter.Sandbox.create(timeout=300, metadata={"kept": "yes"}, **server.options)
        context = sandbox.create_code_context(cwd="/tmp")
        sandbox.run_code("x = 1\nopen('f', 'w').write('file')")
        sandbox.run_code("y = 2", context=context)
        sandbox.commands.run("sleep 1000", background=True)
        port = int(server.url.rpartition(":")[2])
        server.kill()
        server.start(port=port)
        assert sandbox.run_code("x, open('f').read()").text == "(1, 'file')"
        assert sandbox.run_code("import os; y, os.getcwd()", context=context).text == "(2, '/tmp')"
        assert sandbox.get_info().metadata == {"kept": "yes"}
        assert sandbox.commands.run("echo works").stdout == "works\n"
        assert sandbox.kill() is True
    finally:
        server.stop()
