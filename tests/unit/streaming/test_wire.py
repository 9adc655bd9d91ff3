"""Lists go to Cassandra in the bytes that its driver itself would write."""

from typing import Any

import numpy as np
import pytest
from cassandra.cqltypes import FloatType, FrozenType, ListType, UTF8Type
from hypothesis import given
from hypothesis import strategies as st

from streaming.rank import Fallback, wire_floats, wire_list
from streaming.trending import Trending

PROTOCOL = 4
TEXTS: Any = FrozenType.apply_parameters([ListType.apply_parameters([UTF8Type])])
FLOATS: Any = FrozenType.apply_parameters([ListType.apply_parameters([FloatType])])


def parts(ids: list[str]) -> list[bytes]:
    """Ids as the fallback prepares them."""
    return Fallback(Trending(ids, [1] * len(ids), 0), set()).parts


@given(st.lists(st.text(max_size=20), max_size=60))
def test_a_list_of_texts_is_the_drivers(ids: list[str]) -> None:
    assert wire_list(parts(ids)) == TEXTS.to_binary(ids, PROTOCOL)


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=60))
def test_a_list_of_floats_is_the_drivers(values: list[float]) -> None:
    assert wire_floats(np.array(values, np.float32)) == FLOATS.to_binary(values, PROTOCOL)


def test_the_bytes_of_short_lists() -> None:
    assert wire_list(parts(["é", ""])).hex() == "00000002" + "00000002c3a9" + "00000000"
    assert wire_floats(np.array([1.0, -2.5], np.float32)).hex() == "00000002" + "000000043f800000" + "00000004c0200000"
    assert wire_list([]).hex() == wire_floats(np.zeros(0, np.float32)).hex() == "00000000"


@pytest.mark.parametrize("ids", [["a"], ["商品", "x" * 256]])
def test_the_driver_reads_back_what_was_written(ids: list[str]) -> None:
    assert list(TEXTS.from_binary(wire_list(parts(ids)), PROTOCOL)) == ids
