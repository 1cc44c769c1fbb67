"""A travel desk: flights, trains, hotels, weather, rules, and bookings, in July 2026."""

from typing import ClassVar, TypedDict

from onetrip import tool
from trips.sets.base import NotFoundError, ToolSet, roll


class Flight(TypedDict):
    flight_id: str
    departs: str  # a time of day, such as 07:15
    arrives: str
    price: float  # EUR
    stops: int


class Fare(TypedDict):
    flight_id: str
    refundable: bool
    bag_price: float  # EUR for one bag; 0: it is included
    seats_left: int


class Train(TypedDict):
    train_id: str
    departs: str
    arrives: str
    price: float  # EUR


class Hotel(TypedDict):
    hotel_id: str
    name: str
    stars: int
    price: float  # of one night, in the city's currency
    currency: str


class Vacancy(TypedDict):
    hotel_id: str
    available: bool
    total: float  # of the stay, in the city's currency


class Rating(TypedDict):
    hotel_id: str
    score: float  # 0 to 10
    reviews: int


class Weather(TypedDict):
    city: str
    day: str
    high_c: int
    rain_mm: int


class City(TypedDict):
    name: str
    country: str
    currency: str
    museums: int


class Rate(TypedDict):
    base: str
    quote: str
    rate: float  # so many of `quote` for one of `base`


class Visa(TypedDict):
    required: bool
    days: int  # so many days may be stayed


class Booking(TypedDict):
    booking_id: str
    what: str
    person: str


_CITIES: dict[str, City] = {
    name: {"name": name, "country": country, "currency": currency, "museums": museums}
    for name, country, currency, museums in [
        ("Lisbon", "PT", "EUR", 41), ("Oslo", "NO", "NOK", 36), ("Zurich", "CH", "CHF", 52), ("Prague", "CZ", "CZK", 47),
        ("London", "GB", "GBP", 170), ("Warsaw", "PL", "PLN", 63), ("Vienna", "AT", "EUR", 102), ("Tallinn", "EE", "EUR", 24),
    ]
}  # fmt: skip
_RATES = {"EUR": 1.0, "NOK": 11.5, "CHF": 0.95, "CZK": 25.0, "GBP": 0.85, "PLN": 4.25, "USD": 1.1}
_HOTELS = ["Astoria", "Bellevue", "Central", "Domino", "Europa"]


class Travel(ToolSet):
    """The travel desk's tools. Days are such as 2026-07-01; prices are in EUR where nothing else is said."""

    NAMESPACE: ClassVar[str] = "travel"

    def __init__(self) -> None:
        self.bookings: dict[str, Booking] = {}

    @tool(name="travel.list_cities", effect="read")
    def list_cities(self) -> list[str]:
        """The cities that the desk knows."""
        return list(_CITIES)

    @tool(name="travel.get_city", effect="read")
    def get_city(self, name: str) -> City:
        """Country, currency and number of museums of a city."""
        if name not in _CITIES:
            raise NotFoundError(f"there is no city {name!r}")
        return _CITIES[name]

    @tool(name="travel.search_flights", effect="read")
    def search_flights(self, origin: str, destination: str, day: str) -> list[Flight]:
        """The flights from one city to another on a day; the prices are without bags."""
        self.get_city(origin)
        self.get_city(destination)
        found: list[Flight] = []
        for number in range(1, 2 + roll(3, origin, destination, day, "n")):
            flight_id = f"{origin[:2]}{destination[:2]}{day[-2:]}-{number}".upper()
            hour = 6 + roll(13, flight_id, "hour")
            stops = roll(2, flight_id, "stops")
            found.append(
                {
                    "flight_id": flight_id,
                    "departs": f"{hour:02}:15",
                    "arrives": f"{hour + 2 + 2 * stops:02}:40",
                    "price": 60.0 + roll(300, flight_id, "price"),
                    "stops": stops,
                }
            )
        return found

    @tool(name="travel.fare_rules", effect="read")
    def fare_rules(self, flight_id: str) -> Fare:
        """What a ticket allows, what a bag costs, and how many seats are left."""
        return {
            "flight_id": flight_id,
            "refundable": roll(2, flight_id, "refund") == 1,
            "bag_price": [0.0, 25.0, 40.0][roll(3, flight_id, "bag")],
            "seats_left": roll(12, flight_id, "seats"),
        }

    @tool(name="travel.search_trains", effect="read")
    def search_trains(self, origin: str, destination: str, day: str) -> list[Train]:
        """The trains from one city to another on a day; there may be none."""
        found: list[Train] = []
        for number in range(1, 1 + roll(3, *sorted((origin, destination)), "trains")):
            train_id = f"T{origin[:2]}{destination[:2]}{day[-2:]}-{number}".upper()
            hour = 6 + roll(9, train_id, "hour")
            found.append(
                {
                    "train_id": train_id,
                    "departs": f"{hour:02}:05",
                    "arrives": f"{hour + 4 + roll(5, train_id, 'long'):02}:50",
                    "price": 40.0 + roll(160, train_id, "price"),
                }
            )
        return found

    @tool(name="travel.search_hotels", effect="read")
    def search_hotels(self, city: str, min_stars: int = 1) -> list[Hotel]:
        """The hotels of a city with at least so many stars, with their usual price of a night."""
        currency = self.get_city(city)["currency"]
        found: list[Hotel] = []
        for name in _HOTELS:
            hotel_id = f"{city[:3]}-{name[:3]}".upper()
            stars = 2 + roll(4, hotel_id, "stars")
            if stars >= min_stars:
                price = round((40 + 35 * stars + roll(60, hotel_id, "price")) * _RATES[currency], 2)
                found.append({"hotel_id": hotel_id, "name": name, "stars": stars, "price": price, "currency": currency})
        return found

    @tool(name="travel.hotel_vacancy", effect="read")
    def hotel_vacancy(self, hotel_id: str, arrival: str, nights: int) -> Vacancy:
        """Whether a hotel has a room, and what the stay costs in the city's currency."""
        city = next((name for name in _CITIES if name[:3].upper() == hotel_id[:3]), "?")
        hotel = next((one for one in self.search_hotels(city) if one["hotel_id"] == hotel_id), None)
        if hotel is None:
            raise NotFoundError(f"there is no hotel {hotel_id!r}")
        return {
            "hotel_id": hotel_id,
            "available": roll(3, hotel_id, arrival, "room") > 0,
            "total": round(hotel["price"] * nights * (90 + roll(30, hotel_id, arrival, "season")) / 100, 2),
        }

    @tool(name="travel.hotel_rating", effect="read")
    def hotel_rating(self, hotel_id: str) -> Rating:
        """What guests think of a hotel."""
        return {
            "hotel_id": hotel_id,
            "score": (50 + roll(50, hotel_id, "score")) / 10,
            "reviews": 10 + roll(900, hotel_id, "many"),
        }

    @tool(name="travel.weather", effect="read")
    def weather(self, city: str, day: str) -> Weather:
        """The forecast for a city on a day."""
        self.get_city(city)
        return {
            "city": city,
            "day": day,
            "high_c": 14 + roll(20, city, day, "high"),
            "rain_mm": max(0, roll(18, city, day, "rain") - 8),
        }

    @tool(name="travel.exchange_rate", effect="read")
    def exchange_rate(self, base: str, quote: str) -> Rate:
        """What one unit of a currency costs in another."""
        if base not in _RATES or quote not in _RATES:
            raise NotFoundError(f"there is no rate for {base} in {quote}")
        return {"base": base, "quote": quote, "rate": round(_RATES[quote] / _RATES[base], 6)}

    @tool(name="travel.visa", effect="pure")
    def visa(self, citizenship: str, country: str) -> Visa:
        """Whether a citizen of one country needs a visa for another; both as two letters."""
        return {"required": roll(3, citizenship, country, "visa") == 0, "days": [30, 60, 90][roll(3, citizenship, country)]}

    @tool(name="travel.book_flight", effect="write")
    def book_flight(self, flight_id: str, passenger: str) -> Booking:
        """Buy a ticket."""
        return self._book(flight_id, passenger)

    @tool(name="travel.book_hotel", effect="write")
    def book_hotel(self, hotel_id: str, arrival: str, nights: int, guest: str) -> Booking:
        """Book a room."""
        return self._book(f"{hotel_id}/{arrival}/{nights}", guest)

    @property
    def state(self) -> object:
        return sorted(self.bookings.items())

    def _book(self, what: str, person: str) -> Booking:
        booking: Booking = {"booking_id": f"B/{what}/{person}", "what": what, "person": person}
        self.bookings[booking["booking_id"]] = booking
        return booking
