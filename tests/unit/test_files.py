"""The files of a session from the host's side, against a folder whose owner may do anything in it at any moment."""

import errno
import os
import shutil
import socket
import stat
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onetrip import files
from onetrip.beneath import MAX_DEPTH
from onetrip.errors import BadRequest, NotFound, OnetripError, PlatformError, WorkspaceFull
from onetrip.files import FileChange, Snapshot, Workspace, diff

FOREIGN = 0x7000_0001  # an owner that is nobody: as the sandboxes of root have
OWNERS = [
    pytest.param(None, id="own"),
    pytest.param(FOREIGN, id="foreign", marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root")),
]


@pytest.fixture(params=OWNERS)
def folder(request, tmp_path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir()
    for above in path.parents[:3]:
        if above.stat().st_uid == os.geteuid():
            above.chmod(above.stat().st_mode | 0o111)
    if request.param is not None:
        os.chown(path, request.param, request.param)
    return path


@pytest.fixture
def workspace(folder):
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    yield Workspace(fd)
    os.close(fd)


@pytest.fixture
def outside(tmp_path) -> Path:
    path = tmp_path / "secret"
    path.write_text("of the host")
    return path


def as_guest(folder: Path, action) -> None:
    """Do something in the folder as its owner would."""
    before = set(folder.rglob("*"))
    action()
    owner = folder.stat()
    for path in set(folder.rglob("*")) - before:
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


# ---------------------------------------------------------------------------------------------------- round trips


@pytest.mark.spec("API-05")
@pytest.mark.parametrize(
    "path",
    [
        "a",
        "a.txt",
        "d/e/f.bin",
        "./a",
        "d//e",
        "d/./e",
        " ",
        "é/日本/🎉",
        "-rf",
        "*",
        "a" * 255,
        "..a",
        "a..",
        "d/...",
        "~",
        "$HOME",
        "%2e%2e",
    ],
)
@pytest.mark.parametrize("data", [b"", b"\x00\xff" * 1000])
def test_what_is_written_is_read_listed_and_deleted(workspace, folder, path, data):
    workspace.write(path, data)
    name = "/".join(part for part in path.split("/") if part not in ("", "."))
    assert workspace.read(path) == data
    assert [(info.path, info.size) for info in workspace.list()] == [(name, len(data))]
    owner = folder.stat().st_uid
    assert {found.stat().st_uid for found in folder.rglob("*")} == {owner}
    workspace.delete(path)
    assert workspace.list() == []
    with pytest.raises(NotFound):
        workspace.read(path)


@pytest.mark.spec("API-05")
def test_writing_again_replaces_and_leaves_no_temporary_file(workspace, folder):
    workspace.write("a", b"one")
    before = (folder / "a").stat().st_ino
    workspace.write("a", b"two, longer")
    assert workspace.read("a") == b"two, longer"
    assert (folder / "a").stat().st_ino != before
    assert os.listdir(folder) == ["a"]


@pytest.mark.spec("API-05")
def test_a_large_file_arrives_whole(workspace):
    data = os.urandom(5 << 20)
    workspace.write("big", data)
    assert workspace.read("big") == data


# ---------------------------------------------------------------------------------------------------- paths


@pytest.mark.spec("API-05", "BAD-05")
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "is empty"),
        ("/etc/passwd", "is absolute"),
        ("/", "is absolute"),
        ("..", "leaves the workspace"),
        ("../x", "leaves the workspace"),
        ("a/../../x", "leaves the workspace"),
        ("a/..", "leaves the workspace"),
        (".", "names no file"),
        ("a/", "names no file"),
        ("a\0b", "control characters"),
        ("a\nb", "control characters"),
        ("a\x7fb", "control characters"),
        ("a" * 256, "a part of more than 255 bytes"),
        ("é" * 128, "a part of more than 255 bytes"),
        ("a/" * 512 + "b", "more than 1024"),
        ("\ud800", "is not text"),
    ],
)
def test_a_path_that_cannot_be_is_refused_by_each_method(workspace, folder, path, words):
    for method in (lambda: workspace.write(path, b"x"), lambda: workspace.read(path), lambda: workspace.delete(path)):
        with pytest.raises(BadRequest, match=words) as caught:
            method()
        assert caught.value.field == "path"
    assert os.listdir(folder) == []


@given(st.text(max_size=40) | st.text(alphabet="./a", max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_any_path_stays_in_the_workspace(tmp_path, path):
    root = tmp_path / "root"
    (root / "workspace").mkdir(parents=True, exist_ok=True)
    fd = os.open(root / "workspace", os.O_RDONLY | os.O_DIRECTORY)
    try:
        workspace = Workspace(fd)
        try:
            workspace.write(path, b"x")
        except OnetripError:
            pass
        else:
            assert workspace.read(path) == b"x"
            workspace.delete(path)
        assert os.listdir(root) == ["workspace"]
    finally:
        os.close(fd)


# ---------------------------------------------------------------------------------------------------- links


@pytest.mark.spec("API-05")
@pytest.mark.parametrize("target", ["absolute", "relative", "through a folder", "by proc", "a chain"])
def test_a_link_that_leads_out_is_not_followed(workspace, folder, outside, target):
    def plant():
        match target:
            case "absolute":
                (folder / "link").symlink_to(outside)
            case "relative":
                (folder / "link").symlink_to("../secret")
            case "through a folder":
                (folder / "d").symlink_to("..")
            case "by proc":
                (folder / "link").symlink_to("/proc/self/root" + str(outside))
            case "a chain":
                (folder / "one").symlink_to("../secret")
                (folder / "link").symlink_to("one")

    as_guest(folder, plant)
    path = "d/secret" if target == "through a folder" else "link"
    with pytest.raises(BadRequest, match="leads out of the workspace"):
        workspace.read(path)
    if target == "through a folder":
        with pytest.raises(BadRequest):
            workspace.write(path, b"overwritten")
        with pytest.raises(BadRequest):
            workspace.delete(path)
    else:
        workspace.write(path, b"replaced")  # the link itself
        assert workspace.read(path) == b"replaced"
    assert outside.read_text() == "of the host"
    assert [info.path for info in workspace.list()] == ([] if target == "through a folder" else ["link"])


@pytest.mark.spec("API-05")
def test_a_link_inside_of_the_workspace_is_followed_when_reading(workspace, folder):
    workspace.write("d/real", b"here")
    as_guest(folder, lambda: (folder / "link").symlink_to("d/real"))
    assert workspace.read("link") == b"here"
    workspace.delete("link")
    assert workspace.read("d/real") == b"here"


@pytest.mark.spec("API-05")
def test_a_loop_of_links_is_refused_and_not_walked(workspace, folder):
    as_guest(folder, lambda: ((folder / "loop").symlink_to("loop"), (folder / "up").symlink_to(".")))
    with pytest.raises(BadRequest):
        workspace.read("loop")
    with pytest.raises(BadRequest):
        workspace.read("up")
    assert workspace.list() == []


# ---------------------------------------------------------------------------------------------------- what is no file


@pytest.mark.spec("API-05")
def test_a_fifo_is_not_opened(workspace, folder):
    as_guest(folder, lambda: os.mkfifo(folder / "fifo"))
    opened = threading.Event()

    def wait_for_reader():
        os.close(os.open(folder / "fifo", os.O_WRONLY))
        opened.set()

    threading.Thread(target=wait_for_reader, daemon=True).start()
    for _ in range(3):
        with pytest.raises(BadRequest, match="not a regular file"):
            workspace.read("fifo")
    assert not opened.wait(0.1)
    os.close(os.open(folder / "fifo", os.O_RDONLY | os.O_NONBLOCK))  # lets the thread go
    assert workspace.list() == []
    workspace.write("fifo", b"a file now")
    assert workspace.read("fifo") == b"a file now"


@pytest.mark.spec("API-05")
def test_sockets_and_folders_are_no_files(workspace, folder):
    def plant():
        (folder / "d").mkdir()
        with socket.socket(socket.AF_UNIX) as server:
            at = os.open(folder, os.O_PATH)
            server.bind(f"/proc/self/fd/{at}/socket")
            os.close(at)

    as_guest(folder, plant)
    for path in ("socket", "d"):
        with pytest.raises(BadRequest):
            workspace.read(path)
    with pytest.raises(BadRequest):
        workspace.write("d", b"")
    with pytest.raises(BadRequest):
        workspace.write("socket/x", b"")
    assert workspace.list() == []
    workspace.delete("d")
    workspace.delete("socket")


@pytest.mark.spec("API-05")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a device")
def test_a_device_is_not_opened(workspace, folder):
    os.mknod(folder / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with pytest.raises(BadRequest, match="not a regular file"):
        workspace.read("zero")
    assert workspace.list() == []


@pytest.mark.spec("API-05", "BAD-05")
def test_a_sparse_file_is_refused_by_its_size(workspace, folder):
    def plant():
        with open(folder / "sparse", "wb") as file:
            file.truncate(1 << 40)

    as_guest(folder, plant)
    with pytest.raises(BadRequest, match="1099511627776 bytes, more than"):
        workspace.read("sparse")
    assert [(info.path, info.size) for info in workspace.list()] == [("sparse", 1 << 40)]


@pytest.mark.spec("API-05")
def test_no_more_is_read_than_asked_for(workspace):
    workspace.write("ten", b"x" * 10)
    assert workspace.read("ten", max_bytes=10) == b"x" * 10
    with pytest.raises(BadRequest, match="10 bytes, more than 9"):
        workspace.read("ten", max_bytes=9)


# ---------------------------------------------------------------------------------------------------- what is not there


@pytest.mark.spec("API-05", "BAD-05")
@pytest.mark.parametrize("path", ["no", "no/such/file", "a/below"])
def test_what_is_not_there_is_said(workspace, path):
    workspace.write("a", b"")
    for method in (workspace.read, workspace.delete):
        with pytest.raises(OnetripError) as caught:
            method(path)
        assert type(caught.value) is (BadRequest if path == "a/below" else NotFound)
        assert path in str(caught.value)


@pytest.mark.spec("API-05")
def test_a_folder_that_is_not_empty_is_not_deleted(workspace):
    workspace.write("d/x", b"")
    with pytest.raises(BadRequest):
        workspace.delete("d")
    workspace.delete("d/x")
    workspace.delete("d")
    assert workspace.list() == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_leaves_the_old_content_and_no_temporary_file(workspace, folder, monkeypatch):
    workspace.write("a", b"old")
    real = os.open

    def full(path, flags, *arguments, **options):
        """A descriptor on which every write fails with ENOSPC, in place of the new file."""
        fd = real(path, flags, *arguments, **options)
        if str(path).startswith(".upload-"):
            os.dup2(full_fd, fd)
        return fd

    full_fd = real("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(os, "open", full)
    with pytest.raises(WorkspaceFull, match="'a'"):
        workspace.write("a", b"new")
    monkeypatch.undo()
    os.close(full_fd)
    assert workspace.read("a") == b"old"
    assert os.listdir(folder) == ["a"]


@pytest.mark.spec("API-01")
@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ESTALE])
def test_what_the_system_cannot_do_is_an_error_of_ours(workspace, monkeypatch, number):
    def broken(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(workspace, "_open", broken)
    for method in (lambda: workspace.write("d/a", b""), lambda: workspace.read("a"), lambda: workspace.delete("a")):
        with pytest.raises(PlatformError, match=os.strerror(number)):
            method()


# ---------------------------------------------------------------------------------------------------- walks


@pytest.mark.spec("CEL-11")
def test_changes_are_created_modified_and_deleted(workspace, folder):
    for name in ("same", "grown", "rewritten", "gone", "d/deep"):
        workspace.write(name, b"1")
    before = workspace.snapshot()
    workspace.write("grown", b"123")
    workspace.write("rewritten", b"2")
    workspace.delete("gone")
    workspace.write("new/file", b"12345")
    workspace.delete("d/deep")
    assert diff(before, workspace.snapshot()) == (
        FileChange("d/deep", 0, "deleted"),
        FileChange("gone", 0, "deleted"),
        FileChange("grown", 3, "modified"),
        FileChange("new/file", 5, "created"),
        FileChange("rewritten", 1, "modified"),
    )


@pytest.mark.spec("CEL-11")
def test_a_time_that_64_bits_do_not_hold_is_a_change_like_any_other(folder):
    def snapshot(mtime_ns):
        status = os.stat(folder)
        numbers = {"st_size": 1, "st_mtime_ns": mtime_ns, "st_ctime_ns": status.st_ctime_ns, "st_ino": (1 << 64) - 1}
        found = Snapshot()
        found.add(b"a", SimpleNamespace(**numbers))
        return found

    for mtime_ns in (-1, 1 << 63, 10**25):
        assert diff(snapshot(0), snapshot(mtime_ns)) == (FileChange("a", 1, "modified"),)
        assert diff(snapshot(mtime_ns), snapshot(mtime_ns)) == ()


def test_what_is_known_of_many_files_is_few_objects(workspace, folder):
    for number in range(2000):
        (folder / f"file {number}").touch()
    workspace.snapshot()
    before = sys.getallocatedblocks()
    found = workspace.snapshot()
    assert len(found) == 2000
    assert sys.getallocatedblocks() - before < 200


@pytest.mark.spec("CEL-11", "ISO-13")
def test_odd_names_are_listed_as_text(workspace, folder):
    def plant():
        for name in (b"new\nline", b"\xff\xfe", b"tab\t\x1b[31m", "\u202e.txt".encode()):
            with open(os.path.join(os.fsencode(folder), name), "wb"):
                pass

    as_guest(folder, plant)
    names = sorted(info.path for info in workspace.list())
    assert names == sorted(["new\nline", "\ufffd\ufffd", "tab\t\x1b[31m", "\u202e.txt"])
    for name in names:
        name.encode()


@pytest.mark.spec("ISO-13")
def test_a_walk_is_bounded_in_depth_and_number(workspace, folder):
    def plant():
        at = os.open(folder, os.O_RDONLY)
        for depth in range(MAX_DEPTH + 20):
            fd = os.open(f"f{depth}", os.O_CREAT | os.O_WRONLY, dir_fd=at)
            os.close(fd)
            os.mkdir("d", dir_fd=at)
            below = os.open("d", os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        os.close(at)

    plant()
    if folder.stat().st_uid != os.geteuid():
        os.system(f"chown -R {FOREIGN}:{FOREIGN} {folder}")
    assert len(workspace.list()) == MAX_DEPTH + 1
    many = files.MAX_ENTRIES + 500
    for number in range(many):
        os.close(os.open(folder / f"n{number}", os.O_CREAT | os.O_WRONLY))
    assert len(workspace.list()) == files.MAX_ENTRIES


@pytest.mark.spec("ISO-13")
def test_folders_that_the_program_closed_to_itself_are_left_out(workspace, folder):
    workspace.write("open/x", b"")
    workspace.write("closed/y", b"")
    (folder / "closed").chmod(0)
    listed = [info.path for info in workspace.list()]
    assert listed == (["closed/y", "open/x"] if folder.stat().st_uid == os.geteuid() == 0 else ["open/x"])
    (folder / "closed").chmod(0o755)


@pytest.mark.spec("ISO-13", "CEL-11")
def test_a_workspace_that_the_program_closed_is_opened_again(workspace, folder):
    workspace.write("x", b"1")
    folder.chmod(0)
    assert [info.path for info in workspace.list()] == ["x"]
    workspace.write("y", b"2")
    assert workspace.read("y") == b"2"


@pytest.mark.spec("API-05", "ISO-13")
def test_a_race_with_links_never_gets_out(workspace, folder, outside):
    """The owner swaps a folder for a link to the outside, again and again, while the host writes, reads and lists through it."""
    owner = folder.stat()
    (folder / "real").mkdir()
    (folder / "real" / "secret").write_text("inside")
    (folder / "link").symlink_to("..")
    for path in (folder / "real", folder / "real" / "secret", folder / "link"):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            for source in ("real", "link"):
                try:
                    os.rename(folder / source, folder / "d")
                    os.rename(folder / "d", folder / source)
                except OSError:  # the host made a folder `d` of its own in between
                    shutil.rmtree(folder / "d", ignore_errors=True)

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        for _ in range(1500):
            try:
                seen.add(workspace.read("d/secret"))
                workspace.write("d/secret", b"written")
                workspace.list()
            except OnetripError:
                pass
    finally:
        stop.set()
        thread.join()
    assert outside.read_text() == "of the host"
    assert seen <= {b"inside", b"written"}
    assert sorted(os.listdir(folder.parent)) == ["secret", "workspace"]


def test_the_ids_of_the_thread_are_as_before(workspace):
    before = Path("/proc/thread-self/status").read_text().splitlines()
    workspace.write("a", b"x")
    with pytest.raises(NotFound):
        workspace.read("b")
    ids = [
        line for line in Path("/proc/thread-self/status").read_text().splitlines() if line.startswith(("Uid", "Gid", "CapEff"))
    ]
    assert ids == [line for line in before if line.startswith(("Uid", "Gid", "CapEff"))]


def test_no_descriptor_is_left_open(workspace, folder, outside):
    as_guest(folder, lambda: ((folder / "link").symlink_to(outside), os.mkfifo(folder / "fifo")))
    before = os.listdir("/proc/self/fd")
    for path in ("a", "d/e", "link/x", "../x", "fifo", "link", "no"):
        for method in (lambda path: workspace.write(path, b"x"), workspace.read, workspace.delete):
            try:
                method(path)
            except OnetripError:
                pass
        workspace.list()
    assert os.listdir("/proc/self/fd") == before
