"""Deep hash embedding: its codes, its size, and BatchNorm folded into what is stored."""

import pytest
import torch

from ctrkit.embeddings.compression.codec import stored_bytes
from ctrkit.embeddings.compression.dhe import DHE, dhe_bytes, encode
from ctrkit.errors import CtrkitError
from ctrkit.layers.normalisation import BatchNorm
from tests.embeddings.compression.made import looked_up, made, method_of, space_of

EVERYTHING = torch.arange(600)


@pytest.mark.parametrize("dim", [5, 16])
@pytest.mark.parametrize("budget", [1.0, 0.4, 0.1])
def test_the_bytes_are_those_of_the_closed_form_and_fill_the_budget(budget: float, dim: int) -> None:
    method = method_of("dhe", budget, dim)
    assert isinstance(method, DHE)
    codec, _ = made(method)
    taken = stored_bytes(codec.stored({}))
    assert taken == dhe_bytes(method.hashes, method.width, 5, dim)
    assert taken <= method.allowed_bytes < taken + 2 * (8 + 4 * method.width), "two more hashes would not fit"


def test_with_room_all_hashes_are_there_and_the_width_is_the_most_that_fits() -> None:
    method = method_of("dhe", 0.5, 16, space_of({"only": 100_000}), hashes=64)
    assert isinstance(method, DHE)
    assert method.hashes == 64
    assert dhe_bytes(64, method.width, 5, 16) <= method.allowed_bytes < dhe_bytes(64, method.width + 1, 5, 16)


def test_a_hash_by_hand() -> None:
    codes = encode(
        torch.tensor([0, 3]), torch.tensor([5, 2**31 - 2], dtype=torch.int32), torch.tensor([7, 1], dtype=torch.int32), "uniform"
    )
    hashed = torch.tensor([[7, 1], [22, (3 * (2**31 - 2) + 1) % (2**31 - 1) % 10**6]])
    torch.testing.assert_close(codes, (2 * hashed / (10**6 - 1) - 1).float())


@pytest.mark.parametrize(("encoding", "variance"), [("uniform", 1 / 3), ("gaussian", 1.0)])
def test_codes_are_spread_as_they_should_and_differ(encoding: str, variance: float) -> None:
    codec, _ = made(method_of("dhe", 1.0, 16, encoding=encoding))
    codes = encode(EVERYTHING, codec.get_buffer("slopes"), codec.get_buffer("offsets"), encoding)  # pyright: ignore[reportArgumentType]
    assert len(codes.unique(dim=0)) == 600 and codes.isfinite().all()
    assert abs(float(codes.mean())) < 0.03
    assert float(codes.var()) == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("encoding", ["uniform", "gaussian"])
def test_what_is_stored_is_the_network_in_evaluation(encoding: str) -> None:
    codec, _ = made(method_of("dhe", 0.5, encoding=encoding))
    for norm in codec.modules():
        if isinstance(norm, BatchNorm) and norm.scale is not None and norm.shift is not None:
            torch.nn.init.normal_(norm.scale)
            torch.nn.init.normal_(norm.shift)
    codec.train()
    for _ in range(3):
        looked_up(codec, {}, EVERYTHING)
    codec.eval()
    torch.testing.assert_close(codec.stored({})(EVERYTHING), looked_up(codec, {}, EVERYTHING))


def test_vectors_start_small_and_different() -> None:
    codec, _ = made(method_of("dhe", 0.5, 16))
    vectors = looked_up(codec, {}, EVERYTHING).detach()
    assert 0.001 < float(vectors.std()) < 0.02
    assert float(vectors.std(dim=0).min()) > 1e-4


def test_odd_hashes_and_no_room_are_refused() -> None:
    with pytest.raises(CtrkitError, match="hashes"):
        method_of("dhe", 0.5, hashes=3)
    with pytest.raises(CtrkitError, match=f"needs {dhe_bytes(2, 1, 5, 8)} bytes at the least"):
        method_of("dhe", 0.005)
