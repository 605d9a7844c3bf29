"""JSON text -> an object, within a bound of depth."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from ctrkit.errors import nearest
from serving.problems import InvalidBody

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
"""Also one that the body's end cuts off. It never goes back over what it has read: the time is linear, whatever is sent."""

_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1
_OTHERS = bytes(set(range(256)) - set(b"[{]}"))


def parse(body: bytes, depth: int, required: Sequence[str] = (), optional: Sequence[str] | None = ()) -> dict[str, Any]:
    """The object that a body holds.

    Args:
        depth: most lists and objects inside one another.
        required: keys that must be there.
        optional: other keys that may; None: any.

    Raises:
        InvalidBody: no JSON, too deep, no object, a key that is missing or unknown.
    """
    check_depth(body, depth)
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidBody((), f"the body is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InvalidBody((), "the body is not a JSON object")
    for key in required:
        if key not in content:
            raise InvalidBody((key,), f"the body has no '{key}'")
    if optional is not None and len(content) > len(required):
        known = [*required, *optional]
        for key in content:
            if key not in known:
                raise InvalidBody((key,), f"unknown key '{key}'. {nearest(key, known)}")
    return content


def check_depth(body: bytes, depth: int) -> None:
    """Raises InvalidBody when lists and objects lie more than ``depth`` deep.

    Brackets inside strings are left out only when the count with them is too high: almost no body needs that.
    """
    if body.count(b"[") + body.count(b"{") <= depth:
        return
    if _deepest(body) > depth and _deepest(_STRING.sub(b"", body)) > depth:
        raise InvalidBody((), f"the body's lists and objects lie more than {depth} deep")


def _deepest(body: bytes) -> int:
    steps = _STEPS[np.frombuffer(body.translate(None, _OTHERS), np.uint8)]
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))
