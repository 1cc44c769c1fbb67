"""What cannot be, and hosts that lack something: an error of ours that names field or step and the remedy, and nothing left."""

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

import onetrip
from onetrip import Limits

# ---------------------------------------------------------------------------------------------------- requests


@pytest.mark.spec("BAD-01", "BAD-02", "BAD-06")
@pytest.mark.parametrize(
    ("code", "options", "field", "words"),
    [
        ("x = '\0'", {}, "code", ["NUL", "line 1"]),
        ("x = 1\n'\ud800'", {}, "code", ["surrogate", "line 2"]),
        (b"1", {}, "code", ["str", "bytes"]),
        (None, {}, "code", ["str", "NoneType"]),
        ("#" * 50_000_000, {}, "code", ["50,000,000 bytes", "10 MiB"]),
        ("1", {"inputs": {"not a name": 1}}, "inputs.not a name", ["not a name"]),
        ("1", {"inputs": {"x": object()}}, "inputs", ["not JSON"]),
        ("1", {"timeout_s": -1}, "timeout_s", ["0.01"]),
        ("1", {"timeout_s": float("nan")}, "timeout_s", ["0.01"]),
        ("1", {"timeout_s": "soon"}, "timeout_s", ["number"]),
    ],
)
def test_a_cell_that_cannot_be_is_refused_and_its_session_goes_on(session, ot, value, code, options, field, words):
    for run in (session.run, ot.run):
        with pytest.raises(onetrip.BadRequest) as caught:
            run(code, **options)
        assert caught.value.field == field
        assert [word for word in words if word not in str(caught.value)] == []
        assert caught.value.hint
    assert value(session, "1 + 1") == 2


@pytest.mark.spec("BAD-04", "BAD-10", "ENV-06")
@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"limits": Limits(wall_s=-1)}, "limits.wall_s", ["0.01"]),
        ({"limits": Limits(memory_mb=0)}, "limits.memory_mb", ["32"]),
        ({"limits": {"memory_mb": 10**12}}, "limits.memory_mb", ["32"]),
        ({"limits": {"processes": 1.5}}, "limits", ["int"]),
        ({"limits": {"wall": 3}}, "limits", ["wall"]),
        ({"limits": "many"}, "limits", []),
        ({"policy": {"network": "on"}}, "policy", ["network"]),
        ({"environment": "there-is-no-such"}, "environment", ["there-is-no-such"]),
        ({"environment": "../default"}, "environment", ["../default"]),
        ({"environment": ""}, "environment", []),
        ({"isolation_floor": "none"}, "isolation_floor", ["strict", "reduced"]),
        ({"files": {"../x": b""}}, "path", ["../x"]),
        ({"files": {"x": 5}}, "files", ["int"]),
    ],
)
def test_a_session_that_cannot_be_is_refused_before_anything_starts(ot, descendants, options, field, words):
    ot.run("1")
    for open_ in (ot.session, lambda **asked: ot.run("1", **asked)):
        with pytest.raises(onetrip.BadRequest) as caught:
            open_(**options)
        assert caught.value.field == field, caught.value
        assert [word for word in words if word not in str(caught.value)] == []
        assert caught.value.hint
    assert ot.run("1 + 1").text == "2"


@pytest.mark.spec("API-01")
def test_an_option_that_does_not_exist_is_a_bad_request():
    with pytest.raises(onetrip.BadRequest, match="wram"):
        onetrip.local(wram=3)


@pytest.mark.spec("API-01")
def test_more_sandboxes_than_allowed_are_refused_and_come_back():
    with onetrip.local(warm=0, max_live=2) as ot:
        one, two = ot.session(), ot.session()
        with pytest.raises(onetrip.Overloaded, match="2 sandboxes"):
            ot.session()
        one.close()
        assert ot.run("1 + 1").text == "2"
        assert two.run("2 + 2").text == "4"


# ---------------------------------------------------------------------------------------------------- hosts

# Root of a user namespace of its own, with mounts of its own: there a test may take things away without harm.
NAMESPACE = """
import os
from onetrip.jail import enter, syscalls
uid, gid = os.geteuid(), os.getegid()
syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
enter.write_maps("/proc/self", f"0 {uid} 1", f"0 {gid} 1", deny_setgroups=True)
"""
# Runs `1 + 1` and says what came of it.
RUN = """
import onetrip, os, sys
from onetrip import errors
with onetrip.local(warm=0) as ot:
    try:
        result = ot.run("1 + 1", isolation_floor=FLOOR)
        print(result.text, result.isolation.level, flush=True)
    except errors.OnetripError as err:
        print(type(err).__name__, "|", err, "|", err.hint, flush=True)
"""


@pytest.fixture
def temporary():
    with tempfile.TemporaryDirectory(prefix="host-") as folder:
        yield Path(folder)


def on_host(preparation: str, temporary: Path | str, *, floor: str = "strict", **variables: str) -> str:
    """What such a host says; fails when it says anything on stderr, which would be a traceback of ours."""
    program = textwrap.dedent(preparation) + RUN.replace("FLOOR", repr(floor))
    environ = {**os.environ, "TMPDIR": str(temporary), **variables}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, timeout=60, check=False)
    assert (ran.stderr, ran.returncode) == ("", 0)
    return ran.stdout.strip()


@pytest.mark.spec("ISO-10", "ISO-01")
def test_a_user_namespace_without_a_range_of_ids_gives_strict_all_the_same(temporary):
    assert on_host(NAMESPACE, temporary) == "2 strict"
    assert list(temporary.iterdir()) == []


@pytest.mark.spec("BAD-09", "ISO-11")
def test_a_host_without_user_namespaces_starts_nothing_and_names_the_remedy(temporary):
    without = NAMESPACE + "open('/proc/sys/user/max_user_namespaces', 'w').write('0')\n"
    said = on_host(without, temporary)
    assert said.startswith("IsolationUnavailable | this host cannot give isolation level “strict”")
    assert "userns" in said
    assert "limited to 0" in said
    assert said.endswith("sysctl user.max_user_namespaces=10000`.")
    assert list(temporary.iterdir()) == []


@pytest.mark.spec("ISO-11", "ISO-12")
def test_the_same_host_runs_at_the_reduced_level_when_the_caller_lowers_the_floor(temporary):
    without = NAMESPACE + "open('/proc/sys/user/max_user_namespaces', 'w').write('0')\n"
    assert on_host(without, temporary, floor="reduced") == "2 reduced"
    assert list(temporary.iterdir()) == []


@pytest.mark.spec("BAD-09")
def test_a_host_without_dev_shm_works(temporary):
    nodes = """
        from pathlib import Path
        old = Path(os.environ["TMPDIR"]) / "dev"
        old.mkdir()
        syscalls.mount("/dev", str(old), None, syscalls.MS_BIND | syscalls.MS_REC, None)
        syscalls.mount("none", "/dev", "tmpfs", 0, None)
        for name in ("null", "zero", "full", "random", "urandom"):
            (Path("/dev") / name).touch()
            syscalls.mount(str(old / name), f"/dev/{name}", None, syscalls.MS_BIND, None)
        assert not Path("/dev/shm").exists()
    """
    assert on_host(NAMESPACE + textwrap.dedent(nodes), temporary) == "2 strict"


@pytest.mark.spec("BAD-07")
def test_full_temporary_folders_are_said_and_leave_nothing(temporary):
    full = """
        import tempfile
        syscalls.mount("none", os.environ["TMPDIR"], "tmpfs", 0, "size=4k,nr_inodes=2")
        open(os.environ["TMPDIR"] + "/last", "w").close()
        tempfile._candidate_tempdir_list = lambda: [os.environ["TMPDIR"]]  # /tmp and the like would be full, too
    """
    kind, message, hint = on_host(NAMESPACE + textwrap.dedent(full), temporary).split(" | ")
    assert (kind, hint) == ("Unavailable", "Set TMPDIR to a folder with free space.")
    assert message.startswith("no temporary folder could be made: ")


@pytest.mark.spec("BAD-08")
@pytest.mark.parametrize("home", ["/nonexistent", "/proc", ""])
def test_a_home_that_cannot_be_written_does_not_matter_for_a_run(temporary, home):
    assert on_host("", temporary, HOME=home) == "2 strict"


@pytest.mark.spec("BAD-08")
def test_without_any_environment_the_error_names_the_remedy(temporary):
    said = on_host("", temporary, ONETRIP_HOME=str(temporary / "empty"))
    assert said.startswith("UnknownEnvironment | ")
    assert "onetrip env build" in said


@pytest.mark.spec("BAD-07")
def test_a_temporary_folder_with_a_long_name_works(temporary):
    long = temporary / ("long" * 30)
    long.mkdir()
    assert on_host("", long) == "2 strict"
    assert list(long.iterdir()) == []


@pytest.mark.slow
@pytest.mark.spec("END-03")
@pytest.mark.parametrize("few", range(26, 37))
def test_a_host_out_of_descriptors_says_so_and_recovers(temporary, few):
    """A session has about ten: with eleven numbers in a row each step meets the limit once."""
    program = """
        import onetrip, os, resource, sys
        with onetrip.local(warm=0) as ot:
            ot.run("1")
            used = max(map(int, os.listdir("/proc/self/fd")))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + int(sys.argv[1]), 4096))
            sessions, failure = [], None
            while failure is None:
                try:
                    sessions.append(ot.session())
                except onetrip.OnetripError as err:
                    failure = err
            print(type(failure).__name__, len(sessions) < 10)
            for session in sessions:
                session.close()
            print(ot.run("1 + 1").text)
    """
    environ = {**os.environ, "TMPDIR": str(temporary)}
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(few)],
        capture_output=True,
        text=True,
        env=environ,
        timeout=60,
        check=False,
    )
    assert (ran.stderr, ran.returncode) == ("", 0)
    assert ran.stdout.splitlines() in (["SandboxFailed True", "2"], ["Unavailable True", "2"])
    assert list(temporary.iterdir()) == []
