"""Who calls: tokens to callers, callers to what they may do. Keys are random, hashed at rest, and shown once.

A token is `ot_<id of the key>_<secret>`, 32 random bytes as hex. So much randomness needs no slow hash: SHA-256 of the
secret is all that is kept, and who reads the database cannot make a token from it.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from typing import Final

import msgspec

from onetrip.errors import BadRequest, Forbidden, NotFound, Unauthorized
from onetrip.settings import LOCAL_TENANT, Quota, Role, Settings
from onetrip.store import Store
from onetrip.store_schema import Key, Tenant

FRESH_S: Final = 1.0  # how old what we remember of a key or a quota may be: a key revoked by another process works so long
COMMAND_LINE: Final = "command line"  # who did it, in the audit log, when no key did
_TOKEN: Final = re.compile(r"ot_([0-9a-f]{12})_([0-9a-f]{64})")
_TENANT: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_MAX_LABEL: Final = 100
_RANK: Final[dict[Role, int]] = {"reader": 0, "user": 1, "admin": 2}
_NOBODY: Final = bytes(32)  # no secret has this hash


class Caller(msgspec.Struct, frozen=True):
    """Whose key came with a request."""

    tenant: str
    key_id: str
    role: Role
    tools: tuple[str, ...] | None = None  # patterns of the server tools that it may use; None: all


class Tenants:
    """Tenants, their keys and quotas, over a store. Tells a caller with a wrong key nothing of why it is wrong."""

    def __init__(self, store: Store, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._settings, self._clock = store, settings, clock
        self._known: dict[str, tuple[float, Key, bytes]] = {}  # only ids of keys that exist: strangers cannot fill it
        self._quotas: dict[str, tuple[float, Quota]] = {}
        self._temporary: dict[str, tuple[Key, bytes]] = {}
        self._looked_at, self._have_keys = float("-inf"), False

    def authenticate(self, token: str) -> Caller:
        """Whose token it is. Raises Unauthorized for one that is malformed, unknown or revoked, in the same words."""
        match = _TOKEN.fullmatch(token)
        found = None if match is None else self._find(match[1])
        digest = _digest("" if match is None else match[2])
        matches = hmac.compare_digest(digest, _NOBODY if found is None else found[1])
        if found is None or not matches or found[0].revoked is not None:
            raise Unauthorized("The key is missing, or not known here.")
        key = found[0]
        return Caller(key.tenant, key.id, key.role, key.tools)

    def require(self, caller: Caller, role: Role) -> None:
        """Raises Forbidden unless the caller has that role, or one above it."""
        if _RANK[caller.role] < _RANK[role]:
            raise Forbidden(f"This needs a key with the role `{role}`; yours has `{caller.role}`.")

    def quota(self, tenant: str) -> Quota:
        """What the tenant may have: its own quota, or that of the settings."""
        now = self._clock()
        known = self._quotas.get(tenant)
        if known is not None and now - known[0] < FRESH_S:
            return known[1]
        found = self._store.tenant(tenant)
        quota = self._settings.quota if found is None or found.quota is None else found.quota
        self._quotas[tenant] = (now, quota)
        return quota

    # ------------------------------------------------------------------------------------------------ administration

    def create_tenant(self, name: str, quota: Quota | None = None, *, by: str = COMMAND_LINE) -> bool:
        """False when there is one of that name; it stays as it is. Raises BadRequest for what is no name."""
        check_tenant(name)
        made = self._store.add_tenant(name, quota)
        if made:
            self._store.record("tenant.create", tenant=name, key=by, target=name)
        return made

    def set_quota(self, tenant: str, quota: Quota | None, *, by: str = COMMAND_LINE) -> None:
        """None: that of the settings again. Raises NotFound. Holds within `FRESH_S` in other processes, here at once."""
        if not self._store.set_quota(tenant, quota):
            raise NotFound(f"There is no tenant {tenant[:64]!r}.", field="tenant")
        self._quotas.pop(tenant, None)
        detail = "" if quota is None else msgspec.json.encode(quota).decode()
        self._store.record("tenant.quota", tenant=tenant, key=by, target=tenant, detail=detail)

    def create_key(
        self, tenant: str, role: Role, label: str = "", *, tools: tuple[str, ...] | None = None, by: str = COMMAND_LINE
    ) -> tuple[str, Key]:
        """The token, which nobody can show again, and its key. `tools`: patterns of the server tools that it may use; None: all.

        Raises NotFound for an unknown tenant, BadRequest.
        """
        _check_label(label)
        secret = secrets.token_hex(32)
        key = Key(secrets.token_hex(6), tenant, role, label, time.time(), None, tools)
        self._store.add_key(key, _digest(secret))
        self._store.record("key.create", tenant=tenant, key=by, target=key.id, detail=role)
        return _token(key.id, secret), key

    def temporary_key(self, token: str | None = None, tenant: str = LOCAL_TENANT, role: Role = "admin") -> str:
        """A token that ends with this process, or with the first key, and is not in the database: for a server that nobody gave a key.

        `token`: one of before, which is taken again if it is one.
        """
        match = _TOKEN.fullmatch(token or "")
        key_id, secret = match.groups() if match else (secrets.token_hex(6), secrets.token_hex(32))
        self._temporary[key_id] = (Key(key_id, tenant, role, "temporary", time.time(), None), _digest(secret))
        return _token(key_id, secret)

    def revoke(self, key_id: str, *, by: str = COMMAND_LINE) -> bool:
        """False when it was revoked before. Raises NotFound. Other processes refuse it within `FRESH_S`, this one at once."""
        found = self._store.key(key_id)
        if found is None:
            raise NotFound(f"There is no key {key_id[:64]!r}.", hint="`onetrip keys list` shows the ids of keys.", field="id")
        revoked = self._store.revoke_key(key_id)
        self._known.pop(key_id, None)
        if revoked:
            self._store.record("key.revoke", tenant=found[0].tenant, key=by, target=key_id)
        return revoked

    def keys(self, tenant: str | None = None) -> tuple[Key, ...]:
        """All, also revoked ones; of one tenant, or of all."""
        return self._store.keys(tenant)

    def tenants(self) -> tuple[Tenant, ...]:
        return self._store.tenants()

    def has_keys(self) -> bool:
        """Is there a key in the database that works?"""
        return self._store.has_keys()

    def _find(self, key_id: str) -> tuple[Key, bytes] | None:
        now = self._clock()
        temporary = self._temporary.get(key_id)
        if temporary is not None:
            if now - self._looked_at >= FRESH_S:
                self._looked_at, self._have_keys = now, self._store.has_keys()
            return None if self._have_keys else temporary
        known = self._known.get(key_id)
        if known is not None and now - known[0] < FRESH_S:
            return known[1:]
        found = self._store.key(key_id)
        if found is None:
            self._known.pop(key_id, None)
        else:
            self._known[key_id] = (now, *found)
        return found


def check_tenant(name: str) -> None:
    """Raises BadRequest for what cannot be the name of a tenant."""
    if not _TENANT.fullmatch(name):
        raise BadRequest(
            f"tenant: {name[:80]!r} is not a name for a tenant.",
            hint="Use up to 64 small letters, digits, `_`, `.` and `-`, beginning with a letter or a digit.",
            field="tenant",
        )


def _check_label(label: str) -> None:
    if len(label) > _MAX_LABEL or not label.isprintable():
        raise BadRequest(f"label: it must be one line of at most {_MAX_LABEL} printable characters.", field="label")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _token(key_id: str, secret: str) -> str:
    return f"ot_{key_id}_{secret}"
