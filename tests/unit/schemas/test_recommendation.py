"""The tables' statements, letter by letter: what a reader asks for is what a writer inserts."""

import re

from schemas.recommendation import (
    COLUMNS,
    LIST_LENGTH,
    delete_statement,
    insert_statement,
    select_statement,
    table_statements,
)
from schemas.topics import topics


def columns_in(statement: str) -> dict[str, str]:
    """Column names and types of a CREATE TABLE."""
    inside = statement[statement.index("(") + 1 : statement.rindex("\n)")]
    lines = [line.split("--")[0].strip().rstrip(",") for line in inside.strip().splitlines()]
    return {
        name: kind.removesuffix(" PRIMARY KEY") for name, kind in (re.split(r"\s+", line, maxsplit=1) for line in lines)
    }


LIST = {
    "item_ids": "frozen<list<text>>",
    "scores": "frozen<list<float>>",
    "source": "text",
    "model_version": "text",
    "event_time": "timestamp",
    "scored_at": "timestamp",
}


def test_keyspace_and_both_tables_are_created_where_they_are_missing() -> None:
    keyspace, recommendations, trending = table_statements("shop1", 3)
    assert keyspace.startswith("CREATE KEYSPACE IF NOT EXISTS shop1\n")
    assert "{'class': 'SimpleStrategy', 'replication_factor': 3}" in keyspace
    assert recommendations.startswith("CREATE TABLE IF NOT EXISTS shop1.recommendations (")
    assert trending.startswith("CREATE TABLE IF NOT EXISTS shop1.trending (")
    assert columns_in(recommendations) == {"user_id": "text", **LIST}
    assert columns_in(trending) == {"scope": "text", **LIST}


def test_the_columns_of_a_row_are_those_of_the_table_in_their_order() -> None:
    assert tuple(LIST) == COLUMNS


def test_the_job_checks_for_the_tables_that_are_created() -> None:
    from streaming.table import EXPECTED

    _, recommendations, trending = table_statements("shop1", 1)
    assert {
        "recommendations": columns_in(recommendations),
        "trending": columns_in(trending),
    } == EXPECTED


def test_statements_of_a_row() -> None:
    assert insert_statement("shop1", "recommendations") == (
        "INSERT INTO shop1.recommendations "
        "(user_id, item_ids, scores, source, model_version, event_time, scored_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) USING TTL ? AND TIMESTAMP ?"
    )
    assert insert_statement("freshrec", "trending") == (
        "INSERT INTO freshrec.trending "
        "(scope, item_ids, scores, source, model_version, event_time, scored_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) USING TTL ? AND TIMESTAMP ?"
    )
    assert delete_statement("shop1") == "DELETE FROM shop1.recommendations USING TIMESTAMP ? WHERE user_id = ?"
    assert select_statement("shop1", "recommendations") == (
        "SELECT user_id, item_ids, scores, source, model_version, event_time, scored_at "
        "FROM shop1.recommendations WHERE user_id = ?"
    )
    assert select_statement("shop1", "trending") == (
        "SELECT scope, item_ids, scores, source, model_version, event_time, scored_at "
        "FROM shop1.trending WHERE scope = ?"
    )


def test_a_list_has_fifty_items() -> None:
    assert LIST_LENGTH == 50


def test_topics_are_the_six_of_the_contract() -> None:
    by_name = {topic.name: topic for topic in topics(12)}
    assert list(by_name) == ["clicks", "items", "erasures", "model-releases", "roll-backs", "dead-letters"]
    assert {name: topic.partitions for name, topic in by_name.items()} == {
        "clicks": 12,
        "items": 1,
        "erasures": 1,
        "model-releases": 1,
        "roll-backs": 1,
        "dead-letters": 1,
    }
    assert by_name["items"].config == {"cleanup.policy": "compact"}
    assert by_name["model-releases"].config == {"retention.ms": "-1"}
    # A full collection reads both anew: what was erased must not come back with the clicks.
    assert int(by_name["erasures"].config["retention.ms"]) > int(by_name["clicks"].config["retention.ms"])
