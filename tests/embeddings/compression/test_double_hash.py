"""Two rows of one table for ids that are hashed, rows of their own for frequent ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ctrkit.embeddings.compression.codec import stored_bytes
from ctrkit.embeddings.compression.double_hash import DoubleHash, DoubleHashCodec
from ctrkit.embeddings.compression.frequent import most_frequent
from ctrkit.errors import CtrkitError
from tests.embeddings.compression.exported import in_onnx
from tests.embeddings.compression.made import counts_of, looked_up, made, method_of, space_of

EVERYTHING = torch.arange(600)
OPERATIONS = ["sum", "concatenation"]


def method_with(budget: float, dim: int = 16, **settings: object) -> DoubleHash:
    method = method_of("double_hash", budget, dim, **settings)
    assert isinstance(method, DoubleHash)
    return method


@pytest.mark.parametrize("share", [0.2, 0.9])
@pytest.mark.parametrize("dim", [16, 7])
@pytest.mark.parametrize("budget", [0.02, 0.1, 0.5, 0.999])
def test_own_rows_their_list_and_shared_rows_fill_the_budget(budget: float, dim: int, share: float) -> None:
    for operation, own, row in (("sum", dim, dim), ("concatenation", 2 * -(-dim // 2), -(-dim // 2))):
        method = method_with(budget, dim, frequent=share, operation=operation)
        codec, tables = made(method)
        size = stored_bytes(codec.stored(tables))
        assert size == 4 * (method.frequent * (own + 1) + method.shared * row)
        assert method.allowed_bytes - 4 * row < size <= method.allowed_bytes


def test_by_hand() -> None:
    ids = torch.arange(6)
    frequent = torch.tensor([1, 4], dtype=torch.int32)
    codec = DoubleHashCodec(space_of({"a": 6}), 3, frequent, shared=7, operation="sum")
    table = torch.randn(codec.parts[0].rows, 3, generator=torch.Generator().manual_seed(0))
    first, second = codec.places(ids)
    expected = table[first] + table[second]
    expected[1], expected[4] = table[0], table[1]
    assert torch.equal(codec.stored({"rows": table})(ids), expected)

    table = torch.randn(11, 2, generator=torch.Generator().manual_seed(0))
    codec = DoubleHashCodec(space_of({"a": 6}), 3, frequent, shared=7, operation="concatenation")
    first, second = codec.places(ids)
    assert (first[[1, 4]].tolist(), second[[1, 4]].tolist()) == ([0, 2], [1, 3]), "the halves of own rows lie side by side"
    assert torch.equal(codec.stored({"rows": table})(ids), torch.cat([table[first], table[second]], dim=1)[:, :3])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_other_id_looks_a_frequent_one_s_row_up(operation: str) -> None:
    method = method_with(0.2, operation=operation)
    codec, tables = made(method)
    frequent = most_frequent(counts_of(codec.space), method.frequent).to(torch.int64)
    own = method.frequent * (1 if operation == "sum" else 2)
    rest = torch.ones(600, dtype=torch.bool).index_fill(0, frequent, False)
    first, second = codec.places(EVERYTHING)
    for places in (first, second):
        assert own <= places[rest].min() and places[rest].max() < own + method.shared
    assert first[frequent].max() < own
    if operation == "concatenation":
        assert second[frequent].max() < own
    else:
        assert (second[frequent] == own + method.shared).all(), "a row for nothing: its own would be decayed twice"
    assert torch.equal(codec.stored(tables)(EVERYTHING), looked_up(codec, tables, EVERYTHING))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_hashes_agree_about_as_rarely_as_two_independent_ones(operation: str) -> None:
    """5,000 ids, 250 rows: by one hash none is alone, of pairs of rows n (n - 1) / 2 / 250^2 = 200 are met twice."""
    frequent = torch.tensor([0], dtype=torch.int32)
    codec = DoubleHashCodec(space_of({"a": 5001}), 4, frequent, shared=250, operation=operation)
    first, second = (places[1:] for places in codec.places(torch.arange(5001)))
    assert len(first.unique()) <= 250 and len(second.unique()) <= 250
    assert len((first * 1000 + second).unique()) == pytest.approx(5000 - 200, abs=100)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_own_row_learns_from_its_id_alone_and_a_shared_one_from_all_its_ids(operation: str) -> None:
    method = method_with(0.2, operation=operation)
    codec, tables = made(method)
    rows = tables["rows"].requires_grad_()
    weights = torch.randn(600, 16)
    (looked_up(codec, {"rows": rows}, EVERYTHING) * weights).sum().backward()
    frequent = most_frequent(counts_of(codec.space), method.frequent).to(torch.int64)
    assert rows.grad is not None
    own = method.frequent * (1 if operation == "sum" else 2)
    assert torch.equal(rows.grad[:own].view(-1, 16), weights[frequent])
    assert not rows.grad[own + method.shared :].any()
    whole = weights if operation == "sum" else weights[:, :8]
    other = weights if operation == "sum" else weights[:, 8:]
    expected = torch.zeros_like(rows)
    for part, places in zip((whole, other), codec.places(EVERYTHING), strict=True):
        expected.index_add_(0, places, part)
    shared = slice(own, own + method.shared)
    torch.testing.assert_close(rows.grad[shared], expected[shared])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_whole_budget_is_the_full_table(operation: str) -> None:
    codec, tables = made(method_with(1.0, operation=operation))
    assert torch.equal(codec.stored(tables)(EVERYTHING), tables["rows"])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_export_has_the_same_vectors(operation: str, tmp_path: Path) -> None:
    codec, tables = made(method_with(0.2, 7, operation=operation))
    stored = codec.stored(tables)
    np.testing.assert_array_equal(in_onnx(stored, EVERYTHING, tmp_path), stored(EVERYTHING).numpy())


@pytest.mark.parametrize(("operation", "least"), [("sum", 64 + 4 + 64), ("concatenation", 64 + 4 + 32)])
def test_an_own_row_and_a_shared_one_are_the_least(operation: str, least: int) -> None:
    method = method_with(least / (600 * 64), operation=operation, frequent=0.99)
    assert (method.frequent, method.shared) == (1, 1)
    with pytest.raises(CtrkitError, match=f"needs {least} bytes at the least.*a frequent id and a shared one"):
        method_with((least - 1) / (600 * 64), operation=operation)


@pytest.mark.parametrize(("setting", "value"), [("frequent", 0.0), ("frequent", 1.0), ("operation", "product")])
def test_other_settings_are_refused(setting: str, value: object) -> None:
    with pytest.raises(CtrkitError, match=setting):
        method_with(0.5, **{setting: value})
