"""Codewords by k-means: exact where they can be, near what is counted most, and each point's nearest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrkit.embeddings.compression.clusters import cluster


def points(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def even(count: int) -> torch.Tensor:
    return torch.ones(count, dtype=torch.int64)


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 16), st.integers(0, 5))
def test_each_point_has_its_nearest_codeword(count: int, width: int, words: int, seed: int) -> None:
    rows = points(count, width, seed).round()
    found, codes = cluster(rows, even(count), words)
    assert found.shape == (words, width) and codes.shape == (count,) and codes.min() >= 0 and codes.max() < words
    distance = (rows.unsqueeze(1) - found).square().sum(2)
    torch.testing.assert_close(distance.gather(1, codes.unsqueeze(1)).squeeze(1), distance.amin(1))
    if len(rows.unique(dim=0)) <= words:
        assert torch.equal(found[codes], rows), "a codeword for each different point"


def test_clusters_as_many_as_codewords_are_found() -> None:
    centres = 10 * points(8, 2)
    rows = (centres.unsqueeze(1) + 0.01 * points(8 * 25, 2, seed=1).view(8, 25, 2)).flatten(0, 1)
    found, codes = cluster(rows, even(200), 8)
    assert (found[codes] - rows).square().mean() < 2e-4
    assert len(codes.view(8, 25).unique()) == 8 and (codes.view(8, 25) == codes.view(8, 25)[:, :1]).all()


@pytest.mark.parametrize(("words", "error"), [(2, 0.3634), (4, 0.1175), (16, 0.009497)])
def test_normal_numbers_are_kept_nearly_as_well_as_they_can_be(words: int, error: float) -> None:
    """The least error of a scalar quantiser (Max, Quantizing for Minimum Distortion, 1960)."""
    rows = points(20_000, 1)
    found, codes = cluster(rows, even(20_000), words)
    assert float((found[codes] - rows).square().mean()) == pytest.approx(error, rel=0.05)


def test_codewords_are_where_points_are_counted_often() -> None:
    rows = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    found, codes = cluster(rows, torch.tensor([1, 1, 1000, 1000]), 2)
    assert found[codes[3]] == 3 and found[codes[0]].item() == pytest.approx(2001 / 1002), "not at 0.5 and 2.5"
    found, codes = cluster(rows, torch.tensor([0, 1, 1, 0]), 2)
    assert found[codes].flatten().tolist() == [0.5, 0.5, 2.5, 2.5], "one that is never counted weighs as if it were once"


def test_of_very_many_points_those_counted_most_are_clustered() -> None:
    """Of 70,000 only 65,536: the rest, which are elsewhere, are coded by what those have."""
    rows = torch.cat([points(65_536, 1).sign(), torch.full((4_464, 1), 9.0)])
    counts = torch.cat([torch.full((65_536,), 2), torch.zeros(4_464, dtype=torch.int64)])
    found, codes = cluster(rows, counts, 2)
    assert found.flatten().tolist() == [-1, 1] and (found[codes[65_536:]] == 1).all()


def test_the_same_points_have_the_same_codewords_every_time() -> None:
    rows = points(500, 3)
    first, second = (cluster(rows, even(500), 16) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
