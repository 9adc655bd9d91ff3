"""Avro framing and the registry of every schema version ever published.

A value on a topic is framed in one of two ways:
    C3 01 + CRC-64-AVRO fingerprint of the writer's schema (8 bytes, little endian) + body
    00 + schema id of a Schema Registry (4 bytes, big endian) + body, where a registry is configured
Published versions are the files `<record>.v<n>.avsc` of this folder; the highest one is the reader's schema.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from io import BytesIO
from typing import Any

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

from schemas.strict import DamagedError, end_of

SINGLE_OBJECT = b"\xc3\x01"
CONFLUENT = b"\x00"
HEADER_BYTES = 10
CONFLUENT_HEADER_BYTES = 5
# A broker takes 1 MiB; an event is some hundred bytes. What is longer is a mistake of the producer.
MAX_VALUE_BYTES = 64 * 1024

Schema = dict[str, Any]
# Finds the writer's schema of a Schema Registry id, or None.
SchemaById = Callable[[int], Schema | None]


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used.

    position: index in the batch it came with. reason: a stable code for machines. detail: for people.
    """

    position: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Published:
    """All published versions of one record type, by fingerprint; `latest` is what readers see."""

    latest: Schema
    by_fingerprint: Mapping[bytes, Schema]

    @cached_property
    def header(self) -> bytes:
        """The ten bytes before a body written with the latest schema."""
        return SINGLE_OBJECT + schema_fingerprint(self.latest)


def schema_fingerprint(schema: Schema) -> bytes:
    """CRC-64-AVRO of the schema's parsing canonical form: 8 bytes, little endian."""
    return bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))


def without_logical_types(schema: Any) -> Any:
    """The same schema with times as plain integers: datetime objects cost more than the decoding."""
    if isinstance(schema, dict):
        return {k: without_logical_types(v) for k, v in schema.items() if k != "logicalType"}
    if isinstance(schema, list):
        return [without_logical_types(part) for part in schema]
    return schema


@cache
def published(record: str) -> Published:
    """Every version of `record` ("click_event", "item", …) shipped with this package."""
    versions: dict[int, Schema] = {}
    for file in resources.files("schemas").iterdir():
        found = re.fullmatch(rf"{record}\.v(\d+)\.avsc", file.name)
        if found:
            versions[int(found[1])] = without_logical_types(json.loads(file.read_text()))
    return Published(
        latest=versions[max(versions)],
        by_fingerprint={schema_fingerprint(schema): schema for schema in versions.values()},
    )


def encode(record: str, fields: Mapping[str, Any]) -> bytes:
    """Frame and encode with the latest published schema. Raises ValueError or TypeError on wrong fields."""
    schemas = published(record)
    out = BytesIO()
    out.write(schemas.header)
    fastavro.schemaless_writer(out, _parsed(record, schemas.header[2:]), dict(fields), strict_allow_default=True)
    return out.getvalue()


def decode(
    record: str, value: bytes | None, position: int = 0, schema_by_id: SchemaById | None = None
) -> dict[str, Any] | BadRecord:
    """Decode one framed record as the latest schema sees it, or say why not. Never raises.

    For topics with few records; clicks go through `columns.py`, a batch at a time.
    """
    unframed = writer_schema(record, value, position, schema_by_id)
    if isinstance(unframed, BadRecord):
        return unframed
    assert value is not None
    schema, body_start = unframed
    try:
        left = len(value) - end_of(schema, value, body_start)
        if left:
            return BadRecord(position, "malformed", f"{left} bytes after the record's end")
        fields = fastavro.schemaless_reader(BytesIO(value[body_start:]), schema, published(record).latest)
    except DamagedError as error:
        return BadRecord(position, "malformed", str(error))
    except Exception as error:  # fastavro raises whatever the damaged bytes make of it
        return BadRecord(position, "malformed", f"{type(error).__name__}: {error}"[:200])
    if not isinstance(fields, dict):
        return BadRecord(position, "malformed", "not a record")
    return fields


def writer_schema(
    record: str, value: bytes | None, position: int, schema_by_id: SchemaById | None = None
) -> tuple[Schema, int] | BadRecord:
    """The schema a value was written with and where its body starts, or why that is unknown."""
    if not value:
        return BadRecord(position, "empty", "no value")
    if len(value) > MAX_VALUE_BYTES:
        return BadRecord(position, "oversized", f"{len(value)} bytes; the limit is {MAX_VALUE_BYTES}")
    if value[:2] == SINGLE_OBJECT and len(value) >= HEADER_BYTES:
        schema = published(record).by_fingerprint.get(value[2:HEADER_BYTES])
        if schema is None:
            return BadRecord(position, "unknown-schema", f"fingerprint {value[2:HEADER_BYTES].hex()}")
        return schema, HEADER_BYTES
    if value[:1] == CONFLUENT and len(value) >= CONFLUENT_HEADER_BYTES and schema_by_id is not None:
        schema_id = int.from_bytes(value[1:CONFLUENT_HEADER_BYTES], "big")
        schema = schema_by_id(schema_id)
        if schema is None:
            return BadRecord(position, "unknown-schema", f"schema registry id {schema_id}")
        return without_logical_types(schema), CONFLUENT_HEADER_BYTES
    return BadRecord(position, "unknown-framing", f"starts with {value[:4].hex(' ')}; expected c3 01")


@cache
def _parsed(record: str, fingerprint_bytes: bytes) -> Schema:
    parsed = fastavro.parse_schema(published(record).by_fingerprint[fingerprint_bytes])
    assert isinstance(parsed, dict)
    return parsed
