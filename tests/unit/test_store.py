"""The server's database on real files: what is kept, what is never changed, and what a full disk or a kill leaves."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading

import msgspec
import pytest

from onetrip import store as store_module
from onetrip.errors import BadRequest, Conflict, NotFound, Unavailable
from onetrip.settings import LOCAL_TENANT, Quota, Role
from onetrip.store import PRUNE_ROWS, Store, utc_day
from onetrip.store_schema import MIGRATIONS, Key, RunRow, SessionRow, UsageRow

NOON = 1_800_000_000.0  # 2027-01-15 08:00 UTC


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "onetrip.db"


@pytest.fixture
def store(path, clock):
    with Store.open(path, clock=clock) as opened:
        yield opened


def a_key(key_id, *, tenant="acme", role="user", tools=None):
    return Key(key_id, tenant, role, "", NOON, None, tools)


def sql(path, statement, *values):
    """What another program does to the file."""
    database = sqlite3.connect(path)
    try:
        with database:
            return database.execute(statement, values).fetchall()
    finally:
        database.close()


def in_process(script, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


# ---------------------------------------------------------------------------------------------------- the file


@pytest.mark.spec("STO-01")
def test_only_its_user_may_read_the_database_and_its_companions_whatever_the_umask(path):
    before = os.umask(0)
    try:
        with Store.open(path) as store:
            store.add_tenant("acme")
            assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
            assert len(list(path.parent.iterdir())) == 3  # the log and its index, too
    finally:
        os.umask(before)
    path.chmod(0o644)
    with Store.open(path) as store:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert store.tenant("acme").name == "acme"


@pytest.mark.spec("STO-01")
@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "text", "nowhere"])
def test_what_is_no_database_is_refused_with_its_path_and_never_touched(path, kind, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious " * 1000)
    elsewhere.chmod(0o644)
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to(elsewhere)
        case "folder":
            path.mkdir()
        case "text":
            path.write_text("precious " * 1000)
        case _:
            path = tmp_path / "no" / "folder.db"
    with pytest.raises(Unavailable) as refused:
        Store.open(path)
    assert str(path) in str(refused.value)
    assert refused.value.hint != Unavailable.hint_default
    assert (elsewhere.read_text(), stat.S_IMODE(elsewhere.stat().st_mode)) == ("precious " * 1000, 0o644)
    if kind == "text":
        assert path.read_text() == "precious " * 1000


@pytest.mark.spec("STO-02")
def test_a_database_of_an_older_schema_is_brought_up_to_date_and_keeps_its_rows(path, monkeypatch):
    with Store.open(path) as store:
        store.add_tenant("acme")
    monkeypatch.setattr(store_module, "MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE more (x)", "INSERT INTO more VALUES (7)")))
    for _ in range(2):  # the second time there is nothing to do
        with Store.open(path) as store:
            assert store.tenant("acme").name == "acme"
    assert sql(path, "SELECT x FROM more") == [(7,)]
    assert sql(path, "PRAGMA user_version") == [(len(MIGRATIONS) + 1,)]


@pytest.mark.spec("STO-02")
def test_a_migration_that_fails_half_way_leaves_nothing_of_itself(path, monkeypatch):
    Store.open(path).close()
    monkeypatch.setattr(store_module, "MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE more (x)", "CREATE TABLE more (x)")))
    with pytest.raises(Unavailable, match="already exists"):
        Store.open(path)
    assert sql(path, "SELECT name FROM sqlite_master WHERE name = 'more'") == []
    monkeypatch.undo()
    Store.open(path).close()


@pytest.mark.spec("STO-02")
def test_a_database_of_a_newer_schema_is_refused_with_the_remedy(path):
    Store.open(path).close()
    sql(path, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(Unavailable, match="newer Onetrip") as refused:
        Store.open(path)
    assert refused.value.hint.startswith("Upgrade Onetrip")


@pytest.mark.spec("STO-02")
def test_the_roles_of_the_schema_and_of_the_settings_are_the_same(store):
    store.add_tenant("acme")
    for role in Role.__args__:
        store.add_key(a_key(role, role=role, tools=("shop.*",)), bytes(32))
    with pytest.raises(BadRequest):
        store.add_key(a_key("x", role="root"), bytes(32))


# ---------------------------------------------------------------------------------------------------- what it keeps


@pytest.mark.spec("STO-03")
def test_tenants_and_quotas(store):
    assert [tenant.name for tenant in store.tenants()] == [LOCAL_TENANT]
    quota = Quota(sessions=3, cpu_s_per_day=7.5)
    assert (store.add_tenant("acme", quota), store.add_tenant("acme")) == (True, False)
    assert store.tenant("acme").quota == quota
    assert (store.set_quota("acme", None), store.set_quota("nobody", None)) == (True, False)
    assert store.tenant("acme").quota is None
    assert store.tenant("nobody") is None


@pytest.mark.spec("STO-03")
def test_a_row_of_an_unknown_tenant_is_refused(store):
    for attempt in (
        lambda: store.add_key(a_key("k", tenant="nobody"), bytes(32)),
        lambda: store.add_usage("nobody", runs=1),
        lambda: store.add_session("s", "nobody", b"{}", {}),
        lambda: store.save_run(RunRow("r", "nobody", None, NOON)),
        lambda: store.claim("nobody", "k", "f", "t"),
    ):
        with pytest.raises(NotFound, match="no such tenant"):
            attempt()


@pytest.mark.spec("STO-03")
def test_usage_adds_up_per_tenant_and_day_in_utc(store, clock):
    store.add_tenant("acme")
    clock.now = NOON - NOON % 86_400 + 86_399.9  # the last moment of its day
    for _ in range(3):
        store.add_usage("acme", runs=1, cpu_ms=1.6, bytes_in=5)
    store.add_usage(LOCAL_TENANT, sessions=1)
    clock.now += 0.2
    store.add_usage("acme", failed=1, wall_ms=3)
    assert store.usage() == (
        UsageRow("acme", "2027-01-15", 3, 0, 0, 6, 0, 0, 15, 0),
        UsageRow(LOCAL_TENANT, "2027-01-15", 0, 0, 1, 0, 0, 0, 0, 0),
        UsageRow("acme", "2027-01-16", 0, 1, 0, 0, 3, 0, 0, 0),
    )
    assert [row.day for row in store.usage("acme", "2027-01-16")] == ["2027-01-16"]
    assert (utc_day(clock.now), store.cpu_s_today("acme")) == ("2027-01-16", 0.0)
    store.add_usage("acme", cpu_ms=2500)
    assert store.cpu_s_today("acme") == 2.5


@pytest.mark.spec("STO-03")
def test_a_session_is_listed_while_it_lives_and_says_why_it_ended_afterwards(store, clock):
    store.add_tenant("acme")
    made = store.add_session("ses_1", "acme", b'{"environment":"default"}', {"user": "é\n"})
    assert made == store.session("ses_1", "acme") == store.session("ses_1", None)
    assert store.sessions("acme") == store.sessions(None) == (made,)
    assert (store.sessions(LOCAL_TENANT), store.session("ses_1", LOCAL_TENANT)) == ((), None)
    clock.now += 60
    assert (store.end_session("ses_1", "idle"), store.end_session("ses_1", "later"), store.end_session("x", "y")) == (
        True,
        False,
        False,
    )
    assert store.sessions(None) == ()
    ended = store.session("ses_1", "acme")
    assert ended == SessionRow("ses_1", "acme", NOON, made.request, made.metadata, NOON + 60, "idle")
    assert (store.prune_sessions(NOON + 60), store.prune_sessions(NOON + 61)) == (0, 1)
    assert store.session("ses_1", None) is None


@pytest.mark.spec("STO-03")
def test_a_finished_run_never_changes_and_never_changes_hands(store):
    store.add_tenant("acme")
    store.save_run(RunRow("run_1", "acme", "ses_1", NOON))
    store.save_run(RunRow("run_1", LOCAL_TENANT, None, NOON, NOON, "completed", b"theirs"))
    assert store.load_run("run_1", "acme") == RunRow("run_1", "acme", "ses_1", NOON)
    finished = RunRow("run_1", "acme", "ses_1", NOON, NOON + 1, "completed", b"{}\0\xff")
    store.save_run(finished)
    store.save_run(msgspec.structs.replace(finished, status="lost", result=None))
    store.save_run(RunRow("run_1", "acme", "ses_1", NOON))
    assert store.load_run("run_1", "acme") == store.load_run("run_1", None) == finished
    assert store.load_run("run_1", LOCAL_TENANT) is None


@pytest.mark.spec("STO-03")
def test_pruning_takes_what_is_old_in_small_steps_and_leaves_the_rest(store):
    for number in range(PRUNE_ROWS + 3):
        store.save_run(RunRow(f"old-{number}", LOCAL_TENANT, None, NOON, NOON if number % 2 else None))
    store.save_run(RunRow("long", LOCAL_TENANT, None, NOON, NOON + 99))
    store.save_run(RunRow("new", LOCAL_TENANT, None, NOON + 99))
    assert [store.prune_runs(NOON + 50) for _ in range(3)] == [PRUNE_ROWS, 3, 0]
    assert store.load_run("long", None)
    assert store.load_run("new", None)


@pytest.mark.spec("STO-04")
def test_an_idempotency_key_gives_the_first_target_again_and_refuses_another_request(store, clock):
    store.add_tenant("acme")
    assert store.claim("acme", "k", "f1", "run_1") is None
    assert store.claim("acme", "k", "f1", "run_2") == "run_1"
    assert store.claim(LOCAL_TENANT, "k", "f2", "run_3") is None  # keys of tenants are apart
    with pytest.raises(Conflict) as refused:
        store.claim("acme", "k", "f2", "run_4")
    assert (refused.value.field, "run_1" in str(refused.value)) == ("Idempotency-Key", False)
    store.unclaim("acme", "k", "run_2")  # not the one that holds it
    assert store.claim("acme", "k", "f1", "run_2") == "run_1"
    store.unclaim("acme", "k", "run_1")
    assert store.claim("acme", "k", "f2", "run_5") is None
    assert (store.prune_claims(NOON), store.prune_claims(NOON + 1)) == (0, 2)
    assert store.claim("acme", "k", "f3", "run_6") is None


@pytest.mark.spec("STO-04")
def test_of_many_requests_at_once_with_one_idempotency_key_exactly_one_is_the_first(store, path):
    with Store.open(path) as another:  # as a second process has it
        start, answers = threading.Barrier(8), []

        def race(number):
            start.wait()
            answers.append((store if number % 2 else another).claim(LOCAL_TENANT, "k", "f", f"run_{number}"))

        threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers.count(None) == 1
    assert len(set(answers)) == 2
    assert len(answers) == 8


# ---------------------------------------------------------------------------------------------------- attacks


@pytest.mark.spec("STO-05")
@pytest.mark.parametrize(
    "attack",
    [
        "UPDATE audit SET outcome = 'ok'",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE seq = 1",
        "INSERT OR REPLACE INTO audit VALUES (1, 0, '', '', '', '', '', '', '')",
        "REPLACE INTO audit VALUES (1, 0, '', '', '', '', '', '', '')",
        "UPDATE OR REPLACE audit SET seq = 2 WHERE seq = 1",
        "INSERT INTO audit VALUES (1, 0, '', '', '', '', '', '', '') ON CONFLICT DO UPDATE SET at = 0",
    ],
)
def test_no_statement_changes_or_removes_a_line_of_the_audit_log(store, path, attack):
    store.record("session.create", tenant="acme", key="k1", target="ses_1", request_id="req_1")
    store.record("run", tenant="acme", key="k1", outcome="forbidden")
    before = store.audit()
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        sql(path, attack)
    assert store.audit() == before
    assert [entry.seq for entry in before] == [1, 2]


@pytest.mark.spec("STO-05")
def test_the_audit_log_is_read_in_order_by_tenant_and_in_pages(store):
    for number in range(4):
        store.record("run", tenant="acme" if number % 2 else "other", key="k", target=str(number))
    assert [entry.target for entry in store.audit()] == ["0", "1", "2", "3"]
    assert [entry.target for entry in store.audit("acme")] == ["1", "3"]
    assert [entry.target for entry in store.audit(after=1, limit=2)] == ["1", "2"]


@pytest.mark.spec("STO-05")
def test_a_hostile_name_is_kept_whole_escaped_and_bounded(store):
    store.record("file.write", tenant="acme", key="k", target="a\n\0'); DROP TABLE audit; --\udcff", detail="x" * 10**6)
    (entry,) = store.audit()
    assert entry.target == "a\n\0'); DROP TABLE audit; --\\udcff"
    assert len(entry.detail) == store_module.AUDIT_TEXT


@pytest.mark.spec("STO-05")
def test_ids_that_are_no_text_are_the_callers_mistake(store):
    for attempt in (lambda: store.load_run("\ud800", None), lambda: store.claim(LOCAL_TENANT, "\ud800", "f", "t")):
        with pytest.raises(BadRequest, match="lone surrogate"):
            attempt()
    assert store.session("' OR 1=1 --", None) is None
    assert store.claim(LOCAL_TENANT, "k", "f", "t") is None  # no transaction was left open


# ---------------------------------------------------------------------------------------------------- failures

FILL = """
import resource, sys
from onetrip.errors import Unavailable
from onetrip.settings import LOCAL_TENANT
from onetrip.store import Store
from onetrip.store_schema import RunRow
path, how = sys.argv[1:]
store, saved = Store.open(path), 0
if how == "FSIZE":  # the kernel refuses to let a file grow
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, -1))
    undo = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
else:  # a small file system
    import os
    undo = lambda: os.unlink(os.path.dirname(path) + "/ballast")
try:
    while True:
        store.save_run(RunRow(f"run_{saved}", LOCAL_TENANT, None, 0.0, 1.0, "completed", bytes(20_000)))
        saved += 1
except Unavailable as err:
    assert "make space" in err.hint, err.hint
    print(err.code, err.hint)
for write in (lambda: store.add_usage(LOCAL_TENANT, output_bytes=1), lambda: store.claim(LOCAL_TENANT, "k", "f", "t")):
    try:
        write()  # a small one may still fit; else it says so, too
    except Unavailable:
        pass
assert saved > 2 and store.load_run(f"run_{saved - 1}", None).result == bytes(20_000)  # reading goes on
assert store.load_run(f"run_{saved}", None) is None
undo()
for number in range(saved, saved + 30):
    store.save_run(RunRow(f"run_{number}", LOCAL_TENANT, None, 0.0, 1.0, "completed", bytes(20_000)))
store.record("run", tenant=LOCAL_TENANT, key="k")
store.close()
with Store.open(path) as store:
    assert all(store.load_run(f"run_{number}", None).result == bytes(20_000) for number in range(saved + 30))
"""


@pytest.mark.spec("STO-06")
def test_a_write_that_the_kernel_refuses_is_unavailable_and_with_space_again_writes_work(path):
    ended = in_process(FILL, path, "FSIZE")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("unavailable The disk of the server's data folder is full")
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.spec("STO-06")
def test_a_full_disk_is_unavailable_and_with_space_again_writes_work(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(small)], capture_output=True, check=False
    ).returncode:
        pytest.skip("user namespaces: this host does not let us mount a small tmpfs to fill")
    script = (
        'mount -t tmpfs -o size=3m none "$1" && head -c 2000000 /dev/zero > "$1/ballast" && "$2" -c "$3" "$1/onetrip.db" tmpfs'
    )
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", str(small), sys.executable, FILL],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("unavailable The disk of the server's data folder is full: make space")


KILLED = """
import sys
from onetrip.settings import LOCAL_TENANT
from onetrip.store import Store
from onetrip.store_schema import RunRow
store = Store.open(sys.argv[1])
for number in range(10**9):
    store.save_run(RunRow(f"run_{number}", LOCAL_TENANT, None, 0.0, 1.0, "completed", bytes(1000)))
    print(number, flush=True)
"""


@pytest.mark.spec("STO-07")
def test_what_was_committed_survives_a_kill_while_writing(path):
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        said = [writer.stdout.readline() for _ in range(200)]
        writer.send_signal(signal.SIGKILL)
        said += writer.stdout.readlines()
    last = int([line for line in said if line.endswith("\n")][-1])
    assert last >= 199
    with Store.open(path) as store:
        assert all(store.load_run(f"run_{number}", None) for number in range(last + 1))
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.spec("STO-07")
def test_two_processes_write_at_once_and_nothing_is_lost(path):
    script = """
import sys
from onetrip.store import Store
with Store.open(sys.argv[1]) as store:
    for _ in range(300):
        store.add_usage("default", runs=1)
        store.record("run", tenant="default", key=sys.argv[2])
"""
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), str(number)]) for number in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    with Store.open(path) as store:
        assert sum(row.runs for row in store.usage()) == 900  # on one day, or on two
        assert [entry.seq for entry in store.audit()] == list(range(1, 901))


@pytest.mark.spec("STO-07")
def test_a_database_that_another_process_holds_is_unavailable_for_writing_and_can_be_read(store, path, monkeypatch):
    store._write.execute("PRAGMA busy_timeout = 1")  # not to wait the second that it may take
    holder = sqlite3.connect(path, isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        for write in (lambda: store.add_tenant("acme"), lambda: store.claim(LOCAL_TENANT, "k", "f", "t")):
            with pytest.raises(Unavailable, match="locked") as refused:
                write()
            assert refused.value.hint == "Another process holds the database; try again."
        assert store.tenant(LOCAL_TENANT)
        holder.execute("ROLLBACK")
    finally:
        holder.close()
    assert store.add_tenant("acme")
    assert store.claim(LOCAL_TENANT, "k", "f", "t") is None


@pytest.mark.spec("STO-07")
def test_a_reader_does_not_wait_for_a_writer_of_its_own_process(store):
    with store._transaction():  # a large result is being written
        read = threading.Thread(target=lambda: store.tenant(LOCAL_TENANT))
        read.start()
        read.join(timeout=30)
        assert not read.is_alive()
    assert store.add_tenant("acme")
