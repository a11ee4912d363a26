"""Object ids in Modal's form: a prefix and 22 characters."""

from __future__ import annotations

import hashlib
import secrets
import string

_ALPHABET = string.ascii_letters + string.digits
_LENGTH = 22


def new_id(prefix: str) -> str:
    """Return a new id: `new_id("fc")` returns something like `fc-3kXq…`."""
    return f"{prefix}-" + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))


def id_of(prefix: str, *parts: bytes | str) -> str:
    """Return the id of some content: the same parts have the same id."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    number = int.from_bytes(digest.digest(), "big")
    characters = []
    for _ in range(_LENGTH):
        number, rest = divmod(number, len(_ALPHABET))
        characters.append(_ALPHABET[rest])
    return f"{prefix}-" + "".join(characters)
