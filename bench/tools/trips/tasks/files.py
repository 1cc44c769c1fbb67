"""Ten tasks for the file system. Some of the sequential programs block instead of awaiting, as many models write."""

from trips.task import Task

TASKS = [
    Task(
        name="settings",
        question="Which settings hold for /project/config/live.ini? A line include= names a file whose settings hold where the including one says nothing else.",
        expected={"port": "8000", "workers": "8", "log": "warning", "region": "south"},
        sequential="""
from tools import fs
path, settings = "/project/config/live.ini", {}
while path:
    lines = dict(line.split("=") for line in fs.read_file(path=path).splitlines())
    path = lines.pop("include", None)
    settings = {**lines, **settings}
settings
""",
        gathered="""
from tools import fs
path, settings = "/project/config/live.ini", {}
while path:
    lines = dict(line.split("=") for line in (await fs.read_file(path=path)).splitlines())
    path = lines.pop("include", None)
    settings = {**lines, **settings}
settings
""",
    ),
    Task(
        name="todo-owners",
        question="How many lines with TODO are there below /project, by owner of the file?",
        expected={"ben": 5, "ana": 1},
        sequential="""
from collections import Counter
lines = Counter(found["path"] for found in await fs.search(text="TODO", folder="/project"))
owners = Counter()
for path, count in lines.items():
    status = await fs.stat(path=path)
    owners[status["owner"]] += count
dict(owners)
""",
        gathered="""
import asyncio
from collections import Counter
lines = Counter(found["path"] for found in await fs.search(text="TODO", folder="/project"))
statuses = await asyncio.gather(*(fs.stat(path=path) for path in lines))
owners = Counter()
for status in statuses:
    owners[status["owner"]] += lines[status["path"]]
dict(owners)
""",
    ),
    Task(
        name="largest-log",
        question="Which is the largest file in /project/logs, and how many bytes does it have?",
        expected={"path": "/project/logs/day-06.log", "size": 239},
        sequential="""
import tools
sizes = {}
for entry in tools.fs.list_folder("/project/logs"):
    sizes[entry["path"]] = tools.fs.stat(entry["path"])["size"]
path = max(sizes, key=sizes.get)
{"path": path, "size": sizes[path]}
""",
        gathered="""
import asyncio, tools
entries = await tools.fs.list_folder("/project/logs")
statuses = await asyncio.gather(*(tools.fs.stat(entry["path"]) for entry in entries))
largest = max(statuses, key=lambda status: status["size"])
{"path": largest["path"], "size": largest["size"]}
""",
    ),
    Task(
        name="errors-by-part",
        question="How many lines with ERROR are there in the files in /project/logs, by part? A line is such as ERROR mail: event 3, and mail is the part.",
        expected={"clock": 5, "disk": 5, "gate": 2, "mail": 3},
        sequential="""
counts = {}
for entry in await fs.list_folder(path="/project/logs"):
    for line in (await fs.read_file(path=entry["path"])).splitlines():
        level, part, *_ = line.replace(":", "").split()
        if level == "ERROR":
            counts[part] = counts.get(part, 0) + 1
dict(sorted(counts.items()))
""",
        gathered="""
import asyncio
from collections import Counter
entries = await fs.list_folder(path="/project/logs")
texts = await asyncio.gather(*(fs.read_file(path=entry["path"]) for entry in entries))
lines = [line.replace(":", "").split() for text in texts for line in text.splitlines()]
dict(sorted(Counter(line[1] for line in lines if line[0] == "ERROR").items()))
""",
    ),
    Task(
        name="same-pictures",
        question="Delete all files in /project/photos that have the same content as one before them, in the order of their names. Answer with the paths that were deleted.",
        expected=[
            "/project/photos/img-05.txt",
            "/project/photos/img-07.txt",
            "/project/photos/img-10.txt",
            "/project/photos/img-11.txt",
            "/project/photos/img-12.txt",
        ],
        sequential="""
seen, deleted = set(), []
for entry in await fs.list_folder(path="/project/photos"):
    digest = (await fs.checksum(path=entry["path"]))["sha256"]
    if digest in seen:
        await fs.delete(path=entry["path"])
        deleted.append(entry["path"])
    seen.add(digest)
deleted
""",
        gathered="""
import asyncio
paths = [entry["path"] for entry in await fs.list_folder(path="/project/photos")]
digests = [found["sha256"] for found in await asyncio.gather(*(fs.checksum(path=path) for path in paths))]
twice = [path for place, path in enumerate(paths) if digests[place] in digests[:place]]
await asyncio.gather(*(fs.delete(path=path) for path in twice))
twice
""",
        waits={"fs.delete": "the checksums decide what is deleted"},
    ),
    Task(
        name="total-size",
        question="How many bytes do all files below /project have together, by owner? Leave out the folder /project/photos.",
        expected={"ana": 688, "ben": 1149, "cleo": 1151},
        sequential="""
sizes = {}
folders = ["/project"]
while folders:
    for entry in await fs.list_folder(path=folders.pop()):
        if entry["path"] == "/project/photos":
            continue
        if entry["kind"] == "folder":
            folders.append(entry["path"])
        else:
            status = await fs.stat(path=entry["path"])
            sizes[status["owner"]] = sizes.get(status["owner"], 0) + status["size"]
dict(sorted(sizes.items()))
""",
        gathered="""
import asyncio

async def walk(folder):
    async def look(entry):
        return await walk(entry["path"]) if entry["kind"] == "folder" else [await fs.stat(path=entry["path"])]

    entries = [entry for entry in await fs.list_folder(path=folder) if entry["path"] != "/project/photos"]
    return [status for part in await asyncio.gather(*map(look, entries)) for status in part]

sizes = {}
for status in await walk("/project"):
    sizes[status["owner"]] = sizes.get(status["owner"], 0) + status["size"]
dict(sorted(sizes.items()))
""",
    ),
    Task(
        name="ships-by-gate",
        question="How many ships passed each gate, over all tables in /project/data? Their columns are day, gate and count.",
        expected={"east": 126, "north": 135, "south": 143},
        sequential="""
import csv, io, tools
counts = {}
for entry in tools.fs.list_folder("/project/data"):
    for row in csv.DictReader(io.StringIO(tools.fs.read_file(entry["path"]))):
        counts[row["gate"]] = counts.get(row["gate"], 0) + int(row["count"])
dict(sorted(counts.items()))
""",
        gathered="""
import asyncio, csv, io, tools
entries = await tools.fs.list_folder("/project/data")
texts = await asyncio.gather(*(tools.fs.read_file(entry["path"]) for entry in entries))
counts = {}
for row in (row for text in texts for row in csv.DictReader(io.StringIO(text))):
    counts[row["gate"]] = counts.get(row["gate"], 0) + int(row["count"])
dict(sorted(counts.items()))
""",
    ),
    Task(
        name="broken-links",
        question="Which paths that files in /project/docs name, in lines that begin with See, do not exist? Do not look into folders in it.",
        expected=["/project/docs/missing.txt"],
        sequential="""
import re
linked = set()
for entry in await fs.list_folder(path="/project/docs"):
    if entry["kind"] == "file":
        linked.update(re.findall(r"/project\\S+", await fs.read_file(path=entry["path"])))
broken = []
for path in sorted(linked):
    try:
        await fs.stat(path=path)
    except Exception:
        broken.append(path)
broken
""",
        gathered="""
import asyncio, re
entries = await fs.list_folder(path="/project/docs")
texts = await asyncio.gather(*(fs.read_file(path=entry["path"]) for entry in entries if entry["kind"] == "file"))
linked = sorted({path for text in texts for path in re.findall(r"/project\\S+", text)})
found = await asyncio.gather(*(fs.stat(path=path) for path in linked), return_exceptions=True)
[path for path, status in zip(linked, found) if isinstance(status, Exception)]
""",
        waits={"fs.stat": "which paths are named is known when all files have been read"},
    ),
    Task(
        name="archive",
        question="Move the files in /project/photos that were last changed before 2026-03-01 into a new folder /project/photos/old. Answer with their new paths.",
        expected=[
            "/project/photos/old/img-01.txt",
            "/project/photos/old/img-02.txt",
            "/project/photos/old/img-06.txt",
            "/project/photos/old/img-08.txt",
            "/project/photos/old/img-10.txt",
            "/project/photos/old/img-12.txt",
        ],
        sequential="""
await fs.make_folder(path="/project/photos/old")
moved = []
for entry in await fs.list_folder(path="/project/photos"):
    if entry["kind"] == "file":
        status = await fs.stat(path=entry["path"])
        if status["modified"] < "2026-03-01":
            done = await fs.move(path=entry["path"], to="/project/photos/old/" + entry["path"].rsplit("/", 1)[1])
            moved.append(done["path"])
moved
""",
        gathered="""
import asyncio

async def archive(path):
    status = await fs.stat(path=path)
    if status["modified"] < "2026-03-01":
        return (await fs.move(path=path, to="/project/photos/old/" + path.rsplit("/", 1)[1]))["path"]

_, entries = await asyncio.gather(
    fs.make_folder(path="/project/photos/old"), fs.list_folder(path="/project/photos")
)
done = await asyncio.gather(*(archive(entry["path"]) for entry in entries if entry["kind"] == "file"))
[path for path in done if path]
""",
        waits={"fs.move": "the day of the last change decides"},
    ),
    Task(
        name="needed-parts",
        question="Which files does /project/src/main.txt need, directly and through others? Their first line is such as uses: a, b, which means /project/src/a.txt and /project/src/b.txt. Sort them.",
        expected=["/project/src/harbour.txt", "/project/src/moon.txt", "/project/src/ships.txt", "/project/src/tide.txt"],
        sequential="""
needed, todo = set(), ["main"]
while todo:
    name = todo.pop()
    first = (await fs.read_file(path=f"/project/src/{name}.txt")).splitlines()[0]
    for used in first.removeprefix("uses:").replace(",", " ").split():
        if used not in needed:
            needed.add(used)
            todo.append(used)
sorted(f"/project/src/{name}.txt" for name in needed)
""",
        gathered="""
import asyncio
needed = set()

async def follow(name):
    first = (await fs.read_file(path=f"/project/src/{name}.txt")).splitlines()[0]
    new = [used for used in first.removeprefix("uses:").replace(",", " ").split() if used not in needed]
    needed.update(new)
    await asyncio.gather(*map(follow, new))

await follow("main")
sorted(f"/project/src/{name}.txt" for name in needed)
""",
    ),
]
