"""What a training maximises."""

import polars as pl

from ctrkit.data.dataset import Dataset
from ctrkit.data.labels import GROUP, label_columns
from ctrkit.errors import CtrkitError


def monitored(metrics: dict[str, float], monitor: str) -> float:
    """What is maximised, of a valid split's metrics.

    Args:
        monitor: ``training.monitor``.
    """
    match monitor:
        case "logloss":
            return -metrics["logloss"]
        case "auc-logloss":
            return metrics["auc"] - metrics["logloss"]
        case _:
            return metrics[monitor]


def check_monitor(monitor: str, dataset: Dataset) -> None:
    """Whether the labels of the valid split allow what is to be maximised; of several labels the main one.

    Raises:
        CtrkitError: it is not defined on that split.
    """
    if monitor != "logloss" and (why := undefined(monitor, dataset)) is not None:
        raise CtrkitError(
            f"training.monitor '{monitor}' is undefined on the valid split: {why}",
            f"Give the valid split more rows, check the label{' and the group' if monitor == 'gauc' else ''}, or set training.monitor to logloss",
        )


def undefined(metric: str, dataset: Dataset) -> str | None:
    """Why the valid split's main label has no AUC, or with ``gauc`` none in any group; None if it has one."""
    label = label_columns(dataset.inputs.tasks)[0]
    valid = pl.scan_parquet(dataset.parts("valid"))
    classes = pl.col(label).n_unique()
    if valid.select(classes).collect().item() < 2:
        return "its labels are all of one class"
    if metric == "gauc" and not valid.group_by(GROUP).agg(classes).select((pl.col(label) > 1).any()).collect().item():
        return f"no '{dataset.group}' has rows of both classes there, and groups of a single class have no AUC"
    return None
