"""TT-Rec: shapes, rank and what three cores give."""

from math import prod

import pytest
import torch

from ctrkit.embeddings.compression import tt_rec
from ctrkit.embeddings.compression.codec import stored_bytes
from ctrkit.embeddings.compression.tt_rec import TTCodec, TTRec, even_factors, even_rows, without_middle
from tests.embeddings.compression.made import looked_up, made, method_of

EVERYTHING = torch.arange(600)


def cores_bytes(rank: int, dim: int) -> int:
    n, d = even_rows(600), even_factors(dim)
    return 4 * (n[0] * d[0] * rank + rank * n[1] * d[1] * rank + rank * n[2] * d[2])


@pytest.mark.parametrize("total", [1, 2, 7, 27, 28, 600, 5382, 999_983])
def test_rows_hold_every_id_and_little_more(total: int) -> None:
    rows = even_rows(total)
    assert total <= prod(rows) and list(rows) == sorted(rows)
    assert prod(rows) <= total + (rows[2] + 1) ** 2
    assert rows[2] - rows[0] <= 2


@pytest.mark.parametrize(
    ("dim", "factors"), [(2, (1, 1, 2)), (5, (1, 1, 5)), (8, (2, 2, 2)), (16, (2, 2, 4)), (12, (2, 2, 3)), (64, (4, 4, 4))]
)
def test_factors_of_the_width(dim: int, factors: tuple[int, int, int]) -> None:
    assert even_factors(dim) == factors


@pytest.mark.parametrize("dim", [5, 8, 16])
@pytest.mark.parametrize("budget", [1.0, 0.5, 0.1])
def test_the_rank_is_the_most_that_fits(budget: float, dim: int) -> None:
    method = method_of("tt_rec", budget, dim)
    assert isinstance(method, TTRec)
    codec, tables = made(method)
    assert stored_bytes(codec.stored(tables)) == cores_bytes(method.rank, dim)
    assert cores_bytes(method.rank, dim) <= method.allowed_bytes < cores_bytes(method.rank + 1, dim)


@pytest.mark.parametrize("pairs", [65_536, 1])
@pytest.mark.parametrize("dim", [5, 16])
def test_a_vector_is_the_product_of_its_cores(dim: int, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tt_rec, "_PAIRS", pairs)
    codec, _ = made(method_of("tt_rec", 0.5, dim))
    assert isinstance(codec, TTCodec)
    full = torch.einsum("iar,jrbs,ksc->ijkabc", codec.first, codec.second, codec.third).reshape(-1, dim)[:600]
    torch.testing.assert_close(looked_up(codec, {}, EVERYTHING), full)
    torch.testing.assert_close(codec.stored({})(EVERYTHING), full)


@pytest.mark.parametrize("budget", [1.0, 0.1])
def test_vectors_start_with_the_paper_s_variance(budget: float) -> None:
    method = method_of("tt_rec", budget, 16)
    counts = torch.ones(600, dtype=torch.int64)
    variances = []
    for seed in range(20):
        torch.manual_seed(seed)
        variances.append(looked_up(method.codec({}, counts), {}, EVERYTHING).square().mean())
    assert torch.stack(variances).mean().item() == pytest.approx(1 / 1800, rel=0.15)


def test_cores_start_without_small_numbers() -> None:
    torch.manual_seed(0)
    drawn = without_middle([100_000])
    assert drawn.var().item() == pytest.approx(1, rel=0.02) and abs(float(drawn.mean())) < 0.02
    assert float(drawn.abs().min()) == pytest.approx(2 / 5.746**0.5, rel=1e-3)
