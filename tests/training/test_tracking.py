"""metrics.jsonl and its TensorBoard twin."""

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ctrkit.training.tracking import METRICS_FILE, Tracker, read_records


def test_records_are_lines_and_scalars(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.record("train", 5, 0.5, {"loss": 0.25})
    tracker.record("valid", 10, 1.0, {"auc": float("nan"), "logloss": 0.5})
    tracker.close()
    assert [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()] == [
        {"event": "train", "step": 5, "epoch": 0.5, "loss": 0.25},
        {"event": "valid", "step": 10, "epoch": 1.0, "auc": None, "logloss": 0.5},
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("valid/logloss")] == [(10, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(5, 0.25)]


def test_a_resumed_run_writes_later_records_again(tmp_path: Path) -> None:
    before = Tracker(tmp_path)
    for step in (5, 10, 15):
        before.record("train", step, step / 10, {"loss": step})
    before.close()
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"event": "train", "st')  # cut off by a kill
    after = Tracker(tmp_path, step=10)
    after.record("train", 15, 1.5, {"loss": 99})
    after.close()
    assert [(r["step"], r["loss"]) for r in read_records(tmp_path)] == [(5, 5), (10, 10), (15, 99)]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.value for e in events.Scalars("train/loss")] == [5, 10, 99]
