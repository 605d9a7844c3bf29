"""What is written while a run trains: one line of ``metrics.jsonl`` and TensorBoard scalars for each record."""

import json
import math
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"


class Tracker:
    """Appends records to a run folder.

    Args:
        run_dir: the run's folder.
        step: records of later steps are dropped first; a resumed run writes them again.
    """

    def __init__(self, run_dir: Path, step: int = 0) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        path = run_dir / METRICS_FILE
        kept = [record for record in read_records(run_dir) if record["step"] <= step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf8")
        temporary.replace(path)
        self._lines = path.open("a", encoding="utf8")
        self._tensorboard = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def record(self, event: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Writes values under ``event``: ``train``, ``valid`` or ``test``. NaN becomes null."""
        line = {"event": event, "step": step, "epoch": round(epoch, 6), **without_nan(values)}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{event}/{name}", value, step)

    def close(self) -> None:
        self._lines.close()
        self._tensorboard.close()


def read_records(run_dir: Path) -> list[dict[str, Any]]:
    """All whole records of a run; a last line cut off by a kill is left out."""
    path = run_dir / METRICS_FILE
    if not path.exists():
        return []
    text = path.read_text(encoding="utf8")
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


def with_nan(values: dict[str, float | None]) -> dict[str, float]:
    """What ``without_nan`` was given."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def without_nan(values: dict[str, float]) -> dict[str, float | None]:
    """JSON knows no NaN: an undefined metric is null."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}
