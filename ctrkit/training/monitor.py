"""What a training maximises."""

import math

from ctrkit.errors import CtrkitError


def monitored(metrics: dict[str, float], monitor: str) -> float:
    """What is maximised, of a valid split's metrics.

    Args:
        monitor: ``training.monitor``.

    Raises:
        CtrkitError: it is not defined on that split.
    """
    match monitor:
        case "logloss":
            value = -metrics["logloss"]
        case "auc-logloss":
            value = metrics["auc"] - metrics["logloss"]
        case _:
            value = metrics[monitor]
    if math.isnan(value):
        raise CtrkitError(
            f"training.monitor '{monitor}' is undefined on the valid split: its labels are all of one class",
            "Give the valid split more rows, check the label, or set training.monitor to logloss",
        )
    return value
