"""API keys: several at once, so that one can be exchanged for another without a gap."""

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

from ctrkit.errors import CtrkitError

VARIABLE = "CTRKIT_API_KEYS"
SHORTEST = 16


class Keys:
    """The keys that open the service; none: it is open to all.

    Only digests are kept, of one length: comparing takes the same time whatever was sent, and however many letters are right.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def open(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether ``Authorization: Bearer KEY`` or ``X-API-Key: KEY`` is there with one of the keys."""
        sent = b""
        for name, value in headers:
            if name == b"x-api-key":
                sent = value
            elif name == b"authorization" and value[:7].lower() == b"bearer ":
                sent = value[7:].strip()
        digest = _digest(sent)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)


def read_keys(file: Path | None) -> Keys:
    """The keys of a file, one a line, ``#`` begins a comment, and those of the environment's ``CTRKIT_API_KEYS``, separated by commas.

    Raises:
        CtrkitError: a file that cannot be read or holds no key, a key too short to be one.
    """
    keys = [key.strip() for key in os.environ.get(VARIABLE, "").split(",") if key.strip()]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CtrkitError(f"the key file '{file}' cannot be read: {error}") from error
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise CtrkitError(f"the key file '{file}' holds no key", "Write one a line")
        keys += found
    if any(len(key) < SHORTEST or not key.isascii() for key in keys):
        remedy = "Make one: python -c 'import secrets; print(secrets.token_urlsafe())'"
        raise CtrkitError(f"an API key has fewer than {SHORTEST} letters, or others than ASCII", remedy)
    return Keys(keys)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
