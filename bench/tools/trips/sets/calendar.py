"""The calendar of a small company: people, rooms, meetings of the week from Monday, 2026-06-01."""

from typing import ClassVar, TypedDict

from onetrip import tool
from trips.sets.base import NotFoundError, ToolSet, roll


class Person(TypedDict):
    name: str
    team: str
    office: str


class EventName(TypedDict):
    event_id: str
    title: str
    start: str  # a time of day, such as 09:30
    end: str


class Event(TypedDict):
    event_id: str
    title: str
    day: str  # such as 2026-06-01
    start: str
    end: str
    attendees: list[str]
    room: str | None


class Room(TypedDict):
    name: str
    office: str
    seats: int
    video: bool


class Free(TypedDict):
    free: bool
    until: str | None  # when something begins; None: nothing does on that day


class Hours(TypedDict):
    start: str
    end: str
    days_off: list[str]


_PEOPLE: dict[str, Person] = {
    name: {"name": name, "team": team, "office": office}
    for name, team, office in [
        ("Amara", "design", "Lyon"), ("Boris", "platform", "Lyon"), ("Chen", "platform", "Graz"), ("Dora", "sales", "Graz"),
        ("Emil", "design", "Graz"), ("Fatima", "platform", "Lyon"), ("Goran", "sales", "Lyon"), ("Hana", "platform", "Graz"),
        ("Ivo", "sales", "Lyon"), ("Jun", "design", "Lyon"),
    ]
}  # fmt: skip
_ROOMS: dict[str, Room] = {
    name: {"name": name, "office": office, "seats": seats, "video": video}
    for name, office, seats, video in [
        ("Rhone", "Lyon", 12, True), ("Saone", "Lyon", 6, True), ("Croix", "Lyon", 4, False), ("Bellecour", "Lyon", 8, False),
        ("Mur", "Graz", 10, True), ("Uhrturm", "Graz", 5, True), ("Eggenberg", "Graz", 4, False),
    ]
}  # fmt: skip
DAYS = [f"2026-06-{day:02}" for day in range(1, 6)]
_TITLES = ["stand-up", "planning", "review", "one-to-one", "interview", "budget", "retrospective", "demo", "hiring"]


def _events() -> dict[str, Event]:
    people, rooms = list(_PEOPLE), list(_ROOMS)
    found: dict[str, Event] = {}
    for day in DAYS:
        for number in range(9):
            key = f"{day[-2:]}{number}"
            hour = 9 + roll(8, key, "hour")
            half = 30 * roll(2, key, "half")
            attendees = sorted({people[roll(len(people), key, seat)] for seat in range(2 + roll(3, key, "seats"))})
            found[f"E{key}"] = {
                "event_id": f"E{key}",
                "title": _TITLES[roll(len(_TITLES), key, "title")],
                "day": day,
                "start": f"{hour:02}:{half:02}",
                "end": f"{hour + 1:02}:{half:02}",
                "attendees": attendees,
                "room": rooms[roll(len(rooms), key, "room")] if roll(4, key, "has room") else None,
            }
    return found


class Calendar(ToolSet):
    """The calendar's tools. Days are such as 2026-06-01, times of day such as 09:30."""

    NAMESPACE: ClassVar[str] = "calendar"

    def __init__(self) -> None:
        self._events = _events()
        self._reasons: dict[str, str] = {}  # why events were cancelled

    @tool(name="calendar.list_people", effect="read")
    def list_people(self, team: str | None = None) -> list[Person]:
        """Everybody, or everybody of a team."""
        return [person for person in _PEOPLE.values() if team in {None, person["team"]}]

    @tool(name="calendar.list_rooms", effect="read")
    def list_rooms(self, office: str | None = None, min_seats: int = 1) -> list[Room]:
        """Rooms for meetings: of an office or of all, with at least so many seats."""
        return [room for room in _ROOMS.values() if office in {None, room["office"]} and room["seats"] >= min_seats]

    @tool(name="calendar.list_events", effect="read")
    def list_events(self, person: str, day: str) -> list[EventName]:
        """What is in a person's calendar on a day, without attendees and room."""
        if person not in _PEOPLE:
            raise NotFoundError(f"there is nobody called {person!r}")
        found = [event for event in self._events.values() if event["day"] == day and person in event["attendees"]]
        return [
            {"event_id": event["event_id"], "title": event["title"], "start": event["start"], "end": event["end"]}
            for event in sorted(found, key=lambda event: (event["start"], event["event_id"]))
        ]

    @tool(name="calendar.get_event", effect="read")
    def get_event(self, event_id: str) -> Event:
        """One event, with attendees and room."""
        if event_id not in self._events:
            raise NotFoundError(f"there is no event {event_id!r}")
        return self._events[event_id]

    @tool(name="calendar.is_free", effect="read")
    def is_free(self, person: str, day: str, start: str, end: str) -> Free:
        """Whether a person has nothing between two times of a day, and when what comes after it begins."""
        return self._free([event for event in self._on(day) if person in event["attendees"]], start, end)

    @tool(name="calendar.room_is_free", effect="read")
    def room_is_free(self, room: str, day: str, start: str, end: str) -> Free:
        """Whether nobody has a room between two times of a day, and when whatever comes after it begins."""
        return self._free([event for event in self._on(day) if event["room"] == room], start, end)

    @tool(name="calendar.working_hours", effect="read")
    def working_hours(self, person: str) -> Hours:
        """When a person works: from, to, and the days off in this week."""
        if person not in _PEOPLE:
            raise NotFoundError(f"there is nobody called {person!r}")
        start = 8 + roll(3, person, "start")
        return {"start": f"{start:02}:00", "end": f"{start + 8:02}:00", "days_off": [DAYS[roll(5, person, "off")]]}

    @tool(name="calendar.create_event", effect="write")
    def create_event(self, title: str, day: str, start: str, end: str, attendees: list[str], room: str | None = None) -> Event:
        """Put a meeting into the calendars of all its attendees."""
        event: Event = {
            "event_id": f"N{day[-2:]}{start[:2]}{start[3:]}-{title[:3]}",
            "title": title,
            "day": day,
            "start": start,
            "end": end,
            "attendees": sorted(attendees),
            "room": room,
        }
        self._events[event["event_id"]] = event
        return event

    @tool(name="calendar.move_event", effect="write")
    def move_event(self, event_id: str, day: str, start: str, end: str) -> Event:
        """Give an event another time."""
        moved: Event = {**self.get_event(event_id), "day": day, "start": start, "end": end}
        self._events[event_id] = moved
        return moved

    @tool(name="calendar.cancel_event", effect="write")
    def cancel_event(self, event_id: str, reason: str = "") -> Event:
        """Take an event out of everybody's calendar. Returns what it was."""
        event = self.get_event(event_id)
        del self._events[event_id]
        self._reasons[event_id] = reason
        return event

    @property
    def state(self) -> object:
        return sorted(self._events.items()), self._reasons

    def _on(self, day: str) -> list[Event]:
        return [event for event in self._events.values() if event["day"] == day]

    @staticmethod
    def _free(events: list[Event], start: str, end: str) -> Free:
        free = not any(event["start"] < end and start < event["end"] for event in events)
        return {"free": free, "until": min((event["start"] for event in events if event["start"] >= end), default=None)}
