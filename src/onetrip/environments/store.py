"""Where built environments lie, and how one is found, kept while in use, replaced and removed.

    <home>/environments/<name>/current            a link to the build in force, replaced by one rename
    <home>/environments/<name>/<build id>/        environment.json (the manifest) and site-packages/
    <home>/environments/<name>/.building-<id>/    a build under way; whatever a killed one left is removed by the next
    <home>/environments/<name>.lock               held by who changes `<name>/`

A build never changes once it is in place.  Who runs sandboxes from one holds a shared lock on its manifest (`Environment.hold`);
a replaced build goes away as soon as nobody holds it, at the latest with the next build of that name.
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from onetrip import config
from onetrip.checks import check_environment_name
from onetrip.errors import PlatformError, Unavailable, UnknownEnvironment

MANIFEST: Final = "environment.json"
_BUILDING: Final = ".building-"


class Interpreter(msgspec.Struct, frozen=True, kw_only=True):
    """The CPython that an environment was built for: never a virtual environment's, always the one beneath."""

    executable: str
    version: str  # as "3.11.2"
    base_prefix: str
    stdlib: str
    platstdlib: str
    purelib: str  # where that interpreter's own packages lie; a sandbox does not show them
    enable_shared: bool  # libpython is a library of its own
    libdir: str
    multiarch: str  # as "x86_64-linux-gnu"; empty where the interpreter has none


class Node(msgspec.Struct, frozen=True):
    """One zygote of the tree: it imports its parent's modules and then its own."""

    name: str
    parent: str | None
    imports: tuple[str, ...]


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """One finished build. `nodes` lists parents before children and is never empty."""

    name: str
    build_id: str
    python: Interpreter
    packages: tuple[str, ...]  # every package as "name==version", sorted
    nodes: tuple[Node, ...]
    built_at: str  # UTC, ISO 8601
    path: str = ""  # of this build's folder; known to who loaded it, not written down

    @property
    def site_packages(self) -> str:
        return os.path.join(self.path, "site-packages")

    def hold(self) -> int:
        """Keep this build from being removed until the returned descriptor, and every copy of it, is closed.

        Raises UnknownEnvironment if it was removed meanwhile: find it again.
        """
        fd = -1
        try:
            fd = os.open(os.path.join(self.path, MANIFEST), os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as err:  # gone, or its remover has the lock
            if fd >= 0:
                os.close(fd)
            raise UnknownEnvironment(
                f"The environment {self.name!r} was replaced or removed just now.", field="environment"
            ) from err
        if os.fstat(fd).st_nlink == 0:  # removed between our open and our lock
            os.close(fd)
            raise UnknownEnvironment(f"The environment {self.name!r} was replaced or removed just now.", field="environment")
        return fd


def find(name: str, homes: Sequence[Path] | None = None) -> Environment:
    """The build of `name` in force, from the first home that has one.

    Raises UnknownEnvironment, with the names that there are, and Unavailable if it is there but cannot be used.
    """
    check_environment_name(name)
    searched = config.homes() if homes is None else homes
    for home in searched:
        environment = _load(folder(home, name))
        if environment is not None:
            if not os.access(environment.python.executable, os.X_OK):
                raise Unavailable(
                    f"The environment {name!r} was built for {environment.python.executable}, which this user cannot run (any more).",
                    hint=f"Build it again: `onetrip env build {name} --python …`.",
                    field="environment",
                )
            return environment
    if name == "default":
        raise UnknownEnvironment(
            "The default environment is not built yet.", hint="Build it: `onetrip env build default`.", field="environment"
        )
    known = ", ".join(environment.name for environment in list_all(searched)) or "none"
    raise UnknownEnvironment(f"There is no environment {name!r}; there are: {known}.", field="environment")


def list_all(homes: Sequence[Path] | None = None) -> tuple[Environment, ...]:
    """Every environment that `find` would find, sorted by name."""
    found: dict[str, Environment] = {}
    for home in config.homes() if homes is None else homes:
        try:
            names = sorted(entry.name for entry in os.scandir(home / "environments") if entry.is_dir(follow_symlinks=False))
        except OSError:  # a home that was never used, or is not ours to read: it holds nothing for us
            continue
        for name in names:
            environment = _load(folder(home, name))
            if environment is not None:
                found.setdefault(name, environment)
    return tuple(sorted(found.values(), key=lambda environment: environment.name))


def remove(name: str, homes: Sequence[Path] | None = None) -> bool:
    """Take `name` out of use. False when sandboxes still run from it: its files go when the next build finds it unused.

    Raises UnknownEnvironment if there is none, Unavailable if it is not ours to remove.
    """
    environment = find_any(name, homes)
    parent = Path(environment.path).parent
    with locked(parent.parent.parent, name), explained(parent):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(parent / "current")
        sweep(parent)
        try:
            os.rmdir(parent)
        except OSError as err:
            if err.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            return False
    return True


def find_any(name: str, homes: Sequence[Path] | None = None) -> Environment:
    """Like `find`, but whether or not its interpreter is still there."""
    check_environment_name(name)
    for environment in list_all(homes):
        if environment.name == name:
            return environment
    return find(name, homes)  # raises, with the right words


def folder(home: Path, name: str) -> Path:
    return home / "environments" / name


def _load(parent: Path) -> Environment | None:
    for _ in range(3):  # a rebuild may remove the old build between our two reads; then the link points to a new one
        try:
            build_id = os.readlink(parent / "current")
            raw = (parent / build_id / MANIFEST).read_bytes()
        except FileNotFoundError:
            continue
        except OSError:  # not a link, or not readable for this user
            return None
        try:
            environment = msgspec.json.decode(raw, type=Environment)
        except msgspec.DecodeError as err:
            raise PlatformError(
                f"{parent / build_id / MANIFEST} is damaged: {err}.", hint=f"Build it again: `onetrip env build {parent.name} …`."
            ) from err
        return msgspec.structs.replace(environment, path=str(parent / build_id))
    return None


# ---------------------------------------------------------------------------------------------------- for those who change it


@contextlib.contextmanager
def locked(home: Path, name: str) -> Generator[None]:
    """Be the only one that builds or removes `name` in this home. Raises Unavailable at once if another one is."""
    path = home / "environments" / f"{name}.lock"
    with explained(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        os.close(fd)
        raise Unavailable(
            f"Another process is building or removing the environment {name!r}.",
            hint="Wait until it is done.",
            field="environment",
        ) from err
    try:
        yield
    finally:
        os.close(fd)


def sweep(parent: Path) -> None:
    """Remove what killed builds left and every replaced build that nobody holds. Call with the lock held."""
    try:
        current = os.readlink(parent / "current")
    except FileNotFoundError:
        current = ""
    for entry in list(os.scandir(parent)):
        if entry.name in {"current", current}:
            continue
        if entry.name.startswith(_BUILDING) or not entry.is_dir(follow_symlinks=False) or _unused(Path(entry.path)):
            _remove_tree(entry.path)


def building(parent: Path, build_id: str) -> Path:
    return parent / f"{_BUILDING}{build_id}"


def _unused(build: Path) -> bool:
    """Whether nobody holds this build; the manifest goes first, under its lock, so that nobody can take hold later."""
    try:
        fd = os.open(build / MANIFEST, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True  # a removal that was cut short
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(build / MANIFEST)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _remove_tree(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


@contextlib.contextmanager
def explained(path: Path) -> Generator[None]:
    """Turn an OSError about the store into an error of ours that says what to do."""
    try:
        yield
    except OSError as err:
        where = err.filename or path
        if err.errno in {errno.ENOSPC, errno.EDQUOT}:
            hint = f"Free some space on the disk that holds {path}, or set ONETRIP_HOME to a folder on another."
        else:
            hint = "Set ONETRIP_HOME to a folder that you can write to."
        raise Unavailable(f"{where}: {err.strerror or err}. Nothing was changed.", hint=hint, field="ONETRIP_HOME") from err
