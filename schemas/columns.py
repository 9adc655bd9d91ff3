"""Decoding a batch of Avro records into columns: one compiled walk over the bytes, record by record.

The writer's schema becomes a program of a few numbers, which the walk follows. A walk that would pass its record's end,
or meets what no writer writes, stops and names the field, so that a damaged record never harms its neighbours.

Shapes: N records, F fields; every array of a column is [N].
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.avro import Schema
from schemas.compiled import Address, Compiled, carray, inlined
from schemas.spans import MAX_ENTRIES, Columns, Ints, Spans, only_branch, spans_of

# Kinds of values. A step of a program is a kind and up to three numbers: see `_Program`.
_NULL, _INTEGER, _ENUM, _BYTES, _FLOAT, _DOUBLE, _BOOLEAN, _UNION, _MAP, _ARRAY = range(10)
_KINDS = {
    "null": _NULL, "int": _INTEGER, "long": _INTEGER, "enum": _ENUM, "string": _BYTES, "bytes": _BYTES,
    "float": _FLOAT, "double": _DOUBLE, "boolean": _BOOLEAN, "map": _MAP, "array": _ARRAY,
}  # fmt: skip
# A 64-bit zigzag integer has at most ten bytes of seven bits; of the tenth one bit is left.
_LAST_SHIFT = 63
# Where a walk stands that has failed.
_BROKEN = -1


class _Program:
    """A schema as numbers: steps int64[S, 4], and which of them each field is, int64[F].

    A step is its kind and, for an enum, how many symbols; for a map or an array, the step of its values; for a union,
    how many branches, which of them is not null, and the step of that one.
    """

    def __init__(self, schema: Schema) -> None:
        """Raises ValueError for types beyond those of the project's records."""
        self.schema = schema
        self._steps: list[tuple[int, int, int, int]] = []
        self.fields = np.array([self._step(field["type"]) for field in schema["fields"]], np.int64)
        self.steps = np.array(self._steps, np.int64).reshape(-1, 4)

    def _step(self, kind: Any) -> int:
        if isinstance(kind, list):
            branch = only_branch(kind)
            step = (_UNION, len(kind), branch, self._step(kind[branch]))
        else:
            word = kind["type"] if isinstance(kind, dict) else kind
            if word not in _KINDS:
                raise ValueError(f"Avro type {word!r} is not used by the project's records")
            inside = {"enum": lambda: len(kind["symbols"]), "map": lambda: self._step(kind["values"])}
            inside["array"] = lambda: self._step(kind["items"])
            step = (_KINDS[word], inside.get(word, int)(), 0, 0)
        self._steps.append(step)
        return len(self._steps) - 1


# Programs of the schemas met last, by the schema's identity, which the program keeps alive.
_PROGRAMS: dict[int, _Program] = {}
_MOST_PROGRAMS = 64


def decode_columns(values: Sequence[bytes], body_start: int, schema: Schema, beside: Sequence[bytes] = ()) -> Columns:
    """Decode N framed records written with `schema`, whose bodies start `body_start` bytes into each value.

    beside: other bytes to lie in the same buffer, right behind the values.
    Raises ValueError for a schema with types beyond those of the project's records.
    """
    program = _PROGRAMS.get(id(schema))
    if program is None:
        if len(_PROGRAMS) >= _MOST_PROGRAMS:
            _PROGRAMS.clear()
        program = _PROGRAMS[id(schema)] = _Program(schema)
    raw = b"".join([*values, *beside])
    whole = spans_of(values)
    count, fields = len(values), len(program.fields)
    numbers, start, length = np.zeros((3, fields, count), np.int64)
    present, failed_field = np.zeros((fields, count), np.bool_), np.full(count, -1, np.int64)
    _walk(
        program.steps, len(program.steps), program.fields, fields, raw, len(raw),
        whole.start + body_start, whole.start + whole.length, count,
        numbers, start, length, present, failed_field,
    )  # fmt: skip
    out = Columns(np.frombuffer(raw, np.uint8), failed_field >= 0, failed_field, {}, {}, {}, {})
    for row, field in enumerate(schema["fields"]):
        name, kind = field["name"], field["type"]
        kind = kind[only_branch(kind)] if isinstance(kind, list) else kind
        word = kind["type"] if isinstance(kind, dict) else kind
        if word in ("map", "array", "null"):
            continue
        out.present[name] = present[row]
        if word in ("string", "bytes"):
            out.spans[name] = Spans(start[row], length[row])
        else:
            out.numbers[name] = _as_written(numbers[row], word)
        if word == "enum":
            out.symbols[name] = kind["symbols"]
    return out


def _as_written(bits: Ints, word: str) -> NDArray[Any]:
    """Numbers of an Avro type from what the walk has found: floats from their bits."""
    if word == "float":
        return bits.astype(np.uint32).view(np.float32).astype(np.float64)
    return bits.view(np.float64) if word == "double" else bits


@inlined
def _integer(buffer: NDArray[np.uint8], at: int, end: int) -> tuple[Any, int]:
    """One zigzag integer, and the place behind it."""
    raw = np.uint64(0)
    for shift in range(0, _LAST_SHIFT + 1, 7):
        if at >= end:
            return 0, _BROKEN
        byte = buffer[at]
        at += 1
        if shift == _LAST_SHIFT and byte > 1:
            return 0, _BROKEN
        raw |= np.uint64(byte & 0x7F) << np.uint64(shift)
        if byte < 0x80:
            return np.int64(raw >> np.uint64(1)) ^ -np.int64(raw & np.uint64(1)), at
    return 0, _BROKEN


@inlined
def _little_endian(buffer: NDArray[np.uint8], at: int, end: int) -> Any:
    """Up to eight bytes as one number."""
    bits = np.uint64(0)
    for place in range(at, end):
        bits |= np.uint64(buffer[place]) << np.uint64(8 * (place - at))
    return np.int64(bits)


@inlined
def _skip(steps: Ints, step: int, buffer: NDArray[np.uint8], at: int, end: int) -> int:  # noqa: PLR0912
    """The place behind one value; _BROKEN where there is none."""
    kind, inside = steps[step, 0], steps[step, 1]
    if kind == _NULL:
        return at
    if kind in (_FLOAT, _DOUBLE):
        size = 4 if kind == _FLOAT else 8
        return at + size if end - at >= size else _BROKEN
    if kind == _BOOLEAN:
        return at + 1 if end > at and buffer[at] <= 1 else _BROKEN
    if kind in (_MAP, _ARRAY):
        total = 0
        while True:
            count, at = _integer(buffer, at, end)
            if at >= 0 and count < 0:
                # The block's size in bytes follows, for readers that skip.
                count = -count
                _, at = _integer(buffer, at, end)
            if at < 0 or count == 0:
                return at
            total += count
            if not 0 < count <= MAX_ENTRIES or total > MAX_ENTRIES:
                return _BROKEN
            for _ in range(count):
                if kind == _MAP:
                    size, at = _integer(buffer, at, end)
                    if at < 0 or not 0 <= size <= end - at:
                        return _BROKEN
                    at += size
                at = _skip(steps, inside, buffer, at, end)
                if at < 0:
                    return _BROKEN
    number, at = _integer(buffer, at, end)
    if at < 0 or kind == _INTEGER:
        return at
    if kind == _BYTES:
        return at + number if 0 <= number <= end - at else _BROKEN
    if not 0 <= number < inside:
        return _BROKEN
    if kind == _UNION and number == steps[step, 2]:
        return _skip(steps, steps[step, 3], buffer, at, end)
    return at


@Compiled
def _walk(
    steps_at: Address,
    steps_count: int,
    fields_at: Address,
    fields_count: int,
    buffer_at: Address,
    size: int,
    begins_at: Address,
    ends_at: Address,
    count: int,
    numbers_at: Address,
    start_at: Address,
    length_at: Address,
    present_at: Address,
    failed_field_at: Address,
) -> None:
    """Fill the columns; failed_field: int64[N], -1 where the record is whole, F where something comes after its end."""
    steps, fields = carray(steps_at, (steps_count, 4), np.int64), carray(fields_at, fields_count, np.int64)
    buffer = carray(buffer_at, size, np.uint8)
    begins, ends = carray(begins_at, count, np.int64), carray(ends_at, count, np.int64)
    numbers = carray(numbers_at, (fields_count, count), np.int64)
    start, length = (
        carray(start_at, (fields_count, count), np.int64),
        carray(length_at, (fields_count, count), np.int64),
    )
    present, failed_field = (
        carray(present_at, (fields_count, count), np.bool_),
        carray(failed_field_at, count, np.int64),
    )
    for record in range(len(begins)):
        at, end = begins[record], ends[record]
        for field in range(len(fields)):
            step = fields[field]
            if steps[step, 0] == _UNION:
                branch, behind = _integer(buffer, at, end)
                if behind >= 0 and branch == steps[step, 2]:
                    at, step = behind, steps[step, 3]
            kind, begun = steps[step, 0], at
            at = _skip(steps, step, buffer, at, end)
            if at < 0:
                failed_field[record] = field
                break
            if kind in (_UNION, _NULL, _MAP, _ARRAY):
                continue
            present[field, record] = True
            if kind == _BYTES:
                length[field, record], start[field, record] = _integer(buffer, begun, end)
            elif kind in (_INTEGER, _ENUM):
                numbers[field, record], _ = _integer(buffer, begun, end)
            else:
                numbers[field, record] = _little_endian(buffer, begun, at)
        if at >= 0 and at != end:
            failed_field[record] = len(fields)
