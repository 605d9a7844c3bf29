"""Layers of the zoo against their equations, written out with plain loops."""

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from ctrkit.layers.bilinear import BilinearFusion, BilinearInteraction, Share
from ctrkit.layers.cin import CompressedInteraction
from ctrkit.layers.convolution import FeatureGeneration
from ctrkit.layers.cross import CrossAndDeep, CrossNetwork, GatedCross, LowRankCross, MatrixCross, MixtureCross, VectorCross
from ctrkit.layers.mask import FieldNorm, MaskBlock
from ctrkit.layers.product import PairwiseProducts, superposed_outer_product
from ctrkit.layers.senet import SENet

ROWS, FIELDS, DIM = 3, 4, 5


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def vectors() -> Tensor:
    return torch.randn(ROWS, FIELDS, DIM)


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Biases too, which start at zero and would hide their part."""
    for parameter in module.parameters():
        parameter.normal_()


def test_cin_is_the_triple_sum(vectors: Tensor) -> None:
    cin = CompressedInteraction(FIELDS, (3, 2))
    result = cin(vectors)
    assert result.shape == (ROWS, cin.outputs) == (ROWS, 5)
    for row in range(ROWS):
        x0 = x = [vectors[row, i] for i in range(FIELDS)]
        expected = []
        for layer in cin.layers:
            weight = layer.weight.unflatten(1, (len(x), FIELDS))
            x = [sum(w[i, j] * x[i] * x0[j] for i in range(len(x)) for j in range(FIELDS)) for w in weight]
            expected += [v.sum() for v in x]
        torch.testing.assert_close(result[row], torch.stack(expected))


def test_vector_cross() -> None:
    layer, x0, x = VectorCross(DIM), torch.randn(ROWS, DIM), torch.randn(ROWS, DIM)
    randomise(layer)
    w = layer.weight.weight[0]
    for row, result in enumerate(layer(x0, x)):
        torch.testing.assert_close(result, torch.outer(x0[row], x[row]) @ w + layer.bias + x[row])


def test_matrix_cross_and_its_low_rank_form_at_full_rank() -> None:
    x0, x = torch.randn(ROWS, DIM), torch.randn(ROWS, DIM)
    full, low = MatrixCross(DIM), LowRankCross(DIM, DIM)
    randomise(full)
    expected = torch.stack([x0[r] * (full.weight.weight @ x[r] + full.weight.bias) + x[r] for r in range(ROWS)])
    torch.testing.assert_close(full(x0, x), expected)
    with torch.no_grad():
        low.v.weight.copy_(torch.eye(DIM))
        low.u.weight.copy_(full.weight.weight)
        low.u.bias.copy_(full.weight.bias)
    torch.testing.assert_close(low(x0, x), expected)


def test_a_mixture_of_crosses_is_the_sum_of_gated_experts() -> None:
    layer, x0, x = MixtureCross(DIM, rank=2, experts=3), torch.randn(ROWS, DIM), torch.randn(ROWS, DIM)
    randomise(layer)
    for row, result in enumerate(layer(x0, x)):
        gates = torch.softmax(layer.gate.weight @ x[row], 0)
        expected = x[row]
        for k in range(3):
            hidden = torch.tanh(layer.c[k].T @ torch.tanh(layer.v[k].T @ x[row]))
            expected = expected + gates[k] * x0[row] * (layer.u[k].T @ hidden + layer.bias)
        torch.testing.assert_close(result, expected)


def test_an_open_gate_makes_gdcn_a_dcnv2_and_a_shut_one_passes_the_input_on() -> None:
    x0, x = torch.randn(ROWS, DIM), torch.rand(ROWS, DIM) + 0.1
    gated, plain = GatedCross(DIM), MatrixCross(DIM)
    randomise(gated)
    plain.weight.load_state_dict(gated.cross.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(gated(x0, x), (plain(x0, x) - x) * torch.sigmoid(x @ gated.gate.weight.T) + x)
        gated.gate.weight.fill_(1e4)
        torch.testing.assert_close(gated(x0, x), plain(x0, x))
        gated.gate.weight.fill_(-1e4)
        torch.testing.assert_close(gated(x0, x), x)


def test_cross_network_raises_the_order_by_one_a_layer() -> None:
    """Without biases, L layers are a polynomial of degree L + 1: with x scaled by t, the leading term grows as t^(L+1)."""
    network = CrossNetwork(3, lambda: MatrixCross(DIM)).double()
    x = torch.randn(ROWS, DIM, dtype=torch.float64)
    ratio = network(2e6 * x) / network(1e6 * x)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2.0**4), rtol=1e-4, atol=0)


def test_cross_and_deep_stands_as_it_is_told() -> None:
    x = torch.randn(ROWS, DIM)
    cross = CrossNetwork(2, lambda: MatrixCross(DIM))
    parallel = CrossAndDeep(DIM, cross, "parallel", (6,), 0.0, False)
    expected = torch.cat([cross(x), parallel.deep(x)], dim=1) @ parallel.output.weight[0] + parallel.output.bias
    torch.testing.assert_close(parallel(x), expected)
    stacked = CrossAndDeep(DIM, cross, "stacked", (6,), 0.0, False)
    torch.testing.assert_close(stacked(x), stacked.deep(cross(x)) @ stacked.output.weight[0] + stacked.output.bias)
    for structure in ("parallel", "stacked"):
        alone = CrossAndDeep(DIM, cross, structure, (), 0.0, False)
        torch.testing.assert_close(alone(x), cross(x) @ alone.output.weight[0] + alone.output.bias)


def test_products(vectors: Tensor) -> None:
    expected = torch.stack([vectors[:, i] * vectors[:, j] for i, j in combinations(range(FIELDS), 2)], dim=1)
    torch.testing.assert_close(PairwiseProducts(FIELDS)(vectors), expected)
    for row, result in enumerate(superposed_outer_product(vectors)):
        every_pair = sum(torch.outer(vectors[row, i], vectors[row, j]) for i in range(FIELDS) for j in range(FIELDS))
        torch.testing.assert_close(result.view(DIM, DIM), every_pair)


@pytest.mark.parametrize("share", ["all", "each", "interaction"])
def test_bilinear_interaction(vectors: Tensor, share: Share) -> None:
    layer = BilinearInteraction(FIELDS, DIM, share)
    result = layer(vectors)
    for pair, (i, j) in enumerate(combinations(range(FIELDS), 2)):
        w = layer.weight[{"all": 0, "each": i, "interaction": pair}[share]]
        torch.testing.assert_close(result[:, pair], (vectors[:, i] @ w) * vectors[:, j])


def test_bilinear_fusion_by_heads() -> None:
    layer, x, y = BilinearFusion(6, 4, heads=2), torch.randn(ROWS, 6), torch.randn(ROWS, 4)
    randomise(layer)
    for row, result in enumerate(layer(x, y)):
        expected = layer.left.bias[0] + layer.left.weight[0] @ x[row] + layer.right.weight[0] @ y[row]
        for h in range(2):
            expected = expected + x[row, 3 * h : 3 * h + 3] @ layer.weight[h] @ y[row, 2 * h : 2 * h + 2]
        torch.testing.assert_close(result, expected)


def test_senet_weighs_each_field_by_its_excitation(vectors: Tensor) -> None:
    layer = SENet(FIELDS, reduction=2)
    first, second = layer.excitation[0].weight, layer.excitation[2].weight
    assert first.shape == (2, FIELDS)
    result = layer(vectors)
    for row in range(ROWS):
        z = torch.stack([vectors[row, i].sum() / DIM for i in range(FIELDS)])
        weights = (second @ (first @ z).clamp(min=0)).clamp(min=0)
        torch.testing.assert_close(result[row], torch.stack([weights[i] * vectors[row, i] for i in range(FIELDS)]))
    assert SENet(2, reduction=3).excitation[0].out_features == 1


def test_mask_block_and_field_norm(vectors: Tensor) -> None:
    block, x = MaskBlock(FIELDS * DIM, 6, 7, reduction=1.5), torch.randn(ROWS, 6)
    randomise(block)
    first, _, second = block.mask.layers
    assert first.out_features == 9
    for row, result in enumerate(block(vectors.flatten(1), x)):
        e = vectors[row].flatten()
        mask = second.weight @ (first.weight @ e + first.bias).clamp(min=0) + second.bias
        hidden = block.hidden.weight @ (mask * x[row])
        normal = (hidden - hidden.mean()) / torch.sqrt(hidden.var(correction=0) + 1e-5)
        torch.testing.assert_close(result, (normal * block.norm.weight + block.norm.bias).clamp(min=0), rtol=1e-4, atol=1e-5)

    norm = FieldNorm(FIELDS, DIM)
    randomise(norm)
    each = [(v - v.mean()) / torch.sqrt(v.var(correction=0) + 1e-5) for v in vectors[0]]
    torch.testing.assert_close(norm(vectors)[0], torch.stack(each) * norm.scale + norm.shift, rtol=1e-4, atol=1e-5)


def test_generated_features_step_by_step(vectors: Tensor) -> None:
    """One layer: convolution over fields with zeros beyond the ends, tanh, the largest of neighbours, recombination."""
    layer = FeatureGeneration(FIELDS + 1, DIM, channels=(2,), kernel=3, pooling=2, new_features=2, gain=0.3).eval()
    vectors = torch.randn(ROWS, FIELDS + 1, DIM)
    assert layer.outputs == 6  # 5 fields pooled by 2 leave 3, of 2 new features each
    kernel = layer.convolutions[0][0].weight[:, 0, :, 0]
    padded = torch.cat([torch.zeros(ROWS, 1, DIM), vectors, torch.zeros(ROWS, 1, DIM)], dim=1)
    maps = [torch.tanh(sum(kernel[m, k] * padded[:, k : k + 5] for k in range(3)) / (1 + 1e-5) ** 0.5) for m in range(2)]
    pooled = [torch.stack([c[:, :2].amax(1), c[:, 2:4].amax(1), c[:, 4]], dim=1) for c in maps]
    recombination = layer.recombinations[0]
    expected = torch.tanh(torch.stack(pooled, dim=1).flatten(1) @ recombination.weight.T).view(ROWS, 6, DIM)
    torch.testing.assert_close(layer(vectors), 0.3 * expected)


def test_generation_sees_neighbours_first_and_then_further() -> None:
    """With a kernel of 3 and no pooling, field 0 is out of the first layer's reach from field 2 on, and in the second's at 2."""
    layer = FeatureGeneration(6, 1, channels=(1, 1), kernel=3, pooling=1, new_features=1, gain=0.3).eval()
    x = torch.randn(1, 6, 1)
    moved = x.clone()
    moved[0, 0] += 1
    first = [layer.convolutions[0](v.unsqueeze(1))[0, 0, :, 0] for v in (x, moved)]
    second = [layer.convolutions[1](v.view(1, 1, 6, 1))[0, 0, :, 0] for v in first]
    assert (first[0] != first[1]).tolist() == [True, True, False, False, False, False]
    assert (second[0] != second[1]).tolist() == [True, True, True, False, False, False]
