"""A server of ours as a process of its own, with a key for each of two tenants, for tests with E2B's clients."""

import json
import os
import subprocess
import sys
from pathlib import Path

from onetrip.settings import LOCAL_TENANT, Settings
from onetrip.store import FILE, Store
from onetrip.tenants import Tenants

START_S = 60.0


class Server:
    """`onetrip serve` as a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with Store.open(folder / FILE) as store:
            tenants = Tenants(store, Settings())
            tenants.create_tenant("other")
            self.token, self.other = (tenants.create_key(tenant, "user")[0] for tenant in (LOCAL_TENANT, "other"))
        self.start()

    def start(self, *, port: int = 0) -> None:
        script = Path(sys.executable).with_name("onetrip")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [script, "serve", "--port", str(port), "--json"],
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "ONETRIP_DATA": str(self.folder)},
            )
        line = self.process.stdout.readline()
        assert line, (self.folder / "log").read_text()[-4000:]
        self.url = json.loads(line)["url"]

    @property
    def options(self) -> dict[str, str]:
        return {"api_url": f"{self.url}/e2b", "sandbox_url": f"{self.url}/e2b", "api_key": self.token}

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(START_S)
        self.process.stdout.close()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(START_S)
        self.process.stdout.close()
