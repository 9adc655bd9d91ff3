"""Whether bytes are what a schema says, to the bit.

fastavro reads leniently: a symbol or a branch numbered -1 is the last one to it, and a boolean of 2 is false. What this
walk has passed, fastavro reads the same as any other reader.
"""

from typing import Any

_PRIMITIVE_BYTES = {"null": 0, "boolean": 1, "float": 4, "double": 8}
_LONGEST_SHIFT = 63


class DamagedError(ValueError):
    """Bytes that are not what the schema says, and at which field."""


def end_of(schema: Any, value: bytes, start: int) -> int:
    """Where the record that begins at `start` ends. Raises DamagedError naming the field."""
    walk, names = _Walk(value, start), dict[str, Any]()
    for field in schema["fields"]:
        try:
            walk.skip(field["type"], names)
        except (ValueError, IndexError) as error:
            raise DamagedError(f"breaks at {field['name']}") from error
    return walk.at


class _Walk:
    """A place in the bytes, which moves over values; raises ValueError or IndexError where they make no sense."""

    def __init__(self, raw: bytes, at: int) -> None:
        self._raw = raw
        self.at = at

    def skip(self, kind: Any, names: dict[str, Any]) -> None:
        """Step over one value. names: the types that were named so far."""
        if isinstance(kind, list):
            self.skip(kind[self._below(len(kind))], names)
            return
        word = kind["type"] if isinstance(kind, dict) else kind
        if word in names:
            kind, word = names[word], names[word]["type"]
        elif isinstance(kind, dict) and "name" in kind:
            names[kind["name"]] = kind
        if word in ("int", "long"):
            self._integer()
        elif word in ("string", "bytes"):
            self._bytes(self._integer())
        elif word == "enum":
            self._below(len(kind["symbols"]))
        elif word == "record":
            for field in kind["fields"]:
                self.skip(field["type"], names)
        elif word in ("array", "map"):
            self._blocks(kind, names)
        elif word == "fixed":
            self._bytes(kind["size"])
        else:
            self._bytes(_PRIMITIVE_BYTES[word] if isinstance(word, str) else 0)
            if word == "boolean" and self._raw[self.at - 1] > 1:
                raise ValueError("neither true nor false")

    def _blocks(self, kind: Any, names: dict[str, Any]) -> None:
        while count := self._integer():
            if count < 0:
                self._integer()  # the block's size, for readers that skip it
            # Entries of no bytes would make a walk without end of a few bytes.
            if abs(count) > len(self._raw):
                raise ValueError("more entries than bytes")
            for _ in range(abs(count)):
                if kind["type"] == "map":
                    self._bytes(self._integer())
                self.skip(kind["values" if kind["type"] == "map" else "items"], names)

    def _integer(self) -> int:
        number = shift = 0
        while (byte := self._raw[self.at]) > 0x7F:
            number |= (byte & 0x7F) << shift
            shift += 7
            self.at += 1
            if shift > _LONGEST_SHIFT:
                raise ValueError("more than 64 bits")
        self.at += 1
        if byte << shift >= 1 << 64:
            raise ValueError("more than 64 bits")
        number |= byte << shift
        return (number >> 1) ^ -(number & 1)

    def _below(self, count: int) -> int:
        number = self._integer()
        if not 0 <= number < count:
            raise ValueError(f"{number} of {count}")
        return number

    def _bytes(self, count: int) -> None:
        if not 0 <= count <= len(self._raw) - self.at:
            raise ValueError(f"{count} bytes")
        self.at += count
