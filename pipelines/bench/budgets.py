"""How a budget of rows is split over a table a feature.

``needed`` is, of each feature, the rows that a table of all its values has, padding and unknown included.
"""

from collections.abc import Mapping

LEAST_ROWS = 4
"""Rows that the smallest feature's table has at least, padding included; fewer only where fewer are needed."""


def in_proportion(needed: Mapping[str, int], rows: int) -> dict[str, int]:
    """Rows in proportion to what each feature needs, none below ``LEAST_ROWS``, ``rows`` in all."""
    small: set[str] = set()
    while True:
        left = rows - LEAST_ROWS * len(small)
        total = sum(count for name, count in needed.items() if name not in small)
        shares = {name: left * count / total for name, count in needed.items() if name not in small}
        below = {name for name, share in shares.items() if share < LEAST_ROWS}
        if not below:
            break
        small |= below
    split = {name: LEAST_ROWS for name in small} | {name: int(share) for name, share in shares.items()}
    remainders = sorted(shares, key=lambda name: shares[name] - int(shares[name]), reverse=True)
    for name in remainders[: rows - sum(split.values())]:
        split[name] += 1
    return {name: split[name] for name in needed}


def equal_caps(needed: Mapping[str, int], rows: int) -> dict[str, int]:
    """``min(needed, cap)`` rows, with the cap that spends ``rows``: one for all, but for a row where it is no whole number."""
    split: dict[str, int] = {}
    left = rows
    for done, name in enumerate(sorted(needed, key=lambda name: needed[name])):
        split[name] = min(needed[name], left // (len(needed) - done))
        left -= split[name]
    return {name: split[name] for name in needed}
