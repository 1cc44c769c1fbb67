"""The server's memory on disk, in SQLite: tenants, keys, audit, usage, sessions, results, idempotency keys.

Methods block, for some tens of microseconds: rows are few and small, and a commit in the write-ahead log does not wait for
the disk. So they may be called from an event loop, but for `save_run` of a large result, which belongs in a thread; every
method may be called from any thread. Readers have a connection of their own and never wait for a writer.

What is committed survives the death of the process; a power cut may take the last moments, never the rest. Several
processes may have the same database open, such as a server and `onetrip keys`.

Every failure of the disk is `Unavailable` and leaves the database as it was: with space again, the next write works.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from onetrip.errors import Conflict, Unavailable
from onetrip.settings import Quota
from onetrip.store_calls import CallRows
from onetrip.store_file import connect, prepare_file, translated, version
from onetrip.store_schema import (
    ADD_AUDIT,
    ADD_USAGE,
    MIGRATIONS,
    SAVE_RUN,
    AuditEntry,
    Key,
    RunRow,
    SessionRow,
    Tenant,
    UsageRow,
    Used,
    run_values,
)

FILE: Final = "onetrip.db"  # in the folder of the server's data
PRUNE_ROWS: Final = 500  # that one call of `prune_…` removes at most, so that it stays quick
AUDIT_TEXT: Final = 4096  # characters of one field of the audit log: names come from requests


def utc_day(at: float) -> str:
    """The day that usage is counted under: 2026-01-31."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


class Store:
    """One database. `Store.open` makes it, or brings an older one up to date; `close` it, or use `with`."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path, self._clock = path, clock
        self._write_lock, self._read_lock = threading.RLock(), threading.RLock()
        self.calls = CallRows(self._rows, self._change, clock)
        prepare_file(path)
        self._write = connect(path)
        try:
            with translated(path):
                self._migrate()
            self._read = connect(path)
            self._read.execute("PRAGMA query_only = ON")
        except BaseException:
            self._write.close()
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, clock: Callable[[], float] = time.time) -> Self:
        """Open the database at `path`, which only this user may read; made if it is missing. Raises Unavailable."""
        return cls(Path(path), clock)

    def close(self) -> None:
        with self._read_lock:
            self._read.close()
        with self._write_lock:
            self._write.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------ tenants and keys

    def add_tenant(self, name: str, quota: Quota | None = None) -> bool:
        """False when there is one of that name; it stays as it is."""
        row = (name, _json(quota), self._clock())
        return self._change("INSERT INTO tenants VALUES (?, ?, ?) ON CONFLICT DO NOTHING", row) == 1

    def set_quota(self, name: str, quota: Quota | None) -> bool:
        """False when there is no such tenant."""
        return self._change("UPDATE tenants SET quota = ? WHERE name = ?", (_json(quota), name)) == 1

    def tenant(self, name: str) -> Tenant | None:
        return next(self._tenants("SELECT name, quota, created FROM tenants WHERE name = ?", name), None)

    def tenants(self) -> tuple[Tenant, ...]:
        return tuple(self._tenants("SELECT name, quota, created FROM tenants ORDER BY name"))

    def _tenants(self, query: str, *values: object) -> Iterator[Tenant]:
        for name, quota, created in self._rows(query, values):
            yield Tenant(name, None if quota is None else msgspec.json.decode(quota, type=Quota), created)

    def add_key(self, key: Key, digest: bytes) -> None:
        """Raises NotFound for an unknown tenant."""
        row = (
            key.id,
            key.tenant,
            key.role,
            digest,
            key.label,
            key.created,
            None if key.tools is None else msgspec.json.encode(key.tools).decode(),
        )
        self._change("INSERT INTO keys (id, tenant, role, hash, label, created, tools) VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def key(self, key_id: str) -> tuple[Key, bytes] | None:
        """The key, revoked or not, and the hash of its secret."""
        for *key, digest in self._rows(
            "SELECT id, tenant, role, label, created, revoked, tools, hash FROM keys WHERE id = ?", (key_id,)
        ):
            return _key(*key), digest
        return None

    def keys(self, tenant: str | None = None) -> tuple[Key, ...]:
        """Every key, also revoked ones, the oldest first; of one tenant, or of all."""
        query = """SELECT id, tenant, role, label, created, revoked, tools FROM keys
            WHERE :tenant IS NULL OR tenant = :tenant ORDER BY created, id"""
        return tuple(_key(*row) for row in self._rows(query, {"tenant": tenant}))

    def revoke_key(self, key_id: str) -> bool:
        """False when there is no such key, or it was revoked before."""
        return self._change("UPDATE keys SET revoked = ? WHERE id = ? AND revoked IS NULL", (self._clock(), key_id)) == 1

    def has_keys(self) -> bool:
        """Is there a key that works?"""
        return bool(self._rows("SELECT 1 FROM keys WHERE revoked IS NULL LIMIT 1"))

    # ------------------------------------------------------------------------------------------------ audit and usage

    def record(
        self, action: str, *, tenant: str, key: str, target: str = "", outcome: str = "ok", request_id: str = "", detail: str = ""
    ) -> None:
        """One more line of the audit log, which nothing of ours changes or removes."""
        self._change(ADD_AUDIT, (self._clock(), *map(_text, (tenant, key, action, target, outcome, request_id, detail))))

    def audit(self, tenant: str | None = None, *, after: int = 0, limit: int = 1000) -> tuple[AuditEntry, ...]:
        """Lines after number `after`, in order; of one tenant, or of all."""
        columns = "SELECT seq, at, tenant, key, action, target, outcome, request_id, detail FROM audit"
        if tenant is None:
            rows = self._rows(columns + " WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))
        else:
            rows = self._rows(columns + " WHERE tenant = ? AND seq > ? ORDER BY seq LIMIT ?", (tenant, after, limit))
        return tuple(AuditEntry(*row) for row in rows)

    def add_usage(
        self,
        tenant: str,
        *,
        runs: int = 0,
        failed: int = 0,
        sessions: int = 0,
        cpu_ms: float = 0,
        wall_ms: float = 0,
        output_bytes: int = 0,
        bytes_in: int = 0,
        bytes_out: int = 0,
    ) -> None:
        """Add to what the tenant used today. Raises NotFound for an unknown tenant."""
        counts = (runs, failed, sessions, round(cpu_ms), round(wall_ms), output_bytes, bytes_in, bytes_out)
        self._change(ADD_USAGE, (tenant, utc_day(self._clock()), *counts))

    def usage(self, tenant: str | None = None, since_day: str = "") -> tuple[UsageRow, ...]:
        """By day, then tenant; from `since_day` on."""
        query = """SELECT tenant, day, runs, failed, sessions, cpu_ms, wall_ms, output_bytes, bytes_in, bytes_out FROM usage
            WHERE day >= :day AND (:tenant IS NULL OR tenant = :tenant) ORDER BY day, tenant"""
        return tuple(UsageRow(*row) for row in self._rows(query, {"tenant": tenant, "day": since_day}))

    def cpu_s_today(self, tenant: str) -> float:
        rows = self._rows("SELECT cpu_ms FROM usage WHERE tenant = ? AND day = ?", (tenant, utc_day(self._clock())))
        return rows[0][0] / 1000 if rows else 0.0

    # ------------------------------------------------------------------------------------------------ sessions and runs

    def add_session(self, session_id: str, tenant: str, request: bytes, metadata: dict[str, str]) -> SessionRow:
        row = SessionRow(session_id, tenant, self._clock(), request, metadata)
        values = (session_id, tenant, row.created, request, msgspec.json.encode(metadata).decode())
        self._change("INSERT INTO sessions (id, tenant, created, request, metadata) VALUES (?, ?, ?, ?, ?)", values)
        return row

    def end_session(self, session_id: str, why: str) -> bool:
        """Why it ended, for who asks later. The first reason stays: False when there was one, or no such session."""
        values = (self._clock(), _text(why), session_id)
        return self._change("UPDATE sessions SET ended_at = ?, ended_why = ? WHERE id = ? AND ended_at IS NULL", values) == 1

    def session(self, session_id: str, tenant: str | None) -> SessionRow | None:
        """Live or ended. Only a `tenant`'s own; None: whoever's it is."""
        query = f"SELECT {_SESSION} FROM sessions WHERE id = :id AND (:tenant IS NULL OR tenant = :tenant)"  # noqa: S608 -- a constant
        return next(self._sessions(query, {"tenant": tenant, "id": session_id}), None)

    def sessions(self, tenant: str | None, *, limit: int = 10_000) -> tuple[SessionRow, ...]:
        """The live ones, the oldest first; of one tenant, or of all."""
        which = "ended_at IS NULL AND (:tenant IS NULL OR tenant = :tenant)"
        query = f"SELECT {_SESSION} FROM sessions WHERE {which} ORDER BY created, id LIMIT :limit"  # noqa: S608 -- constants
        return tuple(self._sessions(query, {"tenant": tenant, "limit": limit}))

    def _sessions(self, query: str, values: Mapping[str, object]) -> Iterator[SessionRow]:
        for row in self._rows(query, values):
            session_id, tenant, created, request, metadata, ended_at, why = row
            decoded = msgspec.json.decode(metadata, type=dict[str, str])
            yield SessionRow(session_id, tenant, created, request, decoded, ended_at, why)

    def prune_sessions(self, before: float) -> int:
        """Forget sessions that ended before then, `PRUNE_ROWS` at most; how many."""
        query = "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE ended_at < ? LIMIT ?)"
        return self._change(query, (before, PRUNE_ROWS))

    def save_run(self, run: RunRow) -> None:
        """Keep a run: once when it starts, once more when it has finished. A finished one, and whose it is, never changes."""
        self._change(SAVE_RUN, run_values(run))

    def save_runs(self, runs: Sequence[tuple[RunRow, Used]]) -> None:
        """Keep finished runs and add to what their tenants used today, all or none of it. Raises Unavailable on a full disk."""
        with self._transaction() as database:
            # A server that died may have saved it before it could tell the node: what is there is not counted again.
            runs = [(run, used) for run, used in runs if database.execute(SAVE_RUN, run_values(run)).rowcount == 1]
            for tenant in {run.tenant for run, _ in runs}:
                of = [used for run, used in runs if run.tenant == tenant]
                cpu_ms, wall_ms = round(sum(one.cpu_ms for one in of)), round(sum(one.wall_ms for one in of))
                counts = (len(of), sum(one.failed for one in of), 0, cpu_ms, wall_ms, sum(one.output_bytes for one in of), 0, 0)
                database.execute(ADD_USAGE, (tenant, utc_day(self._clock()), *counts))
            for run, (key, request_id) in ((run, used.audit) for run, used in runs if used.audit is not None):
                line = (run.tenant, key, "run", run.id, run.status or "", request_id, run.session or "one-shot")
                database.execute(ADD_AUDIT, (run.finished, *map(_text, line)))

    def load_run(self, run_id: str, tenant: str | None) -> RunRow | None:
        """Only a `tenant`'s own; None: whoever's it is."""
        query = """SELECT id, tenant, session, started, finished, status, result FROM runs
            WHERE id = :id AND (:tenant IS NULL OR tenant = :tenant)"""
        for row in self._rows(query, {"tenant": tenant, "id": run_id}):
            return RunRow(*row)
        return None

    def prune_runs(self, before: float) -> int:
        """Forget runs that finished before then, or started and never finished; `PRUNE_ROWS` at most; how many."""
        query = "DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE coalesce(finished, started) < ? LIMIT ?)"
        return self._change(query, (before, PRUNE_ROWS))

    # ------------------------------------------------------------------------------------------------ idempotency keys

    def claim(self, tenant: str, key: str, fingerprint: str, target: str) -> str | None:
        """None: `target` is the first under this key, go on. Else what the first request with it made.

        Raises Conflict when that was another request (another `fingerprint`).
        """
        with self._transaction() as database:
            insert = "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
            if database.execute(insert, (tenant, key, fingerprint, target, self._clock())).rowcount == 1:
                return None
            query = "SELECT fingerprint, target FROM idempotency WHERE tenant = ? AND key = ?"
            earlier, made = database.execute(query, (tenant, key)).fetchone()
        if earlier != fingerprint:
            raise Conflict("This idempotency key was used for another request.", field="Idempotency-Key")
        return made

    def unclaim(self, tenant: str, key: str, target: str) -> None:
        """Take a claim back whose request came to nothing; one that is not `target`'s stays."""
        self._change("DELETE FROM idempotency WHERE tenant = ? AND key = ? AND target = ?", (tenant, key, target))

    def prune_claims(self, before: float) -> int:
        """Forget claims made before then, `PRUNE_ROWS` at most; how many."""
        query = """DELETE FROM idempotency WHERE (tenant, key) IN
            (SELECT tenant, key FROM idempotency WHERE created < ? LIMIT ?)"""
        return self._change(query, (before, PRUNE_ROWS))

    # ------------------------------------------------------------------------------------------------ beneath

    def _rows(self, query: str, values: tuple[object, ...] | Mapping[str, object] = ()) -> list[Any]:
        with self._read_lock, translated(self._path), closing(self._read.execute(query, values)) as cursor:
            return cursor.fetchall()

    def _change(self, statement: str, values: tuple[object, ...]) -> int:
        """One statement, which is a transaction of its own; how many rows it touched."""
        with self._write_lock, translated(self._path), closing(self._write.execute(statement, values)) as cursor:
            return cursor.rowcount

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with self._write_lock, translated(self._path):
            self._write.execute("BEGIN IMMEDIATE")
            try:
                yield self._write
                self._write.execute("COMMIT")
            finally:
                if self._write.in_transaction:  # SQLite may have rolled back by itself, as it does on a full disk
                    self._write.execute("ROLLBACK")

    def _migrate(self) -> None:
        if version(self._write) == len(MIGRATIONS):
            return
        with self._transaction() as database:
            found = version(database)  # again: another process may have migrated while we waited
            if found > len(MIGRATIONS):
                raise Unavailable(
                    f"The database {os.fspath(self._path)!r} was made by a newer Onetrip (schema {found}; this one knows {len(MIGRATIONS)}).",
                    hint="Upgrade Onetrip, or configure another `data_dir`.",
                )
            for migration in MIGRATIONS[found:]:
                for statement in migration:
                    database.execute(statement)
            database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


_SESSION: Final = "id, tenant, created, request, metadata, ended_at, ended_why"


def _key(*row: Any) -> Key:
    key_id, tenant, role, label, created, revoked, tools = row
    return Key(
        key_id, tenant, role, label, created, revoked, None if tools is None else msgspec.json.decode(tools, type=tuple[str, ...])
    )


def _text(value: str) -> str:
    """Text that can be kept, whoever wrote it: bounded, and encodable as UTF-8."""
    return value[:AUDIT_TEXT].encode(errors="backslashreplace").decode()


def _json(quota: Quota | None) -> str | None:
    return None if quota is None else msgspec.json.encode(quota).decode()
