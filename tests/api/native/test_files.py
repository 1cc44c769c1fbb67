"""Files over HTTP: large ones in constant memory, ranges, conditions, and every name and file that a hostile program or caller can think of."""

import asyncio
import contextlib
import hashlib
import textwrap
from urllib.parse import quote

import pytest
from serving_process import rss_bytes, wait_for

BIG = 300 << 20


def cell(api, session, code, **body):
    result = api.post(session + "/runs", json={"code": textwrap.dedent(code), **body}).json()
    assert result["status"] == "completed", result
    return result


@pytest.fixture(scope="module")
def big(server):
    """A session with room for big files."""
    with server.client() as api:
        limits = {"disk_mb": 700, "memory_mb": 2048}
        path = "/v1/sessions/" + api.post("/v1/sessions", json={"limits": limits, "checkpoints": 0}).json()["id"]
        yield path
        api.delete(path)


def pieces(size):
    block = bytes(range(256)) * 4096
    for _ in range(size // len(block)):
        yield block


@pytest.mark.spec("HTT-09")
def test_files_of_hundreds_of_megabytes_go_up_and_down_in_constant_memory(server, api, big):
    before = rss_bytes(server.pid)
    sent, got = hashlib.sha256(), hashlib.sha256()
    for piece in pieces(BIG):
        sent.update(piece)
    assert api.put(big + "/files/big.bin", content=pieces(BIG)).status_code == 201
    with api.stream("GET", big + "/files/big.bin") as response:
        assert response.headers["content-length"] == str(BIG)
        for part in response.iter_raw():
            got.update(part)
    assert got.digest() == sent.digest()
    assert rss_bytes(server.pid) - before < 64 << 20
    assert cell(api, big, "import os; os.path.getsize('big.bin')")["value"] == BIG
    api.delete(big + "/files/big.bin").raise_for_status()


@pytest.mark.spec("HTT-09")
def test_a_full_workspace_is_507_and_the_file_is_as_it_was(api, big):
    assert api.put(big + "/files/kept", content=b"old").status_code == 201
    for _ in range(2):  # nothing of the first attempt is in the way of the second
        full = api.put(big + "/files/kept", content=pieces(800 << 20))
        assert (full.status_code, full.json()["code"]) == (507, "workspace_full")
    assert api.get(big + "/files/kept").content == b"old"
    assert [file["path"] for file in api.get(big + "/files").json()["files"]] == ["kept"]
    assert api.put(big + "/files/kept", content=b"new").status_code == 204
    api.delete(big + "/files/kept")


@pytest.mark.spec("HTT-10")
def test_ranges_and_conditions_are_those_of_the_http_standard(api, session):
    path = session + "/files/f"
    made = api.put(path, content=b"0123456789", headers={"If-None-Match": "*"})
    assert made.status_code == 201
    tag = made.headers["etag"]
    whole = api.get(path)
    assert (whole.content, whole.headers["etag"], whole.headers["accept-ranges"]) == (b"0123456789", tag, "bytes")
    assert whole.headers["content-type"] == "application/octet-stream"  # whatever a stranger's file is called
    assert whole.headers["x-content-type-options"] == "nosniff"
    for asked, content, shown in (
        ("bytes=0-3", b"0123", "bytes 0-3/10"), ("bytes=8-", b"89", "bytes 8-9/10"), ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=5-99", b"56789", "bytes 5-9/10"), ("bytes=-99", b"0123456789", "bytes 0-9/10"),
    ):  # fmt: skip
        part = api.get(path, headers={"Range": asked})
        assert (part.status_code, part.content, part.headers["content-range"]) == (206, content, shown)
    for asked in ("bytes=10-", "bytes=5-3", "bytes=-0", "bytes=99-100"):
        assert api.get(path, headers={"Range": asked}).status_code == 416, asked
    for asked in (
        "lines=1-2",
        "bytes=a-b",
        "bytes=-",
        "bytes=0-1,3-4",
        "bytes=" + "9" * 400 + "-",
    ):  # ignored, as the standard has it
        assert api.get(path, headers={"Range": asked}).content == b"0123456789", asked
    assert api.get(path, headers={"Range": "bytes=0-1", "If-Range": tag}).status_code == 206
    assert api.get(path, headers={"Range": "bytes=0-1", "If-Range": '"other"'}).status_code == 200
    for names in (tag, "*", f'"x", {tag}', f"W/{tag}"):
        unchanged = api.get(path, headers={"If-None-Match": names})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", tag)
    head = api.head(path)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "10", b"")
    assert api.head(session + "/files/none").status_code == 404

    for headers in ({"If-None-Match": "*"}, {"If-Match": '"other"'}):
        refused = api.put(path, content=b"no", headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (412, "precondition_failed")
    assert api.put(session + "/files/new", content=b"no", headers={"If-Match": "*"}).status_code == 412
    assert api.delete(path, headers={"If-Match": '"other"'}).status_code == 412
    changed = api.put(path, content=b"", headers={"If-Match": tag})
    assert changed.status_code == 204
    assert changed.headers["etag"] != tag
    assert api.get(path, headers={"If-None-Match": tag}).status_code == 200
    empty = api.get(path)
    assert (empty.status_code, empty.content, empty.headers["content-length"]) == (200, b"", "0")
    assert api.get(path, headers={"Range": "bytes=0-"}).status_code == 416
    assert api.delete(path, headers={"If-Match": changed.headers["etag"]}).status_code == 204
    assert api.get(path).status_code == 404


@pytest.mark.spec("HTT-10")
def test_of_many_who_create_or_replace_on_a_condition_one_wins(server, session):
    async def main():
        async with server.aclient() as api:
            made = await asyncio.gather(
                *(api.put(session + "/files/one", content=b"%d" % i, headers={"If-None-Match": "*"}) for i in range(8))
            )
            assert sorted(one.status_code for one in made) == [201] + [412] * 7
            tag = next(one.headers["etag"] for one in made if one.status_code == 201)
            changed = await asyncio.gather(
                *(api.put(session + "/files/one", content=b"v%d" % i, headers={"If-Match": tag}) for i in range(8))
            )
            assert sorted(one.status_code for one in changed) == [204] + [412] * 7

    asyncio.run(main())


def raw_status(server, method, target):
    """What a client that changes nothing of a path is told."""
    with server.raw() as sock:
        head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {server.token}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        sock.sendall(head.encode("latin-1"))
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert b"Traceback" not in answer
    return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]


@pytest.mark.spec("HTT-11")
@pytest.mark.parametrize(
    "name",
    [
        "..", "../x", "a/../../x", "/etc/passwd", "//etc/passwd", "%2e%2e/x", "%2E%2e%2fx", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd",
        "a%0ab", "a%0d%0aX-Evil:%201", "%00", "a%00b", "%ff%fe", "%c3%28", "x" * 10_000, "x/" * 5_000 + "y", "x" * 256, "", ".", "a/",
        "%1b[31m", "a%7f", "%ed%a0%80",
    ],
)  # fmt: skip
def test_no_name_leaves_the_workspace_or_is_taken_for_another(server, api, session, name):
    if name == "":
        name = "."
    for method in ("GET", "PUT", "DELETE"):
        status, body = raw_status(server, method, f"{session}/files/{name}")
        assert status == 400, (method, name, status, body[:200])
        assert b'"field":"path"' in body, body[:300]
    assert api.get(session + "/files").json()["files"] == []


@pytest.mark.spec("HTT-11")
def test_odd_names_are_names(api, session):
    for name in ("ä ö/ü.txt", "a?b#c", "%25", "a%2Fb", "...", "-rf", "\U0001f600", "x" * 255, "/".join(["d" * 100] * 10)):
        path = session + "/files/" + "/".join(quote(part, safe="") for part in name.split("/"))
        assert api.put(path, content=name.encode()).status_code == 201, name
        assert api.get(path).content == name.encode()
    listed = {file["path"] for file in api.get(session + "/files").json()["files"]}
    assert {"ä ö/ü.txt", "a?b#c", "%25", "..."} <= listed


@pytest.mark.spec("HTT-11")
def test_links_pipes_and_devices_of_a_program_are_never_followed_or_opened(api, session):
    cell(api, session, """
        import os, socket
        os.symlink('/etc/passwd', 'out'); os.symlink('..', 'up'); os.symlink('/proc/self/environ', 'env'); os.symlink('loop', 'loop')
        os.mkfifo('fifo'); os.mkdir('folder'); open('real', 'w').write('real'); os.symlink('real', 'within')
        s = socket.socket(socket.AF_UNIX); s.bind('sock')
    """)  # fmt: skip
    for name in ("out", "up/etc/passwd", "env", "loop", "fifo", "sock", "folder", "folder/x/../../../y", "real/x"):
        refused = api.get(f"{session}/files/{name}")
        assert refused.status_code in {400, 404}, (name, refused.text)
        assert "root:" not in refused.text
    for name in ("up/x", "real/x", "folder", "out/x"):
        assert api.put(f"{session}/files/{name}", content=b"evil").status_code == 400, name
    for name in ("out", "fifo", "sock", "within"):  # what has the name is replaced, and what it points to is not touched
        assert api.put(f"{session}/files/{name}", content=b"new").status_code in {201, 204}
        assert api.get(f"{session}/files/{name}").content == b"new"
    assert api.get(f"{session}/files/real").content == b"real"
    assert cell(api, session, "open('/etc/passwd').read() != 'new'")["value"] is True


@pytest.mark.spec("HTT-12")
def test_a_file_that_arrives_by_half_leaves_the_old_one_and_nothing_else(server, api, session):
    api.put(session + "/files/f", content=b"old")
    head = f"PUT {session}/files/f HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {server.token}\r\n"
    for framing in (
        "Content-Length: 4000000\r\n\r\n" + "x" * 2_000_000,
        "Transfer-Encoding: chunked\r\n\r\nfffff\r\n" + "x" * 500_000,
    ):
        with server.raw() as sock:
            sock.sendall((head + framing).encode())
            wait_for(lambda: api.get(session).json()["running"] == 1)
        wait_for(lambda: api.get(session).json()["running"] == 0)
    assert api.get(session + "/files/f").content == b"old"
    assert cell(api, session, "import os; sorted(os.listdir())")["value"] == ["f"]


@pytest.mark.spec("HTT-12")
def test_a_file_that_shrinks_while_it_is_sent_breaks_the_connection(server, api, big):
    size = 32 << 20
    api.put(big + "/files/f", content=pieces(size)).raise_for_status()
    with server.raw() as sock:
        sock.sendall(f"GET {big}/files/f HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {server.token}\r\n\r\n".encode())
        data = sock.recv(4096)
        assert f"content-length: {size}".encode() in data
        cell(api, big, "import os; os.truncate('f', 1000)")
        with contextlib.suppress(ConnectionResetError):
            while part := sock.recv(1 << 20):
                data += part
    assert len(data) < size  # the end of the connection is all that can say it
    assert api.get(big + "/files/f").content == (bytes(range(256)) * 4)[:1000]
    api.delete(big + "/files/f")


@pytest.mark.spec("HTT-09")
def test_what_was_sent_and_fetched_is_counted_and_is_no_change_of_the_program(server, api, session):
    with server.store() as store:
        before = {row.day: row for row in store.usage()}
    api.put(session + "/files/a/b.txt", content=b"x" * 1000)
    api.get(session + "/files/a/b.txt", headers={"Range": "bytes=0-99"})
    assert cell(api, session, "open('c', 'w').write('1')")["files"] == [{"path": "c", "size": 1, "change": "created"}]
    listed = api.get(session + "/files").json()["files"]
    assert [(file["path"], file["size"]) for file in listed] == [("a/b.txt", 1000), ("c", 1)]
    with server.store() as store:
        row = store.usage()[-1]
    old = before.get(row.day)
    assert row.bytes_in - (old.bytes_in if old else 0) == 1000
    assert row.bytes_out - (old.bytes_out if old else 0) == 100
