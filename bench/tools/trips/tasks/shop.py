"""Ten tasks for the shop."""

from trips.task import Task

TASKS = [
    Task(
        name="one-warehouse",
        question="Are the products TE-01, ST-02 and LI-03 in one warehouse? Answer with the warehouse of each.",
        expected={"TE-01": "south", "ST-02": "north", "LI-03": "north"},
        sequential="""
houses = {}
for sku in ["TE-01", "ST-02", "LI-03"]:
    stock = await shop.get_stock(sku=sku)
    houses[sku] = stock["warehouse"]
houses
""",
        gathered="""
import asyncio
skus = ["TE-01", "ST-02", "LI-03"]
stocks = await asyncio.gather(*(shop.get_stock(sku=sku) for sku in skus))
{stock["sku"]: stock["warehouse"] for stock in stocks}
""",
    ),
    Task(
        name="cheapest-tent",
        question="Which of our tents below 3 kg is the cheapest? Answer with its name and price.",
        expected={"name": "Alcove XL", "price": 18.9},
        sequential="""
tents, page, pages = [], 1, 1
while page <= pages:
    found = await shop.find_products(category="tents", page=page)
    pages = found["pages"]
    for item in found["items"]:
        tents.append(await shop.get_product(sku=item["sku"]))
    page += 1
best = min((tent for tent in tents if tent["weight_kg"] < 3), key=lambda tent: tent["price"])
{"name": best["name"], "price": best["price"]}
""",
        gathered="""
import asyncio

async def details(found):
    return await asyncio.gather(*(shop.get_product(sku=item["sku"]) for item in found["items"]))

async def load(page):
    return await details(await shop.find_products(category="tents", page=page))

first = await shop.find_products(category="tents", page=1)
parts = await asyncio.gather(details(first), *(load(page) for page in range(2, first["pages"] + 1)))
light = [tent for part in parts for tent in part if tent["weight_kg"] < 3]
best = min(light, key=lambda tent: tent["price"])
{"name": best["name"], "price": best["price"]}
""",
    ),
    Task(
        name="low-stock",
        question="Of which stoves are fewer than 10 pieces available, reserved ones not counted? List their names.",
        expected=["Ember", "Twin Ember"],
        sequential="""
found = await shop.find_products(category="stoves", page=1)
low = []
for item in found["items"]:
    stock = await shop.get_stock(sku=item["sku"])
    if stock["on_hand"] - stock["reserved"] < 10:
        low.append(item["name"])
low
""",
        gathered="""
import asyncio
found = await shop.find_products(category="stoves", page=1)
stocks = await asyncio.gather(*(shop.get_stock(sku=item["sku"]) for item in found["items"]))
[item["name"] for item, stock in zip(found["items"], stocks) if stock["on_hand"] - stock["reserved"] < 10]
""",
    ),
    Task(
        name="order-total",
        question="What does everything in order O1006 cost at today's prices?",
        expected=777.5,
        sequential="""
order = await shop.get_order(order_id="O1006")
total = 0
for item in order["items"]:
    product = await shop.get_product(sku=item["sku"])
    total += product["price"] * item["quantity"]
round(total, 2)
""",
        gathered="""
import asyncio
order = await shop.get_order(order_id="O1006")
products = await asyncio.gather(*(shop.get_product(sku=item["sku"]) for item in order["items"]))
round(sum(product["price"] * item["quantity"] for product, item in zip(products, order["items"])), 2)
""",
    ),
    Task(
        name="best-customer",
        question="Of the customers C1 to C8 that are gold or silver: who has spent most on delivered orders, at today's prices, and how much?",
        expected={"name": "Ada Brandt", "spent": 1028.8},
        sequential="""
spent = {}
prices = {}
for number in range(1, 9):
    customer = await shop.get_customer(customer_id=f"C{number}")
    if customer["tier"] == "basic":
        continue
    total = 0
    for listed in await shop.list_orders(customer_id=customer["customer_id"]):
        if listed["status"] != "delivered":
            continue
        order = await shop.get_order(order_id=listed["order_id"])
        for item in order["items"]:
            if item["sku"] not in prices:
                prices[item["sku"]] = (await shop.get_product(sku=item["sku"]))["price"]
            total += prices[item["sku"]] * item["quantity"]
    spent[customer["name"]] = round(total, 2)
best = max(spent, key=spent.get)
{"name": best, "spent": spent[best]}
""",
        gathered="""
import asyncio
prices = {}

async def price(sku):
    if sku not in prices:
        prices[sku] = asyncio.ensure_future(shop.get_product(sku=sku))
    return (await prices[sku])["price"]

async def cost(order_id):
    order = await shop.get_order(order_id=order_id)
    each = await asyncio.gather(*(price(item["sku"]) for item in order["items"]))
    return sum(one * item["quantity"] for one, item in zip(each, order["items"]))

async def spending(number):
    customer = await shop.get_customer(customer_id=f"C{number}")
    if customer["tier"] == "basic":
        return customer["name"], -1
    orders = await shop.list_orders(customer_id=customer["customer_id"])
    return customer["name"], sum(
        await asyncio.gather(*(cost(order["order_id"]) for order in orders if order["status"] == "delivered"))
    )

spent = await asyncio.gather(*(spending(number) for number in range(1, 9)))
name, total = max(spent, key=lambda pair: pair[1])
{"name": name, "spent": round(total, 2)}
""",
        waits={"shop.list_orders": "only the orders of customers that are gold or silver are asked for"},
    ),
    Task(
        name="reorder-lights",
        question="Of every light with fewer than 15 pieces available, reserved ones not counted, reorder as many as it takes to have 30. Answer with what was ordered.",
        expected={"LI-02": 18, "LI-03": 23, "LI-04": 18, "LI-05": 27},
        sequential="""
ordered = {}
found = await shop.find_products(category="lights", page=1)
for item in found["items"]:
    stock = await shop.get_stock(sku=item["sku"])
    available = stock["on_hand"] - stock["reserved"]
    if available < 15:
        purchase = await shop.reorder(sku=item["sku"], quantity=30 - available)
        ordered[purchase["sku"]] = purchase["quantity"]
ordered
""",
        gathered="""
import asyncio

async def check(sku):
    stock = await shop.get_stock(sku=sku)
    available = stock["on_hand"] - stock["reserved"]
    if available < 15:
        return await shop.reorder(sku=sku, quantity=30 - available)

found = await shop.find_products(category="lights", page=1)
done = await asyncio.gather(*(check(item["sku"]) for item in found["items"]))
{purchase["sku"]: purchase["quantity"] for purchase in done if purchase}
""",
        waits={"shop.reorder": "what is in stock decides whether, and how many"},
    ),
    Task(
        name="slowest-supplier",
        question="Which supplier of our bags takes longest to deliver? Answer with name and days.",
        expected={"name": "Estuary", "days": 18},
        sequential="""
skus, page, pages = [], 1, 1
while page <= pages:
    found = await shop.find_products(category="bags", page=page)
    pages = found["pages"]
    skus += [item["sku"] for item in found["items"]]
    page += 1
suppliers = {}
for sku in skus:
    product = await shop.get_product(sku=sku)
    if product["supplier_id"] not in suppliers:
        suppliers[product["supplier_id"]] = await shop.get_supplier(supplier_id=product["supplier_id"])
slowest = max(suppliers.values(), key=lambda supplier: supplier["lead_days"])
{"name": slowest["name"], "days": slowest["lead_days"]}
""",
        gathered="""
import asyncio
suppliers = {}

async def look(sku):
    supplier_id = (await shop.get_product(sku=sku))["supplier_id"]
    if supplier_id not in suppliers:
        suppliers[supplier_id] = None
        suppliers[supplier_id] = await shop.get_supplier(supplier_id=supplier_id)

async def look_at_all(found):
    await asyncio.gather(*(look(item["sku"]) for item in found["items"]))

async def load(page):
    await look_at_all(await shop.find_products(category="bags", page=page))

first = await shop.find_products(category="bags", page=1)
await asyncio.gather(look_at_all(first), *(load(page) for page in range(2, first["pages"] + 1)))
slowest = max(suppliers.values(), key=lambda supplier: supplier["lead_days"])
{"name": slowest["name"], "days": slowest["lead_days"]}
""",
    ),
    Task(
        name="ship-order",
        question="What does it cost to send order O1011 to its customer, and how many days does it take?",
        expected={"price": 20.12, "days": 3},
        sequential="""
order = await shop.get_order(order_id="O1011")
customer = await shop.get_customer(customer_id=order["customer_id"])
weight = 0
for item in order["items"]:
    product = await shop.get_product(sku=item["sku"])
    weight += product["weight_kg"] * item["quantity"]
quote = await shop.shipping_quote(country=customer["country"], weight_kg=round(weight, 1))
{"price": quote["price"], "days": quote["days"]}
""",
        gathered="""
import asyncio
order = await shop.get_order(order_id="O1011")
customer, *products = await asyncio.gather(
    shop.get_customer(customer_id=order["customer_id"]),
    *(shop.get_product(sku=item["sku"]) for item in order["items"]),
)
weight = sum(product["weight_kg"] * item["quantity"] for product, item in zip(products, order["items"]))
quote = await shop.shipping_quote(country=customer["country"], weight_kg=round(weight, 1))
{"price": quote["price"], "days": quote["days"]}
""",
    ),
    Task(
        name="refund-returned",
        question="Give the customers C1 to C5 their money back for all returned orders, at today's prices. Answer with the amount for each order.",
        expected={"O1017": 223.7, "O1005": 247.8, "O1013": 293.7},
        sequential="""
amounts = {}
for customer_id in ["C1", "C2", "C3", "C4", "C5"]:
    for listed in await shop.list_orders(customer_id=customer_id):
        if listed["status"] == "returned":
            order = await shop.get_order(order_id=listed["order_id"])
            amount = 0
            for item in order["items"]:
                amount += (await shop.get_product(sku=item["sku"]))["price"] * item["quantity"]
            await shop.refund(order_id=order["order_id"], amount=round(amount, 2))
            amounts[order["order_id"]] = round(amount, 2)
amounts
""",
        gathered="""
import asyncio

async def give_back(order_id):
    order = await shop.get_order(order_id=order_id)
    products = await asyncio.gather(*(shop.get_product(sku=item["sku"]) for item in order["items"]))
    amount = round(sum(product["price"] * item["quantity"] for product, item in zip(products, order["items"])), 2)
    await shop.refund(order_id=order_id, amount=amount)
    return order_id, amount

async def look(customer_id):
    orders = await shop.list_orders(customer_id=customer_id)
    return await asyncio.gather(*(give_back(order["order_id"]) for order in orders if order["status"] == "returned"))

done = await asyncio.gather(*(look(f"C{number}") for number in range(1, 6)))
dict(pair for pairs in done for pair in pairs)
""",
    ),
    Task(
        name="category-weights",
        question="What does one piece of every product weigh together, by category?",
        expected={"tents": 18.0, "stoves": 8.3, "sleeping bags": 14.2, "lights": 8.4, "bags": 13.4},
        sequential="""
weights = {}
for category in await shop.list_categories():
    total, page, pages = 0, 1, 1
    while page <= pages:
        found = await shop.find_products(category=category, page=page)
        pages = found["pages"]
        for item in found["items"]:
            total += (await shop.get_product(sku=item["sku"]))["weight_kg"]
        page += 1
    weights[category] = round(total, 1)
weights
""",
        gathered="""
import asyncio

async def weigh(found):
    products = await asyncio.gather(*(shop.get_product(sku=item["sku"]) for item in found["items"]))
    return sum(product["weight_kg"] for product in products)

async def weigh_page(category, page):
    return await weigh(await shop.find_products(category=category, page=page))

async def weigh_category(category):
    first = await shop.find_products(category=category, page=1)
    others = (weigh_page(category, page) for page in range(2, first["pages"] + 1))
    return round(sum(await asyncio.gather(weigh(first), *others)), 1)

categories = await shop.list_categories()
dict(zip(categories, await asyncio.gather(*map(weigh_category, categories))))
""",
        waits={"shop.find_products": "the first page says how many there are"},
    ),
]
