"""The error of a training whose loss or gradient is not finite."""

import math
from collections.abc import Sequence

from ctrkit.data.loader import Loader
from ctrkit.errors import CtrkitError


def diverged(step: int, loss: float, loader: Loader, numeric_fields: Sequence[str], latest: int | None) -> CtrkitError:
    """Names the batch, and a number in it that is far too large.

    Args:
        step: counted from 0.
        loss: of it; finite if it is the gradient that is not.
        loader: of the training rows.
        latest: step of the last resume point.
    """
    epoch, number = divmod(step, len(loader))
    start, stop = loader.bounds[number]
    what = "the gradient" if math.isfinite(loss) else "the loss"
    problem = (
        f"{what} is not finite in epoch {epoch + 1}, step {step + 1}: batch {number + 1} of {len(loader)}, "
        f"rows {start + 1:,} to {stop:,} of the epoch's order"
    )
    batches = loader.iter(epoch, skip=number)
    largest = next(batches).dense.nan_to_num(0).abs().amax(0)
    if largest.numel() and largest.max() > 100:
        field = numeric_fields[int(largest.argmax())]
        problem += f"; its numeric column '{field}' reaches {largest.max():.3g} after its transform"
    kept = f"; the last good resume point is step {latest:,}" if latest is not None else ""
    return CtrkitError(
        problem + kept,
        "Lower training.learning_rate and embedding.learning_rate, set training.precision to fp32, "
        "or check the numeric columns (transform: log1p tames large values), then train with --resume",
    )
