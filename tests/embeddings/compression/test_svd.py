"""Low rank: the best there is of its rank, weighed by how often ids are looked up."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ctrkit.embeddings.compression.codec import Codec, stored_bytes
from ctrkit.embeddings.compression.svd import SVD
from ctrkit.errors import CtrkitError
from tests.embeddings.compression.exported import in_onnx
from tests.embeddings.compression.made import counts_of, looked_up, made, method_of, space_of

TOTAL = 600
EVERYTHING = torch.arange(TOTAL)
EVEN = torch.ones(TOTAL, dtype=torch.int64)


def table_of(dim: int, seed: int = 3) -> torch.Tensor:
    """Of rank ``dim``, the first columns the largest, then turned."""
    draw = torch.Generator().manual_seed(seed)
    turned = torch.linalg.qr(torch.randn(dim, dim, generator=draw)).Q
    return torch.randn(TOTAL, dim, generator=draw) * torch.linspace(0.3, 0.01, dim) @ turned


def cut(budget: float, table: torch.Tensor, counts: torch.Tensor = EVEN) -> tuple[Codec, dict[str, torch.Tensor]]:
    """The codec and the table that the training starts from, of a table as the search left it."""
    method = method_of("svd", budget, table.shape[1])
    supernet = method.supernet(counts)
    assert supernet is not None
    decision = method.decide(supernet, {"rows": table}, counts, lambda rows: 0.0)
    return method.codec(decision, counts), method.start(decision, {"rows": table})


@pytest.mark.parametrize("dim", [16, 7])
@pytest.mark.parametrize("budget", [0.2, 0.5, 0.999])
def test_the_largest_rank_that_fits_is_taken(budget: float, dim: int) -> None:
    method = method_of("svd", budget, dim)
    assert isinstance(method, SVD)
    codec, tables = made(method)
    assert (
        stored_bytes(codec.stored(tables))
        == (TOTAL + dim) * method.rank * 4
        <= method.allowed_bytes
        < (TOTAL + dim) * (method.rank + 1) * 4
    )


@pytest.mark.parametrize("budget", [0.2, 0.5, 0.9])
def test_no_other_of_its_rank_is_nearer(budget: float) -> None:
    """Eckart and Young: what is lost are the other singular values."""
    table = table_of(16)
    codec, tables = cut(budget, table)
    rank = tables["left"].shape[1]
    lost = torch.linalg.svdvals(table)[rank:].square().sum()
    assert 0 < rank < 16
    assert (codec.stored(tables)(EVERYTHING) - table).square().sum().item() == pytest.approx(lost.item(), rel=1e-4)


def test_a_table_of_that_rank_is_kept_as_it_is() -> None:
    draw = torch.Generator().manual_seed(0)
    table = torch.randn(TOTAL, 3, generator=draw) @ torch.randn(3, 16, generator=draw)
    codec, tables = cut(0.2, table)
    assert tables["left"].shape == (TOTAL, 3)
    torch.testing.assert_close(codec.stored(tables)(EVERYTHING), table, atol=1e-5, rtol=0)


def test_what_is_looked_up_often_is_kept_best() -> None:
    table, counts = table_of(16), counts_of(space_of())
    even, weighed = (
        (codec.stored(tables)(EVERYTHING) - table).square().sum(1) for codec, tables in (cut(0.3, table), cut(0.3, table, counts))
    )
    assert (weighed * counts).sum() < (even * counts).sum() and weighed.sum() > even.sum()


def test_both_matrices_are_trained_on() -> None:
    codec, tables = cut(0.3, table_of(8))
    left = tables["left"].requires_grad_()
    weights = torch.randn(TOTAL, 8)
    (looked_up(codec, {"left": left}, EVERYTHING) * weights).sum().backward()
    ((right, gradient),) = [(parameter, parameter.grad) for parameter in codec.parameters()]
    assert left.grad is not None and gradient is not None
    torch.testing.assert_close(left.grad, weights @ right.detach().T)
    torch.testing.assert_close(gradient, left.detach().T @ weights)


def test_the_whole_budget_is_the_full_table() -> None:
    table = table_of(8)
    codec, tables = cut(1.0, table)
    assert torch.equal(codec.stored(tables)(EVERYTHING), table)


def test_the_export_has_the_same_vectors(tmp_path: Path) -> None:
    codec, tables = cut(0.5, table_of(7))
    stored = codec.stored(tables)
    np.testing.assert_allclose(in_onnx(stored, EVERYTHING, tmp_path), stored(EVERYTHING).detach().numpy(), atol=1e-6)


def test_a_number_an_id_is_the_least() -> None:
    least = (TOTAL + 16) * 4
    assert made(method_of("svd", (least + 0.5) / (TOTAL * 64), 16))[1]["left"].shape == (TOTAL, 1)
    with pytest.raises(CtrkitError, match=f"needs {least:,} bytes at the least.*a number at the least"):
        method_of("svd", (least - 0.5) / (TOTAL * 64), 16)
    with pytest.raises(CtrkitError, match="search_epochs"):
        method_of("svd", 0.5, search_epochs=0)
