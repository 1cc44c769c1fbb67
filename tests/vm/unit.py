"""In the virtual machine, as root: deploy/onetrip.service as its own head says, and what a team relies on it for.

The unit starts, serves a run at level `strict` with control groups where systemd delegates them, comes back by itself after `kill -9` with
the session that was open, and leaves nothing when it is stopped.
"""

import json
import os
import pwd
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).parents[2]
URL = "http://127.0.0.1:8400"
READY_S = 900.0  # emulated
DATA = "/var/lib/onetrip/server"


def main() -> None:
    install()
    command("systemctl", "start", "onetrip")
    wait_ready("started")
    token = command(
        "setpriv", "--reuid=onetrip", "--regid=onetrip", "--init-groups", "--reset-env", "env", f"ONETRIP_DATA={DATA}",
        "/opt/onetrip/bin/onetrip", "keys", "create", "--role", "admin",
    ).strip()  # fmt: skip
    session = ask(token, "/v1/sessions", {})["id"]
    first = ask(token, f"/v1/sessions/{session}/runs", {"code": "x = 41\nopen('kept', 'w').write('file')"})
    version = int(command("systemctl", "--version").split()[1])
    print(f"systemd {version}; {first['isolation']['level']}:", *first["isolation"]["mechanisms"], flush=True)
    wanted = {f"cgroup-v2:{name}" for name in ("memory", "pids", "cpu")} if version >= 254 else {"watchdog"}
    check(first["isolation"]["level"] == "strict", "level strict")
    check(wanted <= set(first["isolation"]["mechanisms"]), f"held by {sorted(wanted)}")

    killed = main_pid()
    command("systemctl", "kill", "--signal=KILL", "--kill-who=main", "onetrip")
    wait_for(lambda: main_pid() not in (0, killed), "a new server after kill -9")
    wait_ready("came back")
    second = ask(token, f"/v1/sessions/{session}/runs", {"code": "(x + 1, open('kept').read())"})
    check(second["text"] == "(42, 'file')", "the session is there after kill -9, with its variables and files")

    command("systemctl", "stop", "onetrip")
    check(not processes_of("onetrip"), "no process is left after the stop")
    state = command("systemctl", "show", "--property=Result,ActiveState", "onetrip")
    check("Result=success" in state and "ActiveState=inactive" in state, f"it ended well: {' '.join(state.split())}")


def install() -> None:
    command("useradd", "--system", "--create-home", "--home-dir", "/var/lib/onetrip", "--shell", "/usr/sbin/nologin", "onetrip")
    # Stands for `pip install`, which was done outside already: scripts that were made there name an interpreter there.
    program = Path("/opt/onetrip/bin/onetrip")
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {HERE}/.venv/bin/python -m onetrip "$@"\n')
    program.chmod(0o755)
    shutil.copy(HERE / "deploy/onetrip.toml", "/etc/onetrip.toml")
    shutil.copy(HERE / "deploy/onetrip.service", "/etc/systemd/system/onetrip.service")
    command("systemctl", "daemon-reload")


def command(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        fail(f"{' '.join(words)}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def ask(token: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        URL + path, json.dumps(body).encode(), {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=READY_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as err:
        fail(f"{path}: {err.code}: {err.read().decode(errors='replace')}")


def is_ready() -> bool:
    try:
        with urllib.request.urlopen(f"{URL}/readyz", timeout=60) as answer:
            return answer.status == 200
    except OSError:
        return False


def wait_ready(what: str) -> None:
    wait_for(is_ready, f"ready ({what})")


def wait_for(happened: Any, what: str) -> None:
    give_up = time.monotonic() + READY_S
    while not happened():
        if time.monotonic() > give_up or "failed" in command("systemctl", "show", "--property=ActiveState", "onetrip"):
            fail(f"not in time: {what}")
        time.sleep(0.5)  # systemd tells of units, not of what they serve
    check(True, what)


def main_pid() -> int:
    return int(command("systemctl", "show", "--property=MainPID", "--value", "onetrip"))


def processes_of(user: str) -> list[int]:
    uid = pwd.getpwnam(user).pw_uid
    found: list[int] = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{entry}").st_uid == uid:
                found.append(int(entry))
        except FileNotFoundError:
            continue
    return found


def check(is_so: bool, what: str) -> None:
    if not is_so:
        fail(f"not so: {what}")
    print(f"ok: {what}", flush=True)


def fail(why: str) -> NoReturn:
    print(why, flush=True)
    subprocess.run(["journalctl", "--no-pager", "--lines=60", "--unit=onetrip"], check=False)
    sys.exit(1)


if __name__ == "__main__":
    main()
