"""Lets the attack suites outside of this repository speak to `onetrip.local()`: `py:adapter:Programs` and `py:adapter:Folders`.

The suites measure the product as shipped: nothing here adds protection, it only translates names.
"""

import time
from typing import Any

import onetrip
from onetrip import errors

# Below the caps at which a probe of the suite reports "not contained" (192 MB of the
# kernel's own memory, 600 MB of files, 256 processes, 8 MB of output).
LIMITS = onetrip.Limits(memory_mb=160, disk_mb=256, processes=64, output_mb=6)
FIRST_RUN_S = 4.0


class Programs:
    """The adapter of `runner.py`: code in, what it wrote and how it ended out."""

    name = "onetrip"
    stateful = True
    features = frozenset({"nonroot", "own_pidns"})
    checkpoints: int | None = None  # as many as a session has anyway

    def __init__(self) -> None:
        self._onetrip = onetrip.local()
        self._sessions: dict[str, Any] = {}

    def run_code(self, code: str, session: str | None = None, timeout: float | None = None) -> dict[str, Any]:
        began = time.monotonic()
        try:
            result = self._run(code, session, timeout or FIRST_RUN_S)
        except errors.OnetripError as err:
            return {"stdout": "", "stderr": "", "error": repr(err), "timed_out": False, "wall_s": time.monotonic() - began}
        error = None if result.ok else result.status
        if result.error is not None:
            error = f"{result.error.type}: {result.error.message} ({result.status})"
        return {
            "stdout": result.stdout,
            "stderr": result.stderr + (result.error.traceback if result.error else ""),
            "error": error,
            "timed_out": result.limit is not None and result.limit.name == "wall",
            "wall_s": time.monotonic() - began,
        }

    def _run(self, code: str, session: str | None, timeout_s: float) -> onetrip.Result:
        if session is None:
            return self._onetrip.run(code, limits=LIMITS, timeout_s=timeout_s)
        if session not in self._sessions:
            self._sessions[session] = self._new_session()
        try:
            return self._sessions[session].run(code, timeout_s=timeout_s)
        except errors.SessionGone:  # an earlier program took it with it; the suite asks whether the next one works
            self.close_session(session)
            self._sessions[session] = self._new_session()
            return self._sessions[session].run(code, timeout_s=timeout_s)

    def _new_session(self) -> Any:
        chosen = {} if self.checkpoints is None else {"checkpoints": self.checkpoints}
        return self._onetrip.session(limits=LIMITS, **chosen)

    def close_session(self, session: str) -> None:
        if found := self._sessions.pop(session, None):
            found.close()

    def close(self) -> None:
        self._onetrip.close()


class ProgramsWithoutCheckpoints(Programs):
    """Sessions that cannot be undone have no process but their own."""

    checkpoints = 0


class Folders:
    """The adapter of `client_runner.py`: the file interface of sessions. There are no archives in this interface."""

    archive = False

    def __init__(self) -> None:
        self._onetrip = onetrip.local()
        self._sessions: dict[str, Any] = {}

    def run(self, session: str, code: str) -> None:
        if session not in self._sessions:
            self._sessions[session] = self._onetrip.session()
        self._sessions[session].run(code, timeout_s=20)

    def upload(self, session: str, path: str, data: bytes) -> None:
        self._files(session).write(path, data)

    def download(self, session: str, path: str, limit: int) -> bytes:
        return self._files(session).read(path)

    def list(self, session: str, path: str, recursive: bool = False) -> list[str]:
        """`files.list()` has no path: it is always the whole workspace. Anything else than the workspace itself is not asked for."""
        if path not in {".", ""}:
            raise errors.BadRequest(f"{path!r}: a listing is of the workspace")
        return [file.path for file in self._files(session).list()]

    def delete(self, session: str, path: str) -> None:
        self._files(session).delete(path)

    def end_session(self, session: str) -> None:
        if found := self._sessions.pop(session, None):  # ending twice does no harm, as in the product
            found.close()

    def workspace(self, session: str) -> None:
        """It has no path on the host."""

    def alive(self) -> bool:
        return self._onetrip.run("1 + 1").text == "2"

    def close(self) -> None:
        self._onetrip.close()

    def _files(self, session: str) -> Any:
        return self._find(session).files

    def _find(self, session: str) -> Any:
        if session not in self._sessions:
            self._onetrip._async._engine.workspace(session)  # what the engine says to an identifier that a caller made up
            raise AssertionError(f"the engine knows a session {session!r} that nobody opened")
        return self._sessions[session]
