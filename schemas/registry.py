"""Writer schemas of a Schema Registry, for Confluent's framing; how they are fetched is the caller's."""

import json
import time
from collections.abc import Callable
from typing import Any

import fastavro
from fastavro.schema import SchemaParseException

from schemas.avro import Schema
from schemas.errors import ContractError

# A schema may be registered after its first record came. Shorter, and records of no schema keep the registry busy.
UNKNOWN_S = 60.0
# Ids are what any record says: so many of them are remembered.
MOST_UNKNOWN = 10_000
# The registry's answer to GET PATH, or None where it knows no such schema. Raises UnreachableError.
Fetch = Callable[[str], bytes | None]


class RegisteredSchemas:
    """Finds the schema of an id; each id is asked for once, an unknown one once in UNKNOWN_S."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._known: dict[int, Schema] = {}
        self._unknown: dict[int, float] = {}

    def __call__(self, schema_id: int) -> Schema | None:
        """The schema, or None when there is none of this id. Raises ContractError, and what `fetch` raises."""
        if schema_id in self._known:
            return self._known[schema_id]
        now = time.monotonic()
        if now < self._unknown.get(schema_id, now):
            return None
        answer = self._fetch(f"/schemas/ids/{schema_id}")
        schema = None if answer is None else _record(answer, schema_id)
        if schema is None:
            if len(self._unknown) >= MOST_UNKNOWN:
                self._unknown.clear()
            self._unknown[schema_id] = now + UNKNOWN_S
        else:
            self._known[schema_id] = schema
        return schema


def _record(answer: bytes, schema_id: int) -> Schema | None:
    """The schema, or None where it is no Avro record: also Protobuf and JSON Schema have ids in a registry."""
    try:
        text = json.loads(answer)["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ContractError(
            f"the Schema Registry's answer for id {schema_id} is no schema ({error})",
            "correct kafka.schema_registry_url",
        ) from error
    try:
        schema: Any = json.loads(text)
        fastavro.parse_schema(schema)
    except (ValueError, TypeError, KeyError, RecursionError, SchemaParseException):
        return None
    record = isinstance(schema, dict) and schema.get("type") == "record" and "fields" in schema
    return schema if record else None
