"""Rows go to Cassandra in the bytes that its driver itself would write."""

from typing import Any

import numpy as np
import pytest
from cassandra.cqltypes import DateType, FloatType, FrozenType, Int32Type, ListType, LongType, UTF8Type
from hypothesis import given
from hypothesis import strategies as st

from streaming.rank import Fallback
from streaming.trending import Trending
from streaming.wire import (
    DELETE_KEY,
    INSERT_KEY,
    Lists,
    delete_values,
    insert_values,
    split_values,
    value_at,
    wire_floats,
    wire_list,
)

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
    twice = wire_floats(np.array([values, values], np.float32))
    assert twice == [FLOATS.to_binary(values, PROTOCOL)] * 2


def test_the_bytes_of_short_lists() -> None:
    assert wire_list(parts(["é", ""])).hex() == "00000002" + "00000002c3a9" + "00000000"
    [floats] = wire_floats(np.array([[1.0, -2.5]], np.float32))
    assert floats.hex() == "00000002" + "000000043f800000" + "00000004c0200000"
    assert wire_list([]).hex() == wire_floats(np.zeros((1, 0), np.float32))[0].hex() == "00000000"


@pytest.mark.parametrize("ids", [["a"], ["商品", "x" * 256]])
def test_the_driver_reads_back_what_was_written(ids: list[str]) -> None:
    assert list(TEXTS.from_binary(wire_list(parts(ids)), PROTOCOL)) == ids


def test_the_values_of_an_insert_are_what_the_driver_binds() -> None:
    lists = Lists([b"ids-1", b""], [b"scores", b"s"], ["model", "trending"], ["20260101-000000", ""])
    rows = insert_values(["ann", "ü" * 100], lists, np.array([-1, 2**41]), 3, 86400, np.array([4, 2**60]))
    assert [split_values(row) for row in rows] == [
        [
            b"ann",
            b"ids-1",
            b"scores",
            b"model",
            b"20260101-000000",
            DateType.serialize(-1, PROTOCOL),
            DateType.serialize(3, PROTOCOL),
            Int32Type.serialize(86400, PROTOCOL),
            LongType.serialize(4, PROTOCOL),
        ],
        [
            ("ü" * 100).encode(),
            b"",
            b"s",
            b"trending",
            b"",
            DateType.serialize(2**41, PROTOCOL),
            DateType.serialize(3, PROTOCOL),
            Int32Type.serialize(86400, PROTOCOL),
            LongType.serialize(2**60, PROTOCOL),
        ],
    ]
    assert [value_at(row, INSERT_KEY) for row in rows] == [b"ann", ("ü" * 100).encode()]


def test_the_values_of_a_delete_are_what_the_driver_binds() -> None:
    row = delete_values("ann", 2**60)
    assert split_values(row) == [LongType.serialize(2**60, PROTOCOL), b"ann"]
    assert value_at(row, DELETE_KEY) == b"ann"
