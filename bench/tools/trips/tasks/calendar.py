"""Ten tasks for the calendar."""

from trips.task import Task

TASKS = [
    Task(
        name="common-hour",
        question="At which full hour from 09:00 to 16:00 on 2026-06-01 do Boris, Chen and Hana first all have an hour free?",
        expected="14:00",
        sequential="""
from tools import calendar
busy = []
for person in ["Boris", "Chen", "Hana"]:
    busy += await calendar.list_events(person=person, day="2026-06-01")
answer = None
for hour in range(9, 17):
    start, end = f"{hour:02}:00", f"{hour + 1:02}:00"
    if not any(event["start"] < end and start < event["end"] for event in busy):
        answer = start
        break
answer
""",
        gathered="""
import asyncio
from tools import calendar
people = ["Boris", "Chen", "Hana"]
days = await asyncio.gather(*(calendar.list_events(person=person, day="2026-06-01") for person in people))
busy = [(event["start"], event["end"]) for day in days for event in day]
hours = [(f"{hour:02}:00", f"{hour + 1:02}:00") for hour in range(9, 17)]
next(start for start, end in hours if not any(begun < end and start < over for begun, over in busy))
""",
    ),
    Task(
        name="busiest",
        question="Who has most events on 2026-06-03, and how many?",
        expected={"name": "Goran", "events": 4},
        sequential="""
counts = {}
for person in await calendar.list_people():
    counts[person["name"]] = len(await calendar.list_events(person=person["name"], day="2026-06-03"))
name = max(counts, key=counts.get)
{"name": name, "events": counts[name]}
""",
        gathered="""
import asyncio
people = await calendar.list_people()
days = await asyncio.gather(*(calendar.list_events(person=person["name"], day="2026-06-03") for person in people))
events, name = max(((len(day), person["name"]) for day, person in zip(days, people)), key=lambda pair: pair[0])
{"name": name, "events": events}
""",
    ),
    Task(
        name="team-hours",
        question="How many hours does each person of the platform team spend in meetings from 2026-06-01 to 2026-06-05?",
        expected={"Boris": 12.0, "Chen": 11.0, "Fatima": 7.0, "Hana": 13.0},
        sequential="""
def hours(event):
    (h1, m1), (h2, m2) = (map(int, event[key].split(":")) for key in ("start", "end"))
    return h2 - h1 + (m2 - m1) / 60

spent = {}
for person in await calendar.list_people(team="platform"):
    spent[person["name"]] = 0
    for day in range(1, 6):
        for event in await calendar.list_events(person=person["name"], day=f"2026-06-0{day}"):
            spent[person["name"]] += hours(event)
spent
""",
        gathered="""
import asyncio

def hours(event):
    (h1, m1), (h2, m2) = (map(int, event[key].split(":")) for key in ("start", "end"))
    return h2 - h1 + (m2 - m1) / 60

async def week(name):
    days = await asyncio.gather(*(calendar.list_events(person=name, day=f"2026-06-0{day}") for day in range(1, 6)))
    return name, sum(hours(event) for day in days for event in day)

people = await calendar.list_people(team="platform")
dict(await asyncio.gather(*(week(person["name"]) for person in people)))
""",
    ),
    Task(
        name="free-rooms",
        question="Which rooms in Lyon with at least 6 seats and video are free on 2026-06-04 from 10:00 to 11:00?",
        expected=["Rhone", "Saone"],
        sequential="""
free = []
for room in await calendar.list_rooms(office="Lyon", min_seats=6):
    if room["video"]:
        found = await calendar.room_is_free(room=room["name"], day="2026-06-04", start="10:00", end="11:00")
        if found["free"]:
            free.append(room["name"])
free
""",
        gathered="""
import asyncio
rooms = [room["name"] for room in await calendar.list_rooms(office="Lyon", min_seats=6) if room["video"]]
found = await asyncio.gather(
    *(calendar.room_is_free(room=room, day="2026-06-04", start="10:00", end="11:00") for room in rooms)
)
[room for room, state in zip(rooms, found) if state["free"]]
""",
    ),
    Task(
        name="cancel-budget",
        question="Cancel all events called budget or hiring that Dora or Emil have from 2026-06-01 to 2026-06-03. Answer with their ids, sorted.",
        expected=["E014", "E015", "E024", "E026"],
        sequential="""
cancelled = set()
for person in ["Dora", "Emil"]:
    for day in ["2026-06-01", "2026-06-02", "2026-06-03"]:
        for event in await calendar.list_events(person=person, day=day):
            if event["title"] in ("budget", "hiring"):
                cancelled.add(event["event_id"])
for event_id in sorted(cancelled):
    await calendar.cancel_event(event_id=event_id)
sorted(cancelled)
""",
        gathered="""
import asyncio
days = await asyncio.gather(
    *(calendar.list_events(person=person, day=f"2026-06-0{day}") for person in ("Dora", "Emil") for day in (1, 2, 3))
)
ids = sorted({event["event_id"] for day in days for event in day if event["title"] in ("budget", "hiring")})
await asyncio.gather(*(calendar.cancel_event(event_id=event_id) for event_id in ids))
ids
""",
    ),
    Task(
        name="plan-review",
        question="Put a meeting called design review of one hour into the calendar of the design team on 2026-06-05: at the first of 09:00, 11:00, 13:00, 15:00 and 17:00 at which all are free, in the smallest room in Lyon with 4 seats or more that is free then. Answer with start and room.",
        expected={"start": "11:00", "room": "Croix"},
        sequential="""
team = [person["name"] for person in await calendar.list_people(team="design")]
rooms = sorted(await calendar.list_rooms(office="Lyon", min_seats=4), key=lambda room: room["seats"])
answer = None
for hour in (9, 11, 13, 15, 17):
    when = {"day": "2026-06-05", "start": f"{hour:02}:00", "end": f"{hour + 1:02}:00"}
    states = []
    for person in team:
        states.append(await calendar.is_free(person=person, **when))
    if not all(state["free"] for state in states):
        continue
    free = []
    for room in rooms:
        if (await calendar.room_is_free(room=room["name"], **when))["free"]:
            free.append(room["name"])
    if free:
        event = await calendar.create_event(title="design review", attendees=team, room=free[0], **when)
        answer = {"start": event["start"], "room": event["room"]}
        break
answer
""",
        gathered="""
import asyncio
people, rooms = await asyncio.gather(
    calendar.list_people(team="design"), calendar.list_rooms(office="Lyon", min_seats=4)
)
team = [person["name"] for person in people]
rooms = sorted(rooms, key=lambda room: room["seats"])
answer = None
for hour in (9, 11, 13, 15, 17):
    when = {"day": "2026-06-05", "start": f"{hour:02}:00", "end": f"{hour + 1:02}:00"}
    states = await asyncio.gather(*(calendar.is_free(person=person, **when) for person in team))
    if not all(state["free"] for state in states):
        continue
    found = await asyncio.gather(*(calendar.room_is_free(room=room["name"], **when) for room in rooms))
    free = [room["name"] for room, state in zip(rooms, found) if state["free"]]
    if free:
        event = await calendar.create_event(title="design review", attendees=team, room=free[0], **when)
        answer = {"start": event["start"], "room": event["room"]}
        break
answer
""",
        waits={
            "calendar.is_free": "a later hour is looked at only if the one before does not suit",
            "calendar.room_is_free": "rooms are looked at only for an hour at which all are free",
            "calendar.create_event": "only when all are free, in the room that was found",
        },
    ),
    Task(
        name="without-room",
        question="Which events of the sales team on 2026-06-01 have no room? Answer with their ids, sorted.",
        expected=["E010", "E011"],
        sequential="""
ids = set()
for person in await calendar.list_people(team="sales"):
    for event in await calendar.list_events(person=person["name"], day="2026-06-01"):
        ids.add(event["event_id"])
homeless = []
for event_id in sorted(ids):
    event = await calendar.get_event(event_id=event_id)
    if event["room"] is None:
        homeless.append(event_id)
homeless
""",
        gathered="""
import asyncio
team = await calendar.list_people(team="sales")
days = await asyncio.gather(*(calendar.list_events(person=person["name"], day="2026-06-01") for person in team))
ids = sorted({event["event_id"] for day in days for event in day})
events = await asyncio.gather(*(calendar.get_event(event_id=event_id) for event_id in ids))
[event["event_id"] for event in events if event["room"] is None]
""",
    ),
    Task(
        name="meets-most",
        question="Whom does Hana meet most often from 2026-06-01 to 2026-06-05, and how often?",
        expected={"name": "Ivo", "times": 4},
        sequential="""
from collections import Counter
met = Counter()
for day in range(1, 6):
    for listed in await calendar.list_events(person="Hana", day=f"2026-06-0{day}"):
        event = await calendar.get_event(event_id=listed["event_id"])
        met.update(name for name in event["attendees"] if name != "Hana")
name, times = min(met.items(), key=lambda pair: (-pair[1], pair[0]))
{"name": name, "times": times}
""",
        gathered="""
import asyncio
from collections import Counter

async def look(day):
    listed = await calendar.list_events(person="Hana", day=day)
    return await asyncio.gather(*(calendar.get_event(event_id=event["event_id"]) for event in listed))

days = await asyncio.gather(*(look(f"2026-06-0{day}") for day in range(1, 6)))
met = Counter(name for day in days for event in day for name in event["attendees"] if name != "Hana")
name, times = min(met.items(), key=lambda pair: (-pair[1], pair[0]))
{"name": name, "times": times}
""",
    ),
    Task(
        name="out-of-hours",
        question="Which events from 2026-06-01 to 2026-06-05 lie outside the working hours, or on a day off, of somebody in the platform team who attends them? Answer with the number for each person.",
        expected={"Boris": 4, "Chen": 5, "Fatima": 4, "Hana": 5},
        sequential="""
late = {}
for person in await calendar.list_people(team="platform"):
    name = person["name"]
    hours = await calendar.working_hours(person=name)
    late[name] = 0
    for number in range(1, 6):
        day = f"2026-06-0{number}"
        for event in await calendar.list_events(person=name, day=day):
            if day in hours["days_off"] or event["start"] < hours["start"] or event["end"] > hours["end"]:
                late[name] += 1
late
""",
        gathered="""
import asyncio
week = [f"2026-06-0{day}" for day in range(1, 6)]

async def look(name):
    hours, *days = await asyncio.gather(
        calendar.working_hours(person=name), *(calendar.list_events(person=name, day=day) for day in week)
    )
    return name, sum(
        day in hours["days_off"] or event["start"] < hours["start"] or event["end"] > hours["end"]
        for day, events in zip(week, days)
        for event in events
    )

people = await calendar.list_people(team="platform")
dict(await asyncio.gather(*(look(person["name"]) for person in people)))
""",
    ),
    Task(
        name="day-off",
        question="Move every event that Fatima has on her days off to the day after it, to the same time. Answer with the new day of each.",
        expected={"E015": "2026-06-02", "E016": "2026-06-02", "E013": "2026-06-02"},
        sequential="""
from datetime import date, timedelta
hours = await calendar.working_hours(person="Fatima")
moved = {}
for off in hours["days_off"]:
    after = str(date.fromisoformat(off) + timedelta(days=1))
    for event in await calendar.list_events(person="Fatima", day=off):
        await calendar.move_event(event_id=event["event_id"], day=after, start=event["start"], end=event["end"])
        moved[event["event_id"]] = after
moved
""",
        gathered="""
import asyncio
from datetime import date, timedelta

async def clear(off):
    after = str(date.fromisoformat(off) + timedelta(days=1))
    events = await calendar.list_events(person="Fatima", day=off)
    await asyncio.gather(
        *(
            calendar.move_event(event_id=event["event_id"], day=after, start=event["start"], end=event["end"])
            for event in events
        )
    )
    return {event["event_id"]: after for event in events}

hours = await calendar.working_hours(person="Fatima")
done = await asyncio.gather(*map(clear, hours["days_off"]))
{event_id: day for part in done for event_id, day in part.items()}
""",
    ),
]
