"""Puts frames into the named pipe of a command (see `command`), waiting a bounded time for a command that does not take them.

`request`: pipe (a name in the temporary folder), data (base64).
"""

from typing import Any


def main(request: dict[str, Any]) -> Any:
    import base64
    import os
    import select
    import time

    data = memoryview(base64.b64decode(request["data"]))
    deadline = time.monotonic() + 5.0
    try:
        pipe = os.open(os.path.join(os.environ.get("TMPDIR", "/tmp"), request["pipe"]), os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # ENOENT, or ENXIO: nobody reads it
        return {"error": "not_found", "message": "the process has ended"}
    try:
        while data:
            try:
                data = data[os.write(pipe, data) :]
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0:
                    return {"error": "unavailable", "message": "the process does not take its input"}
                select.select([], [pipe], [], left)
            except BrokenPipeError:
                return {"error": "not_found", "message": "the process has ended"}
    finally:
        os.close(pipe)
    return {}


main(globals().pop("request"))
