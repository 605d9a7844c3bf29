"""Codes of few bits with a scale for each field's table."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ctrkit.embeddings.compression.codec import Shard, stored_bytes
from ctrkit.embeddings.compression.codes import StoredCodes, stochastically
from ctrkit.errors import CtrkitError
from tests.embeddings.compression.exported import in_onnx
from tests.embeddings.compression.made import counts_of, looked_up, method_of, space_of

TOTAL, TABLES = 600, 4


def trained(budget: float, dim: int, table: torch.Tensor, cuts: tuple[int, ...] = (), **settings):
    """A codec after a step, whose table is held in shards cut at some rows."""
    method = method_of("quantised", budget, dim, **settings)
    codec = method.codec({}, counts_of(method.space))
    codec.advance(0.0, 0)
    edges = [0, *cuts, len(table)]
    codec.after_step({"rows": [Shard(a, table[a:b]) for a, b in pairwise(edges)]}, lambda tensor: tensor)
    return codec.eval()


def table_of(dim: int, spread: float = 0.1) -> torch.Tensor:
    return torch.randn(TOTAL, dim, generator=torch.Generator().manual_seed(3)) * spread


@pytest.mark.parametrize(
    ("budget", "dim", "bits", "bytes_of_codes"),
    [
        (1.0, 8, 16, 600 * 16),
        (0.6, 5, 16, 600 * 10),
        (0.5, 8, 8, 600 * 8),
        (0.3, 5, 8, 600 * 5),
        (0.2, 8, 4, 600 * 4),
        (0.2, 5, 4, 600 * 3),
    ],
)
def test_the_widest_codes_that_fit_are_taken_and_counted(budget: float, dim: int, bits: int, bytes_of_codes: int) -> None:
    assert method_of("quantised", budget, dim).bits == bits
    table = table_of(dim)
    assert stored_bytes(trained(budget, dim, table).stored({"rows": table})) == bytes_of_codes + TABLES * 8


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("dim", [8, 5])
def test_evaluation_and_the_stored_form_are_the_same_to_the_last_bit(bits: int, dim: int) -> None:
    table = table_of(dim)
    codec, ids = trained(1.0, dim, table, bits=bits), torch.arange(TOTAL)
    assert torch.equal(codec.stored({"rows": table})(ids), looked_up(codec, {"rows": table}, ids))


def test_a_known_table_is_kept_exactly() -> None:
    """Codes -7 .. 7 of a scale that is an edge of the histogram over 7."""
    steps = torch.arange(-7, 8).repeat(TOTAL, 1)
    scale = 2.0**-3 / 7
    codec = trained(0.2, 15, steps * scale)
    torch.testing.assert_close(codec.stored({"rows": steps * scale})(torch.arange(TOTAL)), steps * scale)


@pytest.mark.parametrize(("bits", "within"), [(16, 1e-4), (8, 0.02), (4, 0.2)])
def test_the_error_is_small_against_the_numbers_whatever_their_size(bits: int, within: float) -> None:
    """Each field's table has a scale of its own: one a thousand times as large as another harms neither."""
    size = torch.tensor([1e-3, 1.0, 30.0, 1e-2]).repeat_interleave(torch.tensor(space_of().rows)).unsqueeze(1)
    table = table_of(8, spread=1.0) * size
    kept = trained(1.0, 8, table, bits=bits).stored({"rows": table})(torch.arange(TOTAL))
    for own, got in zip(table.split(space_of().rows), kept.split(space_of().rows), strict=True):
        assert (own - got).square().mean().sqrt() < within * own.square().mean().sqrt()


def test_the_tail_is_clipped_where_steps_are_few_and_kept_where_they_are_many() -> None:
    table = table_of(8)
    assert 7 * trained(1.0, 8, table, bits=4).scales[0] < 0.9 * table[:400].abs().max()
    assert 32767 * trained(1.0, 8, table, bits=16).scales[0] >= table[:400].abs().max()


def test_scales_do_not_depend_on_how_the_table_is_cut() -> None:
    table = table_of(8)
    assert torch.equal(trained(0.5, 8, table).scales, trained(0.5, 8, table, cuts=(17, 400, 571)).scales)


def test_scales_are_taken_anew_less_and_less_often() -> None:
    codec = method_of("quantised", 0.5).codec({}, counts_of(space_of()))
    taken = []
    for step in range(200):
        codec.advance(0.0, step)
        before = codec.scales.clone()
        codec.after_step({"rows": [Shard(0, torch.full((TOTAL, 8), 2.0 ** (step % 19 - 9)))]}, lambda tensor: tensor)
        if not torch.equal(before, codec.scales):
            taken.append(step + 1)
    assert taken == [1, 2, 4, 8, 16, 32, 64, 128, 192]


def test_training_rounds_by_chance_and_the_mean_is_the_number() -> None:
    numbers = torch.tensor([0.25, -0.25, 3.0, -7.0]).repeat(20000, 1)
    rounded = stochastically(numbers, torch.rand(numbers.shape, generator=torch.Generator().manual_seed(0)))
    assert set(rounded[:, 0].tolist()) == {0.0, 1.0} and set(rounded[:, 1].tolist()) == {-1.0, 0.0}
    torch.testing.assert_close(rounded.mean(0), numbers[0], atol=0.01, rtol=0)
    assert torch.equal(rounded[:, 2:], numbers[:, 2:])


def test_the_gradient_goes_straight_through() -> None:
    table = table_of(8).requires_grad_()
    codec = trained(0.2, 8, table.detach()).train()
    weight = torch.randn(TOTAL, 8)
    (looked_up(codec, {"rows": table}, torch.arange(TOTAL)) * weight).sum().backward()
    assert torch.equal(table.grad, weight)


@pytest.mark.parametrize("dim", [2, 5])
def test_codes_of_four_bits_come_back(dim: int, tmp_path: Path) -> None:
    codes = torch.arange(-7, 8).repeat(dim, 1).T.contiguous()
    stored = StoredCodes(codes, 4)
    ids = torch.arange(15)
    assert torch.equal(stored(ids), codes.float())
    np.testing.assert_array_equal(in_onnx(stored, ids, tmp_path), codes.numpy())


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_the_export_has_the_same_vectors(bits: int, tmp_path: Path) -> None:
    table, ids = table_of(5), torch.arange(TOTAL)
    stored = trained(1.0, 5, table, bits=bits).stored({"rows": table})
    np.testing.assert_allclose(in_onnx(stored, ids, tmp_path), stored(ids).numpy(), atol=1e-7)


@pytest.mark.parametrize(("budget", "bits"), [(0.12, None), (0.25, 8), (0.4, 16)])
def test_a_budget_without_room_is_refused(budget: float, bits: int | None) -> None:
    with pytest.raises(CtrkitError, match="needs .* bytes at the least"):
        method_of("quantised", budget, bits=bits)


@pytest.mark.parametrize(
    ("budget", "bits", "name", "taken"),
    [(0.6, None, "quantised", 2), (0.5, None, "quantised", 1), (0.3, 8, "quantised", 1), (0.3, 16, "hash", 0), (0.2, None, "hash", 0)],
)
def test_single_numbers_are_integers_too_where_there_is_room(budget: float, bits: int | None, name: str, taken: int) -> None:
    method = method_of("quantised", budget, 1, bits=bits)
    assert method.name == name
    if name == "quantised":
        table = table_of(1)
        codec = trained(budget, 1, table, bits=bits)
        stored, ids = codec.stored({"rows": table}), torch.arange(TOTAL)
        assert stored_bytes(stored) == TOTAL * taken + TABLES * 8 <= method.allowed_bytes
        assert torch.equal(stored(ids), looked_up(codec, {"rows": table}, ids))


def test_other_widths_are_refused() -> None:
    with pytest.raises(CtrkitError, match="bits"):
        method_of("quantised", 0.5, bits=12)
