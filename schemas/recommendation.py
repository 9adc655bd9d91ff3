"""The row a service reads: a user's list, or the trending list for users without one."""

from dataclasses import dataclass
from importlib import resources

# Long enough for a page and a re-ranking service behind it; every release's top_k.
LIST_LENGTH = 50
SOURCE_MODEL, SOURCE_TRENDING = "model", "trending"
TRENDING_SCOPE = "all"
COLUMNS = ("item_ids", "scores", "source", "model_version", "event_time", "scored_at")


@dataclass(frozen=True)
class Recommendation:
    """One row: `key` is the user id (or the scope in `trending`); times in ms; item_ids best first."""

    key: str
    item_ids: list[str]
    scores: list[float]
    source: str
    model_version: str
    event_time: int
    scored_at: int


def table_statements(keyspace: str, replication: int) -> list[str]:
    """The CQL statements that create keyspace and tables where they are missing."""
    text = (resources.files("schemas") / "recommendation.cql").read_text()
    filled = text.format(keyspace=keyspace, replication=replication)
    return [statement.strip() for statement in filled.split(";") if statement.strip()]


def insert_statement(keyspace: str, table: str) -> str:
    """Prepared insert: key, COLUMNS, ttl in seconds, write time in µs."""
    names = ", ".join((_key_of(table), *COLUMNS))
    marks = ", ".join("?" for _ in range(len(COLUMNS) + 1))
    return f"INSERT INTO {keyspace}.{table} ({names}) VALUES ({marks}) USING TTL ? AND TIMESTAMP ?"


def delete_statement(keyspace: str) -> str:
    """Prepared delete of a user's row: write time in µs, user id."""
    return f"DELETE FROM {keyspace}.recommendations USING TIMESTAMP ? WHERE user_id = ?"


def select_statement(keyspace: str, table: str) -> str:
    """Prepared read of one row by its key."""
    names = ", ".join((_key_of(table), *COLUMNS))
    return f"SELECT {names} FROM {keyspace}.{table} WHERE {_key_of(table)} = ?"


def written_statement(keyspace: str, table: str) -> str:
    """Read of the write time of one row, µs as `written`, by its key; to be asked once, so not prepared."""
    return f"SELECT WRITETIME(item_ids) AS written FROM {keyspace}.{table} WHERE {_key_of(table)} = %s"


def _key_of(table: str) -> str:
    return "scope" if table == "trending" else "user_id"
