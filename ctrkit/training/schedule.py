"""Learning rates over the steps: one factor that both optimizers' base rates are multiplied by."""

import math

from ctrkit.config import Training

PLATEAU_FACTOR = 0.1


def factor(settings: Training, step: int, total_steps: int, plateaus: int = 0) -> float:
    """The factor of a step.

    Args:
        settings: ``warmup_steps`` and ``decay``.
        step: from 0.
        total_steps: of the whole training; ``cosine`` and ``linear`` reach 0 there.
        plateaus: evaluations so far at which the monitored metric did not improve.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, total_steps - settings.warmup_steps)
    match settings.decay:
        case "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        case "linear":
            return 1 - done
        case "plateau":
            return PLATEAU_FACTOR**plateaus
        case "none":
            return 1.0
