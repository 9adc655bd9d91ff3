"""A request to forget a user everywhere."""

from schemas.avro import BadRecord, SchemaById, decode, encode
from schemas.ids import id_trouble, shown


def encode_erasure(user_id: str, requested_at: int | None = None) -> bytes:
    """The Kafka value of an erasure (a null value means the same); its key is the user id."""
    return encode("erasure", {"user_id": user_id, "requested_at": requested_at})


def decode_erasure(
    value: bytes | None,
    key: bytes | None,
    position: int = 0,
    schema_by_id: SchemaById | None = None,
) -> str | BadRecord:
    """The user to forget. Never raises."""
    if not key:
        return BadRecord(position, "wrong-key", "an erasure needs user_id as its key")
    if trouble := id_trouble(key):
        return BadRecord(position, "bad-id", f"the key {trouble}")
    user_id = key.decode()
    if value is None:
        return user_id
    fields = decode("erasure", value, position, schema_by_id)
    if isinstance(fields, BadRecord):
        return fields
    if fields["user_id"] != user_id:
        return BadRecord(position, "wrong-key", f"key {shown(key)} is not user_id")
    return user_id
