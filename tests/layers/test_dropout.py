"""Dropout: the share left out, the scale of what stays, and what evaluation does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctrkit.layers.dropout import FastDropout


@pytest.mark.parametrize("p", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_a_share_is_left_out_and_the_mean_stays(p: float) -> None:
    torch.manual_seed(0)
    ones = torch.ones(1001, 997)
    dropped = FastDropout(p)(ones)
    left_out = (dropped == 0).float()
    assert left_out.mean().item() == pytest.approx(p, abs=0.002)
    assert dropped.mean().item() == pytest.approx(1, abs=0.005)
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=1e-3, atol=0)
    for places in (left_out.mean(0), left_out.mean(1)):  # each of 1,000 draws: five standard deviations
        assert (places - p).abs().max().item() <= 5 * (p * (1 - p) / 997) ** 0.5


def test_the_four_that_share_a_draw_are_independent() -> None:
    torch.manual_seed(1)
    left_out = (FastDropout(0.5)(torch.ones(250_000, 4)) == 0).float()
    correlation = torch.corrcoef(left_out.T) - torch.eye(4)
    assert correlation.abs().max().item() < 0.01


def test_gradients_pass_where_values_do() -> None:
    torch.manual_seed(2)
    values = torch.ones(64, 33, requires_grad=True)
    dropped = FastDropout(0.3)(values)
    dropped.sum().backward()
    torch.testing.assert_close(values.grad, dropped.detach())


@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=3), p=st.floats(0, 1, exclude_max=True))
def test_any_shape_and_share(shape: list[int], p: float) -> None:
    values = torch.randn(*shape)
    dropped = FastDropout(p)(values)
    assert dropped.shape == values.shape and bool(torch.isfinite(dropped).all())


def test_evaluation_leaves_all_as_it_is_and_a_seed_repeats_the_mask() -> None:
    values = torch.randn(10, 10)
    layer = FastDropout(0.5)
    assert layer.eval()(values) is values
    layer.train()
    torch.manual_seed(3)
    first = layer(values)
    torch.manual_seed(3)
    assert torch.equal(first, layer(values)) and not torch.equal(first, layer(values))
