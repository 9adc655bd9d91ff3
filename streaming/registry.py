"""The Schema Registry over HTTP, for the job and its look-ups."""

import urllib.error
import urllib.request

from schemas.errors import UnreachableError
from schemas.registry import RegisteredSchemas

ANSWER_S = 5.0


def registry(url: str | None) -> RegisteredSchemas | None:
    """The registry at `url`; without one, Confluent's framing is a dead letter."""
    if not url:
        return None
    base = url.rstrip("/")

    def fetch(path: str) -> bytes | None:
        try:
            with urllib.request.urlopen(base + path, timeout=ANSWER_S) as answer:  # noqa: S310 (the operator's own URL)
                content: bytes = answer.read()
                return content
        except OSError as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 404:
                return None
            raise UnreachableError(
                f"the Schema Registry does not answer at {base}{path} ({error})",
                "start it, or correct kafka.schema_registry_url",
            ) from error

    return RegisteredSchemas(fetch)
