"""`onetrip keys` and `onetrip usage`: on the database of a server, whether it runs or not."""

import json
import stat
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from onetrip import config
from onetrip.cli import main
from onetrip.errors import Unauthorized, Unavailable
from onetrip.settings import LOCAL_TENANT, Settings
from onetrip.store import FILE, Store, utc_day
from onetrip.tenants import Tenants


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("ONETRIP_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def call(*arguments):
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


@pytest.mark.spec("TEN-07")
def test_a_created_key_works_its_token_is_printed_once_and_a_revoked_one_stops(data):
    made = call("keys", "create", "--tenant", "acme", "--role", "reader", "--label", "for [bold]B")
    assert (made.exit_code, made.stdout.count("\n")) == (0, 1)
    token = made.stdout.strip()
    assert token not in made.stderr
    assert "made the tenant acme\n" in made.stderr
    with Store.open(data / FILE) as store:  # as a server has it open, while the commands go on
        tenants = Tenants(store, Settings())
        caller = tenants.authenticate(token)
        assert (caller.tenant, caller.role) == ("acme", "reader")

        listed = call("keys", "list")
        assert token.rpartition("_")[2] not in listed.stdout
        header, line = listed.stdout.splitlines()
        assert header.split() == ["id", "tenant", "role", "created", "revoked", "label"]
        assert line.split()[:3] == [caller.key_id, "acme", "reader"]
        assert line.endswith("for [bold]B")

        revoked = call("keys", "revoke", caller.key_id)
        assert (revoked.exit_code, revoked.stdout, revoked.stderr) == (0, "", "")
        with pytest.raises(Unauthorized):
            Tenants(store, Settings()).authenticate(token)
        assert [(entry.action, entry.key) for entry in store.audit()] == [
            ("tenant.create", "command line"),
            ("key.create", "command line"),
            ("key.revoke", "command line"),
        ]
    again = call("keys", "revoke", caller.key_id)
    assert (again.exit_code, again.stderr) == (0, f"{caller.key_id} was revoked before.\n")


@pytest.mark.spec("TEN-07")
def test_a_table_is_whole_however_narrow_the_terminal_or_the_pipe(data):
    label = "x" * 100
    call("keys", "create", "--label", label)
    shown = CliRunner().invoke(main, ["keys", "list"], env={"COLUMNS": "20"}).stdout
    assert len(shown.splitlines()) == 2
    assert shown.endswith(label + "\n")


@pytest.mark.spec("TEN-07")
def test_json_is_all_of_it_and_only_it(data):
    made = json.loads(call("keys", "create", "--json").stdout)
    token = made.pop("token")
    assert (made["tenant"], made["role"], made["revoked"], token[:16]) == (LOCAL_TENANT, "user", None, f"ot_{made['id']}_")
    assert json.loads(call("keys", "list", "--json").stdout) == [made]
    assert json.loads(call("keys", "list", "--json", "--tenant", "acme").stdout) == []


@pytest.mark.spec("TEN-07")
def test_without_keys_list_says_how_to_make_one(data):
    listed = call("keys", "list")
    assert (listed.exit_code, listed.stdout) == (0, "")
    assert listed.stderr == "There are no keys yet.\nhint: `onetrip keys create` makes one.\n"


@pytest.mark.spec("TEN-07")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["keys", "revoke", "nope"], "error: There is no key 'nope'."),
        (["keys", "create", "--tenant", "../x"], "error: tenant: '../x' is not a name for a tenant."),
        (["keys", "create", "--label", "a\nb"], "error: label: it must be one line of at most 100 printable characters."),
        (["keys", "create", "--role", "root"], "Error: Invalid value for '--role'"),
        (["usage", "--days", "0"], "Error: Invalid value for '--days'"),
        (["usage", "--config", "/nowhere/onetrip.toml"], "error: the configuration '/nowhere/onetrip.toml' cannot be read"),
    ],
)
def test_a_mistake_is_one_error_with_status_2_and_makes_nothing(data, arguments, said):
    refused = call(*arguments)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert said in refused.stderr
    assert json.loads(call("keys", "list", "--json").stdout) == []


@pytest.mark.spec("TEN-07")
def test_the_folder_of_the_configuration_comes_before_the_variable_and_is_its_users_alone(data, tmp_path):
    configuration = tmp_path / "onetrip.toml"
    configuration.write_text(f'data_dir = "{tmp_path}/configured/deep"\n')
    made = call("keys", "create", "--config", str(configuration))
    assert made.exit_code == 0
    assert not data.exists()
    folder = tmp_path / "configured" / "deep"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600


@pytest.mark.spec("TEN-07")
def test_without_any_name_the_data_is_in_the_users_folder_and_without_that_the_remedy_is_said(tmp_path):
    assert config.data_dir(None, {"HOME": str(tmp_path)}) == tmp_path / ".local" / "share" / "onetrip" / "server"
    for environ in ({}, {"HOME": "/proc/nobody"}, {"ONETRIP_DATA": "/proc/data"}):
        with pytest.raises(Unavailable) as refused:
            config.data_dir(None, environ)
        assert "ONETRIP_DATA" in refused.value.hint


@pytest.mark.spec("TEN-07")
def test_a_reader_that_goes_away_and_a_closed_terminal_are_no_traceback(data):
    script = "from onetrip.cli import main; main(['keys', 'create'])"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        command.stdout.close()
        said = command.stderr.read()
    assert "Traceback" not in said


@pytest.mark.spec("TEN-08")
def test_usage_is_a_table_by_day_and_tenant(data):
    call("keys", "create", "--tenant", "acme")
    now = [0.0]
    with Store.open(data / FILE, clock=lambda: now[0]) as store:
        now[0] = time.time() - 40 * 86_400
        store.add_usage("acme", runs=99)
        now[0] = time.time()
        store.add_usage("acme", runs=1234, failed=2, sessions=3, cpu_ms=4500, wall_ms=60_000, output_bytes=5_000_000)
        store.add_usage(LOCAL_TENANT, runs=1, bytes_in=1, bytes_out=2_500_000)
        today = utc_day(now[0])
    header, acme, other = (line.split() for line in call("usage").stdout.splitlines())
    assert header == [
        "day",
        "tenant",
        "runs",
        "failed",
        "sessions",
        "cpu",
        "s",
        "wall",
        "s",
        "output",
        "MB",
        "in",
        "MB",
        "out",
        "MB",
    ]
    assert acme == [today, "acme", "1,234", "2", "3", "4.5", "60.0", "5.0", "0.0", "0.0"]
    assert other[:3] == [today, LOCAL_TENANT, "1"]
    assert [row["runs"] for row in json.loads(call("usage", "--json", "--tenant", "acme", "--days", "60").stdout)] == [99, 1234]
    nothing = call("usage", "--tenant", "nobody")
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (0, "", "Nothing was used in this time.\n")
