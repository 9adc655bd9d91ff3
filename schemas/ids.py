"""What an id may be: of a user, an item or an event."""

import unicodedata

# Ids are keys in state, in Cassandra and in Kafka; longer ones are a sign of a payload in the wrong field.
MAX_ID_BYTES = 256
_SHOWN_BYTES = 40


def id_trouble(raw: bytes) -> str | None:
    """Why bytes are no id, or None when they are one: 1 to MAX_ID_BYTES of UTF-8 without control characters."""
    if not 0 < len(raw) <= MAX_ID_BYTES:
        return f"has {len(raw)} bytes; 1 to {MAX_ID_BYTES} are allowed"
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return "is not UTF-8"
    # Category Cc: line feeds and their kin would break lists of ids, and what prints them.
    return "has control characters" if any(unicodedata.category(c) == "Cc" for c in text) else None


def shown(key: bytes | None) -> str:
    """A key for a message: its beginning, where it is none that anybody would read."""
    return repr(key) if key is None or len(key) <= _SHOWN_BYTES else f"{key[:_SHOWN_BYTES]!r}… of {len(key)} bytes"
