"""A workspace that a program owns and the shelf of its session, for tests of the files half of undo."""

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from onetrip.beneath import as_owner
from onetrip.shelf import Shelf, Shot

MIB = 1 << 20
ROOT = os.geteuid() == 0
FOREIGN = (0x7000_0001, 0x7000_0001)  # an owner that is nobody: as the sandboxes of root have
OWNERS = [
    pytest.param(None, id="own"),
    pytest.param(FOREIGN, id="foreign", marks=pytest.mark.skipif(not ROOT, reason="needs root")),
]
TMPFS = "/dev/shm" if os.path.ismount("/dev/shm") else None
PLACES = [
    pytest.param(None, id="disk"),
    pytest.param(TMPFS, id="tmpfs", marks=pytest.mark.skipif(TMPFS is None, reason="no tmpfs at /dev/shm")),
]


class Room:
    """A workspace, the shelf of its session, and what the program does in it."""

    def __init__(self, top: Path, owner, **bounds) -> None:
        self.top, self.owner = top / "workspace", owner
        self.outside = top / "secret"
        self.outside.write_text("of the host")
        self.kept_in = top / "shelf"
        for folder in (self.top, self.kept_in):
            folder.mkdir()
        self.kept_in.chmod(0o700)
        if owner:
            top.chmod(0o711)
            os.chown(self.top, *owner)
        self.fd = os.open(self.top, os.O_RDONLY | os.O_DIRECTORY)
        self.shelf = Shelf(self.kept_in, **{"max_bytes": 64 * MIB} | bounds)

    def program(self):
        """What is done in this block is done as the program would."""
        return as_owner(self.owner)

    def write(self, path: str, data: bytes | str = b"") -> Path:
        file = self.top / path
        with self.program():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data if isinstance(data, bytes) else data.encode())
        return file

    def take(self, before: Shot | None = None, **options) -> Shot:
        return self.shelf.take(self.fd, owner=self.owner, before=before, **options)

    def restore(self, shot: Shot, **options):
        return self.shelf.restore(self.fd, shot, owner=self.owner, **options)

    def unchanged(self, shot: Shot, **options) -> bool:
        return self.shelf.unchanged(self.fd, shot, owner=self.owner, **options)

    def close(self) -> None:
        self.shelf.close()
        os.close(self.fd)


@contextlib.contextmanager
def rooms(place, owner, **bounds):
    top = Path(tempfile.mkdtemp(dir=place))
    made = Room(top, owner, **bounds)
    try:
        yield made
    finally:
        made.close()
        subprocess.run(["chmod", "-R", "u+rwx", top], check=True)
        shutil.rmtree(top)


def tree(top: Path):
    """Everything that a program can see of a workspace, except inode numbers and ctimes; also of what it closed to itself."""
    found, names = {}, {}
    for path in everything(top):
        status = path.lstat()
        names.setdefault(status.st_ino, []).append(str(path.relative_to(top)))
        content: object = None
        if stat.S_ISREG(status.st_mode):
            with opened_up(path, status):
                content = path.read_bytes() if status.st_size <= 64 * MIB else status.st_size
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        found[str(path.relative_to(top))] = (stat.filemode(status.st_mode), status.st_mtime_ns, content)
    return found, sorted(sorted(group) for group in names.values() if len(group) > 1)


def everything(path: Path):
    """The path and all that is below; a closed folder is open for as long as the caller is in it."""
    yield path
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        with opened_up(path, status):
            for name in sorted(os.listdir(os.fsencode(path))):
                yield from everything(path / os.fsdecode(name))


@contextlib.contextmanager
def opened_up(path: Path, status: os.stat_result):
    if status.st_mode & 0o700 == 0o700 or (stat.S_ISREG(status.st_mode) and status.st_mode & 0o400):
        yield
        return
    path.chmod(stat.S_IMODE(status.st_mode) | 0o700)
    try:
        yield
    finally:
        path.chmod(stat.S_IMODE(status.st_mode))


def fill(room: Room) -> None:
    room.write("a.txt", "content of a")
    room.write("d/b.bin", os.urandom(200_000))
    room.write("d/e/c", "deep")
    room.write("empty file")
    with room.program():
        (room.top / "empty folder").mkdir()
        (room.top / "link").symlink_to("d/b.bin")
        (room.top / "dangling").symlink_to("/no/such")
        os.link(room.top / "a.txt", room.top / "d" / "also a")
        room.write("run.sh", "#!/bin/sh\n").chmod(0o750)
        room.write("locked", "secret of the program").chmod(0o400)
        for path in reversed(list(everything(room.top))):
            os.utime(path, ns=(10**18, 10**18 + len(path.name)), follow_symlinks=False)


def put(path: Path, mode: str, data: bytes) -> None:
    with path.open(mode) as file:
        file.write(data)
