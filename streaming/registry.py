"""Writer schemas from a Schema Registry, for producers that use Confluent's framing."""

import json
import urllib.error
import urllib.request
from typing import Any

from schemas.avro import Schema
from schemas.errors import UnreachableError

ANSWER_S = 5.0


class SchemaRegistry:
    """Finds the schema of an id; each id is asked for once, an unknown one too."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._known: dict[int, Schema | None] = {}

    def __call__(self, schema_id: int) -> Schema | None:
        """The schema, or None when the registry has none of this id. Raises UnreachableError."""
        if schema_id not in self._known:
            self._known[schema_id] = self._ask(schema_id)
        return self._known[schema_id]

    def _ask(self, schema_id: int) -> Schema | None:
        address = f"{self._url}/schemas/ids/{schema_id}"
        try:
            with urllib.request.urlopen(address, timeout=ANSWER_S) as answer:  # noqa: S310 (the operator's own URL)
                schema: Any = json.loads(json.load(answer)["schema"])
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise _unreachable(address, error) from error
        except (OSError, ValueError, KeyError) as error:
            raise _unreachable(address, error) from error
        return schema if isinstance(schema, dict) and schema.get("type") == "record" else None


def registry(url: str | None) -> SchemaRegistry | None:
    """The registry at `url`; without one, Confluent's framing is a dead letter."""
    return SchemaRegistry(url) if url else None


def _unreachable(address: str, error: Exception) -> UnreachableError:
    return UnreachableError(
        f"the Schema Registry does not answer at {address} ({error})",
        "start it, or correct kafka.schema_registry_url",
    )
