"""A session on Cassandra whose server is away for long; the rest needs a server (tests/flow, tests/faults)."""

from itertools import islice
from typing import Any

import pytest

from schemas.settings import CommonSettings
from streaming import table

# A server that is away for half an hour, asked every two seconds.
TRIES = 900


def test_a_session_looks_for_its_server_however_long_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    class Cluster:
        def __init__(self, **options: Any) -> None:
            made.append(options)

        def connect(self) -> str:
            return "a session"

    monkeypatch.setattr(table, "Cluster", Cluster)
    assert table.connect(CommonSettings()) == "a session"
    waits = list(islice(made[0]["reconnection_policy"].new_schedule(), TRIES))
    assert len(waits) == TRIES
    assert max(waits) <= 2.0
