"""A search and the training after it, as a user sees them: OptFS on a log in which half of the features are noise."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from rich.console import Console

from ctrkit.bundle import MODEL_FILE, open_bundle
from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.data.prepare import prepare
from ctrkit.drift import bins_of_numbers, feature_bins, score_bins
from ctrkit.errors import CtrkitError
from ctrkit.models.optfs import OptFSSearch
from ctrkit.training import loop
from ctrkit.training.evaluate import evaluate_run, predict_split
from ctrkit.training.run import RunResult, load_run
from ctrkit.training.trainer import train
from pipelines.export import export_run

ROWS, VALUES, STEPS = 6000, 12, 17
"""Of the log, of a categorical field, of an epoch: 4200 training rows in batches of 256."""
SIGNAL, NOISE = ("s1", "s2", "s3"), ("n1", "n2", "n3")
BASES = {"lr": {}, "fm": {}, "deepfm": {"hidden": [16]}, "dcn": {"layers": 2, "hidden": [16]}, "ipnn": {"hidden": [16]}}
SEARCH = {"l1": 2e-3, "gate_learning_rate": 0.03, "search_epochs": 6, "rewind_epoch": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a log whose clicks follow ``s1 .. s3`` and ``sx``, and neither ``n1 .. n3`` nor ``nx`` nor the tags."""
    folder = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(1)
    ids = {name: rng.integers(0, VALUES, ROWS) for name in SIGNAL + NOISE}
    effects = np.array([-2.0, -1.0, 1.0, 2.0])
    numbers = {"sx": rng.normal(size=ROWS), "nx": rng.normal(size=ROWS)}
    logit = sum(effects[(ids[name] + k) % 4] for k, name in enumerate(SIGNAL)) + numbers["sx"]
    columns = {name: [f"{name} value {i}" for i in column] for name, column in ids.items()}
    tags = ["|".join(f"t{t}" for t in rng.integers(0, 8, rng.integers(0, 3))) for _ in range(ROWS)]
    click = (rng.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(int)
    pl.DataFrame({**columns, "tags": tags, **numbers, "click": click}).write_parquet(folder / "log.parquet")
    return folder


def experiment(folder: Path, output: Path, model: dict[str, Any], embedding: dict[str, Any] | None = None, **training: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "planted",
            "data": {"path": str(folder / "log.parquet")},
            "label": "click",
            "split": {"valid": 0.15, "test": 0.15},
            "features": [
                *({"name": name, "kind": "categorical"} for name in (*SIGNAL, *NOISE)),
                {"name": "tags", "kind": "multi_valued"},
                {"name": ["sx", "nx"], "kind": "numeric"},
            ],
            "model": model,
            "embedding": {"dim": 4, "learning_rate": 0.1, **(embedding or {})},
            "training": {"batch_size": 256, "epochs": 3, "learning_rate": 0.005, "threads": 1, "precision": "fp32", **training},
            "output": str(output),
        }
    )


def optfs(base: str, **settings: Any) -> dict[str, Any]:
    return {"name": "optfs", "base": base, "base_settings": BASES[base], **SEARCH, **settings}


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return prepare(experiment(folder, folder, {"name": "lr"}), folder / "dataset")


def run(settings: Experiment, dataset: Dataset, **options: Any) -> tuple[RunResult, str]:
    text = io.StringIO()
    return train(settings, dataset, console=Console(file=text, width=200), **options), text.getvalue()


@pytest.fixture(scope="module")
def runs(folder: Path, dataset: Dataset) -> Callable[[str], tuple[RunResult, str]]:
    """The run of a base model, trained when it is first asked for."""
    done: dict[str, tuple[RunResult, str]] = {}

    def of(base: str) -> tuple[RunResult, str]:
        if base not in done:
            done[base] = run(experiment(folder, folder / "out", optfs(base)), dataset)
        return done[base]

    return of


class Killed(BaseException):
    """Stands for a kill: nothing in the code under test catches it."""


@contextmanager
def killed_at(owner: Any, name: str, call: int) -> Iterator[None]:
    """The process "dies" at this call, counted from 1, of a function."""
    original, calls = getattr(owner, name), iter(range(1, 10_000))

    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise Killed
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        with pytest.raises(Killed):
            yield


def assert_same(left: RunResult, right: RunResult) -> None:
    assert (left.valid, left.test, left.decision, left.params) == (right.valid, right.test, right.decision, right.params)
    ours, theirs = load_run(left.run)[2], load_run(right.run)[2]
    for part in ("dense_arch", "tables", "decision"):
        assert ours[part].keys() == theirs[part].keys()
        assert all(torch.equal(ours[part][name], theirs[part][name]) for name in ours[part])


@pytest.mark.parametrize("base", [base if base in ("lr", "deepfm") else pytest.param(base, marks=pytest.mark.slow) for base in BASES])
def test_noise_is_dropped_and_signal_is_kept(base: str, runs: Callable) -> None:
    result, shown = runs(base)
    fields = result.decision["fields"]
    assert fields["sx"]["kept"] == 1 and fields["nx"]["kept"] == 0
    noise = [fields[name] for name in (*NOISE, "tags")]
    signal = [fields[name] for name in SIGNAL]
    assert sum(f["kept"] for f in noise) <= 0.05 * sum(f["values"] for f in noise)
    assert sum(f["kept"] for f in signal) >= 2 / 3 * sum(f["values"] for f in signal)
    assert result.test["auc"] > 0.88
    assert f"Search: {result.decision['summary']}" in shown and "epoch 6/6" in shown and "epoch 3/3" in shown


def test_the_kept_ratio_is_that_of_the_masks_and_of_the_tables(runs: Callable, dataset: Dataset) -> None:
    result, _ = runs("fm")
    weights = load_run(result.run)[2]
    masks = weights["decision"]
    counted = {name: int(mask[1:].sum() if mask.dim() else mask) for name, mask in masks.items()}
    values = {f.name: f.rows - 1 for f in dataset.inputs.id_fields} | dict.fromkeys(dataset.inputs.numeric_fields, 1)
    assert {name: (f["kept"], f["values"]) for name, f in result.decision["fields"].items()} == {n: (counted[n], values[n]) for n in values}
    assert result.decision["ratio"] == sum(counted.values()) / sum(values.values()) < 0.6
    for name in ("embedding", "linear"):
        rows = {f.name: len(weights["tables"][f"{name}/{f.name}"]) for f in dataset.inputs.id_fields}
        assert rows == {name: max(2, counted[name] + 1) for name in rows}
    assert json.loads((result.run / "result.json").read_text())["decision"] == result.decision
    assert json.loads((result.run / "decision.json").read_text()) == result.decision
    assert {path.name for path in (result.run / "search").iterdir()} == {"found.pt", "metrics.jsonl", "tensorboard"}
    assert evaluate_run(result.run, "test")["metrics"] == pytest.approx(result.test, abs=1e-6)


def test_the_bundle_is_smaller_and_predicts_the_same(folder: Path, dataset: Dataset, runs: Callable, tmp_path: Path) -> None:
    """Beside ``fm`` with all values: what is pruned is gone from the tables, and from the vocabularies."""
    pruned = runs("fm")[0].run
    alone = run(experiment(folder, folder / "alone", {"name": "fm"}), dataset)[0]
    assert runs("fm")[0].test["auc"] > alone.test["auc"] - 0.002 and runs("fm")[0].params < 0.6 * alone.params
    size = {}
    for name, path in (("pruned", pruned), ("whole", alone.run)):
        exported = export_run(path, tmp_path / name)
        assert exported["max_abs_diff"] <= 1e-5
        bundle = open_bundle(exported["bundle"])
        size[name] = (bundle.path / MODEL_FILE).stat().st_size
        raw = dataset.golden()
        scored = bundle.score([{k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()} for row in raw.to_dicts()])
        np.testing.assert_allclose(scored, predict_split(path, "test").probabilities[: len(scored)], atol=1e-5)
        assert score_bins(bundle.manifest.profile, "probability") == bins_of_numbers(predict_split(path, "valid").probabilities)
        bins = [feature_bins(bundle.manifest.profile, feature) for feature in bundle.features]
        assert {one.unknown for one in bins if one is not None and one.codes} == {name == "whole"}
    text = (open_bundle(tmp_path / "pruned" / "planted").path / MODEL_FILE).read_bytes()
    words = [f"{name} value {i}".encode() for name in NOISE for i in range(VALUES)]
    assert sum(word in text for word in words) <= 2 * len(NOISE), "one word a field is left, perhaps one that begins another"
    assert b"s1 value 1" in text
    tensors = {t.name: t for t in onnx.load_from_string(text).graph.initializer}
    (table,) = (t for name, t in tensors.items() if name.endswith("table_embedding"))
    assert table.dims[0] == sum(f.rows for f in load_run_inputs(pruned))
    assert size["pruned"] < size["whole"]


def load_run_inputs(run_dir: Path) -> tuple[Any, ...]:
    from ctrkit.models.registry import rebuild

    _, inputs, weights = load_run(run_dir)
    selection = rebuild(weights, inputs).selection
    assert selection is not None
    return selection.inputs.id_fields


def test_retraining_starts_from_the_rewound_weights_and_the_mask_stays(folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    settings = experiment(folder, tmp_path, optfs("fm"), epochs=1)
    with killed_at(loop, "clip_grad_norm_", STEPS + 2):
        run(settings, dataset, run_dir=tmp_path / "search")
    after_an_epoch = torch.load(tmp_path / "search" / "search" / "checkpoints" / f"step-{STEPS:010d}" / "weights.pt", weights_only=True)

    seen: list[dict[str, Any]] = []
    step = loop.Loop._step

    def look(self: Any, batch: Any) -> None:
        if self.search is None:
            seen.append(deepcopy(self._weights()))
        step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "_step", look)
        result, _ = run(settings, dataset, run_dir=tmp_path / "run")
    decision = load_run(result.run)[2]["decision"]
    first, last = seen[0], seen[-1]
    assert len(seen) == STEPS
    for name, mask in decision.items():
        assert torch.equal(first["decision"][name], mask) and torch.equal(last["decision"][name], mask)
    for name, table in first["tables"].items():
        mask = decision[name.partition("/")[2]].clone()
        mask[0] = True
        rewound = after_an_epoch["tables"][name][mask]
        assert torch.equal(table[: len(rewound)], rewound)
        assert torch.equal(last["tables"][name], table) == (len(rewound) == 1), name
    assert first["dense_arch"].keys() == {name for name in after_an_epoch["dense_arch"] if name.startswith("base.")}
    assert all(torch.equal(tensor, after_an_epoch["dense_arch"][name]) for name, tensor in first["dense_arch"].items())


@pytest.mark.parametrize(
    "embedding",
    [pytest.param({}, marks=pytest.mark.slow), {"optimizer": "adam", "learning_rate": 0.02}],
    ids=["adagrad", "adam"],
)
def test_resumed_after_a_kill_in_either_stage_it_is_the_same_run(
    embedding: dict[str, Any], folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    settings = experiment(folder, tmp_path, optfs("fm", search_epochs=2), embedding, epochs=1, checkpoint_every=5)
    whole, _ = run(settings, dataset, run_dir=tmp_path / "whole")
    search_steps = 2 * STEPS
    places = {
        "searching": (loop, "clip_grad_norm_", STEPS + 9),
        "rewinding": (loop, "save_rewind", 1),
        "deciding": (loop, "save_found", 1),
        "between": (loop, "_build", 1),
        "retraining": (loop, "clip_grad_norm_", search_steps + 8),
    }
    for number, place in enumerate(list(places.values())[: 1 if embedding else None]):
        with killed_at(*place):
            run(settings, dataset, run_dir=tmp_path / f"killed {number}")
        result, _ = run(settings, dataset, run_dir=tmp_path / f"killed {number}", resume=True)
        assert_same(result, whole)


def test_a_search_that_keeps_nothing_says_so(folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(CtrkitError, match="keeps no feature value at all") as raised:
        run(experiment(folder, tmp_path, optfs("lr", l1=1.0, search_epochs=2)), dataset)
    assert "l1" in raised.value.remedy


def test_the_search_takes_all_its_epochs_and_steps_limit_the_training_alone(folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    advanced: list[int] = []

    def advance(self: OptFSSearch, epoch: int, step: int, steps: int) -> None:
        advanced.append(epoch)
        assert (epoch, steps) == (step // STEPS, 4 * STEPS)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OptFSSearch, "advance", advance)
        result, _ = run(experiment(folder, tmp_path, optfs("lr", search_epochs=4, l1=0.0), steps=3, patience=1), dataset)
    assert advanced == [epoch for epoch in range(4) for _ in range(STEPS)]
    assert result.epochs == 1 and result.seconds > 0
