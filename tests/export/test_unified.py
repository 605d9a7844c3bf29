"""The exported unified embedding: the hash of training, one look-up a table, every model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ctrkit.bundle import MODEL_FILE
from ctrkit.config import UnifiedEmbedding
from ctrkit.embeddings.tables import Group
from ctrkit.embeddings.unified import JoinLookups, hash_coefficients, hash_ids, plan_lookups
from ctrkit.export.graph import refuse_loops, write_model
from ctrkit.export.selfcheck import to_batch, to_tensors
from ctrkit.export.twin import Twin
from ctrkit.export.writer import Trained, write_bundle
from ctrkit.models.registry import models
from ctrkit.schema import IdField, Inputs
from tests.zoo import has_search, info_of, small_settings

SALTS = torch.tensor([hash_coefficients(field, k) for field in ("user", "item") for k in range(2)]).T.contiguous()
TABLE_ROWS = 100_003

MODELS = [m.name for m in models() if m.kind != "sequence" and not has_search(m.name)]
EXPORTED = ("ffm", "mmoe")
"""Groups of two widths and one group, one label and two. Exporting takes seconds: the others are slow tests."""


class Hashes(nn.Module):
    """``[n]`` ids -> ``[n, 4]`` rows."""

    def forward(self, ids: Tensor) -> Tensor:
        return hash_ids(ids.unsqueeze(1), SALTS, TABLE_ROWS)


@pytest.fixture(scope="module")
def session() -> Any:
    program = torch.export.export(Hashes(), (torch.ones(3, dtype=torch.int64),), dynamic_shapes=({0: torch.export.Dim("n")},))
    exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert exported is not None
    assert {node.op_type for node in exported.model_proto.graph.node}.isdisjoint({"Loop", "Scan", "If"})
    return onnxruntime.InferenceSession(exported.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=30))
def test_onnx_hashes_any_id_as_torch_does(session: Any, ids: list[int]) -> None:
    (given_rows,) = session.run(None, {session.get_inputs()[0].name: np.array(ids, np.int64)})
    assert given_rows.tolist() == Hashes()(torch.tensor(ids)).tolist()


def unified_model(trained: Callable[..., Trained], model: str) -> Trained:
    """With look-ups of another number for a bag and for a single value."""
    unified = UnifiedEmbedding(rows=40, dim=4, lookups=2, feature_lookups={"tags": 3, "site": 1}, optimizer="sgd", init_std=0.5)
    label = {"first": "click", "second": "buy"} if info_of(model).kind == "multi-task" else "click"
    return trained(model, embedding=unified, label=label, **small_settings(model))


@pytest.mark.parametrize("model", MODELS)
def test_the_twin_of_every_model_predicts_what_it_does(model: str, trained: Callable[..., Trained]) -> None:
    whole = unified_model(trained, model)
    inputs, encoded = whole.inputs, whole.transforms.encode(whole.golden)
    twin = Twin(inputs, whole.tables, whole.dense_arch).eval()
    with torch.no_grad():
        rebuilt = twin(to_tensors(encoded, inputs)).numpy()
    np.testing.assert_allclose(rebuilt, whole.reference(to_batch(encoded, inputs)), atol=1e-6)
    assert np.ptp(rebuilt) > 1e-3


@pytest.mark.parametrize("model", [m if m in EXPORTED else pytest.param(m, marks=pytest.mark.slow) for m in MODELS])
def test_every_model_exports_what_it_was_trained_as(model: str, tmp_path: Path, trained: Callable[..., Trained]) -> None:
    """``write_bundle`` compares trained model, twin and graph."""
    assert write_bundle(unified_model(trained, model), tmp_path, "m").max_abs_diff <= 1e-5


def test_a_shared_table_is_looked_up_once_and_once_a_bag(tmp_path: Path, trained: Callable[..., Trained]) -> None:
    model = trained("fm", embedding=UnifiedEmbedding(rows=40, dim=4, lookups=2, optimizer="sgd"))
    twin = Twin(model.transforms.inputs, model.tables, model.dense_arch)
    write_model(tmp_path, twin, model.transforms.onnx_graph(), name="m", version=1, external_bytes=1e9)
    graph = onnx.load(tmp_path / MODEL_FILE).graph
    refuse_loops(graph)
    tables = {value.name: tuple(value.dims) for value in graph.initializer if value.name.endswith(".table")}
    assert sorted(tables.values()) == [(40, 1), (40, 4)]
    bags = 2
    assert sum(node.op_type == "Gather" and node.input[0] in tables for node in graph.node) == len(tables) * (1 + bags)


def test_padding_counts_for_nothing_whatever_its_row_holds() -> None:
    inputs = Inputs(id_fields=(IdField(name="bag", rows=9, multi_valued=True, pooling="mean"),), numeric_fields=())
    settings = UnifiedEmbedding(rows=5, dim=1, lookups=2)

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.join = JoinLookups(inputs, plan_lookups(inputs, [Group("embedding", 2)], settings))

        def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
            return embeddings["embedding"].sum((1, 2))

    twin = Twin(inputs, {"embedding/shared": torch.tensor([[99.0], [0.5], [0.5], [0.5], [0.5]])}, Sum())
    got = twin({"bag@ids": torch.tensor([0, 7, 0, 3]), "bag.lengths": torch.tensor([3, 1, 0])})
    torch.testing.assert_close(torch.logit(got), torch.tensor([1.0, 1.0, 0.0]))
