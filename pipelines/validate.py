"""``ctrkit validate``: an experiment against the log's header and the model's settings, before anything long is started."""

from collections.abc import Callable
from typing import Any

from ctrkit.config import Experiment
from ctrkit.data.prepare import check_columns
from ctrkit.data.readers import open_log
from ctrkit.errors import CtrkitError
from ctrkit.training.check import check_experiment
from pipelines.terminal import Terminal


def validate_experiment(experiment: Experiment, screen: Terminal) -> dict[str, Any]:
    """Checks files, columns, label, split and model; reads the beginnings of files only.

    Returns:
        ``{ok, name, features, columns, unused}``; ``unused`` are columns of the log that the experiment does not read.

    Raises:
        CtrkitError: all that is wrong, in one line.
    """
    problems: list[str] = []
    needed = _noting(problems, lambda: check_columns(experiment))
    _noting(problems, lambda: check_experiment(experiment))
    if problems:
        raise CtrkitError(" ".join(problems))
    part = "path" if experiment.data.path is not None else "train"
    columns = open_log(experiment.data, part=part).columns()
    unused = [name for name in columns if name not in (needed or [])]
    screen.table(
        ("feature", "kind", "transform"),
        [(feature.name, feature.kind.value, _settings(feature.transform.model_dump())) for feature in experiment.features],
    )
    if unused:
        screen.console.print(f"Columns not used: {', '.join(unused)}", style="dim", markup=False)
    screen.console.print(
        f"'{experiment.name}' fits its log: {len(experiment.features)} features, {_labels(experiment)}, model {experiment.model.name}.",
        style="green",
        markup=False,
    )
    return {"ok": True, "name": experiment.name, "features": len(experiment.features), "columns": len(columns), "unused": unused}


def _labels(experiment: Experiment) -> str:
    return f"labels {', '.join(experiment.tasks)}" if experiment.tasks else f"label '{experiment.label}'"


def _noting(problems: list[str], check: Callable[[], Any]) -> Any:
    try:
        return check()
    except CtrkitError as error:
        problems.append(str(error))
        return None


def _settings(transform: dict[str, Any]) -> str:
    rest = ", ".join(f"{key} {value}" for key, value in transform.items() if key != "kind" and value is not None)
    return f"{transform['kind']} ({rest})" if rest else str(transform["kind"])
