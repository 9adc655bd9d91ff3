"""Which release messages are followed, and what becomes of the others; the operator with Flink's side in memory."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pyflink.common import Row

from schemas.dead_letter import DeadLetter, decode_dead_letter
from schemas.release import ModelRelease, encode_release
from schemas.roll_back import RollBack, encode_roll_back
from schemas.signing import Trust, public_bytes, sign
from streaming.control import Announced, Control
from streaming.dead_letter import DEAD_LETTERS
from tests.unit.streaming.test_metrics import Counted

KEY = Ed25519PrivateKey.generate()
TOPICS = ["model-releases", "items", "roll-backs"]
RELEASE = ModelRelease("20260101-000000", "file:///r", "ab" * 32, 1)


class State:
    """Flink's value state, in memory: what a checkpoint would keep."""

    def __init__(self) -> None:
        self.kept: Any = None

    def value(self) -> Any:
        return self.kept

    def update(self, value: Any) -> None:
        self.kept = value


class Gate(Counted):
    """The operator, opened."""

    def __init__(self, trust: Trust, state: State | None = None) -> None:
        super().__init__()
        self.state = state or State()
        self.operator = Control(TOPICS, None, trust)
        self.operator.open(self)
        self.offset = 0

    def get_state(self, _: Any) -> State:
        return self.state

    def send(self, *values: bytes, kind: int = 0) -> list[Any]:
        count = len(values)
        columns = ([b"k"] * count, list(values), [kind] * count, [0] * count, list(range(count)), [0] * count)
        return list(self.operator.process_element(Row(*columns), None))

    def follows(self, release: ModelRelease) -> str:
        """ "followed", "nothing", or the reason of the dead letter."""
        out = self.send(encode_release(release))
        if not out:
            return "nothing"
        [only] = out
        if isinstance(only, Announced):
            assert only.release == release
            return "followed"
        tag, row = only
        assert tag is DEAD_LETTERS
        letter = decode_dead_letter(row[1])
        assert isinstance(letter, DeadLetter) and letter.detail
        assert letter.value == encode_release(release)
        return letter.reason


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate(Trust((public_bytes(KEY),)))
    yield gate
    gate.operator.close()


def signed(sequence: int, key: Ed25519PrivateKey = KEY, **changes: Any) -> ModelRelease:
    return sign(replace(RELEASE, sequence=sequence, **changes), TOPICS[0], key)


def test_without_a_key_every_message_is_followed() -> None:
    gate = Gate(Trust())
    assert [gate.follows(r) for r in (RELEASE, signed(5), signed(4), RELEASE)] == ["followed"] * 4


def test_only_signed_messages_are_followed(gate: Gate) -> None:
    assert gate.follows(signed(1)) == "followed"
    assert gate.follows(RELEASE) == "release-unsigned"
    assert gate.follows(signed(2, Ed25519PrivateKey.generate())) == "release-signature"
    assert gate.follows(replace(signed(2), uri="file:///elsewhere")) == "release-signature"
    assert gate.follows(signed(2)) == "followed"


def test_an_old_message_sent_again_rolls_nothing_back_but_a_new_one_for_the_old_release_does(gate: Gate) -> None:
    old, new = signed(1, version="20260101-000001"), signed(2, version="20260101-000002")
    assert [gate.follows(r) for r in (old, new, old)] == ["followed", "followed", "release-sequence"]
    assert gate.follows(signed(3, version="20260101-000001")) == "followed"


def test_the_last_message_twice_is_a_retry_of_its_sender(gate: Gate) -> None:
    assert [gate.follows(r) for r in (signed(1), signed(1))] == ["followed", "nothing"]
    assert gate.follows(signed(1, version="20260101-000009")) == "release-sequence"


def test_an_expired_message_is_not_followed(gate: Gate) -> None:
    now = int(time.time() * 1000)
    assert gate.follows(signed(1, expires_at=now - 1)) == "release-expired"
    assert gate.follows(signed(2, expires_at=now + 60_000)) == "followed"


def test_a_forged_sequence_number_locks_nobody_out(gate: Gate) -> None:
    assert gate.follows(signed(2**62, Ed25519PrivateKey.generate())) == "release-signature"
    assert gate.follows(replace(RELEASE, sequence=2**62)) == "release-unsigned"
    assert gate.follows(signed(1)) == "followed"


def test_the_last_sequence_number_survives_a_restart(gate: Gate) -> None:
    assert gate.follows(signed(7)) == "followed"
    again = Gate(Trust((public_bytes(KEY),)), gate.state)
    assert [again.follows(signed(n)) for n in (6, 7, 8)] == ["release-sequence", "nothing", "followed"]
    again.operator.close()


def test_a_share_that_is_none_is_a_dead_letter() -> None:
    gate = Gate(Trust())
    for percent in (-1, 101):
        assert gate.follows(replace(RELEASE, stage="canary", percent=percent)) == "bad-number"
    assert gate.follows(replace(RELEASE, stage="canary", percent=5)) == "followed"


def test_roll_backs_go_to_all_scorers_and_what_is_none_to_the_dead_letters(gate: Gate) -> None:
    said = RollBack("20260101-000000", "ab" * 32, "lists overlap by 1 %", 5, "1.0")
    assert gate.send(encode_roll_back(said), kind=2) == [said]
    [(tag, _)] = gate.send(b"nonsense", kind=2)
    assert tag is DEAD_LETTERS
