"""Numbers as vectors."""

import pytest
import torch
from torch import nn

from ctrkit.layers.numeric import AutoDis, FillMissing, NumericEmbedding, replace_numeric

NUMBERS = torch.tensor([[0.5, -2.0], [torch.nan, 3.0], [0.0, torch.nan]])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def autodis(temperature: float = 0.1) -> AutoDis:
    layer = AutoDis(fields=2, dim=4, meta_embeddings=5, skip=0.3, temperature=temperature)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def test_scaling_is_number_times_vector_and_missing_is_a_vector_of_its_own() -> None:
    layer = NumericEmbedding(2, 4)
    with torch.no_grad():
        layer.missing.normal_()
    result = layer(NUMBERS)
    torch.testing.assert_close(result[0, 1], -2 * layer.weight[1])
    torch.testing.assert_close(result[1, 0], layer.missing[0])
    torch.testing.assert_close(result[2, 1], layer.missing[1])
    assert (result[2, 0] == 0).all()


def test_autodis_mixes_meta_embeddings_by_its_scores() -> None:
    layer = autodis(temperature=0.7)
    result = layer(NUMBERS)
    for row, field in ((0, 0), (0, 1), (1, 1), (2, 0)):
        x = NUMBERS[row, field]
        h = torch.stack([s if s > 0 else 0.01 * s for s in x * layer.first[field] + layer.first_bias[field]])
        scores = h @ layer.second[field] + layer.second_bias[field] + 0.3 * h
        mixed = sum(w * m for w, m in zip(torch.softmax(scores / 0.7, 0), layer.meta[field], strict=True))
        torch.testing.assert_close(result[row, field], mixed)
    torch.testing.assert_close(result[1, 0], layer.missing[0])
    torch.testing.assert_close(result[2, 1], layer.missing[1])


def test_autodis_goes_from_hard_buckets_to_the_average_with_its_temperature() -> None:
    x = torch.linspace(-3, 3, 101).unsqueeze(1).expand(-1, 2)
    cold = autodis(1e-6)
    distance = torch.cdist(cold(x)[:, 0], cold.meta[0])
    assert (distance.amin(1) < 1e-5).all()
    assert len(set(distance.argmin(1).tolist())) > 1
    hot = autodis(1e6)
    torch.testing.assert_close(hot(x), hot.meta.mean(1).expand(101, -1, -1), rtol=1e-4, atol=1e-4)


def test_autodis_learns_what_scaling_cannot() -> None:
    """Clicks where the number is near 0.5, on neither side of it: a line's best guess is the mean."""
    x = torch.randn(1024, 1)
    labels = (x[:, 0] - 0.5).abs() < 0.4
    losses = []
    for layer in (NumericEmbedding(1, 1), AutoDis(1, 1, meta_embeddings=20, skip=0.1, temperature=0.1)):
        bias = nn.Parameter(torch.zeros(()))
        optimizer = torch.optim.Adam([*layer.parameters(), bias], lr=0.01)
        for _ in range(200):
            loss = nn.functional.binary_cross_entropy_with_logits(layer(x)[:, 0, 0] + bias, labels.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    scaled, bucketed = losses
    assert bucketed < 0.35
    assert scaled > 0.5


def test_gradients_are_finite_beside_missing_values() -> None:
    layer = autodis()
    layer(torch.full((3, 2), torch.nan)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_every_layer_of_a_model_that_takes_numbers_is_swapped() -> None:
    model = nn.ModuleDict(
        {"vectors": NumericEmbedding(2, 4), "inner": nn.Sequential(NumericEmbedding(2, 1), nn.Tanh()), "fill": FillMissing(2)}
    )
    shapes = {name: layer(NUMBERS).shape for name, layer in model.items()}
    replace_numeric(model, lambda fields, dim: AutoDis(fields, dim, 5, 0.1, 0.1))
    assert not [m for m in model.modules() if isinstance(m, NumericEmbedding | FillMissing)]
    assert sum(isinstance(m, AutoDis) for m in model.modules()) == 3
    assert {name: layer(NUMBERS).shape for name, layer in model.items()} == shapes
