"""Bodies with a Content-Encoding, unpacked within a bound."""

import zlib

from serving.http import too_large
from serving.problems import InvalidBody, WrongType

SLICE, MOST_MEMBERS = 16 * 1024, 10_000
"""Bytes that are unpacked at a time: at a member's end zlib copies what is left of them. Members that a body may have: each takes a while,
however short it is."""


def unpacked(body: bytes, encoding: str, most: int) -> bytes:
    """A body without its Content-Encoding: gzip, of one member or several, deflate or none.

    Raises:
        WrongType: another encoding.
        InvalidBody: not what it says it is.
        TooLarge: more than ``most`` bytes; no more are unpacked.
    """
    coding = encoding.lower()
    if coding in ("", "identity"):
        return body
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise WrongType(f"a body with the encoding '{encoding[:40]}' is not read", "Send gzip, deflate or no encoding")
    try:
        return _joined(body, most)
    except zlib.error as error:
        raise InvalidBody((), f"the body cannot be unpacked: {error}") from None


def _joined(body: bytes, most: int) -> bytes:
    """All members of a body, one after the other. Raises as ``unpacked``, and ``zlib.error``."""
    parts: list[bytes] = []
    size, ended, member = 0, 0, None
    for start in range(0, len(body), SLICE):
        rest = body[start : start + SLICE]
        while rest:
            member = member or zlib.decompressobj(zlib.MAX_WBITS | 32)  # either header
            parts.append(member.decompress(rest, most + 1 - size))
            size += len(parts[-1])
            if size > most:
                raise too_large(most)
            rest = member.unused_data
            if member.eof:
                member, ended = None, ended + 1
            if ended > MOST_MEMBERS:
                raise InvalidBody((), f"the body cannot be unpacked: it has more than {MOST_MEMBERS:,} members")
    if member is not None or not ended:
        raise InvalidBody((), "the body cannot be unpacked: it is cut short")
    return b"".join(parts)
