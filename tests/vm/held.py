"""Says where this process is, what a result reports and what doctor says; fails unless control groups of the version named hold."""

import sys
from pathlib import Path

import onetrip
from onetrip.jail import cgroup

expected = sys.argv[1]
print("own group:", Path("/proc/self/cgroup").read_text("ascii").strip())
found = cgroup.probe()
print("place:", *sorted(set(found.places.values())), found.version, dict(found.reasons), found.remedy or "")
with onetrip.local(warm=0) as ot:
    isolation = ot.run("1").isolation
print(f"{isolation.level}:", *isolation.mechanisms)
wanted = {f"cgroup-{expected}:{name}" for name in ("memory", "pids", "cpu")} if expected != "none" else {"watchdog"}
if not wanted <= set(isolation.mechanisms):
    sys.exit(f"not held: {sorted(wanted - set(isolation.mechanisms))}")
