"""Lets the corpus' runner speak to `onetrip.local()`: `--adapter adapter:make`. Programs are one-shots, notebooks are sessions.

The environment must hold the packages that the corpus names, in those versions; ONETRIP_CORPUS_ENV says which one that is.
"""

import os
from collections.abc import Mapping
from typing import Any

import onetrip
from onetrip import errors

ENVIRONMENT = os.environ.get("ONETRIP_CORPUS_ENV", "corpus")


def make() -> "Corpus":
    return Corpus()


class Corpus:
    def __init__(self) -> None:
        self._onetrip = onetrip.local()

    def one_shot(self, code: str, files: Mapping[str, bytes], timeout: float) -> dict[str, Any]:
        return _told(self._onetrip.run(code, environment=ENVIRONMENT, files=files, timeout_s=timeout))

    def open_session(self) -> "Notebook":
        return Notebook(self._onetrip.session(environment=ENVIRONMENT))


class Notebook:
    def __init__(self, session: Any) -> None:
        self._session = session

    def put_file(self, path: str, data: bytes) -> None:
        self._session.files.write(path, data)

    def run(self, code: str, timeout: float = 60) -> dict[str, Any]:
        try:
            return _told(self._session.run(code, timeout_s=timeout))
        except errors.SessionGone as err:
            return {"error": {"type": "SessionGone", "message": str(err)}}

    def close(self) -> None:
        self._session.close()


def _told(result: onetrip.Result) -> dict[str, Any]:
    error = None
    if result.error is not None:
        error = {"type": result.error.type, "message": result.error.message}
    elif not result.ok:
        error = {"type": result.status, "message": str(result.limit)}
    return {
        "stdout": result.stdout,
        "stderr": result.stderr
        + (result.error.traceback if result.error else "")
        + (f"\n{result.limit}" if result.limit else ""),
        "result_text": result.text,
        "error": error,
        "displays": [list(display.data) for display in result.displays],
    }
