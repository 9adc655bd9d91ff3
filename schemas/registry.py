"""Writer schemas of a Schema Registry, for Confluent's framing; how they are fetched is the caller's."""

import json
from collections.abc import Callable
from typing import Any

import fastavro
from fastavro.schema import SchemaParseException

from schemas.avro import Schema
from schemas.errors import ContractError

# The registry's answer to GET PATH, or None where it knows no such schema. Raises UnreachableError.
Fetch = Callable[[str], bytes | None]


class RegisteredSchemas:
    """Finds the schema of an id; each id is asked for once, an unknown one too."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._known: dict[int, Schema | None] = {}

    def __call__(self, schema_id: int) -> Schema | None:
        """The schema, or None when there is none of this id. Raises ContractError, and what `fetch` raises."""
        if schema_id not in self._known:
            answer = self._fetch(f"/schemas/ids/{schema_id}")
            self._known[schema_id] = None if answer is None else _record(answer, schema_id)
        return self._known[schema_id]


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
