"""What Kafka no longer holds is said exactly; what it holds is no gap."""

import pytest

from schemas.errors import ContractError
from streaming.checkpoint import _offsets
from streaming.offsets import gaps, require_no_gap


def test_a_gap_is_named_to_the_offset() -> None:
    held = {("clicks", 0): (100, 250), ("clicks", 1): (0, 10)}
    assert gaps({("clicks", 0): 40, ("clicks", 1): 10}, held) == [
        "clicks partition 0: offsets 40 to 99 are gone, 60 events"
    ]
    assert gaps({("clicks", 0): 100, ("clicks", 1): 0}, held) == []
    with pytest.raises(ContractError, match=r"60 events.*accept_gap"):
        require_no_gap(gaps({("clicks", 0): 40}, held))


def test_a_topic_that_was_made_anew_is_a_gap_and_one_that_is_not_read_is_none() -> None:
    assert "ends at offset 10" in gaps({("clicks", 1): 11}, {("clicks", 1): (0, 10)})[0]
    assert gaps({("other", 0): 5}, {("clicks", 1): (0, 10)}) == []


def test_positions_are_found_among_flinks_bytes() -> None:
    def split(topic: bytes, partition: int, offset: int) -> bytes:
        numbers = (
            partition.to_bytes(4, "big")
            + offset.to_bytes(8, "big", signed=True)
            + (-1 << 63).to_bytes(8, "big", signed=True)
        )
        return len(topic).to_bytes(2, "big") + topic + numbers

    content = b"\0\0\1" + split(b"shop.clicks", 3, 1234) + b"\n\0" + split(b"shop.clicks", 10, 0) + b"ends"
    # Of one that was never read there is no position; a longer name is another topic.
    content += split(b"shop.clicks", 4, -3) + split(b"my.shop.clicks", 5, 77)
    assert list(_offsets(content, "shop.clicks")) == [(3, 1234), (10, 0)]
