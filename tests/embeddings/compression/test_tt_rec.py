"""TT-Rec: shapes, rank and what three cores give."""

from math import prod

import pytest
import torch

from ctrkit.embeddings.compression.codec import stored_bytes
from ctrkit.embeddings.compression.tt_rec import TTCodec, TTRec, even_factors, even_rows
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


@pytest.mark.parametrize("dim", [5, 16])
def test_a_vector_is_the_product_of_its_cores(dim: int) -> None:
    codec, tables = made(method_of("tt_rec", 0.5, dim))
    assert isinstance(codec, TTCodec)
    (n1, n2, n3), (d1, d2, d3), r = codec.rows, codec.factors, codec.rank
    full = torch.einsum(
        "iar,jrbs,ksc->ijkabc",
        tables["first"].view(n1, d1, r),
        tables["second"].view(n2, r, d2, r),
        tables["third"].view(n3, r, d3),
    ).reshape(-1, dim)[:600]
    torch.testing.assert_close(looked_up(codec, tables, EVERYTHING), full)
    torch.testing.assert_close(codec.stored(tables)(EVERYTHING), full)


def test_every_id_has_cores_of_its_own_together() -> None:
    codec, _ = made(method_of("tt_rec", 0.1))
    places = torch.stack(codec.places(EVERYTHING))
    assert len(places.unique(dim=1).T) == 600
    assert all(int(place.max()) < part.rows for place, part in zip(places, codec.parts, strict=True))


@pytest.mark.parametrize("budget", [1.0, 0.1])
def test_vectors_start_with_the_paper_s_variance(budget: float) -> None:
    codec, _ = made(method_of("tt_rec", budget, 16))
    variances = []
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        tables = {p.name: torch.randn(p.rows, p.width, generator=draw) * (p.init_std or 0) for p in codec.parts}
        variances.append(looked_up(codec, tables, EVERYTHING).square().mean())
    assert float(torch.stack(variances).mean()) == pytest.approx(1 / 1800, rel=0.15)
