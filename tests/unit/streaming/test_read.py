"""How Kafka is asked for what the job reads."""

from typing import Any

import pytest

from schemas.settings import KafkaSettings
from streaming import read


class Tables:
    """Keeps what would be declared."""

    sql = ""

    def execute_sql(self, sql: str) -> None:
        self.sql = sql


def declared(**changed: Any) -> str:
    tables = Tables()
    given = {"topics": ["clicks", "erasures"], "group": "freshrec", "wait_ms": 6, "accept_gap": False, **changed}
    read.declare(tables, read.EVENTS, KafkaSettings(), **given)
    return tables.sql


def test_kafka_gathers_events_before_it_answers() -> None:
    """An answer for every few events costs a core more than everything else that is done to read them."""
    assert "'properties.fetch.max.wait.ms' = '6'" in declared()
    least = int(declared().split("'properties.fetch.min.bytes' = '")[1].split("'")[0])
    assert least > 200 * 100, "less is there at once where a few thousand events a second come"


@pytest.mark.parametrize(("accepted", "reset"), [(False, "none"), (True, "earliest")])
def test_a_gap_in_what_kafka_holds_is_passed_over_only_when_that_was_accepted(accepted: bool, reset: str) -> None:
    assert f"'properties.auto.offset.reset' = '{reset}'" in declared(accept_gap=accepted)


def test_all_topics_of_a_table_are_read_by_one_source() -> None:
    sql = declared()
    assert "'topic' = 'clicks;erasures'" in sql
    assert "'properties.group.id' = 'freshrec'" in sql
