"""Rows in low precision with steps that are learned."""

from itertools import pairwise
from math import log, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ctrkit.embeddings.compression.alpt import AlptCodec
from ctrkit.embeddings.compression.codec import Shard, stored_bytes
from ctrkit.errors import CtrkitError
from tests.embeddings.compression.exported import in_onnx
from tests.embeddings.compression.made import looked_up, made, method_of, space_of

TOTAL = 600


def codec_of(dim: int = 4, bits: int = 8, reach: float = 1.27) -> AlptCodec:
    return AlptCodec(space_of(), dim, bits, reach)


def rows_of(dim: int = 4, spread: float = 0.1) -> Tensor:
    return torch.randn(TOTAL, 2 * dim + 1, generator=torch.Generator().manual_seed(4)) * spread


def after(codec: AlptCodec, rows: Tensor, step: int = 0, cuts: tuple[int, ...] = ()) -> Tensor:
    rows = rows.clone()
    codec.advance(0.0, step)
    codec.after_step({"rows": [Shard(a, rows[a:b]) for a, b in pairwise([0, *cuts, len(rows)])]}, lambda tensor: tensor)
    return rows


@pytest.mark.parametrize(
    ("budget", "dim", "bits", "a_row"),
    [(1.0, 8, 8, 8 + 4), (0.5, 5, 8, 5 + 4), (0.3, 8, 4, 4 + 4), (0.35, 5, 4, 3 + 4), (0.2, 64, 4, 32 + 4)],
)
def test_codes_and_a_step_a_row_are_counted(budget: float, dim: int, bits: int, a_row: int) -> None:
    method = method_of("alpt", budget, dim)
    codec, tables = made(method)
    assert method.bits == bits
    assert stored_bytes(codec.stored(tables)) == TOTAL * a_row <= method.allowed_bytes


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_after_an_update_rows_are_multiples_of_their_steps_and_stay_so(bits: int) -> None:
    codec = codec_of(bits=bits)
    rows = after(codec, rows_of())
    steps = codec.steps(rows[:, -1:])
    codes = rows[:, :4] / steps
    torch.testing.assert_close(codes, codes.round(), atol=codec.largest * 1e-6, rtol=0)
    assert codes.abs().max() <= codec.largest * (1 + 1e-6)
    assert torch.equal(after(codec, rows, step=1), rows), "rows that no update moved keep their numbers and errors"


def test_rounding_is_by_chance_right_on_average_and_the_same_in_every_run() -> None:
    codec, rows = codec_of(), torch.zeros(TOTAL, 9)
    rows[:, :4] = torch.tensor([0.0525, -0.0525, 0.06, -0.12])
    drawn = [after(codec, rows, step)[:, :4] for step in range(50)]
    torch.testing.assert_close(torch.stack(drawn).mean((0, 1)), rows[0, :4], atol=2e-4, rtol=0)
    assert torch.equal(after(codec, rows, 7), after(codec, rows, 7))
    assert not torch.equal(drawn[7], drawn[8])


def test_the_gradient_of_a_step_is_the_rounding_error_or_the_last_code_beyond_reach() -> None:
    codec = codec_of()
    rows = torch.zeros(TOTAL, 9)
    rows[3, :4] = torch.tensor([0.053, 2.0, -2.0, 0.04])
    rounded = after(codec, rows)
    error = rounded[3, 4:8].tolist()
    assert error[0] == pytest.approx(5 - 5.3, abs=1e-3) or error[0] == pytest.approx(6 - 5.3, abs=1e-3)
    assert error[1:3] == [127, -127] and error[3] == 0
    leaf, ids, weight = rounded.requires_grad_(), torch.tensor([3, 3, 9, 10]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    (looked_up(codec, {"rows": leaf}, ids)[:2] * weight).sum().backward()
    scale = 1 / sqrt(len(ids) / 4 * 4 * 127)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad[3, :4], 2 * weight)
    assert leaf.grad[3, 4:8].abs().sum() == 0
    by_hand = 2 * scale * 0.01 * sum(e * w for e, w in zip(error, weight.tolist(), strict=True))
    assert leaf.grad[3, 8].item() == pytest.approx(by_hand, rel=1e-4)


def test_steps_follow_numbers_that_are_out_of_reach() -> None:
    """Rows are to become 3, six times what the codes reach at the start."""
    codec = codec_of(reach=0.5)
    rows = torch.zeros(TOTAL, 9)
    for step in range(300):
        leaf = rows.requires_grad_()
        (looked_up(codec, {"rows": leaf}, torch.arange(TOTAL)) - 3).square().sum().backward()
        assert leaf.grad is not None
        moved = leaf.detach() - torch.tensor([0.05] * 8 + [1.0]) * leaf.grad
        rows = after(codec, moved, step)
    assert (codec.stored({"rows": rows})(torch.arange(TOTAL)) - 3).abs().max() < 0.1


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_evaluation_and_the_stored_form_are_the_same_to_the_last_bit(bits: int, tmp_path: Path) -> None:
    codec, ids = codec_of(5, bits).eval(), torch.arange(TOTAL)
    for rows in (rows_of(5), after(codec, rows_of(5))):
        stored = codec.stored({"rows": rows})
        assert torch.equal(stored(ids), looked_up(codec, {"rows": rows}, ids))
        np.testing.assert_allclose(in_onnx(stored, ids, tmp_path), stored(ids).numpy(), atol=1e-7)


def test_a_step_is_learned_as_a_factor_of_its_start() -> None:
    codec = codec_of()
    torch.testing.assert_close(codec.steps(torch.tensor([0.0, log(2), -log(4)])), torch.tensor([0.01, 0.02, 0.0025]))


@pytest.mark.parametrize(("budget", "bits"), [(0.2, None), (0.3, 8), (0.55, 16)])
def test_a_budget_without_room_is_refused(budget: float, bits: int | None) -> None:
    with pytest.raises(CtrkitError, match="needs .* bytes at the least"):
        method_of("alpt", budget, bits=bits)
