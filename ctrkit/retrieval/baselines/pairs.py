"""Items that users did not have."""

import numpy as np
from scipy import sparse

_TRIES = 100


def unseen_items(seen: sparse.csr_array, users: np.ndarray, items: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """An item for each user, drawn uniformly from ``items``; one that the user had is drawn again, some times over.

    Args:
        seen: ``[users, items]``.
    """
    drawn = random.choice(items, len(users))
    again = np.arange(len(users))
    for _ in range(_TRIES):
        again = again[np.asarray(seen[users[again], drawn[again]]).ravel() > 0]
        if not len(again):
            break
        drawn[again] = random.choice(items, len(again))
    return drawn
