"""An item of the catalogue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from schemas.avro import BadRecord, SchemaById, decode, encode


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
    value: bytes | None, key: bytes | None, position: int = 0, schema_by_id: SchemaById | None = None
) -> Item | BadRecord:
    """One message of `items`. A null value (the item is gone) reads as an item that is not available."""
    if value is None and key:
        try:
            return Item(key.decode(), available=False)
        except UnicodeDecodeError:
            return BadRecord(position, "bad-id", "the key is not UTF-8")
    fields = decode("item", value, position, schema_by_id)
    if isinstance(fields, BadRecord):
        return fields
    if not fields["item_id"] or fields["item_id"].encode() != key:
        return BadRecord(position, "wrong-key", f"key {key!r} is not item_id")
    return Item(**fields)
