"""How an epoch's rows are shared among its steps."""

from itertools import pairwise


def even_steps(rows: int, size: int, least: int = 1) -> list[tuple[int, int]]:
    """``[start, stop)`` of each step: as few steps as ``size`` allows, all of as many rows, or of one more.

    Were a last step left with what remains, each of its rows would weigh more than in the others: of eleven, a hundred times what it weighs
    among 1,024. Under Adagrad their embeddings then take the longest step there is, those of common values too, and short ones ever after.

    Args:
        rows: of an epoch, 1 at the least.
        size: rows of a step, at most.
        least: rows of a step at the least, where there are as many: comes before ``size``.
    """
    count = max(1, min(-(-rows // size), rows // least))
    each, more = divmod(rows, count)
    return list(pairwise(step * each + min(step, more) for step in range(count + 1)))
