"""ROBE-Z: one array, read in blocks."""

import pytest
import torch

from ctrkit.embeddings.compression.codec import stored_bytes
from ctrkit.embeddings.compression.robe import RobeCodec
from ctrkit.errors import CtrkitError
from tests.embeddings.compression.made import looked_up, made, method_of, space_of

EVERYTHING = torch.arange(600)


def numbered(codec: RobeCodec) -> torch.Tensor:
    """The place in the array of every number of every vector, ``[600, dim]``."""
    return codec.read(EVERYTHING, torch.arange(codec.size, dtype=torch.float64) + 1).abs().long() - 1


def codec_of(budget: float, dim: int = 8, **settings: int) -> RobeCodec:
    codec, _ = made(method_of("robe", budget, dim, **settings))
    assert isinstance(codec, RobeCodec)
    return codec


@pytest.mark.parametrize("dim", [3, 8])
@pytest.mark.parametrize("budget", [1.0, 0.31, 0.001])
def test_all_of_the_budget_is_numbers(budget: float, dim: int) -> None:
    method = method_of("robe", budget, dim)
    codec, _ = made(method)
    assert stored_bytes(codec.stored({})) == method.allowed_bytes // 4 * 4


@pytest.mark.parametrize(("block", "dim"), [(1, 8), (4, 8), (8, 8), (16, 8), (4, 6), (64, 5)])
def test_a_block_of_the_full_table_lies_side_by_side_around_the_array(block: int, dim: int) -> None:
    codec = codec_of(0.1, dim, block=block)
    places = numbered(codec).flatten()
    assert int(places.max()) < codec.size
    within = (torch.arange(len(places)) % block != 0)[1:]
    torch.testing.assert_close(places[1:][within], ((places[:-1] + 1) % codec.size)[within])
    starts = places[::block]
    assert len(starts.unique()) > 0.6 * min(len(starts), codec.size), "blocks start all over the array"


def test_signs_are_even_and_an_id_s_own() -> None:
    codec = codec_of(0.1)
    signs = codec.read(EVERYTHING, torch.ones(codec.size))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.05
    assert abs(float((signs[:, 0] * signs[:, 1]).mean())) < 0.15


def test_with_the_full_table_s_bytes_every_number_has_its_own_place() -> None:
    codec = codec_of(1.0)
    assert torch.equal(numbered(codec).flatten(), torch.arange(600 * 8))


def test_a_number_s_gradient_is_the_signed_sum_of_those_of_its_uses() -> None:
    codec = codec_of(0.02)
    weights = torch.randn(600, 8)
    (looked_up(codec, {}, EVERYTHING) * weights).sum().backward()
    signs = codec.read(EVERYTHING, torch.ones(codec.size))
    expected = torch.zeros(codec.size).index_add(0, numbered(codec).flatten(), (weights * signs).flatten())
    assert codec.array.grad is not None
    torch.testing.assert_close(codec.array.grad, expected, atol=1e-4, rtol=1e-4)


def test_what_is_stored_is_what_was_trained() -> None:
    codec = codec_of(0.1)
    torch.testing.assert_close(codec.stored({})(EVERYTHING), looked_up(codec, {}, EVERYTHING))


def test_blocks_of_no_numbers_and_no_room_are_refused() -> None:
    with pytest.raises(CtrkitError, match="block"):
        method_of("robe", 0.5, block=0)
    with pytest.raises(CtrkitError, match="needs 4 bytes at the least"):
        method_of("robe", 0.01, 2, space_of({"only": 20}))
