"""The interacting layer against the paper's formula, on the CPU's own path and on the one that is exported."""

import pytest
import torch
from torch import Tensor

from ctrkit.layers.attention import InteractingLayer
from ctrkit.layers.rows import CACHED_ROWS, by_rows

FIELDS, INPUTS, DIM = 5, 4, 6


def as_printed(layer: InteractingLayer, x: Tensor) -> Tensor:
    """Eq. 5-8 of Song et al. 2019, head by head."""
    width = layer.query.out_features // layer.heads
    heads = []
    for head in range(layer.heads):
        rows = slice(head * width, (head + 1) * width)
        query, key, value = (x @ f.weight[rows].T for f in (layer.query, layer.key, layer.value))
        scores = torch.einsum("bmd,bkd->bmk", query, key) * layer.scale
        heads.append(torch.softmax(scores, dim=-1) @ value)
    return torch.relu(torch.cat(heads, dim=-1) + x @ layer.residual.weight.T)


def make(heads: int = 2, size: float = 1.0, **settings) -> tuple[InteractingLayer, Tensor]:
    torch.manual_seed(0)
    layer = InteractingLayer(INPUTS, DIM, heads, **settings).double()
    return layer, (size * torch.randn(7, FIELDS, INPUTS, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("use_scale", [False, True])
@pytest.mark.parametrize("size", [0.3, 3.0, 60.0])
def test_the_paper_s_formula_and_its_gradients(heads: int, use_scale: bool, size: float) -> None:
    layer, x = make(heads, size, use_scale=use_scale)
    ours, printed = layer(x), as_printed(layer, x)
    torch.testing.assert_close(ours, printed)
    direction = torch.randn_like(ours)
    inputs = [x, *layer.parameters()]
    for mine, theirs in zip(torch.autograd.grad(ours, inputs, direction), torch.autograd.grad(printed, inputs, direction), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9 * size, rtol=1e-6)


def test_scores_that_would_overflow_in_float32_do_not() -> None:
    layer, x = make(size=30.0)
    exact = layer(x).float()
    width = DIM // layer.heads
    query, key = (x @ f.weight[:width].T for f in (layer.query, layer.key))
    assert (query @ key.transpose(1, 2)).max() > 100
    torch.testing.assert_close(layer.float()(x.float()), exact, atol=1e-2, rtol=1e-3)


def test_the_exported_path_is_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = make()
    on_the_cpu = layer(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(layer(x), on_the_cpu)


@pytest.mark.parametrize("use_scale", [False, True])
@pytest.mark.parametrize("size", [0.3, 60.0])
def test_the_weights_that_are_shown_are_those_that_are_used(use_scale: bool, size: float) -> None:
    layer, x = make(heads=3, size=size, use_scale=use_scale)
    weights = layer.weights(x)
    torch.testing.assert_close(weights.sum(-1), torch.ones(7, 3, FIELDS, dtype=torch.float64))
    width = layer.query.out_features // layer.heads
    for head in range(layer.heads):
        rows = slice(head * width, (head + 1) * width)
        query, key = (x @ f.weight[rows].T for f in (layer.query, layer.key))
        torch.testing.assert_close(weights[:, head], torch.softmax(query @ key.transpose(1, 2) * layer.scale, dim=-1))
    attended = [weights[:, h] @ (x @ layer.value.weight[h * width : (h + 1) * width].T) for h in range(layer.heads)]
    torch.testing.assert_close(torch.relu(torch.cat(attended, dim=-1) + x @ layer.residual.weight.T), layer(x))


def test_dropout_leaves_out_weights_in_training_only() -> None:
    layer, x = make(dropout=0.5)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))
    torch.testing.assert_close(layer(x), as_printed(layer, x))


def test_bfloat16_is_near_and_its_gradients_too() -> None:
    layer, x = make()
    layer, x = layer.float(), x.detach().float().requires_grad_()
    exact, exact_gradient = layer(x), torch.autograd.grad(layer(x).sum(), x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        near = layer(x)
    gradient = torch.autograd.grad(near.float().sum(), x)[0]
    assert near.dtype == torch.bfloat16
    assert (near - exact).norm() < 0.02 * exact.norm()
    assert (gradient - exact_gradient).norm() < 0.05 * exact_gradient.norm()


@pytest.mark.parametrize("rows", [1, CACHED_ROWS, CACHED_ROWS + 1])
def test_by_rows_is_all_rows_at_once(rows: int) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    x = torch.randn(rows, 3, requires_grad=True)
    torch.testing.assert_close(by_rows(layer, x), layer(x))
    parts, whole = by_rows(layer, x).square().sum(), layer(x).square().sum()
    torch.testing.assert_close(torch.autograd.grad(parts, [x, *layer.parameters()]), torch.autograd.grad(whole, [x, *layer.parameters()]))
