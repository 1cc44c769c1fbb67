"""A shop that sells camping gear: products, stock, suppliers, customers, orders."""

from typing import ClassVar, Literal, TypedDict, TypeVar, get_args

from onetrip import tool
from trips.sets.base import NotFoundError, ToolSet, roll

PAGE = 6
T = TypeVar("T")
Tier = Literal["basic", "silver", "gold"]
OrderStatus = Literal["open", "shipped", "delivered", "returned"]


class ProductName(TypedDict):
    sku: str
    name: str


class ProductPage(TypedDict):
    items: list[ProductName]
    page: int
    pages: int


class Product(TypedDict):
    sku: str
    name: str
    category: str
    price: float  # EUR
    weight_kg: float
    supplier_id: str


class Stock(TypedDict):
    sku: str
    on_hand: int
    reserved: int
    warehouse: str


class Supplier(TypedDict):
    supplier_id: str
    name: str
    country: str
    lead_days: int


class Customer(TypedDict):
    customer_id: str
    name: str
    tier: Tier
    country: str


class OrderName(TypedDict):
    order_id: str
    placed: str  # a day, such as 2026-03-14
    status: OrderStatus


class OrderItem(TypedDict):
    sku: str
    quantity: int


class Order(TypedDict):
    order_id: str
    customer_id: str
    placed: str
    status: OrderStatus
    items: list[OrderItem]


class Quote(TypedDict):
    price: float  # EUR
    days: int


class PurchaseOrder(TypedDict):
    purchase_id: str
    sku: str
    quantity: int
    arrives_in_days: int


class Refund(TypedDict):
    refund_id: str
    order_id: str
    amount: float


_CATALOGUE = {
    "tents": ["Heron 2", "Heron 3", "Bothy", "Alcove XL", "Dune", "Lean-to", "Gable 4", "Wren 1"],
    "stoves": ["Ember", "Twin Ember", "Spark", "Kettle Pro", "Woodsman"],
    "sleeping bags": ["Down 400", "Down 700", "Cotton Liner", "Trail Quilt", "Polar", "Junior"],
    "lights": ["Glow 100", "Glow 300", "Headbeam", "String of Stars", "Beacon"],
    "bags": ["Daypack 20", "Trek 45", "Trek 65", "Dry Sack", "Duffel 90", "Hip Pouch", "Cart"],
}
_STATUSES: list[OrderStatus] = ["open", "shipped", "delivered", "delivered", "returned"]  # half of them are delivered, almost
_COUNTRIES = ["DE", "FR", "PL", "SE", "IT"]
_ZONES = {"DE": 1, "FR": 2, "PL": 2, "IT": 3, "SE": 3}
_NAMES = [
    "Ada Brandt",
    "Bo Lindqvist",
    "Carla Rossi",
    "Dmitri Nowak",
    "Elise Martin",
    "Farid Haddad",
    "Greta Vogel",
    "Hugo Blanc",
]


def _products() -> dict[str, Product]:
    found: dict[str, Product] = {}
    for category, names in _CATALOGUE.items():
        for number, name in enumerate(names, 1):
            sku = f"{category[:2].upper()}-{number:02}"
            found[sku] = {
                "sku": sku,
                "name": name,
                "category": category,
                "price": 9.9 + roll(240, sku, "price"),
                "weight_kg": (2 + roll(38, sku, "weight")) / 10,
                "supplier_id": f"S{1 + roll(5, sku, 'supplier')}",
            }
    return found


def _orders(skus: list[str]) -> dict[str, Order]:
    found: dict[str, Order] = {}
    for number in range(1, 33):
        order_id = f"O{1000 + number}"
        chosen = sorted({skus[roll(len(skus), order_id, item)] for item in range(1 + roll(3, order_id, "items"))})
        found[order_id] = {
            "order_id": order_id,
            "customer_id": f"C{1 + (number - 1) % 8}",
            "placed": f"2026-{1 + number // 8:02}-{1 + roll(28, order_id, 'day'):02}",
            "status": _STATUSES[roll(5, order_id, "status")],
            "items": [{"sku": sku, "quantity": 1 + roll(3, order_id, sku)} for sku in chosen],
        }
    return found


class Shop(ToolSet):
    """The shop's tools. Prices are in EUR."""

    NAMESPACE: ClassVar[str] = "shop"

    def __init__(self) -> None:
        self._products = _products()
        self._stock: dict[str, Stock] = {
            sku: {
                "sku": sku,
                "on_hand": roll(40, sku, "stock"),
                "reserved": roll(8, sku, "reserved"),
                "warehouse": ["north", "south"][roll(2, sku, "house")],
            }
            for sku in self._products
        }
        self._orders = _orders(list(self._products))
        self.purchases: dict[str, PurchaseOrder] = {}
        self.refunds: dict[str, Refund] = {}

    @tool(name="shop.list_categories", effect="read")
    def list_categories(self) -> list[str]:
        """The names of all categories of products."""
        return list(_CATALOGUE)

    @tool(name="shop.find_products", effect="read")
    def find_products(self, category: str, page: int = 1) -> ProductPage:
        """The products of a category, six on a page."""
        if category not in _CATALOGUE:
            raise NotFoundError(f"there is no category {category!r}")
        found = [product for product in self._products.values() if product["category"] == category]
        return {
            "items": [{"sku": product["sku"], "name": product["name"]} for product in found[(page - 1) * PAGE : page * PAGE]],
            "page": page,
            "pages": -(-len(found) // PAGE),
        }

    @tool(name="shop.get_product", effect="read")
    def get_product(self, sku: str) -> Product:
        """One product: its price in EUR, its weight, its supplier."""
        return self._find(self._products, sku, "product")

    @tool(name="shop.get_stock", effect="read")
    def get_stock(self, sku: str) -> Stock:
        """How many pieces of a product there are, and how many of them are reserved."""
        return self._find(self._stock, sku, "product")

    @tool(name="shop.get_supplier", effect="read")
    def get_supplier(self, supplier_id: str) -> Supplier:
        """A supplier, with the number of days that it takes to deliver."""
        if supplier_id not in {f"S{number}" for number in range(1, 6)}:
            raise NotFoundError(f"there is no supplier {supplier_id!r}")
        number = int(supplier_id[1:])
        return {
            "supplier_id": supplier_id,
            "name": ["Alpina", "Borealis", "Campo", "Dorado", "Estuary"][number - 1],
            "country": _COUNTRIES[number - 1],
            "lead_days": 3 + roll(18, supplier_id, "lead"),
        }

    @tool(name="shop.get_customer", effect="read")
    def get_customer(self, customer_id: str) -> Customer:
        """A customer, with tier and country."""
        if customer_id not in {f"C{number}" for number in range(1, 9)}:
            raise NotFoundError(f"there is no customer {customer_id!r}")
        return {
            "customer_id": customer_id,
            "name": _NAMES[int(customer_id[1:]) - 1],
            "tier": get_args(Tier)[roll(3, customer_id, "tier")],
            "country": _COUNTRIES[roll(5, customer_id, "country")],
        }

    @tool(name="shop.list_orders", effect="read")
    def list_orders(self, customer_id: str) -> list[OrderName]:
        """A customer's orders, the oldest first, without what is in them."""
        found = [order for order in self._orders.values() if order["customer_id"] == customer_id]
        return [
            {"order_id": order["order_id"], "placed": order["placed"], "status": order["status"]}
            for order in sorted(found, key=lambda order: order["placed"])
        ]

    @tool(name="shop.get_order", effect="read")
    def get_order(self, order_id: str) -> Order:
        """An order with its items."""
        return self._find(self._orders, order_id, "order")

    @tool(name="shop.shipping_quote", effect="read")
    def shipping_quote(self, country: str, weight_kg: float) -> Quote:
        """What it costs in EUR to send a parcel of this weight to a country, and how many days it takes."""
        if country not in _ZONES:
            raise NotFoundError(f"nothing is sent to {country!r}")
        zone = _ZONES[country]
        return {"price": round(3.5 + 1.2 * zone + 0.9 * zone * weight_kg, 2), "days": 1 + zone}

    @tool(name="shop.reorder", effect="write")
    def reorder(self, sku: str, quantity: int) -> PurchaseOrder:
        """Order more pieces of a product from its supplier."""
        supplier = self.get_supplier(self.get_product(sku)["supplier_id"])
        purchase: PurchaseOrder = {
            "purchase_id": f"P-{sku}-{quantity}",
            "sku": sku,
            "quantity": quantity,
            "arrives_in_days": supplier["lead_days"],
        }
        self.purchases[purchase["purchase_id"]] = purchase
        return purchase

    @tool(name="shop.refund", effect="write")
    def refund(self, order_id: str, amount: float) -> Refund:
        """Give money back for an order, in EUR."""
        self._find(self._orders, order_id, "order")
        refund: Refund = {"refund_id": f"R-{order_id}", "order_id": order_id, "amount": amount}
        self.refunds[refund["refund_id"]] = refund
        return refund

    @property
    def state(self) -> object:
        return self.purchases, self.refunds

    @staticmethod
    def _find(where: dict[str, T], key: str, what: str) -> T:
        if key not in where:
            raise NotFoundError(f"there is no {what} {key!r}")
        return where[key]
