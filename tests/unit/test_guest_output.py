"""What the program writes and shows: order, promptness, speed, displays."""

import os
import sys
import time
from base64 import b64encode

import pytest
from guest_process import GuestProcess

from onetrip import environments
from onetrip.errors import OnetripError


def _default_packages():
    """The default environment's packages, when they are for the interpreter that runs this."""
    try:
        found = environments.find("default")
    except OnetripError:
        return ""
    return found.site_packages if found.python.version.split(".")[:2] == list(map(str, sys.version_info[:2])) else ""


SITE = os.environ.get("ONETRIP_TEST_SITE") or _default_packages()
needs_libraries = pytest.mark.skipif(
    not SITE, reason="needs numpy, pandas and matplotlib: no default environment for this interpreter"
)


@pytest.fixture(scope="module")
def shared():
    with GuestProcess() as guest:
        yield guest


@pytest.fixture
def guest():
    with GuestProcess() as guest:
        yield guest


@pytest.fixture(scope="module")
def plotting():
    with GuestProcess(site=SITE, imports="numpy pandas matplotlib.pyplot") as guest:
        yield guest


def shown(got):
    return [{k: v for k, v in d.items() if k != "is_result"} for d in got["displays"]]


# ---------------------------------------------------------------------------------------------------- streams


def test_order_within_stdout_holds_across_children_c_code_and_descriptors(shared):
    code = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None)
print("1 python")
os.write(1, b"2 descriptor\\n")
print("3 part ", end="")
subprocess.run(["echo", "and child"])
libc.printf(b"4 c\\n")
print("5 part ", end="")
os.system("echo and shell")
print("6 part ", end="")
pid = os.fork()
if not pid:
    print("and fork")
    sys.stdout.flush()
    os._exit(0)
os.waitpid(pid, 0)
sys.stdout.buffer.write(b"7 buffer\\n")
print("8 python")
libc.printf(b"9 c without end")
"""
    assert shared.run(code)["stdout"].splitlines() == [
        "1 python",
        "2 descriptor",
        "3 part and child",
        "4 c",
        "5 part and shell",
        "6 part and fork",
        "7 buffer",
        "8 python",
        "9 c without end",
    ]


def test_order_between_stdout_and_stderr_is_what_the_host_sees(shared):
    got = shared.run("import sys\nfor i in range(20):\n    print('o', i)\n    print('e', i, file=sys.stderr)")
    order = [text for stream, data in got["events"] for text in data.decode().splitlines()]
    assert order == [f"{s} {i}" for i in range(20) for s in "oe"]


def test_display_comes_after_what_was_printed_before_it(shared):
    got = shared.run("print('before', end='')\ndisplay(1)\nprint('after')")
    assert [(kind, bytes(data) if kind == "stdout" else data) for kind, data in got["events"]] == [
        ("stdout", b"before"),
        ("display", {"text/plain": b"1"}),
        ("stdout", b"after\n"),
    ]


def test_a_line_arrives_while_the_cell_still_runs(shared):
    # The cell waits for a file that is made only when its line has arrived.
    shared.start("import os, time\nprint('go')\nwhile not os.path.exists('seen'): time.sleep(0.001)\nprint('end')")
    fd = next(fd for fd, name in shared._fds.items() if name == "stdout")
    assert os.read(fd, 100) == b"go\n"
    (shared.work / "seen").touch()
    assert shared.finish()["stdout"] == "end\n"


def test_the_end_of_a_burst_arrives_while_the_cell_still_runs(guest):
    code = "import os, time\nfor i in range(5000): print(i)\nwhile not os.path.exists('seen'): time.sleep(0.001)"
    guest.start(code)
    fd = next(fd for fd, name in guest._fds.items() if name == "stdout")
    data = b""
    while not data.endswith(b"\n4999\n"):
        data += os.read(fd, 65536)
    (guest.work / "seen").touch()
    assert guest.finish()["stdout"] == ""
    assert data.decode().split() == [str(i) for i in range(5000)]


def test_no_thread_is_left_after_a_burst(guest):
    got = guest.run("for i in range(5000): print(i)")
    assert got["stdout"].split() == [str(i) for i in range(5000)]
    assert guest.run("import os\nlen(os.listdir('/proc/self/task'))")["done"]["value"] == 1


@pytest.mark.parametrize("code", ["for i in range(100_000): print(line)", "print((line + '\\n') * 100_000)"])
def test_ten_megabytes_arrive_whole(guest, code):
    guest.run("line = 'x' * 99")
    began = time.monotonic()
    got = guest.run(code)
    seconds = time.monotonic() - began
    assert len(got["stdout"]) in (10_000_000, 10_000_001)
    assert seconds < 2  # 5 MB/s: a guard against a system call per character, not a measurement


def test_streams_are_real_text_files(shared):
    code = """
import io, sys
[sys.stdout.fileno(), sys.stderr.fileno(), sys.stdout.isatty(), sys.stdout.encoding, sys.stdout.errors, sys.stdout.name,
 sys.stdout.mode, isinstance(sys.stdout, io.TextIOWrapper), sys.stdout is sys.__stdout__, sys.stdout.writable(), type(sys.stdout).__module__]
"""
    assert shared.run(code)["done"]["value"] == [
        1,
        2,
        False,
        "utf-8",
        "backslashreplace",
        "<stdout>",
        "w",
        True,
        True,
        True,
        "io",
    ]


def test_surrogates_reconfigure_and_writelines(guest):
    got = guest.run(
        "import sys\nprint('\\ud800')\nsys.stdout.reconfigure(errors='replace')\nprint('\\ud800')\nsys.stdout.writelines(['a', 'b\\n'])"
    )
    assert got["stdout"] == "\\ud800\n?\nab\n"


def test_closed_and_replaced_streams(guest):
    guest.run("import io, sys\nprint('x')\nsys.stdout.close()")
    assert guest.run("print('open again')")["stdout"] == "open again\n"
    guest.run("own = sys.stdout = io.StringIO()\nprint('kept')")
    assert guest.run("print('kept too')")["stdout"] == ""
    assert guest.run("sys.stdout = sys.__stdout__\nown.getvalue()")["done"]["value"] == "kept\nkept too\n"
    assert (
        guest.run("sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')\nprint('wrapped')")["stdout"] == "wrapped\n"
    )


def test_an_error_in_writing_shows_no_frame_of_ours(shared):
    got = shared.run("import sys\nsys.stdout.write(5)")["done"]["error"]
    assert [line for line in got["traceback"].splitlines() if "File" in line] == [
        f'  File "<cell {shared._cells}>", line 2, in <module>'
    ]


def test_threads_that_outlive_a_cell_go_on_writing(guest):
    guest.run(
        "import threading\ngo, ended = threading.Event(), threading.Event()\ndef w():\n    go.wait()\n    print('late')\n    ended.set()\nthreading.Thread(target=w).start()"
    )
    assert guest.run("go.set()\nended.wait()")["stdout"] == "late\n"


# ---------------------------------------------------------------------------------------------------- displays


class_with = "class A:\n    def __repr__(self): return 'plain'\n"


def test_result_with_a_rich_form_is_a_display_too(shared):
    got = shared.run(class_with + "    def _repr_html_(self): return '<b>ü</b>'\nA()")
    assert got["displays"] == [{"text/plain": b"plain", "text/html": "<b>ü</b>".encode(), "is_result": True}]
    assert got["done"]["text"] == "plain"


def test_plain_results_are_not_displays(shared):
    assert shared.run("[1, 'a', None]")["displays"] == []
    assert shared.run(class_with + "    def _repr_html_(self): return '<b>'\nA")["displays"] == []


def test_every_kind_of_repr_method(shared):
    png = b64encode(b"\x89PNG").decode()
    code = f"""
class A:
    def __repr__(self): return 'plain'
    def _repr_mimebundle_(self, include=None, exclude=None): return {{'text/html': 'bundle', 'application/x+json': {{'a': 1}}}}, {{'meta': 1}}
    def _repr_html_(self): return 'method'
    def _repr_markdown_(self): return '*m*'
    def _repr_svg_(self): return '<svg/>', {{'isolated': True}}
    def _repr_png_(self): return {png!r}
    def _repr_jpeg_(self): return b'jpeg'
    def _repr_latex_(self): raise ValueError('skipped')
    def _repr_json_(self): return {{'k': [1, None]}}
    def _repr_pdf_(self): return None
display(A())
"""
    assert shown(shared.run(code)) == [
        {
            "text/plain": b"plain",
            "text/html": b"bundle",
            "application/x+json": b'{"a":1}',
            "text/markdown": b"*m*",
            "image/svg+xml": b"<svg/>",
            "image/png": b"\x89PNG",
            "image/jpeg": b"jpeg",
            "application/json": b'{"k":[1,null]}',
        }
    ]


def test_object_that_answers_to_every_name_is_plain(shared):
    code = class_with + "    def __getattr__(self, name): return lambda *a, **k: 'anything'\nA()"
    got = shared.run(code)
    assert (got["done"]["text"], got["displays"]) == ("plain", [])


def test_ipython_display_method_shows_itself(shared):
    got = shared.run(class_with + "    def _ipython_display_(self): print('mine')\nA()\n")
    assert (got["stdout"], got["displays"]) == ("mine\n", [])


def test_display_shows_each_object_and_raw_bundles(shared):
    got = shared.run("display('a', 2)\ndisplay({'text/html': '<i>'}, raw=True)")
    assert shown(got) == [{"text/plain": b"'a'"}, {"text/plain": b"2"}, {"text/html": b"<i>"}]


def test_broken_repr_in_display_does_not_end_the_cell(shared):
    got = shared.run("class R:\n    def __repr__(self): raise OSError\ndisplay(R())\n'went on'")
    assert (shown(got), got["done"]["value"]) == ([{"text/plain": b"<R: its repr() raised OSError>"}], "went on")


def test_display_after_its_cell_prints_instead_of_breaking_the_protocol(guest):
    guest.run(
        "import threading\ngo, ended = threading.Event(), threading.Event()\ndef w():\n    go.wait()\n    display('late')\n    ended.set()\nthreading.Thread(target=w).start()\nimport os\npid = os.fork()\nif not pid:\n    display('child')\n    os._exit(0)\nos.waitpid(pid, 0)"
    )
    got = guest.run("go.set()\nended.wait()\n1")
    assert got["done"]["value"] == 1


def test_large_display_travels_in_many_packets(shared):
    got = shared.run(class_with + "    def _repr_png_(self): return bytes(3_000_000)\ndisplay(A())")
    assert len(shown(got)[0]["image/png"]) == 3_000_000


def test_display_over_the_protocols_limit_is_replaced_by_its_text(shared):
    got = shared.run(class_with + "    def _repr_png_(self): return bytes(70 << 20)\ndisplay(A())\n1")
    assert (got["displays"], got["stdout"], got["done"]["value"]) == ([], "plain\n", 1)


def test_text_is_that_of_a_notebook(shared):
    code = "class A: pass\n[int, {'b', 'a'}, len, ValueError('x')]"
    assert shared.run(code)["done"]["text"] == "[int, {'a', 'b'}, <function len(obj, /)>, ValueError('x')]"


def test_huge_text_is_cut_in_the_middle(shared):
    text = shared.run("'x' * 5_000_000")["done"]["text"]
    assert len(text) < 1_100_000
    assert "characters left out" in text


# ---------------------------------------------------------------------------------------------------- libraries


@needs_libraries
@pytest.mark.slow
def test_figures_are_shown_at_the_end_in_their_order_and_closed(plotting):
    got = plotting.run("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.figure()\nplt.plot([3])\nprint('x');")
    assert [sorted(d) for d in shown(got)] == [["image/png", "text/plain"]] * 2
    assert all(d["image/png"].startswith(b"\x89PNG") for d in shown(got))
    assert plotting.run("plt.get_fignums()")["done"]["value"] == []


@needs_libraries
def test_show_flushes_at_once(plotting):
    got = plotting.run("plt.plot([1])\nplt.show()\nprint('after')")
    assert [kind for kind, _ in got["events"]] == ["display", "stdout"]


@needs_libraries
def test_empty_figure_has_no_image(plotting):
    assert shown(plotting.run("plt.figure();")) == [{"text/plain": b"<Figure size 640x480 with 0 Axes>"}]


@needs_libraries
def test_figure_that_cannot_be_drawn_is_the_cells_error(plotting):
    got = plotting.run("plt.title('$\\\\undefined{$')\nplt.show()\nprint('went on')")
    assert (got["stdout"], got["done"]["error"]["type"], got["displays"]) == ("went on\n", "ValueError", [])


@needs_libraries
def test_figures_are_shown_after_an_error_too(plotting):
    got = plotting.run("plt.plot([1])\n1 / 0")
    assert [sorted(d) for d in shown(got)] == [["image/png", "text/plain"]]
    assert got["done"]["error"]["type"] == "ZeroDivisionError"


@needs_libraries
def test_data_frames_have_html_and_a_json_form(plotting):
    got = plotting.run("import pandas as pd\npd.DataFrame({'a': [1, 2], 'b': [0.5, None]}, index=['x', 'y'])")
    assert [sorted(d) for d in shown(got)] == [["text/html", "text/plain"]]
    assert got["done"]["value"] == {"columns": ["a", "b"], "index": ["x", "y"], "data": [[1, 0.5], [2, None]]}


@needs_libraries
@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("np.float32(0.5)", 0.5),
        ("np.arange(4).reshape(2, 2)", [[0, 1], [2, 3]]),
        ("np.array([1.0, np.nan, np.inf])", [1.0, None, None]),
        ("np.array(['2020-01-01'], dtype='M8[D]')", ["2020-01-01"]),
        ("np.bool_(True)", True),
        ("pd.Series([1, 2], name='n', index=[3, 4])", {"name": "n", "index": [3, 4], "data": [1, 2]}),
        ("pd.Timestamp('2020-01-02 03:04')", "2020-01-02T03:04:00"),
        ("pd.Index(['a'])", ["a"]),
        ("{'t': pd.NaT, 'n': pd.NA, 'x': np.int64(5)}", {"t": None, "n": None, "x": 5}),
        ("pd.DataFrame()", {"columns": [], "index": [], "data": []}),
    ],
)
def test_json_form_of_library_values(plotting, code, value):
    got = plotting.run(f"import numpy as np, pandas as pd\n{code}")["done"]
    assert (got["has_value"], got["value"]) == (True, value)


@needs_libraries
@pytest.mark.parametrize(
    "code", ["np.array([1j])", "np.zeros(200_000)", "pd.NaT", "np.float64('nan')", "pd.DataFrame(np.zeros((1000, 200)))"]
)
def test_library_values_without_a_json_form(plotting, code):
    got = plotting.run(f"import numpy as np, pandas as pd\n{code}")["done"]
    assert (got["has_value"], got["value"], got["error"]) == (False, None, None)


@needs_libraries
@pytest.mark.slow
def test_random_numbers_differ_between_forks_of_one_zygote():
    code = "import random, tempfile, uuid, numpy as np\n[random.random(), np.random.random(), uuid.uuid1().node != 0, next(tempfile._get_candidate_names())]"
    seen = []
    for _ in range(2):
        with GuestProcess(site=SITE, imports="numpy random tempfile uuid") as guest:
            seen.append(guest.run(code)["done"]["value"])
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]
    assert seen[0][3] != seen[1][3]
