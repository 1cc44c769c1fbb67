"""The tier `jail`: namespaces, seccomp, Landlock and control groups around a forked interpreter, on the host's own kernel."""

import asyncio
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from onetrip.environments import Environment
from onetrip.errors import IsolationUnavailable, PlatformError, SandboxFailed, Unavailable
from onetrip.jail import cgroup, mounts, zygote
from onetrip.jail.launch import BOOT
from onetrip.model import Level, Limits, Support
from onetrip.removal import RunFolder, remove_tree
from onetrip.tiers import jail_probe
from onetrip.tiers.base import Donation, Exit, LaunchSpec, Sandbox
from onetrip.tiers.jail_room import ZYGOTE_DIED, Room, channel_ends
from onetrip.tiers.jail_sandbox import Fixed, JailSandbox
from onetrip.tiers.jail_zygote import ISLAND, ZygoteHandle

INODES: Final = 16384  # of each of a sandbox's two file systems; a directory entry costs the kernel about 1 KiB
FIRST_UID: Final = 0x7000_0000  # systemd's UIDS-GIDS document: from here on unused by every known allocator
UID_COUNT: Final = 0x1_0000
GUEST_UIDS: Final = UID_COUNT - zygote.FIRST_UID
SPARE_GROUPS: Final = 8
DEFAULT_LIMITS: Final = Limits()
ROTATE_AFTER: Final = 5000  # launches per zygote: its children share hash seed and address layout, so do not keep it for ever

# The whole environment of a program. Threads: one, because a process with more cannot be forked safely (libgomp hangs).
ENVIRON: Final[Mapping[str, str]] = {
    "PATH": "/usr/bin:/bin",
    "HOME": mounts.HOME,
    "USER": "user",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "TMPDIR": "/tmp",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "MPLCONFIGDIR": "/tmp/.matplotlib",
    "XDG_CACHE_HOME": "/tmp/.cache",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class JailTier:
    """See `base.Tier`. One zygote per environment, started when first wanted and replaced after `ROTATE_AFTER` launches."""

    name = "jail"

    def __init__(
        self,
        find_environment: Callable[[str], Environment],
        *,
        level: Level,
        house: bool = True,
        landlock: bool = True,
        cgroup_parent: str | None = None,
        lease_s: float = 0.0,
        run_dir: Path | None = None,
        guest_environ: Mapping[str, str] = {},
    ) -> None:
        self._find = find_environment
        self._level: Level = level  # as reported; what is done follows from the next two
        self._house, self._landlock = house, landlock
        self._lease_s = lease_s
        self._guest_environ = guest_environ
        self._run_folder = RunFolder() if run_dir is None else None
        self.run_dir = self._run_folder.path if self._run_folder is not None else Path(run_dir or "")
        self._cgroup_parent = cgroup_parent
        self._hierarchy = cgroup.probe(cgroup_parent)
        self._spare_groups: list[cgroup.Group] = []
        if self._hierarchy.version != "none":
            cgroup.sweep(self._hierarchy)  # what a server that was killed left behind
        self._zygotes: dict[str, ZygoteHandle] = {}
        self._starting: dict[str, asyncio.Lock] = {}
        self._launched: dict[ZygoteHandle, int] = {}
        self._live: dict[ZygoteHandle, dict[str, JailSandbox]] = {}
        self._retired: set[ZygoteHandle] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._next_cpu = 0
        self._pins = not any(name.endswith(":cpu") for name in self._hierarchy.names)
        self._ids = (FIRST_UID, UID_COUNT) if os.geteuid() == 0 and _may_map_ids() else None

    def probe(self) -> Support:
        return jail_probe.probe(self._cgroup_parent)

    # ------------------------------------------------------------------ zygotes

    async def zygote(self, environment: str) -> ZygoteHandle:
        """The zygote that serves this environment, started if need be. Raises SandboxFailed, UnknownEnvironment."""
        lock = self._starting.setdefault(environment, asyncio.Lock())
        async with lock:
            current = self._zygotes.get(environment)
            if current is not None and not current.lost and self._launched[current] < ROTATE_AFTER:
                return current
            if current is not None:
                self._retire(environment, current)
            started = await self._start(self._find(environment))
            self._zygotes[environment] = started
            return started

    async def _start(self, environment: Environment) -> ZygoteHandle:
        python = environment.python
        tree, executable, purelib = mounts.plan(
            island=ISLAND,
            prefix=python.base_prefix,
            stdlib=python.stdlib,
            executable=python.executable,
            purelib=python.purelib,
            site_packages=str(environment.site_packages),
        )
        environ = {**ENVIRON, **self._guest_environ}
        if python.enable_shared and python.libdir and not python.base_prefix.startswith("/usr"):
            environ["LD_LIBRARY_PATH"] = mounts.PREFIX + python.libdir.removeprefix(python.base_prefix)
        house = self._house
        island = mounts.ISLAND if house else ISLAND
        spec = {
            "level": "strict" if house else "reduced",
            "tree": {
                "binds": tree.binds,
                "copies": tree.copies,
                "links": tree.links,
                "texts": tree.texts,
                "folders": tree.folders,
            },
            "ids": self._ids,
            "argv": [executable if house else python.executable, "-I", "-B", "-c", BOOT, island, "zygote"],
            "environ": environ,
        }
        config = {
            "level": spec["level"],
            "lease_s": self._lease_s,
            "nodes": [{"name": node.name, "parent": node.parent, "imports": list(node.imports)} for node in environment.nodes],
            "site_packages": purelib if house else environment.site_packages,
            "groups": self._hierarchy.groups,
            "pins": self._pins,
            "guest_uid": self._ids[0] if self._ids else None,  # without a room: root's sandboxes run as this id
            "readonly": [] if house else _readable(environment),
            "landlock": self._landlock,
            "room": [DEFAULT_LIMITS.disk_mb << 20, INODES],
            "uids": GUEST_UIDS if self._ids else 0,
            "first_uid": secrets.randbelow(GUEST_UIDS),
        }
        hold = environment.hold()  # a rebuild must not remove the files below a zygote that serves from them
        try:
            handle = await ZygoteHandle.start(spec, config, self.run_dir / f"{secrets.token_hex(4)}.sock")
        except BaseException:
            os.close(hold)
            raise
        handle.on_close = lambda: os.close(hold)
        self._launched[handle], self._live[handle] = 0, {}
        handle.on_event = lambda message, fds: self._event(handle, message, fds)
        handle.on_lost = lambda: self._lost(handle)
        return handle

    def _event(self, handle: ZygoteHandle, message: Mapping[str, Any], fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        if message["event"] == "exited" and (sandbox := self._live[handle].get(message["id"])):
            code = os.waitstatus_to_exitcode(message["status"])
            sandbox.ended(Exit(code=code) if code >= 0 else Exit(signal=-code))

    def _lost(self, handle: ZygoteHandle) -> None:
        for sandbox in list(self._live[handle].values()):
            sandbox.ended(ZYGOTE_DIED)

    def _retire(self, environment: str, handle: ZygoteHandle) -> None:
        """Give it no more work; it ends when its last sandbox does."""
        self._retired.add(handle)
        self._zygotes.pop(environment, None)
        if not self._live[handle]:
            self._end_retired(handle)

    def _end_retired(self, handle: ZygoteHandle) -> None:
        self._retired.discard(handle)
        task = asyncio.ensure_future(handle.aclose())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.add_done_callback(lambda _: self._forget(handle))

    def _forget(self, handle: ZygoteHandle) -> None:
        del self._live[handle], self._launched[handle]

    # ------------------------------------------------------------------ sandboxes

    async def wait_ready(self, environment: str, node: str) -> None:
        await (await self.zygote(environment)).wait_node(node)

    async def launch(self, spec: LaunchSpec) -> JailSandbox:
        handle = await self.zygote(spec.environment)
        self._launched[handle] += 1
        open_room = None if self._house else self._make_open_room(spec.id)
        group = self._make_group(spec)
        try:
            fds, node = await handle.launch(self._request(spec, open_room), group.procs_fds if group else ())
        except BaseException:
            if group is not None:
                group.remove()
            if open_room is not None:
                remove_tree(open_room)
            raise
        if group is not None:
            group.close_procs()
        live = self._live[handle]

        def closed(group: cgroup.Group | None) -> None:
            if group is not None:
                self._give_back(group)
            live.pop(spec.id, None)
            if open_room is not None:
                remove_tree(open_room)
            handle.tell({"do": "forget", "id": spec.id})
            if handle in self._retired and not live:
                self._end_retired(handle)

        channel, stdout, stderr, *rest = fds
        if open_room is None:
            init, runner, workspace, proc = rest
        else:
            init, (runner,) = -1, rest
            workspace = os.open(open_room / "workspace", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fixed = Fixed(
            name=spec.id,
            node=node,
            meta=spec.meta,
            level=self._level,
            controllers=self._hierarchy.names if group else ("watchdog",),
            is_bound=self._landlock,
            open_room=None if open_room is None else open_room / "workspace",
            room_name=spec.id,
        )
        room = Room(init, runner, proc)
        sandbox = JailSandbox(fixed, spec.limits, room, (channel, stdout, stderr, workspace), group=group, on_close=closed)
        self._enlist(handle, sandbox)
        return sandbox

    def _enlist(self, handle: ZygoteHandle, sandbox: JailSandbox) -> None:
        """From now on it is told how it ended; at once where its zygote died after it had answered, and before we heard the answer."""
        self._live[handle][sandbox.id] = sandbox
        if handle.lost:
            sandbox.ended(ZYGOTE_DIED)

    async def branch(self, origin: Sandbox, spec: LaunchSpec) -> tuple[Sandbox, Donation]:
        assert isinstance(origin, JailSandbox)  # a tier gets back what it gave
        handle, of = next((h, live[origin.id]) for h, live in self._live.items() if origin.id in live)
        group = self._make_group(spec)
        folder, where = f"{of.branches}/{spec.id}", {"id": spec.id, "of": of.room_name}
        request = {
            "do": "branch", **where, "folder": folder, "disk_bytes": spec.limits.disk_mb << 20, "inodes": INODES,
            "at_home": of.ruleset >= 0,
        }  # fmt: skip
        try:
            (workspace, ruleset), path = await handle.launch(request, ())
        except BaseException:
            if group is not None:
                group.remove()
            raise
        if group is not None:
            group.close_procs()
        host_ends, guest_ends = channel_ends(workspace)
        live = self._live[handle]

        def closed(group: cgroup.Group | None) -> None:
            if group is not None:
                self._give_back(group)

        gone = {"do": "unbranch", **where, "folder": folder}
        ends = (*host_ends, workspace)
        sandbox = of.branched(spec, ends, folder, group=group, on_close=closed, on_leave=lambda: handle.tell(gone))
        if of.ruleset >= 0:
            sandbox.ruleset = os.dup(ruleset)
        self._enlist(handle, sandbox)
        sandbox.room.at_end(lambda: live.pop(spec.id, None) and None)
        return sandbox, Donation((*guest_ends, ruleset), path)

    async def open_to_siblings(self, origin: Sandbox) -> None:
        assert isinstance(origin, JailSandbox)
        if (why := origin.checkpoint_obstacle) is not None:
            raise Unavailable(f"a session holds one interpreter only here: {why}", hint=IsolationUnavailable.hint_default)
        handle = next(handle for handle, live in self._live.items() if origin.id in live)
        request = {"do": "join", "id": secrets.token_hex(8), "of": origin.room_name}
        (origin.ruleset,), _ = await handle.launch(request, ())

    def sibling(self, origin: Sandbox, spec: LaunchSpec, *, spawner: int) -> tuple[Sandbox, Donation]:
        assert isinstance(origin, JailSandbox)
        live = next(live for live in self._live.values() if origin.id in live)
        host_ends, guest_ends = channel_ends(origin.workspace)
        sandbox = origin.joined(spec, (*host_ends, os.dup(origin.workspace)), spawner=spawner)
        live[spec.id] = sandbox
        sandbox.room.at_end(lambda: live.pop(spec.id, None) and None)
        return sandbox, Donation((*guest_ends, os.dup(origin.ruleset)), origin.home)

    def _make_group(self, spec: LaunchSpec) -> cgroup.Group | None:
        if self._hierarchy.version == "none":
            return None
        memory_bytes, processes = spec.limits.memory_mb << 20, spec.limits.processes + spec.asleep
        while self._spare_groups:
            group = self._spare_groups.pop()
            try:
                group.set_limits(memory_bytes=memory_bytes, processes=processes, cpus=1.0)
            except OSError:
                group.remove()
            else:
                return group
        try:
            return cgroup.Group.create(self._hierarchy, spec.id, memory_bytes=memory_bytes, processes=processes, cpus=1.0)
        except OSError as err:
            raise SandboxFailed(f"the jail's step “make the control group” failed: {err}") from err

    def _give_back(self, group: cgroup.Group) -> None:
        """Keep an empty group for the next sandbox, or remove it."""
        try:
            if len(self._spare_groups) < SPARE_GROUPS and group.renew():
                self._spare_groups.append(group)
            else:
                group.remove()
        except OSError as err:
            raise PlatformError(f"a control group could not be removed: {err}") from err

    def _make_open_room(self, name: str) -> Path:
        """Folders for a sandbox without namespaces: its workspace and its scratch, in our own temporary folder."""
        room = self.run_dir / name
        for folder in (room, room / "workspace", room / "scratch"):
            folder.mkdir(0o700)
            if self._ids:
                os.chown(folder, self._ids[0], self._ids[0])
        if self._ids:
            self.run_dir.chmod(0o711)
        return room

    def _request(self, spec: LaunchSpec, open_room: Path | None) -> dict[str, Any]:
        cpu: int | None = None
        if self._pins:
            cpus = sorted(os.sched_getaffinity(0))
            cpu, self._next_cpu = cpus[self._next_cpu % len(cpus)], self._next_cpu + 1
        return {
            "id": spec.id,
            "node": spec.node,
            "meta": dict(spec.meta),
            "disk_bytes": spec.limits.disk_mb << 20,
            "inodes": INODES,
            "cpu": cpu,
            "workspace": mounts.WORKSPACE if open_room is None else str(open_room / "workspace"),
            "scratch": None if open_room is None else str(open_room / "scratch"),
        }

    def detach(self) -> None:
        """Leave every zygote, with its sandboxes, to the next host (see `lease_s`)."""
        for handle in self._live:
            handle.detach()

    async def aclose(self) -> None:
        """End every sandbox and zygote; waits until nothing is left."""
        async with asyncio.TaskGroup() as closing:
            for live in self._live.values():
                for sandbox in list(live.values()):
                    closing.create_task(sandbox.aclose())
        async with asyncio.TaskGroup() as closing:
            for handle in self._live:
                closing.create_task(handle.aclose())
        while self._spare_groups:
            self._spare_groups.pop().remove()
        if self._hierarchy.version != "none":
            cgroup.sweep(self._hierarchy)
        if self._run_folder is not None:
            self._run_folder.remove()


def _readable(environment: Environment) -> list[str]:
    """What a program without a root of its own may read: the interpreter, its packages, the system's libraries."""
    python = environment.python
    wanted = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache", python.executable, python.stdlib, python.libdir]
    if python.base_prefix != "/usr":
        wanted.append(python.base_prefix)
    return [path for path in (*wanted, environment.site_packages) if os.path.exists(path)]


def _may_map_ids() -> bool:
    """Whether a range of ids can be mapped: only from the initial user namespace can we know that the range is unused."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def reachable_level(support: Support, floor: Level) -> Level:
    """The strongest level that the host gives, if it is not below the floor. Raises IsolationUnavailable."""
    if support.level is None or (support.level == "reduced" and floor == "strict"):
        missing = [m for m in support.mechanisms if not m.works and m.needed_for is not None]
        what = "; ".join(f"{m.name}: {m.detail}" for m in missing) or "unknown"
        remedy = next((m.remedy for m in missing if m.remedy), None)
        raise IsolationUnavailable(f"this host cannot give isolation level “{floor}” ({what})", hint=remedy)
    return support.level
