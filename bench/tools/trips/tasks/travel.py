"""Ten tasks for the travel desk."""

from trips.task import Task

TASKS = [
    Task(
        name="pocket-money",
        question="What do 200 EUR make in NOK, GBP and PLN?",
        expected={"NOK": 2300.0, "GBP": 170.0, "PLN": 850.0},
        sequential="""
money = {}
for currency in ["NOK", "GBP", "PLN"]:
    found = await travel.exchange_rate(base="EUR", quote=currency)
    money[currency] = round(200 * found["rate"], 2)
money
""",
        gathered="""
import asyncio
rates = await asyncio.gather(*(travel.exchange_rate(base="EUR", quote=currency) for currency in ("NOK", "GBP", "PLN")))
{found["quote"]: round(200 * found["rate"], 2) for found in rates}
""",
    ),
    Task(
        name="warmest",
        question="Which of the desk's cities is the warmest on 2026-07-04, and how warm is it?",
        expected={"city": "London", "high_c": 33},
        sequential="""
forecasts = []
for city in await travel.list_cities():
    forecasts.append(await travel.weather(city=city, day="2026-07-04"))
best = max(forecasts, key=lambda forecast: forecast["high_c"])
{"city": best["city"], "high_c": best["high_c"]}
""",
        gathered="""
import asyncio
cities = await travel.list_cities()
forecasts = await asyncio.gather(*(travel.weather(city=city, day="2026-07-04") for city in cities))
best = max(forecasts, key=lambda forecast: forecast["high_c"])
{"city": best["city"], "high_c": best["high_c"]}
""",
    ),
    Task(
        name="with-a-bag",
        question="Which flight from Vienna to Lisbon on 2026-07-03 is the cheapest with one bag, and what does it cost with it?",
        expected={"flight_id": "VILI03-1", "total": 177.0},
        sequential="""
totals = {}
for flight in await travel.search_flights(origin="Vienna", destination="Lisbon", day="2026-07-03"):
    fare = await travel.fare_rules(flight_id=flight["flight_id"])
    totals[flight["flight_id"]] = flight["price"] + fare["bag_price"]
best = min(totals, key=totals.get)
{"flight_id": best, "total": totals[best]}
""",
        gathered="""
import asyncio
flights = await travel.search_flights(origin="Vienna", destination="Lisbon", day="2026-07-03")
fares = await asyncio.gather(*(travel.fare_rules(flight_id=flight["flight_id"]) for flight in flights))
totals = {flight["flight_id"]: flight["price"] + fare["bag_price"] for flight, fare in zip(flights, fares)}
best = min(totals, key=totals.get)
{"flight_id": best, "total": totals[best]}
""",
    ),
    Task(
        name="weekend",
        question="From Vienna to Prague, London or Zurich on 2026-07-10 for 2 nights: where are the cheapest flight there and the cheapest free hotel together the cheapest, in EUR?",
        expected={"city": "Zurich", "total": 520.12},
        sequential="""
totals = {}
for city in ["Prague", "London", "Zurich"]:
    flights = await travel.search_flights(origin="Vienna", destination=city, day="2026-07-10")
    hotels = await travel.search_hotels(city=city)
    rate = await travel.exchange_rate(base=hotels[0]["currency"], quote="EUR")
    stays = []
    for hotel in hotels:
        vacancy = await travel.hotel_vacancy(hotel_id=hotel["hotel_id"], arrival="2026-07-10", nights=2)
        if vacancy["available"]:
            stays.append(vacancy["total"] * rate["rate"])
    if flights and stays:
        totals[city] = round(min(flight["price"] for flight in flights) + min(stays), 2)
best = min(totals, key=totals.get)
{"city": best, "total": totals[best]}
""",
        gathered="""
import asyncio

async def stay(city):
    hotels = await travel.search_hotels(city=city)
    rate, *found = await asyncio.gather(
        travel.exchange_rate(base=hotels[0]["currency"], quote="EUR"),
        *(travel.hotel_vacancy(hotel_id=hotel["hotel_id"], arrival="2026-07-10", nights=2) for hotel in hotels),
    )
    return [one["total"] * rate["rate"] for one in found if one["available"]]

async def price(city):
    flights, stays = await asyncio.gather(
        travel.search_flights(origin="Vienna", destination=city, day="2026-07-10"), stay(city)
    )
    if flights and stays:
        return city, round(min(flight["price"] for flight in flights) + min(stays), 2)

totals = [found for found in await asyncio.gather(*map(price, ("Prague", "London", "Zurich"))) if found]
city, total = min(totals, key=lambda pair: pair[1])
{"city": city, "total": total}
""",
    ),
    Task(
        name="dry-days",
        question="Is Oslo or Lisbon dry on more of the days from 2026-07-01 to 2026-07-07? Answer with the number of days without rain for each.",
        expected={"Oslo": 4, "Lisbon": 6},
        sequential="""
dry = {"Oslo": 0, "Lisbon": 0}
for city in dry:
    for day in range(1, 8):
        forecast = await travel.weather(city=city, day=f"2026-07-0{day}")
        if forecast["rain_mm"] == 0:
            dry[city] += 1
dry
""",
        gathered="""
import asyncio
forecasts = await asyncio.gather(
    *(travel.weather(city=city, day=f"2026-07-0{day}") for city in ("Oslo", "Lisbon") for day in range(1, 8))
)
{
    city: sum(forecast["city"] == city and forecast["rain_mm"] == 0 for forecast in forecasts)
    for city in ("Oslo", "Lisbon")
}
""",
    ),
    Task(
        name="visas",
        question="For which of the desk's cities does somebody from US need a visa? Sort them.",
        expected=["Prague", "Tallinn", "Warsaw", "Zurich"],
        sequential="""
needed = []
for name in await travel.list_cities():
    city = await travel.get_city(name=name)
    visa = await travel.visa(citizenship="US", country=city["country"])
    if visa["required"]:
        needed.append(name)
sorted(needed)
""",
        gathered="""
import asyncio

async def needs_visa(name):
    city = await travel.get_city(name=name)
    return (await travel.visa(citizenship="US", country=city["country"]))["required"]

names = await travel.list_cities()
needed = await asyncio.gather(*map(needs_visa, names))
sorted(name for name, required in zip(names, needed) if required)
""",
    ),
    Task(
        name="train-or-plane",
        question="From Vienna to Prague, Warsaw and Tallinn on 2026-07-08: is the cheapest train or the cheapest flight cheaper? Answer with train, flight or neither for each.",
        expected={"Prague": "flight", "Warsaw": "flight", "Tallinn": "train"},
        sequential="""
better = {}
for city in ["Prague", "Warsaw", "Tallinn"]:
    trip = {"origin": "Vienna", "destination": city, "day": "2026-07-08"}
    train = min((found["price"] for found in await travel.search_trains(**trip)), default=float("inf"))
    flight = min((found["price"] for found in await travel.search_flights(**trip)), default=float("inf"))
    better[city] = "train" if train < flight else "flight" if flight < train else "neither"
better
""",
        gathered="""
import asyncio

async def compare(city):
    trip = {"origin": "Vienna", "destination": city, "day": "2026-07-08"}
    trains, flights = await asyncio.gather(travel.search_trains(**trip), travel.search_flights(**trip))
    train = min((found["price"] for found in trains), default=float("inf"))
    flight = min((found["price"] for found in flights), default=float("inf"))
    return "train" if train < flight else "flight" if flight < train else "neither"

cities = ["Prague", "Warsaw", "Tallinn"]
dict(zip(cities, await asyncio.gather(*map(compare, cities))))
""",
    ),
    Task(
        name="best-hotel",
        question="Book the best rated hotel in Warsaw that has a room for 3 nights from 2026-07-11, for Ms Okafor. Answer with its id.",
        expected="WAR-CEN",
        sequential="""
rated = []
for hotel in await travel.search_hotels(city="Warsaw"):
    rating = await travel.hotel_rating(hotel_id=hotel["hotel_id"])
    rated.append((rating["score"], hotel["hotel_id"]))
booked = None
for score, hotel_id in sorted(rated, reverse=True):
    vacancy = await travel.hotel_vacancy(hotel_id=hotel_id, arrival="2026-07-11", nights=3)
    if vacancy["available"]:
        await travel.book_hotel(hotel_id=hotel_id, arrival="2026-07-11", nights=3, guest="Ms Okafor")
        booked = hotel_id
        break
booked
""",
        gathered="""
import asyncio
hotels = await travel.search_hotels(city="Warsaw")
ratings = await asyncio.gather(*(travel.hotel_rating(hotel_id=hotel["hotel_id"]) for hotel in hotels))
booked = None
for rating in sorted(ratings, key=lambda rating: (rating["score"], rating["hotel_id"]), reverse=True):
    stay = {"hotel_id": rating["hotel_id"], "arrival": "2026-07-11", "nights": 3}
    if (await travel.hotel_vacancy(**stay))["available"]:
        await travel.book_hotel(**stay, guest="Ms Okafor")
        booked = rating["hotel_id"]
        break
booked
""",
        waits={
            "travel.hotel_vacancy": "the next best hotel is asked only if the one before is full",
            "travel.book_hotel": "the hotel must have a room",
        },
    ),
    Task(
        name="team-flight",
        question="Book the cheapest refundable flight with enough seats from London to Oslo on 2026-07-07 or 2026-07-08 or 2026-07-09 for Bea, Cem and Dag. Answer with flight and price of one ticket.",
        expected={"flight_id": "LOOS09-3", "price": 95.0},
        sequential="""
team = ["Bea", "Cem", "Dag"]
usable = []
for day in ["2026-07-07", "2026-07-08", "2026-07-09"]:
    for flight in await travel.search_flights(origin="London", destination="Oslo", day=day):
        fare = await travel.fare_rules(flight_id=flight["flight_id"])
        if fare["refundable"] and fare["seats_left"] >= len(team):
            usable.append(flight)
best = min(usable, key=lambda flight: flight["price"])
for person in team:
    await travel.book_flight(flight_id=best["flight_id"], passenger=person)
{"flight_id": best["flight_id"], "price": best["price"]}
""",
        gathered="""
import asyncio
team = ["Bea", "Cem", "Dag"]

async def usable(day):
    flights = await travel.search_flights(origin="London", destination="Oslo", day=day)
    fares = await asyncio.gather(*(travel.fare_rules(flight_id=flight["flight_id"]) for flight in flights))
    return [flight for flight, fare in zip(flights, fares) if fare["refundable"] and fare["seats_left"] >= len(team)]

found = await asyncio.gather(*(usable(f"2026-07-0{day}") for day in (7, 8, 9)))
best = min((flight for day in found for flight in day), key=lambda flight: flight["price"])
await asyncio.gather(*(travel.book_flight(flight_id=best["flight_id"], passenger=person) for person in team))
{"flight_id": best["flight_id"], "price": best["price"]}
""",
        waits={"travel.book_flight": "the fares decide which flight"},
    ),
    Task(
        name="round-trip",
        question="Start in Lisbon on 2026-07-01, visit Prague, Oslo and Vienna in the order with the cheapest flights, one flight a day on four days in a row, and come back. Answer with order and price, and with the best rated hotel of each city on the way.",
        expected={
            "order": ["Prague", "Vienna", "Oslo"],
            "price": 460.0,
            "hotels": {"Prague": "PRA-BEL", "Oslo": "OSL-EUR", "Vienna": "VIE-BEL"},
        },
        sequential="""
from itertools import permutations
cities = ["Prague", "Oslo", "Vienna"]
cheapest = {}

async def leg(start, end, number):
    found = await travel.search_flights(origin=start, destination=end, day=f"2026-07-0{number}")
    cheapest[start, end, number] = min((flight["price"] for flight in found), default=float("inf"))

for city in cities:
    await leg("Lisbon", city, 1)
    await leg(city, "Lisbon", 4)
    for other in cities:
        if other != city:
            await leg(city, other, 2)
            await leg(city, other, 3)
prices = {}
for order in permutations(cities):
    stops = ["Lisbon", *order, "Lisbon"]
    prices[order] = sum(cheapest[stops[i], stops[i + 1], i + 1] for i in range(4))
best = min(prices, key=prices.get)
hotels = {}
for city in cities:
    rated = []
    for hotel in await travel.search_hotels(city=city):
        rated.append(await travel.hotel_rating(hotel_id=hotel["hotel_id"]))
    hotels[city] = max(rated, key=lambda rating: rating["score"])["hotel_id"]
{"order": list(best), "price": prices[best], "hotels": hotels}
""",
        gathered="""
import asyncio
from itertools import permutations
cities = ["Prague", "Oslo", "Vienna"]

async def leg(start, end, number):
    found = await travel.search_flights(origin=start, destination=end, day=f"2026-07-0{number}")
    return (start, end, number), min((flight["price"] for flight in found), default=float("inf"))

async def best_hotel(city):
    found = await travel.search_hotels(city=city)
    rated = await asyncio.gather(*(travel.hotel_rating(hotel_id=hotel["hotel_id"]) for hotel in found))
    return city, max(rated, key=lambda rating: rating["score"])["hotel_id"]

legs = [("Lisbon", city, 1) for city in cities] + [(city, "Lisbon", 4) for city in cities]
legs += [(start, end, number) for start in cities for end in cities if start != end for number in (2, 3)]
cheapest, hotels = await asyncio.gather(
    asyncio.gather(*(leg(*one) for one in legs)), asyncio.gather(*map(best_hotel, cities))
)
cheapest = dict(cheapest)
prices = {}
for order in permutations(cities):
    stops = ["Lisbon", *order, "Lisbon"]
    prices[order] = sum(cheapest[stops[i], stops[i + 1], i + 1] for i in range(4))
best = min(prices, key=prices.get)
{"order": list(best), "price": prices[best], "hotels": dict(hotels)}
""",
    ),
]
