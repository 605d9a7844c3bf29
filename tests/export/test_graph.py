from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from ctrkit.bundle import MODEL_FILE, WEIGHTS_FILE, open_session
from ctrkit.errors import CtrkitError
from ctrkit.export.graph import refuse_loops, write_model
from ctrkit.export.selfcheck import check
from ctrkit.export.triton import triton_config
from ctrkit.export.twin import Twin
from ctrkit.export.writer import Trained
from ctrkit.schema import Feature
from ctrkit.transforms import FittedTransforms, fitter_for


def write(folder: Path, trained: Trained, external_bytes: float) -> Twin:
    twin = Twin(trained.transforms.inputs, trained.tables, trained.dense_arch)
    write_model(folder, twin, trained.transforms.onnx_graph(), name="m", version=3, external_bytes=external_bytes)
    return twin


@dataclass(frozen=True)
class Written:
    folder: Path
    twin: Twin
    trained: Trained

    @property
    def session(self) -> Any:
        return open_session(self.folder / MODEL_FILE)


@pytest.fixture(scope="module")
def fm(trained: Callable[..., Trained], tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder, model = tmp_path_factory.mktemp("fm"), trained("fm")
    return Written(folder, write(folder, model, external_bytes=1e9), model)


def test_weights_lie_inside_or_beside_and_predict_the_same(tmp_path: Path, trained: Callable[..., Trained]) -> None:
    model = trained("dnn", hidden=[32])
    inside, beside = tmp_path / "inside", tmp_path / "beside"
    inside.mkdir()
    beside.mkdir()
    twin = write(inside, model, external_bytes=1e9)
    write(beside, model, external_bytes=2_000)

    assert [file.name for file in inside.iterdir()] == [MODEL_FILE]
    weights = 4 * (sum(t.numel() for t in model.tables.values()) + sum(p.numel() for p in model.dense_arch.parameters()))
    assert (beside / WEIGHTS_FILE).stat().st_size > 0.9 * weights
    assert (beside / MODEL_FILE).stat().st_size < (inside / MODEL_FILE).stat().st_size - 0.9 * weights

    for folder in (inside, beside):
        checked = check(open_session(folder / MODEL_FILE), twin, model.reference, model.transforms, model.golden)
        assert checked.max_abs_diff <= 1e-5
        assert checked.probabilities.shape == (model.golden.height,) and np.ptp(checked.probabilities) > 0.01


def test_the_check_finds_a_difference_wherever_it_is(fm: Written) -> None:
    for spoil in (lambda p: p + 1e-4, lambda p: np.where(np.arange(len(p)) == len(p) - 1, np.nan, p)):
        with pytest.raises(CtrkitError, match="the ONNX model is not the trained one: on the golden rows, row .*Nothing was exported"):
            check(
                fm.session, fm.twin, lambda batch, spoil=spoil: spoil(fm.trained.reference(batch)), fm.trained.transforms, fm.trained.golden
            )
    checked = check(fm.session, fm.twin, fm.trained.reference, fm.trained.transforms, fm.trained.golden)
    assert checked.max_abs_diff <= 1e-5


def test_the_graph_says_what_it_is_and_nothing_about_the_machine(fm: Written) -> None:
    model = onnx.load(fm.folder / MODEL_FILE)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert (properties["ctrkit.name"], properties["ctrkit.version"], model.graph.name, model.model_version) == ("m", "3", "m", 3)
    assert [output.name for output in model.graph.output] == ["probability"]
    assert "tags.values" in [value.name for value in model.graph.input]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert __file__.encode() not in (fm.folder / MODEL_FILE).read_bytes()
    refuse_loops(model.graph)


def test_a_table_is_looked_up_once_for_all_single_valued_fields(fm: Written) -> None:
    graph = onnx.load(fm.folder / MODEL_FILE).graph
    tables = [value.name for value in graph.initializer if "table_" in value.name]
    lookups = [node for node in graph.node if node.op_type == "Gather" and node.input[0] in tables]
    bags = 2
    assert len(tables) == 2 and len(lookups) == len(tables) * (1 + bags)


def test_the_config_of_triton_names_every_input(fm: Written) -> None:
    config = triton_config("m", fm.trained.transforms.features)
    types = {TensorProto.STRING: "TYPE_STRING", TensorProto.INT64: "TYPE_INT64", TensorProto.DOUBLE: "TYPE_FP64"}
    inputs = onnx.load(fm.folder / MODEL_FILE).graph.input
    assert len(inputs) == config.count("data_type") - 1
    for value in inputs:
        assert f'{{ name: "{value.name}", data_type: {types[value.type.tensor_type.elem_type]}, dims: [ -1 ] }}' in config
    assert '{ name: "probability", data_type: TYPE_FP32, dims: [ -1 ] }' in config


def test_no_feature_name_collides_with_the_graphs_own(tmp_path: Path) -> None:
    names = ("offsets", "val_0", "table_embedding", "add", "order", "dense_arch.weight")
    features = [Feature.model_validate({"name": name, "kind": "categorical"}) for name in names]
    frame = pl.DataFrame({name: ["a", "b"] for name in names})
    fitters = [fitter_for(feature) for feature in features]
    for fitter in fitters:
        fitter.update(frame)
    transforms = FittedTransforms([fitter.finish() for fitter in fitters])

    class Arch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(2.0))

        def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
            return embeddings["embedding"].sum((1, 2)) * self.weight

    twin = Twin(transforms.inputs, {f"embedding/{name}": torch.full((4, 1), 0.125) for name in names}, Arch())
    write_model(tmp_path, twin, transforms.onnx_graph(), name="m", version=1, external_bytes=1e9)
    feed = {name: np.array(["a", "?"], dtype=object) for name in names}
    (got,) = open_session(tmp_path / MODEL_FILE).run(None, feed)
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-1.5)), rtol=1e-6)


def test_a_loop_is_refused_wherever_it_hides() -> None:
    empty = helper.make_graph([], "empty", [], [])
    loop = helper.make_graph([helper.make_node("Loop", ["n", ""], [], name="over rows", body=empty)], "g", [], [])
    hidden = helper.make_graph([helper.make_node("If", ["c"], [], then_branch=loop, else_branch=empty)], "g", [], [])
    refuse_loops(helper.make_graph([helper.make_node("If", ["c"], [], then_branch=empty, else_branch=empty)], "g", [], []))
    for graph in (loop, hidden):
        with pytest.raises(CtrkitError, match="Loop node \\('over rows'\\)"):
            refuse_loops(graph)


@pytest.mark.slow
def test_weights_beyond_2_gb(tmp_path: Path) -> None:
    rows, dim = 40_000_000, 16
    feature = Feature.model_validate({"name": "user", "kind": "categorical", "transform": {"kind": "hash", "buckets": rows - 1}})
    fitter = fitter_for(feature)
    fitter.update(pl.DataFrame({"user": ["a"]}))
    transforms = FittedTransforms([fitter.finish()])

    class Arch(nn.Module):
        def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
            return embeddings["embedding"].sum((1, 2))

    table = torch.zeros(rows, dim)
    values = [f"user {i}" for i in range(100)]
    ids = transforms.encode(pl.DataFrame({"user": values}))["user"].to_numpy()
    table[ids] = torch.linspace(-0.1, 0.1, len(ids)).unsqueeze(1)
    twin = Twin(transforms.inputs, {"embedding/user": table}, Arch())
    write_model(tmp_path, twin, transforms.onnx_graph(), name="m", version=1, external_bytes=1e12)
    assert (tmp_path / WEIGHTS_FILE).stat().st_size >= 4 * rows * dim > 2**31
    assert (tmp_path / MODEL_FILE).stat().st_size < 100_000
    (got,) = open_session(tmp_path / MODEL_FILE).run(None, {"user": np.array(values, dtype=object)})
    np.testing.assert_allclose(got, torch.sigmoid(table[ids].sum(1)).numpy(), atol=1e-6)
    (tmp_path / WEIGHTS_FILE).unlink()
