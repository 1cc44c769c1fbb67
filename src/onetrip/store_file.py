"""The file of the server's database: made for its user alone, connected to, and its errors as ours."""

import os
import sqlite3
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from onetrip.errors import BadRequest, NotFound, OnetripError, Unavailable

BUSY_MS: Final = 1000  # how long a write waits for another process's; it blocks our event loop, and theirs take microseconds
_WAL_BYTES: Final = 64 << 20  # what the log is cut back to

_HINTS: Final = {
    sqlite3.SQLITE_FULL: "The disk of the server's data folder is full: make space, then try again.",
    sqlite3.SQLITE_IOERR: "The disk of the server's data folder is full or fails: make space, or look into the system's log.",
    sqlite3.SQLITE_CANTOPEN: "The server's data folder must exist, be writable for this user, and have space.",
    sqlite3.SQLITE_READONLY: "The server's data folder and its files must be writable for this user.",
    sqlite3.SQLITE_BUSY: "Another process holds the database; try again.",
    sqlite3.SQLITE_CORRUPT: "The database is damaged: stop the server, move the file away, and restore a backup or begin anew.",
    sqlite3.SQLITE_NOTADB: "The file is not a database of ours: move it away, or configure another `data_dir`.",
}


def prepare_file(path: Path) -> None:
    """Make an empty file that only this user may read; SQLite gives its companions the same mode.

    One that exists is never opened here: closing it again would drop the locks that this process has on it.
    """
    try:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            found = os.lstat(path).st_mode
            if not stat.S_ISREG(found):
                raise Unavailable(
                    f"The database {os.fspath(path)!r} is not a regular file.", hint=_HINTS[sqlite3.SQLITE_NOTADB]
                ) from None
            if stat.S_IMODE(found) & 0o077:
                os.chmod(path, 0o600)
    except OSError as err:
        raise Unavailable(
            f"The database {os.fspath(path)!r} cannot be made: {err.strerror}.", hint=_HINTS[sqlite3.SQLITE_CANTOPEN]
        ) from err


def connect(path: Path) -> sqlite3.Connection:
    with translated(path):
        database = sqlite3.connect(path, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
        try:
            for pragma in (
                "journal_mode = WAL",
                "synchronous = NORMAL",
                "foreign_keys = ON",
                f"journal_size_limit = {_WAL_BYTES}",
                "trusted_schema = OFF",
            ):
                database.execute(f"PRAGMA {pragma}").fetchall()
        except BaseException:
            database.close()
            raise
        return database


def version(database: sqlite3.Connection) -> int:
    return database.execute("PRAGMA user_version").fetchone()[0]


@contextmanager
def translated(path: Path) -> Generator[None]:
    """SQLite's errors as ours. A statement that is wrong is our own mistake and stays what it is."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as err:
        raise _ours(err, path) from err
    except UnicodeEncodeError as err:  # a name from a request that no file could have either
        raise BadRequest("It holds a lone surrogate, which is not text.") from err


def _ours(err: sqlite3.Error, path: Path) -> OnetripError:
    code = getattr(err, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
        return NotFound("There is no such tenant.", hint="`onetrip keys create --tenant NAME` makes one.", field="tenant")
    if code & 0xFF == sqlite3.SQLITE_CONSTRAINT:
        return BadRequest(f"The database refuses it: {err}.")
    if code & 0xFF == sqlite3.SQLITE_TOOBIG:
        return BadRequest("It is too large for the database.", hint="A row holds at most a gigabyte.")
    return Unavailable(f"The database {os.fspath(path)!r} fails: {err}.", hint=_HINTS.get(code & 0xFF))
