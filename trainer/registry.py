"""The Schema Registry over HTTP, for what the trainer collects."""

from __future__ import annotations

import urllib.error
import urllib.request

from schemas.errors import UnreachableError
from schemas.registry import RegisteredSchemas
from trainer.broker import ANSWER_SECONDS
from trainer.config import Settings


def registered_schemas(settings: Settings) -> RegisteredSchemas | None:
    """The registry of the settings; without one, Confluent's framing counts as a bad record."""
    url = settings.kafka.schema_registry_url
    return RegisteredSchemas(lambda path: _get(url.rstrip("/") + path)) if url else None


def _get(address: str) -> bytes | None:
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 (the operator's own URL)
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise UnreachableError(f"the Schema Registry says {error} at {address}", "look at its log") from error
    except OSError as error:
        raise UnreachableError(
            f"no Schema Registry answers at {address} ({error})", "correct kafka.schema_registry_url"
        ) from error
