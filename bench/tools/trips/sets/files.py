"""The file system of a small project: folders, texts, tables, logs. Not the machine's: it is in memory."""

import hashlib
from typing import ClassVar, Literal, TypedDict

from onetrip import tool
from trips.sets.base import NotFoundError, ToolSet, roll


class Entry(TypedDict):
    path: str
    kind: Literal["file", "folder"]


class Status(TypedDict):
    path: str
    size: int  # bytes
    owner: str
    modified: str  # a day, such as 2026-04-02


class Found(TypedDict):
    path: str
    line: int  # counted from 1
    text: str


class Checksum(TypedDict):
    path: str
    sha256: str


class Written(TypedDict):
    path: str
    size: int


_OWNERS = ["ana", "ben", "cleo"]


def _content() -> dict[str, str]:
    found = {
        "/project/README.txt": "Lighthouse\n\nCounts ships.\nTODO: say how to install it\nOwner: ana\n",
        "/project/config/base.ini": "port=8000\nworkers=2\nlog=info\nregion=north\n",
        "/project/config/test.ini": "include=/project/config/base.ini\nworkers=1\nlog=debug\n",
        "/project/config/live.ini": "include=/project/config/regional.ini\nworkers=8\n",
        "/project/config/regional.ini": "include=/project/config/base.ini\nregion=south\nlog=warning\n",
        "/project/src/main.txt": "uses: harbour, tide\nTODO: read the port from the settings\nrun()\n",
        "/project/src/harbour.txt": "uses: ships, tide\nopen()\nTODO: close it at night\n",
        "/project/src/tide.txt": "uses: moon\nrise()\nfall()\n",
        "/project/src/ships.txt": "uses: harbour\nsail()\n",
        "/project/src/moon.txt": "uses:\nshine()\nTODO: phases\nTODO: eclipses\n",
        "/project/docs/start.txt": "See /project/docs/install.txt and /project/docs/faq.txt\n",
        "/project/docs/install.txt": "See /project/docs/start.txt and /project/docs/old/pip.txt\n",
        "/project/docs/faq.txt": "See /project/docs/missing.txt\n",
        "/project/docs/old/pip.txt": "See /project/docs/start.txt\nTODO: remove this page\n",
    }
    for month in range(1, 7):
        rows = [
            f"2026-{month:02}-{day:02},{['north', 'south', 'east'][roll(3, month, day, 'where')]},{1 + roll(30, month, day, 'n')}"
            for day in (3, 9, 17, 24, 28)
        ]
        found[f"/project/data/ships-{month:02}.csv"] = "\n".join(["day,gate,count", *rows]) + "\n"
    for number in range(1, 11):
        lines = [
            f"{['INFO', 'INFO', 'WARN', 'ERROR'][roll(4, number, line, 'level')]} "
            f"{['gate', 'mail', 'disk', 'clock'][roll(4, number, line, 'part')]}: event {line}"
            for line in range(1, 6 + roll(9, number, "lines"))
        ]
        found[f"/project/logs/day-{number:02}.log"] = "\n".join(lines) + "\n"
    for number in range(1, 13):
        found[f"/project/photos/img-{number:02}.txt"] = f"picture {roll(8, number, 'same')}\n" * 4
    return found


class Files(ToolSet):
    """The file system's tools. Paths are absolute and begin with /project."""

    NAMESPACE: ClassVar[str] = "fs"

    def __init__(self) -> None:
        self._files = _content()
        self._folders = {path.rpartition("/")[0] for path in self._files} | {"/project"}

    @tool(name="fs.list_folder", effect="read")
    def list_folder(self, path: str) -> list[Entry]:
        """What is in a folder, by name; not what is in the folders in it."""
        if path not in self._folders:
            raise NotFoundError(f"there is no folder {path}")
        folders: list[Entry] = [{"path": one, "kind": "folder"} for one in self._folders if one.rpartition("/")[0] == path]
        files: list[Entry] = [{"path": one, "kind": "file"} for one in self._files if one.rpartition("/")[0] == path]
        return sorted(folders + files, key=lambda entry: entry["path"])

    @tool(name="fs.read_file", effect="read")
    def read_file(self, path: str) -> str:
        """The text of a file."""
        if path not in self._files:
            raise NotFoundError(f"there is no file {path}")
        return self._files[path]

    @tool(name="fs.stat", effect="read")
    def stat(self, path: str) -> Status:
        """Size, owner and day of the last change of a file."""
        return {
            "path": path,
            "size": len(self.read_file(path).encode()),
            "owner": _OWNERS[roll(3, path, "owner")],
            "modified": f"2026-0{1 + roll(6, path, 'month')}-{1 + roll(28, path, 'day'):02}",
        }

    @tool(name="fs.search", effect="read")
    def search(self, text: str, folder: str = "/project") -> list[Found]:
        """The lines that hold a text, in all files below a folder."""
        return [
            {"path": path, "line": number, "text": line}
            for path in sorted(self._files)
            if path.startswith(folder + "/")
            for number, line in enumerate(self._files[path].splitlines(), 1)
            if text in line
        ]

    @tool(name="fs.checksum", effect="read")
    def checksum(self, path: str) -> Checksum:
        """The SHA-256 of a file's content, in hexadecimal."""
        return {"path": path, "sha256": hashlib.sha256(self.read_file(path).encode()).hexdigest()}

    @tool(name="fs.write_file", effect="write")
    def write_file(self, path: str, text: str) -> Written:
        """Create a file, or give it another text."""
        if path.rpartition("/")[0] not in self._folders:
            raise NotFoundError(f"there is no folder {path.rpartition('/')[0]}")
        self._files[path] = text
        return {"path": path, "size": len(text.encode())}

    @tool(name="fs.make_folder", effect="write")
    def make_folder(self, path: str) -> Entry:
        """Create a folder; it may be there already."""
        self._folders.add(path)
        return {"path": path, "kind": "folder"}

    @tool(name="fs.move", effect="write")
    def move(self, path: str, to: str) -> Entry:
        """Move a file, or give it another name. The folder of its new path must exist."""
        text = self.read_file(path)
        self.write_file(to, text)
        del self._files[path]
        return {"path": to, "kind": "file"}

    @tool(name="fs.delete", effect="write")
    def delete(self, path: str) -> Entry:
        """Delete a file."""
        self.read_file(path)
        del self._files[path]
        return {"path": path, "kind": "file"}

    @property
    def state(self) -> object:
        return sorted(self._files.items()), sorted(self._folders)
