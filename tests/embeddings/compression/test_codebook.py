"""How codewords are chosen, and how they follow the queries."""

import pytest
import torch
from torch import Tensor

from ctrkit.embeddings.compression.codebook import Codebook, columns_of, widths_of


def alone(total: Tensor) -> Tensor:
    """The sum over the only process."""
    return total


def settled(codebook: Codebook, queries: Tensor, tiers: Tensor, steps: int = 100) -> Tensor:
    """The codes after so many steps with the same queries."""
    for _ in range(steps):
        codebook.observe(queries, tiers, codebook.codes(queries, tiers), torch.ones_like(tiers))
        codebook.learn(alone)
    return codebook.codes(queries, tiers)


def points(count: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_columns_are_cut_as_evenly_as_they_go() -> None:
    assert widths_of(7, 3) == [3, 2, 2]
    assert columns_of(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_the_nearest_codeword_of_each_subspace_is_chosen() -> None:
    codebook = Codebook(3, 2, [2])
    codebook.words.copy_(torch.tensor([[0.0, 0.0, 5.0], [1.0, 1.0, 6.0]]))
    codes = codebook.codes(torch.tensor([[0.1, 0.2, 5.9], [0.9, 0.3, 5.2], [0.0, 0.9, -9.0]]), torch.zeros(3, dtype=torch.int64))
    assert codes.tolist() == [[0, 1], [1, 0], [0, 0]]
    assert codebook.vectors(codes).tolist() == [[0, 0, 6], [1, 1, 5], [0, 0, 5]]


def test_a_tier_chooses_among_its_own_codewords_however_near_another_one_is() -> None:
    codebook = Codebook(1, 1, [4, 1])
    codebook.words.copy_(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
    assert codebook.codes(torch.tensor([[3.0], [3.0]]), torch.tensor([0, 1])).tolist() == [[3], [0]]


def test_clusters_as_many_as_codewords_are_found_wherever_they_are() -> None:
    """All start at one codeword's side: the others are unused until they are put elsewhere."""
    centres = 5 + 10 * points(8, 4)
    queries = centres.repeat(20, 1)
    codebook = Codebook(4, 2, [8])
    codes = settled(codebook, queries, torch.zeros(len(queries), dtype=torch.int64))
    torch.testing.assert_close(codebook.vectors(codes), queries, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("words", "error"), [(2, 0.3634), (4, 0.1175), (8, 0.03454), (16, 0.009497)])
def test_normal_numbers_are_kept_nearly_as_well_as_they_can_be(words: int, error: float) -> None:
    """The least error of a scalar quantiser (Max, Quantizing for Minimum Distortion, 1960)."""
    queries = points(20_000, 1)
    codebook = Codebook(1, 1, [words])
    codes = settled(codebook, queries, torch.zeros(len(queries), dtype=torch.int64), steps=400)
    assert float((codebook.vectors(codes) - queries).square().mean()) == pytest.approx(error, rel=0.15)


def test_codewords_of_the_first_tier_alone_are_put_where_its_queries_are() -> None:
    """The second tier's, far away and many, keep to the codewords that they may choose."""
    own, others = points(200, 2) * 0.1, 20 + points(2000, 2)
    tiers = torch.tensor([0, 1]).repeat_interleave(torch.tensor([200, 2000]))
    codebook = Codebook(2, 1, [8, 2])
    codes = settled(codebook, torch.cat([own, others]), tiers).squeeze(1)
    assert int(codes[200:].max()) <= 1
    assert len(codes[:200].unique()) >= 6
    kept = codebook.vectors(codes[:200].unsqueeze(1))
    assert (kept - own).square().mean() < 0.3 * own.square().mean()


def test_equal_queries_are_not_set_apart_by_rounding() -> None:
    """Codewords beyond the ids' own stay where they are."""
    codebook = Codebook(2, 1, [8])
    queries = (points(3, 2) * 0.1).repeat(7, 1)
    chosen = settled(codebook, queries, torch.zeros(len(queries), dtype=torch.int64), steps=20).unique()
    assert len(chosen) == 3
    before = codebook.words.clone()
    settled(codebook, queries, torch.zeros(len(queries), dtype=torch.int64), steps=20)
    others = torch.ones(8, dtype=torch.bool).index_fill(0, chosen, False)
    assert torch.equal(codebook.words[others], before[others])


def test_two_processes_learn_what_one_learns() -> None:
    queries, tiers = points(100, 4), torch.zeros(100, dtype=torch.int64)
    one = Codebook(4, 2, [4])
    first, second = Codebook(4, 2, [4]), Codebook(4, 2, [4])
    for half in (first, second):
        half.load_state_dict(one.state_dict())
    for _ in range(10):
        one.observe(queries, tiers, one.codes(queries, tiers), torch.ones_like(tiers))
        for half, part in ((first, queries[:30]), (second, queries[30:])):
            half.observe(part, tiers[: len(part)], half.codes(part, tiers[: len(part)]), torch.ones_like(tiers[: len(part)]))
        total = first.seen + second.seen
        one.learn(alone)
        for half in (first, second):
            half.learn(lambda _, total=total: total)
    torch.testing.assert_close(first.words, one.words)
    assert torch.equal(first.words, second.words)
