"""Flink's side of an operator in plain Python, so that an operator can be timed alone: states in dicts, no metrics."""

from __future__ import annotations

from typing import Any


class State(dict[Any, Any]):
    """A MapState, or a broadcast state, in a dict."""

    def put(self, key: Any, value: Any) -> None:
        self[key] = value

    def put_all(self, values: dict[Any, Any]) -> None:
        self.update(values)

    def remove(self, key: Any) -> None:
        self.pop(key, None)

    def contains(self, key: Any) -> bool:
        return key in self


class Punctual:
    """In place of streaming.lag: no Kafka, and nobody behind."""

    def __init__(self, _settings: Any) -> None:
        pass

    def behind(self, _kind: int, _partition: int, _offset: int) -> bool:
        return False


class _Nothing:
    """A counter, a distribution and the group that makes them: counting is the metrics system's cost, not a stage's."""

    def counter(self, _name: str) -> _Nothing:
        return self

    def distribution(self, _name: str) -> _Nothing:
        return self

    def inc(self, _count: int = 1) -> None:
        return

    def update(self, _value: int) -> None:
        return


class Context:
    """What `open`, `process_element` and `process_broadcast_element` ask for."""

    def __init__(self) -> None:
        self._states: dict[str, State] = {}

    def get_map_state(self, descriptor: Any) -> State:
        return self._states.setdefault(descriptor.name, State())

    def get_broadcast_state(self, descriptor: Any) -> State:
        return self.get_map_state(descriptor)

    def get_current_key(self) -> int:
        return 0

    def get_metrics_group(self) -> _Nothing:
        return _Nothing()
