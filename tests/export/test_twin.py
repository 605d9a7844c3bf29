import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ctrkit.embeddings.tables import Group
from ctrkit.export.selfcheck import to_batch, to_tensors
from ctrkit.export.twin import Twin
from ctrkit.schema import IdField, Inputs

POOLINGS = ("mean", "sum")


class SumOfAll(nn.Module):
    """Logit = all embeddings, fields weighted 1, 10, 100 ..., and all numbers."""

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        (vectors,) = embeddings.values()
        return (vectors.sum(2) * 10.0 ** torch.arange(vectors.shape[1])).sum(1) + dense.nan_to_num().sum(1)


def logits(inputs: Inputs, tables: dict[str, list[float]], encoded: dict[str, list[float]]) -> np.ndarray:
    twin = Twin(inputs, {f"embedding/{name}": torch.tensor(rows).unsqueeze(1) for name, rows in tables.items()}, SumOfAll())
    tensors = {name: torch.tensor(values, dtype=torch.float32 if "@dense" in name else torch.int64) for name, values in encoded.items()}
    return torch.logit(twin(tensors).double()).numpy()


def test_known_answer() -> None:
    inputs = Inputs(
        id_fields=(
            IdField(name="bag", rows=4, multi_valued=True, pooling="mean"),
            IdField(name="one", rows=3),
            IdField(name="sum", rows=3, multi_valued=True, pooling="sum"),
        ),
        numeric_fields=("n",),
    )
    tables = {"bag": [0.0, 0.1, 0.2, 0.4], "one": [0.0, 0.01, 0.02], "sum": [0.0, 0.001, 0.002]}
    encoded = {
        "one@id": [1, 2, 1],
        "bag@ids": [1, 3, 0, 2, 0],
        "bag.lengths": [2, 0, 3],
        "sum@ids": [2, 2, 1],
        "sum.lengths": [0, 2, 1],
        "n@dense": [0.5, float("nan"), 0.0],
    }
    expected = [0.25 + 0.1 + 0.5, 0.2 + 0.4, 0.2 + 0.1 + 0.1]
    np.testing.assert_allclose(logits(inputs, tables, encoded), expected, atol=1e-6)


def test_padding_counts_for_nothing_whatever_its_row_holds() -> None:
    inputs = Inputs(id_fields=(IdField(name="bag", rows=2, multi_valued=True, pooling="mean"),), numeric_fields=())
    encoded = {"bag@ids": [0, 1, 0], "bag.lengths": [2, 1]}
    np.testing.assert_allclose(logits(inputs, {"bag": [99.0, 0.5]}, encoded), [0.5, 0.0], atol=1e-6)


def test_numbers_alone_make_a_model() -> None:
    inputs = Inputs(id_fields=(), numeric_fields=("a", "b"))

    class Sum(nn.Module):
        def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
            assert {name: e.shape for name, e in embeddings.items()} == {"embedding": (2, 0, 4), "linear": (2, 0, 1)}
            return dense.sum(1)

    twin = Twin(inputs, {}, Sum(), groups=[Group("embedding", 4), Group("linear", 1)])
    got = twin({"a@dense": torch.tensor([1.0, 0.0]), "b@dense": torch.tensor([-1.0, 0.0])})
    assert got.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("pooling", POOLINGS)
@given(bags=st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=8))
def test_a_bag_is_the_mean_or_sum_of_its_known_ids(pooling: str, bags: list[list[int]]) -> None:
    inputs = Inputs.model_validate(
        {"id_fields": [{"name": "bag", "rows": 5, "multi_valued": True, "pooling": pooling}], "numeric_fields": []}
    )
    table = [0.0, 0.3, -0.2, 0.7, 0.1]
    encoded = {"bag@ids": [i for bag in bags for i in bag], "bag.lengths": [len(bag) for bag in bags]}
    expected = []
    for bag in bags:
        known = [table[i] for i in bag if i]
        expected.append(sum(known) / (max(1, len(known)) if pooling == "mean" else 1))
    np.testing.assert_allclose(logits(inputs, {"bag": table}, encoded), expected, atol=1e-6)


class Recorder(nn.Module):
    """Keeps the embeddings it was given."""

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        self.seen = embeddings
        return dense.sum(1)


@given(histories=st.lists(st.lists(st.integers(0, 4), max_size=8), min_size=1, max_size=6))
def test_a_sequence_is_laid_out_by_place_or_pooled(histories: list[list[int]]) -> None:
    """Whatever values were dropped, at the front, in the middle or at the end."""
    length, rows = 3, len(histories)
    histories = [[0 if sum(map(bool, row[k:])) > length else i for k, i in enumerate(row)] for row in histories]  # as the transform does
    past = IdField(name="past", rows=5, multi_valued=True, of="item", length=length)
    inputs = Inputs(id_fields=(past, IdField(name="item", rows=5)), numeric_fields=("n",))
    table = torch.tensor([9.0, 0.1, 0.2, 0.3, 0.4]).unsqueeze(1)
    twin = Twin(
        inputs, {"embedding/item": table, "linear/item": 10 * table}, recorder := Recorder(), groups=[Group("embedding", 1, unpooled=True)]
    )
    lengths = torch.tensor([len(row) for row in histories])
    ids = torch.tensor([i for row in histories for i in row], dtype=torch.int64)
    twin({"item@id": torch.full((rows,), 4), "past@ids": ids, "past.lengths": lengths, "n@dense": torch.zeros(rows)})

    kept = [[i for i in row if i] for row in histories]
    places = torch.tensor([[0] * (length - len(row)) + row for row in kept])
    assert torch.equal(recorder.seen["mask/past"], places != 0)
    torch.testing.assert_close(recorder.seen["embedding/past"], 0.1 * places.unsqueeze(2))
    torch.testing.assert_close(recorder.seen["embedding"], torch.full((rows, 1, 1), 0.4))
    means = torch.tensor([sum(row) / max(1, len(row)) for row in kept])
    torch.testing.assert_close(recorder.seen["linear"][:, :, 0], torch.stack([means, torch.full((rows,), 4.0)], dim=1))


def test_a_frame_feeds_torchrec_and_the_twin_alike() -> None:
    inputs = Inputs(
        id_fields=(IdField(name="bag", rows=9, multi_valued=True), IdField(name="one", rows=9)),
        numeric_fields=("n",),
    )
    encoded = pl.DataFrame(
        {"n": [0.5, float("nan")], "one": [3, 4], "bag": [[1, 2], []]}, schema={"n": pl.Float32, "one": pl.Int64, "bag": pl.List(pl.Int64)}
    )
    batch, tensors = to_batch(encoded, inputs), to_tensors(encoded, inputs)
    assert batch.sparse.keys() == ["bag", "one"]
    assert batch.sparse.values().tolist() == [1, 2, 3, 4] and batch.sparse.lengths().tolist() == [2, 0, 1, 1]
    assert tensors["bag@ids"].tolist() == [1, 2] and tensors["bag.lengths"].tolist() == [2, 0] and tensors["one@id"].tolist() == [3, 4]
    assert batch.dense[0].tolist() == [0.5] and batch.dense.isnan().tolist() == [[False], [True]]
    torch.testing.assert_close(tensors["n@dense"], batch.dense[:, 0], equal_nan=True)
