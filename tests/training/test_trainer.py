"""Training as a user sees it: the run folder, its numbers, and what happens when something goes wrong."""

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.errors import CtrkitError
from ctrkit.training import loop
from ctrkit.training.evaluate import evaluate_run, predict_split
from ctrkit.training.run import RunResult, load_run, read_result
from ctrkit.training.trainer import train

Make = Callable[..., Experiment]
STEPS = 15
"""Of an epoch: 1800 training rows in batches of 128."""
SLOW = pytest.mark.slow


class Killed(BaseException):
    """Stands for a kill: nothing in the code under test catches it."""


@contextmanager
def killed_at(name: str, call: int) -> Iterator[None]:
    """The process "dies" at this call, counted from 1, of a function the training loop or torch calls."""
    module, _, attribute = name.rpartition(".")
    owner = {"loop": loop, "torch": torch}[module]
    original, calls = getattr(owner, attribute), iter(range(1, 10_000))

    def counted(*args, **kwargs):
        if next(calls) == call:
            raise Killed
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, attribute, counted)
        with pytest.raises(Killed):
            yield


def run(experiment: Experiment, dataset: Dataset, **options) -> tuple[RunResult, str]:
    """Trains; the result and what the console showed."""
    text = io.StringIO()
    return train(experiment, dataset, console=Console(file=text, width=200), **options), text.getvalue()


def records(result: RunResult, event: str) -> list[dict]:
    lines = (result.run / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["event"] == event]


def assert_same(left: RunResult, right: RunResult) -> None:
    """Bit for bit: metrics, what was recorded on the way, and weights."""
    assert (left.valid, left.test, left.best_epoch, left.epochs) == (right.valid, right.test, right.best_epoch, right.epochs)
    timeless = [
        [{k: v for k, v in r.items() if k != "samples_per_s"} for r in records(x, e)] for x in (left, right) for e in ("train", "valid")
    ]
    assert timeless[:2] == timeless[2:]
    ours, theirs = load_run(left.run)[2], load_run(right.run)[2]
    for part in ("dense_arch", "tables"):
        assert ours[part].keys() == theirs[part].keys()
        assert all(torch.equal(ours[part][name], theirs[part][name]) for name in ours[part])


@pytest.fixture(scope="module")
def uninterrupted(dataset: Dataset, experiment_below: Make, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(experiment_below(tmp_path_factory.mktemp("whole")), dataset)[0]


def test_a_run_learns_and_leaves_its_folder(experiment: Make, dataset: Dataset) -> None:
    result, shown = run(experiment(), dataset)
    assert result.test["auc"] > 0.8 and result.test["ne"] < 1
    assert set(result.valid) == set(result.test) == {"auc", "gauc", "logloss", "ne", "calibration", "ece"}
    assert result.run.name == "tiny-dnn-1" and result.epochs == 3
    names = {path.name for path in result.run.iterdir()}
    assert names == {
        *("config.yaml", "origin.json", "dataset", "metrics.jsonl", "tensorboard", "weights.pt", "result.json"),
        *("learning_curve.png", "calibration.png", "scores.json"),
    }
    assert {path.name for path in (result.run / "dataset").iterdir()} == {"dataset.json", "transforms", "golden.parquet"}
    for picture in ("learning_curve.png", "calibration.png"):
        assert (result.run / picture).read_bytes().startswith(b"\x89PNG")
    assert list((result.run / "tensorboard").glob("events.out.tfevents.*"))
    written = json.loads((result.run / "result.json").read_text())
    assert {
        "run",
        "valid",
        "test",
        "samples_per_s",
        "params",
        "epochs",
        "seconds",
        "best_epoch",
        "seed",
        "model",
        "embedding_bytes",
    } == written.keys()
    assert read_result(result.run) == result
    assert "embedding/user" in shown and "3 tables" in shown and "epoch 3/3" in shown
    tables = 4 * sum(field.rows for field in dataset.inputs.id_fields)
    assert result.params == tables + sum(t.numel() for t in load_run(result.run)[2]["dense_arch"].values())
    assert run(experiment(epochs=1), dataset)[0].run.name == "tiny-dnn-2"


def test_the_same_seed_gives_the_same_bits(experiment: Make, dataset: Dataset, uninterrupted: RunResult) -> None:
    assert_same(run(experiment(), dataset)[0], uninterrupted)
    assert run(experiment(seed=7), dataset)[0].valid != uninterrupted.valid


def test_the_best_weights_are_kept_and_scored(experiment: Make, dataset: Dataset) -> None:
    """Overfitting at once: the best is far from the last."""
    result, shown = run(experiment(epochs=30, patience=3, embedding={"learning_rate": 1.0}, learning_rate=0.05), dataset)
    assert "Stopped: auc-logloss did not improve in 3 evaluations (training.patience)" in shown
    valid = records(result, "valid")
    best = max(valid, key=lambda r: r["auc"] - r["logloss"])
    assert best["epoch"] == result.best_epoch < result.epochs
    assert result.epochs == result.best_epoch + 3 == valid[-1]["epoch"]
    assert result.valid == {name: best[name] for name in result.valid}
    assert evaluate_run(result.run, "valid") == {"split": "valid", "metrics": pytest.approx(result.valid, abs=1e-6)}
    assert evaluate_run(result.run, "test")["metrics"] == pytest.approx(result.test, abs=1e-6)


def test_a_watcher_is_told_of_each_evaluation_and_may_end_the_training(
    experiment: Make, dataset: Dataset, uninterrupted: RunResult, tmp_path: Path
) -> None:
    seen: list[tuple[float, dict[str, float]]] = []
    watched = run(experiment(), dataset, watch=lambda epochs, metrics: seen.append((epochs, metrics)), pictures=False)[0]
    assert_same(watched, uninterrupted)
    assert not list(watched.run.glob("*.png"))
    assert seen == [(r["epoch"], {name: r[name] for name in watched.valid}) for r in records(watched, "valid")]

    def enough(epochs: float, _: dict[str, float]) -> None:
        if epochs == 2:
            raise Killed

    with pytest.raises(Killed):
        run(experiment(), dataset, run_dir=tmp_path / "ended", watch=enough)
    assert read_result(tmp_path / "ended") is None
    assert len((tmp_path / "ended/metrics.jsonl").read_text().splitlines()) == 4, "two epochs' training and evaluation"


def test_predictions_come_in_the_order_of_the_split(dataset: Dataset, uninterrupted: RunResult) -> None:
    predictions = predict_split(uninterrupted.run, "valid", batch_size=100)
    table = pa.concat_tables([pq.read_table(part) for part in dataset.parts("valid")])
    np.testing.assert_array_equal(predictions.labels, table["@label"].to_numpy())
    np.testing.assert_array_equal(predictions.groups, table["@group"].to_numpy())
    np.testing.assert_allclose(predictions.probabilities, predict_split(uninterrupted.run, "valid").probabilities, atol=1e-6)


@pytest.mark.parametrize("step", [1, STEPS, 2 * STEPS + 9, *(pytest.param(step, marks=SLOW) for step in (7, STEPS + 1, 3 * STEPS))])
def test_resumed_after_a_kill_at_any_step_it_is_the_same_run(
    experiment: Make, dataset: Dataset, uninterrupted: RunResult, step: int
) -> None:
    settings = experiment(checkpoint_every=4)
    with killed_at("loop.clip_grad_norm_", step):
        run(settings, dataset)
    result, shown = run(settings, dataset, resume=True)
    assert result.run.name == "tiny-dnn-1"
    assert_same(result, uninterrupted)
    resumed = re.search(r"Resumed after step (\d+)", shown)
    assert (int(resumed[1]) if resumed else 0) >= step - 1 - 4


@pytest.mark.parametrize("write", [1, 3, *(pytest.param(write, marks=SLOW) for write in (2, 5, 8))])
def test_resumed_after_a_kill_while_writing_it_is_the_same_run(
    experiment: Make, dataset: Dataset, uninterrupted: RunResult, write: int
) -> None:
    settings = experiment()
    with killed_at("torch.save", write):
        run(settings, dataset)
    assert_same(run(settings, dataset, resume=True)[0], uninterrupted)


@pytest.mark.parametrize("name", ["predict", "write_json", pytest.param("learning_curve", marks=SLOW)])
def test_resumed_after_a_kill_at_the_end_it_is_the_same_run(
    experiment: Make, dataset: Dataset, uninterrupted: RunResult, name: str
) -> None:
    settings = experiment()
    with killed_at(f"loop.{name}", 4 if name == "predict" else 1):
        run(settings, dataset)
    assert_same(run(settings, dataset, resume=True)[0], uninterrupted)


@pytest.mark.parametrize(
    ("embedding", "training"),
    [
        ({"optimizer": "adam", "learning_rate": 0.01, "l2": 1e-3, "l2_rows": "all"}, {"optimizer": "adamw", "decay": "cosine"}),
        pytest.param({"optimizer": "rowwise_adagrad", "l2": 1e-4}, {"optimizer": "adagrad", "warmup_steps": 20}, marks=SLOW),
        pytest.param({"optimizer": "sgd"}, {"optimizer": "sgd", "decay": "plateau"}, marks=SLOW),
    ],
)
def test_every_optimizer_resumes_bit_for_bit(experiment: Make, dataset: Dataset, embedding: dict, training: dict, tmp_path: Path) -> None:
    settings = experiment(embedding=embedding, evaluate_every=10, checkpoint_every=8, **training)
    whole, _ = run(settings, dataset, run_dir=tmp_path / "whole")
    assert [r["step"] for r in records(whole, "valid")] == [10, 20, 30, 40, 45]
    with killed_at("loop.clip_grad_norm_", 30):
        run(settings, dataset, run_dir=tmp_path / "killed")
    assert_same(run(settings, dataset, run_dir=tmp_path / "killed", resume=True)[0], whole)


def test_resumed_with_fewer_steps_than_were_done_it_stops(experiment: Make, dataset: Dataset) -> None:
    with killed_at("loop.clip_grad_norm_", 10):
        run(experiment(checkpoint_every=4), dataset)
    result, shown = run(experiment(steps=6), dataset, resume=True)
    assert "Stopped" not in shown, "it has all its steps"
    assert [r["step"] for r in records(result, "valid")] == [8] and result.epochs == 1


def test_a_finished_run_is_left_as_it_is(experiment: Make, dataset: Dataset, uninterrupted: RunResult) -> None:
    before = (uninterrupted.run / "metrics.jsonl").stat().st_mtime_ns
    assert run(experiment(), dataset, run_dir=uninterrupted.run, resume=True)[0] == uninterrupted
    assert (uninterrupted.run / "metrics.jsonl").stat().st_mtime_ns == before
    with pytest.raises(CtrkitError, match="cannot be resumed with another model"):
        run(experiment(model={"name": "lr"}), dataset, run_dir=uninterrupted.run, resume=True)


def test_what_cannot_be_resumed_says_why(experiment: Make, dataset: Dataset) -> None:
    with pytest.raises(CtrkitError, match="no unfinished run of 'tiny-dnn'"):
        run(experiment(), dataset, resume=True)
    with killed_at("loop.clip_grad_norm_", 20):
        run(experiment(), dataset)
    with pytest.raises(CtrkitError, match=r"training.batch_size: 128 before, 64 now"):
        run(experiment(batch_size=64), dataset, resume=True)
    with pytest.raises(CtrkitError, match="not empty"):
        run(experiment(), dataset, run_dir=Path(experiment().output) / "runs" / "tiny-dnn-1")


def test_a_run_folder_that_cannot_be_made_is_one_clear_error(experiment: Make, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(CtrkitError, match="cannot be made"):
            run(experiment(), dataset, run_dir=place)


def test_steps_limit_and_warm_up(experiment: Make, dataset: Dataset) -> None:
    result, _ = run(experiment(steps=20, warmup_steps=40), dataset)
    assert [r["step"] for r in records(result, "valid")] == [15, 20]
    assert [r["learning_rate"] for r in records(result, "train")] == pytest.approx([0.01 * 15 / 40, 0.01 * 20 / 40])
    assert result.epochs == 2


def test_plateau_lowers_the_learning_rate(experiment: Make, dataset: Dataset) -> None:
    settings = experiment(epochs=8, patience=2, decay="plateau", embedding={"learning_rate": 1.0}, learning_rate=0.05)
    result, _ = run(settings, dataset)
    rates = [r["learning_rate"] for r in records(result, "train") if r["step"] % STEPS == 0]
    improved = [r["auc"] - r["logloss"] for r in records(result, "valid")]
    expected, best, plateaus = [], -np.inf, 0
    for value in improved:
        expected.append(0.05 * 0.1**plateaus)
        plateaus += value <= best
        best = max(best, value)
    assert rates == pytest.approx(expected) and rates[-1] < 0.05


def test_divergence_names_the_batch_and_leaves_a_good_resume_point(
    experiment: Make, dataset: Dataset, uninterrupted: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = experiment(checkpoint_every=4)
    factor = loop.schedule.factor
    with monkeypatch.context() as patch:
        patch.setattr(loop.schedule, "factor", lambda s, step, *rest: 1e38 if step == 21 else factor(s, step, *rest))
        message = r"not finite in epoch 2, step 23: batch 8 of 15, rows 841 to 960 .* last good resume point is step 20"
        with pytest.raises(CtrkitError, match=message) as raised:
            run(settings, dataset)
    assert "learning_rate" in raised.value.remedy and "--resume" in raised.value.remedy
    assert_same(run(settings, dataset, resume=True)[0], uninterrupted)


def test_a_full_disk_is_named_and_what_was_written_is_kept(
    experiment: Make, dataset: Dataset, uninterrupted: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = torch.save, iter(range(1, 100))

    def disk_fills_up(content, file) -> None:
        if next(calls) >= 5:
            with open("/dev/full", "wb") as full:
                save(content, full)
        save(content, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", disk_fills_up)
        with pytest.raises(CtrkitError, match="the disk is full.*Free some space"):
            run(experiment(), dataset)
    result, shown = run(experiment(), dataset, resume=True)
    assert "Resumed after step 15 of 45" in shown
    assert_same(result, uninterrupted)


def changed(dataset: Dataset, folder: Path, **about) -> Dataset:
    """A copy with other entries in its dataset.json."""
    copy = shutil.copytree(dataset.path, folder)
    before = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**before, **about}))
    return Dataset.open(copy)


def test_learning_nothing_is_warned_about(experiment: Make, dataset: Dataset, tmp_path: Path) -> None:
    still = experiment(model={"name": "lr"}, embedding={"learning_rate": 1e-30, "init_std": 1e-30}, learning_rate=1e-30)
    ids_only = {**dataset.inputs.model_dump(mode="json"), "numeric_fields": []}
    result, shown = run(still, changed(dataset, tmp_path / "copy", inputs=ids_only))
    assert result.valid["auc"] == 0.5
    assert shown.count("Warning: the valid AUC has been about 0.5 for a whole epoch") == result.epochs
    assert "Warning" not in run(experiment(), dataset)[1]


def test_without_tables_and_without_numbers(experiment: Make, dataset: Dataset, tmp_path: Path) -> None:
    inputs = dataset.inputs.model_dump(mode="json")
    numbers, _ = run(experiment(), changed(dataset, tmp_path / "numbers", inputs={**inputs, "id_fields": []}))
    ids, _ = run(experiment(), changed(dataset, tmp_path / "ids", inputs={**inputs, "numeric_fields": []}))
    assert 0.6 < numbers.test["auc"] < 0.75 < ids.test["auc"]
    assert evaluate_run(numbers.run, "test")["metrics"] == pytest.approx(numbers.test, abs=1e-6)


def test_a_valid_split_of_one_class_is_refused_by_auc_not_by_logloss(experiment: Make, dataset: Dataset, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset.path, tmp_path / "copy")
    (part,) = (copy / "valid").iterdir()
    table = pq.read_table(part)
    place = table.column_names.index("@label")
    pq.write_table(table.set_column(place, "@label", pa.array(np.zeros(len(table), np.float32))), part)
    with pytest.raises(CtrkitError, match="labels are all of one class"):
        run(experiment(), Dataset.open(copy))
    result, _ = run(experiment(monitor="logloss"), Dataset.open(copy))
    assert np.isnan(result.valid["auc"]) and json.loads((result.run / "result.json").read_text())["valid"]["auc"] is None


def test_wrong_settings_are_refused_before_a_run_folder_is_made(experiment: Make, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(CtrkitError, match="autoint"):
        run(experiment(model={"name": "autoit"}), dataset)
    with pytest.raises(CtrkitError, match="gauc.*no groups"):
        run(experiment(monitor="gauc"), changed(dataset, tmp_path / "copy", group=None))
    assert not Path(experiment().output).exists()


def test_bf16_learns_the_same_task(experiment: Make, dataset: Dataset) -> None:
    full, _ = run(experiment(precision="fp32"), dataset)
    half, _ = run(experiment(precision="bf16"), dataset)
    assert half.valid != full.valid
    assert half.test["auc"] == pytest.approx(full.test["auc"], abs=0.02)


def test_a_terminal_gets_a_progress_bar(experiment: Make, dataset: Dataset) -> None:
    text = io.StringIO()
    train(experiment(epochs=1), dataset, console=Console(file=text, width=200, force_terminal=True))
    assert "epoch 1/1" in text.getvalue() and "samples/s" in text.getvalue() and "15/15" in text.getvalue()


def test_runs_that_cannot_be_evaluated_say_why(experiment: Make, dataset: Dataset, uninterrupted: RunResult, tmp_path: Path) -> None:
    with pytest.raises(CtrkitError, match="no run folder at"):
        evaluate_run(tmp_path / "nowhere", "test")
    with pytest.raises(CtrkitError, match="not a run"):
        evaluate_run(tmp_path, "test")
    with pytest.raises(CtrkitError, match="no rows in a split 'tset'"):
        evaluate_run(uninterrupted.run, "tset")
    with killed_at("loop.clip_grad_norm_", 20):
        run(experiment(), dataset)
    with pytest.raises(CtrkitError, match="did not finish"):
        evaluate_run(Path(experiment().output) / "runs" / "tiny-dnn-1", "test")
    copy = shutil.copytree(uninterrupted.run, tmp_path / "copy")
    (copy / "origin.json").write_text(json.dumps({"dataset": str(tmp_path / "gone")}))
    with pytest.raises(CtrkitError, match="is gone from .*Prepare it again"):
        evaluate_run(copy, "test")
