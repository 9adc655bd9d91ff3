"""May records written with one schema be read with another? Avro's rules of resolution, before the first record.

What a new version of a schema may do: add a field that has a default, leave a field out that had one, widen a number
(int → long → float → double) or turn string into bytes and back, add symbols to an enum that has a default, make a
field required that was optional, or the other way round. All else strands the records of those who still write the old
one.
"""

from typing import Any

from schemas.avro import Schema

_PROMOTIONS = {
    "int": ("long", "float", "double"),
    "long": ("float", "double"),
    "float": ("double",),
    "string": ("bytes",),
    "bytes": ("string",),
}


def conflicts(writer: Any, reader: Any, name: str = "") -> list[str]:
    """What of the writer's schema the reader's cannot take, a line each, with the field's name; none when all fits.

    A null from a writer for which the reader has no place is a matter of single records, not of the schema.
    """
    if writer == reader:
        return []
    if isinstance(writer, list):
        branches = [kind for kind in writer if kind != "null"]
        return [line for kind in branches for line in conflicts(kind, reader, name)]
    if isinstance(reader, list):
        tried = [conflicts(writer, kind, name) for kind in reader if kind != "null" or writer == "null"]
        best: list[str] = min(tried, key=len) if tried else [f"{name} is {_word(writer)}"]
        return best
    was, wanted = _word(writer), _word(reader)
    if was != wanted:
        return [] if wanted in _PROMOTIONS.get(was, ()) else [f"{name or 'it'} is {was}, not {wanted}"]
    if was == "record":
        return _fields(writer, reader, f"{name}." if name else "")
    if was == "array":
        return conflicts(writer["items"], reader["items"], f"{name}[]")
    if was == "map":
        return conflicts(writer["values"], reader["values"], f"{name}{{}}")
    if was == "enum":
        strange = [symbol for symbol in writer["symbols"] if symbol not in reader["symbols"]]
        return [f"{name} may be {strange[0]}"] if strange and "default" not in reader else []
    if was == "fixed" and writer["size"] != reader["size"]:
        return [f"{name} has {writer['size']} bytes, not {reader['size']}"]
    return []


def _fields(writer: Schema, reader: Schema, prefix: str) -> list[str]:
    if writer.get("name", "").split(".")[-1] != reader.get("name", "").split(".")[-1]:
        return [f"{prefix or 'it '}is a {writer.get('name')}, not a {reader.get('name')}"]
    written = {field["name"]: field["type"] for field in writer["fields"]}
    found = []
    for field in reader["fields"]:
        name = prefix + field["name"]
        if field["name"] in written:
            found += conflicts(written[field["name"]], field["type"], name)
        elif "default" not in field:
            found.append(f"{name} is missing and has no default")
    return found


def _word(kind: Any) -> str:
    return str(kind["type"]) if isinstance(kind, dict) else str(kind)
