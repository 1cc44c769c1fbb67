"""The read-only root of the jail: what is in it (`plan`) and how it is put together (`build`).

The root is a small tmpfs. Into it go read-only binds of the interpreter, the environment's packages and the system's shared
libraries, private copies of a shell and a few small tools, and a handful of files written by us. Nothing else of the host is there.
Sources are opened before privileges change, so an interpreter below a directory that only root may enter still works.
"""

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from . import calls, syscalls

ISLAND: Final = "/opt/island"  # our own guest and jail code
PREFIX: Final = "/opt/python"  # an interpreter that is not the system's own
WORKSPACE: Final = "/workspace"
HOME: Final = "/home/user"
ABOVE_BRANCHES: Final = "/branches"
# Where branches of a session have their files, each in a folder of its own. Landlock asks the folder *above* a mount point for
# rules, not the mount point itself (security/landlock/fs.c, "ignores hidden mount points").
BRANCHES: Final = "/branches/all"
NEW_ROOT: Final = "/tmp"  # where the tree is put together: exists everywhere, and may be entered by everybody

# Programs that `subprocess` and `os.system` of ordinary code use. Copied, so no file of the host is shared between sandboxes
# (locks on a shared inode would let two sandboxes signal each other), and set-user-ID bits are lost on the way.
_TOOLS: Final = (
    "sh",
    "bash",  # what clients with shell commands ask for by name
    "cat",
    "ls",
    "echo",
    "cp",
    "mv",
    "rm",
    "mkdir",
    "rmdir",
    "touch",
    "head",
    "tail",
    "wc",
    "sort",
    "uniq",
    "cut",
    "tr",
    "grep",
    "sed",
    "awk",
    "find",
    "xargs",
    "env",
    "true",
    "false",
    "sleep",
    "date",
    "pwd",
    "id",
    "uname",
    "seq",
    "tee",
    "basename",
    "dirname",
    "test",
    "printf",
    "chmod",
    "ln",
    "du",
    "md5sum",
    "sha256sum",
    "gzip",
    "gunzip",
    "tar",
    "which",
    "expr",
    "diff",
    "cmp",
    "comm",
    "join",
    "paste",
    "split",
    "nl",
    "od",
    "tac",
    "mktemp",
    "mkfifo",
    "ps",
    "stat",
    "readlink",
    "realpath",
    "nproc",
    "df",
    "dd",
    "whoami",
    "hostname",
    "timeout",
    "nohup",
    "yes",
    "base64",
    "sha1sum",
    "bzip2",
    "xz",
    "zip",
    "unzip",
)
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")
_USERS: Final = "root:x:0:0:root:/nonexistent:/bin/false\nuser:x:1000:1000:user:/home/user:/bin/sh\n"
_GROUP: Final = "root:x:0:\nuser:x:1000:\n"


@dataclass(frozen=True, slots=True)
class Tree:
    """Everything in the root. Paths on the left are the jail's, absolute; `sources` are the host's."""

    binds: Mapping[str, str]  # target → host directory or file, read-only
    copies: Mapping[str, str]  # target → host file
    links: Mapping[str, str]  # path → what it points to
    texts: Mapping[str, str]  # path → content
    folders: Sequence[str] = field(default=())

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Tree":
        return cls(raw["binds"], raw["copies"], raw["links"], raw["texts"], raw["folders"])


def plan(*, island: str, prefix: str, stdlib: str, executable: str, purelib: str, site_packages: str) -> tuple[Tree, str, str]:
    """Lay out the root for one interpreter and one set of packages.

    `purelib` is where the interpreter looks for packages; `site_packages` is the host directory that will stand there.
    Returns the tree, the interpreter's path inside, and `purelib` inside.
    """
    binds = {top: top for top in ("/lib", "/lib32", "/lib64") if os.path.isdir(top) and not os.path.islink(top)}
    links: dict[str, str] = {"/bin": "usr/bin", "/sbin": "usr/bin", "/var/tmp": "/tmp", "/mnt/data": WORKSPACE}
    for top in ("/lib", "/lib32", "/lib64"):
        if os.path.islink(top):
            links[top] = os.readlink(top).lstrip("/")
    binds |= {libraries: libraries for libraries in _library_folders()}
    if prefix in ("/usr", "/"):
        # The system's own interpreter stays where it is: its path is no secret, and its packages are replaced.
        inside_exe, inside_purelib = executable, purelib
        binds[executable] = executable
        binds[stdlib] = stdlib
    else:
        inside_exe = PREFIX + executable.removeprefix(prefix)
        inside_purelib = PREFIX + purelib.removeprefix(prefix)
        binds[PREFIX] = prefix
    binds[inside_purelib] = site_packages
    copies = {f"/usr/bin/{tool}": found for tool in _TOOLS if (found := _tool(tool))}
    for name in ("python3", "python"):
        if inside_exe != f"/usr/bin/{name}":
            links[f"/usr/bin/{name}"] = inside_exe
    copies |= _island_files(island)
    texts = {
        "/etc/passwd": _USERS,
        "/etc/group": _GROUP,
        "/etc/hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    }
    links |= {
        "/dev/fd": "/proc/self/fd",
        "/dev/stdin": "/proc/self/fd/0",
        "/dev/stdout": "/proc/self/fd/1",
        "/dev/stderr": "/proc/self/fd/2",
    }
    folders = ("/proc", "/dev/shm", "/tmp", "/workspace", "/home/user", "/run", BRANCHES)
    return Tree(binds, copies, links, texts, folders), inside_exe, inside_purelib


def _library_folders() -> list[str]:
    """Where the loader of this system finds shared libraries, as narrow as the layout allows."""
    multiarch = f"{os.uname().machine}-linux-gnu"
    if os.path.isdir(f"/usr/lib/{multiarch}"):
        return [f"/usr/lib/{multiarch}"] + (
            ["/usr/lib64"] if os.path.isdir("/usr/lib64") and not os.path.islink("/usr/lib64") else []
        )
    return [path for path in ("/usr/lib", "/usr/lib64") if os.path.isdir(path) and not os.path.islink(path)]


def _tool(name: str) -> str | None:
    for folder in ("/usr/bin", "/bin"):
        path = os.path.realpath(f"{folder}/{name}")
        if os.path.isfile(path) and os.access(path, os.R_OK | os.X_OK):
            return path
    return None


def _island_files(island: str) -> dict[str, str]:
    """Our own code, with its compiled form: the jail's copy gets the same times, so Python accepts it."""
    found: dict[str, str] = {}
    for part in ("wire", "guest", "jail"):
        for folder, _, names in os.walk(f"{island}/{part}"):
            inside = ISLAND + folder.removeprefix(island)
            found |= {
                f"{inside}/{name}": f"{folder}/{name}" for name in names if name.endswith((".py", ".pyc", ".json", ".toml"))
            }
    return found


# ---------------------------------------------------------------------------------------------------- building


def open_sources(tree: Tree) -> dict[str, int]:
    """Open every host path that the tree needs; target → descriptor. Done while we may still look everywhere."""
    sources = {target: os.open(path, os.O_PATH | os.O_CLOEXEC) for target, path in tree.binds.items()}
    sources |= {target: os.open(path, os.O_RDONLY | os.O_CLOEXEC) for target, path in tree.copies.items()}
    sources |= {f"/dev/{name}": os.open(f"/dev/{name}", os.O_PATH | os.O_CLOEXEC) for name in _DEVICES}
    return sources


def build(tree: Tree, sources: Mapping[str, int]) -> None:
    """Put the tree together at `NEW_ROOT` and make it the root. The old root is gone afterwards.

    Preconditions: own mount namespace with propagation off, first process of its own PID namespace (the new /proc shows that
    one), and the host's /proc still mounted, without which an unprivileged process may not mount another (proc(5)).
    """
    syscalls.mount("tmpfs", NEW_ROOT, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "size=64m,nr_inodes=4096,mode=0755")
    root = NEW_ROOT
    for folder in tree.folders:
        os.makedirs(root + folder, exist_ok=True)
    for path, text in tree.texts.items():
        _write(root + path, text.encode())
    for target in tree.copies:
        _copy(sources[target], root + target)
    for path, to in tree.links.items():
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        os.symlink(to, root + path)
    # Shorter paths first: a bind below another bind needs the outer one to be there.
    for target in sorted(tree.binds, key=len):
        _bind(sources[target], root + target, syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV)
    for name in _DEVICES:
        _bind(sources[f"/dev/{name}"], f"{root}/dev/{name}", syscalls.MS_NOSUID | syscalls.MS_NOEXEC)
    syscalls.mount("proc", f"{root}/proc", "proc", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC, None)
    os.chdir(root)
    syscalls.pivot_root(".", ".")  # pivot_root(2), "pivot_root(".", ".")": the old root now lies on top of the new one
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")
    syscalls.mount(
        None,
        "/",
        None,
        syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV,
        None,
    )


def _bind(source: int, target: str, flags: int) -> None:
    """Bind an opened file or directory, with its submounts, and take rights away from the copy."""
    if stat.S_ISDIR(os.fstat(source).st_mode):
        if not os.path.isdir(target):
            os.makedirs(target)
    elif not os.path.exists(target):
        _write(target, b"")
    path = f"/proc/self/fd/{source}"
    syscalls.mount(path, target, None, syscalls.MS_BIND | syscalls.MS_REC, None)
    # Flags that the source has are locked in a user namespace: a remount has to repeat them or is refused (mount(2), EPERM).
    kept = os.statvfs(target).f_flag & (
        os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME | os.ST_RELATIME | os.ST_NOSUID
    )
    syscalls.mount(None, target, None, syscalls.MS_REMOUNT | syscalls.MS_BIND | _as_mount_flags(kept) | flags, None)


def _as_mount_flags(statvfs_flags: int) -> int:
    names = {
        os.ST_NODEV: syscalls.MS_NODEV,
        os.ST_NOEXEC: syscalls.MS_NOEXEC,
        os.ST_NOSUID: syscalls.MS_NOSUID,
        os.ST_NOATIME: syscalls.MS_NOATIME,
        os.ST_NODIRATIME: syscalls.MS_NODIRATIME,
        os.ST_RELATIME: syscalls.MS_RELATIME,
    }
    return sum(flag for bit, flag in names.items() if statvfs_flags & bit)


def _write(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def _copy(source: int, target: str) -> None:
    status = os.fstat(source)
    with open(source, "rb", closefd=False) as file:
        _write(target, file.read())
    os.chmod(target, 0o555 if status.st_mode & 0o111 else 0o444)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def add_room(steps: calls.CallList, *, disk_bytes: int, inodes: int, uid: calls.Argument, uid_text: str) -> None:
    """The writable places and the /proc of one sandbox, mounted over the shared root.

    Two tmpfs, each of `disk_bytes` and `inodes`: the workspace, and one for scratch (/tmp, the home directory, /dev/shm).
    `uid`, as number and as text, is the owner as the zygote's user namespace counts it. /proc shows only processes, and only this sandbox's.
    """
    step = "mount the workspace, scratch and /proc"
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    options = f"size={disk_bytes},nr_inodes={inodes},uid={uid_text},gid={uid_text},mode=0755".encode()
    steps.add(step, "mount", b"workspace", WORKSPACE.encode(), b"tmpfs", flags, options)
    steps.add(step, "mount", b"scratch", b"/tmp", b"tmpfs", flags, options)
    for folder, target in ((b"/tmp/.home", HOME.encode()), (b"/tmp/.shm", b"/dev/shm")):
        steps.add(step, "mkdirat", syscalls.AT_FDCWD, folder, 0o700)
        steps.add(step, "fchownat", syscalls.AT_FDCWD, folder, uid, uid, 0)
        steps.add(step, "mount", folder, target, 0, syscalls.MS_BIND, 0)
    steps.add(step, "mount", b"proc", b"/proc", b"proc", flags, b"hidepid=2,subset=pid")


def join_home() -> None:
    """In a room's mount namespace: the home folder is the workspace, under both names. Before the program's first line only."""
    syscalls.mount(WORKSPACE, HOME, None, syscalls.MS_BIND, None)


def mount_branch(folder: str, *, disk_bytes: int, inodes: int, uid: int, at_home: bool) -> str:
    """In a room's mount namespace: a tmpfs at `folder` for one branch, with its workspace, scratch and home. The workspace's path.

    `folder` lies in `BRANCHES`, or in the folder "branches" of the branch that it is a branch of: Landlock lets nobody have what
    those it comes from had given up. `at_home`: as after `join_home`.
    """
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    if os.path.dirname(folder) == BRANCHES and not os.path.ismount(BRANCHES):
        syscalls.mount("branches", BRANCHES, "tmpfs", flags, "size=1m,nr_inodes=4096,mode=0711")  # nobody can list it
    os.mkdir(folder, 0o755)
    try:
        options = f"size={disk_bytes},nr_inodes={inodes},uid={uid},gid={uid},mode=0755"
        syscalls.mount("branch", folder, "tmpfs", flags, options)
    except OSError:
        os.rmdir(folder)
        raise
    os.mkdir(f"{folder}/branches", 0o711)
    for part in ("workspace", "scratch", *(() if at_home else ("home",))):
        os.mkdir(f"{folder}/{part}", 0o755)
        os.chown(f"{folder}/{part}", uid, uid)
    if at_home:
        os.symlink("workspace", f"{folder}/home")
    return f"{folder}/workspace"


def unmount_branch(folder: str) -> None:
    """Take it away; what is still open of it lives on until it is closed."""
    syscalls.umount2(folder, syscalls.MNT_DETACH)
    os.rmdir(folder)
