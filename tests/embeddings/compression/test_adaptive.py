"""Rows of their own for frequent ids, hashed ones for the others."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ctrkit.embeddings.compression.adaptive import Adaptive, AdaptiveCodec
from ctrkit.embeddings.compression.codec import stored_bytes
from ctrkit.embeddings.compression.frequent import most_frequent
from ctrkit.errors import CtrkitError
from tests.embeddings.compression.exported import in_onnx
from tests.embeddings.compression.made import counts_of, looked_up, made, method_of, space_of

EVERYTHING = torch.arange(600)


def method_with(budget: float, dim: int = 16, **settings: float) -> Adaptive:
    method = method_of("adaptive", budget, dim, **settings)
    assert isinstance(method, Adaptive)
    return method


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("dim", [16, 7])
@pytest.mark.parametrize("budget", [0.02, 0.1, 0.5, 0.999])
def test_own_rows_their_list_and_shared_rows_fill_the_budget(budget: float, dim: int, share: float) -> None:
    method = method_with(budget, dim, frequent=share)
    codec, tables = made(method)
    size = stored_bytes(codec.stored(tables))
    assert size == 4 * (method.frequent * (dim + 1) + method.shared * dim)
    assert method.allowed_bytes - 4 * dim < size <= method.allowed_bytes
    own = method.frequent * 4 * (dim + 1)
    assert own <= share * method.allowed_bytes < own + 4 * (dim + 1)


def test_the_most_counted_ids_are_the_frequent_ones_of_equal_ones_the_first() -> None:
    assert most_frequent(torch.tensor([1, 9, 0, 9, 4, 4]), 3).tolist() == [1, 3, 4]


def test_by_hand() -> None:
    codec = AdaptiveCodec(space_of({"a": 6}), 1, torch.tensor([1, 4], dtype=torch.int32), shared=1)
    stored = codec.stored({"rows": torch.tensor([[10.0], [40.0], [7.0]])})
    assert stored(torch.arange(6)).flatten().tolist() == [7, 10, 7, 7, 40, 7]


def test_frequent_ids_have_rows_of_their_own_and_no_other_id_looks_them_up() -> None:
    method = method_with(0.2)
    codec, tables = made(method)
    frequent = most_frequent(counts_of(codec.space), method.frequent).to(torch.int64)
    (places,) = codec.places(EVERYTHING)
    assert places[frequent].tolist() == list(range(method.frequent))
    rest = torch.ones(600, dtype=torch.bool).index_fill(0, frequent, False)
    assert places[rest].min() >= method.frequent and places.max() < method.frequent + method.shared
    assert len(places[rest].unique()) > method.shared / 2, "the hash spreads"
    assert torch.equal(codec.stored(tables)(EVERYTHING), looked_up(codec, tables, EVERYTHING))


def test_an_own_row_learns_from_its_id_alone() -> None:
    method = method_with(0.2)
    codec, tables = made(method)
    rows = tables["rows"].requires_grad_()
    weights = torch.randn(600, 16)
    (looked_up(codec, {"rows": rows}, EVERYTHING) * weights).sum().backward()
    frequent = most_frequent(counts_of(codec.space), method.frequent).to(torch.int64)
    assert rows.grad is not None
    assert torch.equal(rows.grad[: method.frequent], weights[frequent])


def test_the_whole_budget_is_the_full_table() -> None:
    codec, tables = made(method_with(1.0))
    assert torch.equal(codec.stored(tables)(EVERYTHING), tables["rows"])


def test_the_export_has_the_same_vectors(tmp_path: Path) -> None:
    codec, tables = made(method_with(0.2, 7))
    stored = codec.stored(tables)
    np.testing.assert_array_equal(in_onnx(stored, EVERYTHING, tmp_path), stored(EVERYTHING).numpy())


def test_two_rows_are_the_least() -> None:
    row = 16 * 4
    method = method_with((2 * row + 4) / (600 * row), frequent=0.99)
    assert (method.frequent, method.shared) == (1, 1)
    with pytest.raises(CtrkitError, match="needs 132 bytes at the least.*a frequent id and a shared one"):
        method_with((2 * row + 3) / (600 * row))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_nothing_or_all_is_refused(share: float) -> None:
    with pytest.raises(CtrkitError, match="frequent"):
        method_with(0.5, frequent=share)
