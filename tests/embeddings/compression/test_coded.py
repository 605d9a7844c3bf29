"""``pq`` and ``rq``: codes of a trained table, codewords that are trained on."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ctrkit.embeddings.compression.codec import stored_bytes
from ctrkit.embeddings.compression.coded import CodedCodec
from ctrkit.embeddings.compression.pq import PQ
from ctrkit.embeddings.compression.rq import RQ
from ctrkit.errors import CtrkitError
from tests.embeddings.compression.exported import in_onnx
from tests.embeddings.compression.made import counts_of, looked_up, method_of, space_of

NAMES = ["pq", "rq"]
TOTAL = 600
EVERYTHING = torch.arange(TOTAL)
EVEN = torch.ones(TOTAL, dtype=torch.int64)


def table_of(dim: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(TOTAL, dim, generator=torch.Generator().manual_seed(seed)) * 0.1


def quantised(name: str, budget: float, table: torch.Tensor, counts: torch.Tensor = EVEN) -> CodedCodec:
    """The codec that the training starts from, of a table as the search left it."""
    method = method_of(name, budget, table.shape[1])
    supernet = method.supernet(counts)
    assert supernet is not None
    decision = method.decide(supernet, {"rows": table}, counts, lambda rows: 0.0)
    assert method.start(decision, {"rows": table}) == {}
    codec = method.codec(decision, counts)
    assert isinstance(codec, CodedCodec)
    return codec


def error(codec: CodedCodec, table: torch.Tensor) -> torch.Tensor:
    return (codec.stored({})(EVERYTHING) - table).square().mean(1)


@pytest.mark.parametrize("dim", [16, 7])
@pytest.mark.parametrize("budget", [0.1, 0.5, 1.0])
def test_codes_and_codewords_are_what_is_stored(budget: float, dim: int) -> None:
    pq, rq = method_of("pq", budget, dim), method_of("rq", budget, dim)
    assert isinstance(pq, PQ) and isinstance(rq, RQ)
    for method, codes, words in ((pq, pq.subspaces, 1), (rq, rq.levels, rq.levels)):
        size = stored_bytes(quantised(method.name, budget, table_of(dim)).stored({}))
        assert size == TOTAL * -(-codes * method.bits // 8) + words * 2**method.bits * dim * 4 <= method.allowed_bytes


@pytest.mark.parametrize(
    ("name", "budget", "total", "sizes"),
    [
        ("pq", 0.5, 100_000, (16, 8)),
        ("pq", 0.1, 100_000, (6, 8)),  # 6 bytes of 6.4
        ("rq", 0.5, 100_000, (16, 8)),
        ("rq", 0.1, 100_000, (8, 6)),  # 6 bytes an id, beside 8 x 4 kB of codewords; 6 x 16 kB would be too many
        ("rq", 0.1, 2_000, (16, 2)),  # 4 bytes an id, beside 16 x 256 bytes
    ],
)
def test_the_most_bits_of_code_are_taken(name: str, budget: float, total: int, sizes: tuple[int, int]) -> None:
    method = method_of(name, budget, 16, space_of({"only": total}))
    assert isinstance(method, PQ | RQ)
    assert (method.subspaces if isinstance(method, PQ) else method.levels, method.bits) == sizes


def test_product_by_hand() -> None:
    """A bit each for columns 1, 2 and for column 3: four different rows of two halves each."""
    method = method_of("pq", 0.6, 3, space_of({"a": 8}))
    assert isinstance(method, PQ)
    method.subspaces, method.bits = 2, 1
    table = torch.tensor([[1.0, 2.0, 9.0], [1.0, 2.0, 7.0], [5.0, 6.0, 9.0], [5.0, 6.0, 7.0]]).repeat(2, 1)
    decision = method.decide(method.supernet(EVEN[:8]), {"rows": table}, EVEN[:8], lambda rows: 0.0)
    assert decision["words"].tolist() == [[1, 2, 7], [5, 6, 9]]
    assert decision["codes"][:4].tolist() == [[0, 1], [0, 0], [1, 1], [1, 0]]
    assert torch.equal(method.codec(decision, EVEN[:8]).stored({})(torch.arange(8)), table)


def test_residuals_by_hand() -> None:
    """Two far clusters, each of two points: the first level finds the clusters, the second what is left of them."""
    method = method_of("rq", 1.0, 2, space_of({"a": 40}))
    assert isinstance(method, RQ)
    method.levels, method.bits = 2, 1
    table = torch.tensor([[9.0, 0.0], [11.0, 0.0], [-9.0, 0.0], [-11.0, 0.0]]).repeat(10, 1)
    decision = method.decide(method.supernet(EVEN[:40]), {"rows": table}, EVEN[:40], lambda rows: 0.0)
    assert sorted(decision["words"][0, :, 0].tolist()) == [-10, 10] and sorted(decision["words"][1, :, 0].tolist()) == [-1, 1]
    assert torch.equal(method.codec(decision, EVEN[:40]).stored({})(torch.arange(40)), table)


@pytest.mark.parametrize("name", NAMES)
def test_a_table_of_few_different_rows_is_kept_as_it_is(name: str) -> None:
    codec = quantised(name, 0.3, table := table_of(8)[torch.arange(TOTAL) % 16])
    torch.testing.assert_close(codec.stored({})(EVERYTHING), table, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_more_bytes_keep_more_of_it(name: str) -> None:
    table = table_of(16)
    errors = [float(error(quantised(name, budget, table), table).mean() / table.square().mean()) for budget in (0.05, 0.15, 0.6)]
    assert 0.9 > errors[0] > 1.5 * errors[1] > 1.5**2 * errors[2] > 0


@pytest.mark.parametrize("name", NAMES)
def test_ids_with_the_same_row_have_the_same_vector(name: str) -> None:
    table = table_of(8)
    table[400:500] = table[:100]
    vectors = quantised(name, 0.3, table).stored({})(EVERYTHING)
    assert torch.equal(vectors[400:500], vectors[:100])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_looked_up_often_is_kept_best(name: str) -> None:
    table, counts = table_of(8), counts_of(space_of())
    even, weighed = (error(quantised(name, 0.2, table, of), table) for of in (EVEN, counts))
    assert (weighed * counts).sum() < 0.9 * (even * counts).sum()


@pytest.mark.parametrize("name", NAMES)
def test_codewords_are_trained_on_and_codes_stay(name: str) -> None:
    codec = quantised(name, 0.2, table_of(8))
    codes, words, wanted = codec.codes.clone(), codec.words.detach().clone(), table_of(8, seed=4)
    assert codes.dtype == torch.uint8 and int(codes.max()) < 2**codec.bits
    before = error(codec, wanted).mean()
    optimizer = torch.optim.Adam(codec.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        (looked_up(codec, {}, EVERYTHING) - wanted).square().mean().backward()
        optimizer.step()
    assert error(codec, wanted).mean() < before
    assert torch.equal(codec.codes, codes) and not torch.equal(codec.words, words)
    assert torch.equal(codec.stored({})(EVERYTHING), looked_up(codec, {}, EVERYTHING))


@pytest.mark.parametrize("name", NAMES)
def test_the_export_has_the_same_vectors(name: str, tmp_path: Path) -> None:
    stored = quantised(name, 0.5, table_of(7)).stored({})
    np.testing.assert_allclose(in_onnx(stored, EVERYTHING, tmp_path), stored(EVERYTHING).detach().numpy(), atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_less_than_a_byte_an_id_is_refused(name: str) -> None:
    with pytest.raises(CtrkitError, match="needs .* bytes at the least.*a byte of codes"):
        method_of(name, 0.01, 16)


@pytest.mark.parametrize("name", NAMES)
def test_a_search_comes_first(name: str) -> None:
    method = method_of(name, 0.5, search_epochs=3)
    assert (method.search_epochs, method.search_stops_early, method.starts_from) == (3, True, "end")
    with pytest.raises(CtrkitError, match="search_epochs"):
        method_of(name, 0.5, search_epochs=0)
