"""What the server's database holds: its rows as frozen types, and its schema as an ordered list of migrations."""

from typing import Final

import msgspec

from onetrip.settings import Quota, Role


class Tenant(msgspec.Struct, frozen=True):
    name: str
    quota: Quota | None  # None: the one of the settings
    created: float


class Key(msgspec.Struct, frozen=True):
    """What may be shown of a key. Its secret is nowhere, and the hash of it does not leave the store but to be compared."""

    id: str
    tenant: str
    role: Role
    label: str
    created: float
    revoked: float | None
    tools: tuple[str, ...] | None = None  # patterns of the server tools that it may use; None: all


class AuditEntry(msgspec.Struct, frozen=True):
    seq: int
    at: float
    tenant: str
    key: str  # id of the key, or who else did it, such as "command line"
    action: str
    target: str
    outcome: str  # "ok", or the code of the error
    request_id: str
    detail: str


class UsageRow(msgspec.Struct, frozen=True):
    tenant: str
    day: str  # UTC, 2026-01-31
    runs: int
    failed: int
    sessions: int
    cpu_ms: int
    wall_ms: int
    output_bytes: int
    bytes_in: int
    bytes_out: int


class SessionRow(msgspec.Struct, frozen=True):
    id: str
    tenant: str
    created: float
    request: bytes  # as it was sent, JSON
    metadata: dict[str, str]
    ended_at: float | None = None
    ended_why: str | None = None


class RunRow(msgspec.Struct, frozen=True):
    id: str
    tenant: str
    session: str | None
    started: float
    finished: float | None = None
    status: str | None = None
    result: bytes | None = None  # JSON


class Used(msgspec.Struct, frozen=True):
    """What one run adds to its tenant's usage, and its line of the audit log: key and id of the request; None: it has no line."""

    failed: int
    cpu_ms: float
    wall_ms: float
    output_bytes: int
    audit: tuple[str, str] | None = None


# A released migration is never edited: a change of the schema is one more at the end. Statements are apart, because a
# migration is one transaction and sqlite3's `executescript` would commit in the middle of it.
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        "CREATE TABLE tenants (name TEXT PRIMARY KEY, quota TEXT, created REAL NOT NULL) STRICT",
        "INSERT INTO tenants VALUES ('default', NULL, CAST(strftime('%s', 'now') AS REAL))",  # settings.LOCAL_TENANT
        """CREATE TABLE keys (
            id TEXT PRIMARY KEY,
            tenant TEXT NOT NULL REFERENCES tenants (name),
            role TEXT NOT NULL CHECK (role IN ('admin', 'user', 'reader')),
            hash BLOB NOT NULL CHECK (length(hash) = 32),
            label TEXT NOT NULL,
            created REAL NOT NULL,
            revoked REAL
        ) STRICT""",
        """CREATE TABLE audit (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, -- a number is never given twice, so a gap would show
            at REAL NOT NULL,
            tenant TEXT NOT NULL, -- no reference: who names a tenant that there is not is worth an entry, too
            key TEXT NOT NULL,
            action TEXT NOT NULL,
            target TEXT NOT NULL,
            outcome TEXT NOT NULL,
            request_id TEXT NOT NULL,
            detail TEXT NOT NULL
        ) STRICT""",
        "CREATE INDEX audit_tenant ON audit (tenant, seq)",
        "CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
        "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
        # INSERT OR REPLACE deletes without asking the trigger on DELETE
        """CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit WHEN EXISTS (SELECT 1 FROM audit WHERE seq = NEW.seq)
            BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
        """CREATE TABLE usage (
            tenant TEXT NOT NULL REFERENCES tenants (name),
            day TEXT NOT NULL,
            runs INTEGER NOT NULL,
            failed INTEGER NOT NULL,
            sessions INTEGER NOT NULL,
            cpu_ms INTEGER NOT NULL,
            wall_ms INTEGER NOT NULL,
            output_bytes INTEGER NOT NULL,
            bytes_in INTEGER NOT NULL,
            bytes_out INTEGER NOT NULL,
            PRIMARY KEY (tenant, day)
        ) STRICT, WITHOUT ROWID""",
        """CREATE TABLE sessions (
            id TEXT PRIMARY KEY,
            tenant TEXT NOT NULL REFERENCES tenants (name),
            created REAL NOT NULL,
            request BLOB NOT NULL,
            metadata TEXT NOT NULL,
            ended_at REAL,
            ended_why TEXT
        ) STRICT""",
        "CREATE INDEX sessions_live ON sessions (tenant, created) WHERE ended_at IS NULL",
        "CREATE INDEX sessions_ended ON sessions (ended_at) WHERE ended_at IS NOT NULL",
        """CREATE TABLE runs (
            id TEXT PRIMARY KEY,
            tenant TEXT NOT NULL REFERENCES tenants (name),
            session TEXT,
            started REAL NOT NULL,
            finished REAL,
            status TEXT,
            result BLOB
        ) STRICT""",
        "CREATE INDEX runs_age ON runs (coalesce(finished, started))",
        """CREATE TABLE idempotency (
            tenant TEXT NOT NULL REFERENCES tenants (name),
            key TEXT NOT NULL,
            fingerprint TEXT NOT NULL,
            target TEXT NOT NULL,
            created REAL NOT NULL,
            PRIMARY KEY (tenant, key)
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX idempotency_age ON idempotency (created)",
    ),
    (
        "ALTER TABLE keys ADD COLUMN tools TEXT",  # JSON list of patterns; NULL: all
        """CREATE TABLE tool_calls (
            run TEXT NOT NULL,
            call TEXT NOT NULL,
            at REAL NOT NULL,
            answer BLOB, -- NULL: it was begun
            PRIMARY KEY (run, call)
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX tool_calls_age ON tool_calls (at)",
    ),
)

ADD_AUDIT: Final = (
    "INSERT INTO audit (at, tenant, key, action, target, outcome, request_id, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
SAVE_RUN: Final = """INSERT INTO runs (id, tenant, session, started, finished, status, result) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET finished = excluded.finished, status = excluded.status, result = excluded.result
    WHERE finished IS NULL AND tenant = excluded.tenant"""
ADD_USAGE: Final = """INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, day) DO UPDATE SET
    runs = runs + excluded.runs, failed = failed + excluded.failed, sessions = sessions + excluded.sessions,
    cpu_ms = cpu_ms + excluded.cpu_ms, wall_ms = wall_ms + excluded.wall_ms,
    output_bytes = output_bytes + excluded.output_bytes,
    bytes_in = bytes_in + excluded.bytes_in, bytes_out = bytes_out + excluded.bytes_out"""


def run_values(run: RunRow) -> tuple[object, ...]:
    return (run.id, run.tenant, run.session, run.started, run.finished, run.status, run.result)
