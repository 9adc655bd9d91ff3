"""An item of the catalogue."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from schemas.avro import BadRecord, SchemaById, decode, encode
from schemas.ids import id_trouble, shown


@dataclass(frozen=True)
class Item:
    """What is known of an item. price in the shop's currency; published_at in ms since 1970, UTC."""

    item_id: str
    title: str | None = None
    categories: Sequence[str] = ()
    price: float | None = None
    available: bool = True
    published_at: int | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


def encode_item(item: Item) -> bytes:
    """The Kafka value of an item; its key is `item.item_id.encode()`."""
    return encode("item", {**vars(item), "categories": list(item.categories)})


def decode_item(
    value: bytes | None,
    key: bytes | None,
    position: int = 0,
    schema_by_id: SchemaById | None = None,
) -> Item | BadRecord:
    """One message of `items`. A null value (the item is gone) reads as an item that is not available."""
    if not key:
        return BadRecord(
            position,
            "empty" if value is None else "wrong-key",
            "a message of items needs item_id as its key",
        )
    if trouble := id_trouble(key):
        return BadRecord(position, "bad-id", f"the key {trouble}")
    if value is None:
        return Item(key.decode(), available=False)
    fields = decode("item", value, position, schema_by_id)
    if isinstance(fields, BadRecord):
        return fields
    if fields["item_id"].encode() != key:
        return BadRecord(position, "wrong-key", f"key {shown(key)} is not item_id")
    price = fields["price"]
    if price is not None and not (math.isfinite(price) and price >= 0):
        return BadRecord(position, "bad-number", f"price is {price}")
    return Item(**fields)
