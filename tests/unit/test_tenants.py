"""Tenants, keys and roles over a real database: who gets in, for how long, and what a stolen database is worth."""

import re
import subprocess
import sys

import pytest

from onetrip.errors import BadRequest, Forbidden, NotFound, Unauthorized
from onetrip.settings import LOCAL_TENANT, Quota, Settings
from onetrip.store import Store
from onetrip.tenants import FRESH_S, Caller, Tenants


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "onetrip.db"


@pytest.fixture
def store(path):
    with Store.open(path) as opened:
        yield opened


@pytest.fixture
def tenants(store, clock):
    return Tenants(store, Settings(quota=Quota(sessions=7)), clock=clock)


@pytest.mark.spec("TEN-01")
def test_a_token_names_its_tenant_and_role(tenants):
    assert tenants.create_tenant("acme")
    token, key = tenants.create_key("acme", "reader", "for the dashboard")
    assert tenants.authenticate(token) == Caller("acme", key.id, "reader")
    assert (key.label, key.revoked) == ("for the dashboard", None)
    assert tenants.keys("acme") == tenants.keys() == (key,)
    assert tenants.keys(LOCAL_TENANT) == ()


@pytest.mark.spec("TEN-01")
def test_the_database_holds_no_secret_of_any_token(tenants, store, path):
    secrets = [tenants.create_key(LOCAL_TENANT, "admin")[0].rpartition("_")[2] for _ in range(20)]
    assert len(set(secrets)) == 20
    assert all(re.fullmatch("[0-9a-f]{64}", secret) for secret in secrets)
    at_rest = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert [secret for secret in secrets if secret.encode() in at_rest or bytes.fromhex(secret) in at_rest] == []
    assert [entry.action for entry in store.audit()] == ["key.create"] * 20


@pytest.mark.spec("TEN-01")
def test_a_wrong_token_is_refused_in_the_same_words_whatever_is_wrong_with_it(tenants):
    token, key = tenants.create_key(LOCAL_TENANT, "admin")
    other, _ = tenants.create_key(LOCAL_TENANT, "admin")
    revoked, gone = tenants.create_key(LOCAL_TENANT, "admin")
    tenants.revoke(gone.id)
    secret = token.rpartition("_")[2]
    wrong = [
        "",
        "ot_",
        revoked,
        token[:-1],
        token + "0",
        token + "\n",
        token.upper(),
        " " + token,
        f"ot_{key.id}_{other.rpartition('_')[2]}",
        f"ot_{'0' * 12}_{secret}",
        f"ot_{key.id}_{'0' * 64}",
        f"ot_{key.id}_{'0' * 63}٣",
        f"ot_{key.id}' OR 1=1 --_{secret}",
        "ot_" + "\0" * 12 + "_" + secret,
        "\ud800",
        "ot_" * 1_000_000,
    ]
    words = set()
    for attempt in wrong:
        with pytest.raises(Unauthorized) as refused:
            tenants.authenticate(attempt)
        words.add((str(refused.value), refused.value.hint))
    assert len(words) == 1
    assert tenants.authenticate(token).key_id == key.id


@pytest.mark.spec("TEN-02")
def test_a_key_revoked_here_stops_at_once(tenants):
    token, key = tenants.create_key(LOCAL_TENANT, "user")
    tenants.authenticate(token)
    assert tenants.revoke(key.id)
    with pytest.raises(Unauthorized):
        tenants.authenticate(token)
    assert not tenants.revoke(key.id)
    with pytest.raises(NotFound, match="no key"):
        tenants.revoke("0" * 12)
    (shown,) = tenants.keys()
    assert shown.revoked is not None


@pytest.mark.spec("TEN-02")
def test_a_key_revoked_by_another_process_stops_within_a_second(tenants, clock, path):
    token, key = tenants.create_key(LOCAL_TENANT, "user")
    tenants.authenticate(token)
    script = "import sys; from onetrip.store import Store; assert Store.open(sys.argv[1]).revoke_key(sys.argv[2])"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(path), key.id], check=True)
    clock.now += FRESH_S
    with pytest.raises(Unauthorized):
        tenants.authenticate(token)
    assert FRESH_S <= 1


@pytest.mark.spec("TEN-02")
def test_a_key_in_use_is_looked_up_once_a_second_and_an_unknown_one_is_not_remembered(tenants, clock, store, monkeypatch):
    token, _ = tenants.create_key(LOCAL_TENANT, "user")
    looked, find = [], store.key
    monkeypatch.setattr(store, "key", lambda key_id: looked.append(key_id) or find(key_id))
    for _ in range(50):
        tenants.authenticate(token)
        clock.now += FRESH_S / 50
    assert len(looked) == 1
    for number in range(100):
        with pytest.raises(Unauthorized):
            tenants.authenticate(f"ot_{number:012x}_{'0' * 64}")
    assert len(tenants._known) == 1  # strangers cannot fill the memory


@pytest.mark.spec("TEN-03")
@pytest.mark.parametrize(
    ("has", "may"), [("reader", {"reader"}), ("user", {"reader", "user"}), ("admin", {"reader", "user", "admin"})]
)
def test_a_role_may_what_the_roles_below_it_may(tenants, has, may):
    caller = Caller("acme", "k", has)
    for role in ("reader", "user", "admin"):
        if role in may:
            tenants.require(caller, role)
        else:
            with pytest.raises(Forbidden, match=f"needs a key with the role `{role}`; yours has `{has}`"):
                tenants.require(caller, role)


@pytest.mark.spec("TEN-04")
def test_a_tenant_has_its_own_quota_or_that_of_the_settings(tenants, store, clock):
    tenants.create_tenant("acme")
    assert (tenants.quota("acme").sessions, tenants.quota("whoever").sessions) == (7, 7)
    tenants.set_quota("acme", Quota(sessions=2))
    assert tenants.quota("acme") == Quota(sessions=2)
    store.set_quota("acme", Quota(sessions=3))  # as another process does
    clock.now += FRESH_S
    assert tenants.quota("acme").sessions == 3
    tenants.set_quota("acme", None)
    assert tenants.quota("acme").sessions == 7
    with pytest.raises(NotFound, match="no tenant"):
        tenants.set_quota("nobody", None)


@pytest.mark.spec("TEN-04")
@pytest.mark.parametrize("name", ["", "Acme", "a b", "../x", "-x", "é", "x" * 65, "a\n", "a\0"])
def test_what_is_no_name_for_a_tenant_is_refused(tenants, name):
    with pytest.raises(BadRequest, match="is not a name for a tenant") as refused:
        tenants.create_tenant(name)
    assert refused.value.field == "tenant"
    assert [tenant.name for tenant in tenants.tenants()] == [LOCAL_TENANT]


@pytest.mark.spec("TEN-04")
@pytest.mark.parametrize("label", ["two\nlines", "\x1b[31mred", "x" * 101, "\ud800", "\u202egnp"])
def test_a_label_that_could_forge_a_line_of_a_terminal_is_refused(tenants, label):
    with pytest.raises(BadRequest, match="label") as refused:
        tenants.create_key(LOCAL_TENANT, "user", label)
    assert refused.value.field == "label"
    assert tenants.keys() == ()


@pytest.mark.spec("TEN-04")
def test_a_key_for_an_unknown_tenant_is_refused(tenants):
    with pytest.raises(NotFound, match="no such tenant"):
        tenants.create_key("nobody", "user")
    assert not tenants.has_keys()


@pytest.mark.spec("TEN-05")
def test_a_temporary_key_is_not_in_the_database_and_unknown_to_who_does_not_take_it(tenants, store, path):
    token = tenants.temporary_key()
    caller = tenants.authenticate(token)
    assert (caller.tenant, caller.role) == (LOCAL_TENANT, "admin")
    assert not tenants.has_keys()
    assert caller.key_id.encode() not in b"".join(file.read_bytes() for file in path.parent.iterdir())
    with pytest.raises(Unauthorized):
        Tenants(store, Settings()).authenticate(token)


@pytest.mark.spec("TEN-05")
def test_a_temporary_key_is_taken_again_by_the_next_process_and_what_is_none_is_replaced(tenants, store):
    token = tenants.temporary_key()
    following = Tenants(store, Settings())
    assert following.temporary_key(token) == token
    assert following.authenticate(token).role == "admin"
    for torn in ("", token[:-1], token + "\n", "\0" * 80):
        made = following.temporary_key(torn)
        assert made not in {torn, token}
        assert following.authenticate(made)


@pytest.mark.spec("TEN-05")
def test_a_server_has_keys_as_long_as_one_works(tenants):
    assert not tenants.has_keys()
    _, key = tenants.create_key(LOCAL_TENANT, "user")
    assert tenants.has_keys()
    tenants.revoke(key.id)
    assert not tenants.has_keys()


@pytest.mark.spec("TEN-06")
def test_whatever_is_done_to_tenants_and_keys_is_in_the_audit_log_with_who_did_it(tenants, store):
    tenants.create_tenant("acme", by="k9")
    _, key = tenants.create_key("acme", "user", by="k9")
    tenants.set_quota("acme", Quota(sessions=1), by="k9")
    tenants.revoke(key.id)
    tenants.revoke(key.id)  # nothing was done
    tenants.create_tenant("acme")  # the same
    done = [(entry.action, entry.tenant, entry.key, entry.target) for entry in store.audit()]
    assert done == [
        ("tenant.create", "acme", "k9", "acme"),
        ("key.create", "acme", "k9", key.id),
        ("tenant.quota", "acme", "k9", "acme"),
        ("key.revoke", "acme", "command line", key.id),
    ]
