import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ctrkit.bundle import open_bundle, versions
from ctrkit.data.batch import Batch
from ctrkit.errors import CtrkitError
from ctrkit.export.writer import Trained, write_bundle


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_bundle_is_whole_and_scores_its_golden_rows(tmp_path: Path, trained: Callable[..., Trained]) -> None:
    exported = write_bundle(trained("fm"), tmp_path, "clicks")
    assert exported.bundle == tmp_path / "clicks" / "1"
    assert everything(tmp_path / "clicks") == ["1", "1/golden.json", "1/known.npz", "1/manifest.json", "1/model.onnx", "config.pbtxt"]
    assert exported.bytes == sum(file.stat().st_size for file in exported.bundle.iterdir())

    bundle = open_bundle(exported.bundle)
    golden = bundle.golden()
    assert bundle.score(golden.rows).astype(float).tolist() == golden.probabilities
    assert golden.rows[3]["the user"] is None and golden.rows[3]["item"] is None and golden.rows[2]["price"] is None

    manifest = bundle.manifest
    assert (manifest.name, manifest.version, manifest.model, manifest.run) == ("clicks", 1, "fm", "run-1")
    assert manifest.metrics == {"test": {"auc": 0.5}} and manifest.profile == {"rows": 8}
    assert manifest.max_abs_diff == exported.max_abs_diff <= 1e-5
    assert set(manifest.versions) >= {"ctrkit", "torch", "onnx", "onnxruntime"}
    assert set(manifest.files) == {"golden.json", "known.npz", "model.onnx"}

    known = bundle.known_values
    assert (
        known is not None and [name in known for name in ("the user", "tags", "item", "site", "price", "age")] == [True] * 3 + [False] * 3
    )
    assert known.unknown("the user", np.array(["a", "stranger", "", "ü"], object)) == 1
    assert known.unknown("item", np.array([2**24, 2**24 + 1, 2**24 + 2])) == 1, "ids are not rounded"

    text = (exported.bundle / "manifest.json").read_text()
    assert text.count("\n") > 20, "indented, for people"
    assert json.loads(text)["features"][0]["name"] == "tags"

    second = write_bundle(trained("lr"), tmp_path, "clicks")
    assert second.bundle.name == "2" and versions(tmp_path / "clicks") == [1, 2]
    assert open_bundle(tmp_path / "clicks").manifest.model == "lr"


def test_an_output_a_task_and_a_difference_in_any_is_found(tmp_path: Path, trained: Callable[..., Trained]) -> None:
    label = {"like": "is_like", "click": "is_click", "buy": "paid > 0"}
    model = trained("mmoe", label=label, experts=2, expert_hidden=(5,), hidden=())
    bundle = open_bundle(write_bundle(model, tmp_path, "clicks").bundle)
    assert bundle.manifest.label == label and list(bundle.manifest.label) == list(bundle.tasks) == ["like", "click", "buy"]
    golden = bundle.golden()
    scores = bundle.score(golden.rows)
    assert scores.shape == (8, 3) and len({tuple(column) for column in scores.T}) == 3
    assert golden.probabilities == {task: scores[:, i].tolist() for i, task in enumerate(label)}

    def spoilt(batch: Batch) -> np.ndarray:
        return model.reference(batch) + np.array([0, 0, 1e-4])

    with pytest.raises(
        CtrkitError, match="the ONNX model is not the trained one: on the golden rows, row .* of 'buy' and the trained model"
    ):
        write_bundle(replace(model, reference=spoilt), tmp_path, "clicks")
    with pytest.raises(CtrkitError, match="a feature is named 'price', which is the name of the model's output"):
        write_bundle(replace(model, label={"like": "is_like", "price": "x", "buy": "y"}), tmp_path, "clicks")
    assert versions(tmp_path / "clicks") == [1]


def test_a_graph_that_predicts_otherwise_is_not_exported(tmp_path: Path, trained: Callable[..., Trained]) -> None:
    model = trained("lr")
    spoilt = replace(model, tables={name: table + 1 for name, table in model.tables.items()})
    with pytest.raises(CtrkitError, match="not the trained one"):
        write_bundle(spoilt, tmp_path, "clicks")
    assert everything(tmp_path) == []

    write_bundle(model, tmp_path, "clicks")
    before = everything(tmp_path)
    with pytest.raises(CtrkitError, match="not the trained one"):
        write_bundle(spoilt, tmp_path, "clicks")
    assert everything(tmp_path) == before, "the versions before are left alone"


@pytest.mark.parametrize("name", ["", "../clicks", "a/b", ".hidden", "a:b", "a b"])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, trained: Callable[..., Trained], name: str) -> None:
    with pytest.raises(CtrkitError, match="cannot name a model"):
        write_bundle(trained("lr"), tmp_path, name)
    assert everything(tmp_path) == []


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path, trained: Callable[..., Trained]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CtrkitError, match="cannot be written"):
        write_bundle(trained("lr"), tmp_path / "file", "clicks")


def test_a_version_comes_after_every_numbered_folder(tmp_path: Path, trained: Callable[..., Trained]) -> None:
    (tmp_path / "clicks" / "5").mkdir(parents=True)
    assert write_bundle(trained("lr"), tmp_path, "clicks").bundle.name == "6"
