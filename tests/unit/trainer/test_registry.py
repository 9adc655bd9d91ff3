"""What the trainer collects may be framed by a Schema Registry, too."""

import pytest

from schemas.click import Click, decode_clicks, encode_click
from schemas.errors import UnreachableError
from schemas.settings import KafkaSettings
from trainer.config import Settings
from trainer.registry import registered_schemas

NOW_MS = 1_700_000_000_000
FRAMED = b"\0" + (7).to_bytes(4, "big") + encode_click(Click("e", "u", "i", NOW_MS))[10:]


def settings(url: str | None) -> Settings:
    return Settings(kafka=KafkaSettings(schema_registry_url=url))


def test_clicks_of_a_registered_schema_are_collected(schema_registry: tuple[str, list[str]]) -> None:
    schemas = registered_schemas(settings(schema_registry[0] + "/"))
    clicks, bad = decode_clicks([FRAMED], [b"u"], NOW_MS, schemas)
    assert (clicks.item_ids, bad) == (["i"], [])
    assert schemas is not None
    assert schemas(8) is None


def test_without_an_address_such_clicks_are_bad_records() -> None:
    clicks, bad = decode_clicks([FRAMED], [b"u"], NOW_MS, registered_schemas(settings(None)))
    assert (len(clicks), [b.reason for b in bad]) == (0, ["unknown-framing"])


def test_a_registry_that_does_not_answer_is_unreachable() -> None:
    unreachable = registered_schemas(settings("http://127.0.0.1:9"))
    assert unreachable is not None
    with pytest.raises(UnreachableError, match=r"kafka\.schema_registry_url"):
        unreachable(7)
