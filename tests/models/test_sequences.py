"""DIN and BST: what they must do whatever their weights, and their parts against their formulas."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrkit.config import AutoDis, Numeric, Scale
from ctrkit.errors import CtrkitError
from ctrkit.layers.activation_unit import ActivationUnit
from ctrkit.layers.dice import Dice
from ctrkit.layers.transformer import TransformerLayer
from ctrkit.models.base import RankingModel
from ctrkit.models.registry import build, models
from ctrkit.schema import IdField, Inputs

DIM, LENGTH, ROWS = 4, 5, 6
INPUTS = Inputs(
    id_fields=(
        IdField(name="user", rows=9),
        IdField(name="past", rows=9, multi_valued=True, of="item", length=LENGTH),
        IdField(name="tags", rows=9, multi_valued=True),
        IdField(name="item", rows=9),
        IdField(name="bought", rows=9, multi_valued=True, of="item", length=2),
    ),
    numeric_fields=("n0", "n1"),
)
CASES: list[tuple[str, dict[str, Any]]] = [
    ("din", {"hidden": (8, 6), "attention_hidden": (5,)}),
    ("din", {"hidden": (8,), "attention_hidden": (5, 3), "activation": "prelu", "dropout": 0.1}),
    ("bst", {"hidden": (8, 6)}),
    ("bst", {"hidden": (8,), "layers": 2, "heads": 4, "dropout": 0.1}),
]
assert {name for name, _ in CASES} == {m.name for m in models() if m.kind == "sequence"}, "every model of histories is tested here"
each_case = pytest.mark.parametrize("name,settings", CASES, ids=[f"{n} {s}" for n, s in CASES])


def make(name: str, settings: dict[str, Any], numeric: Numeric | None = None) -> RankingModel:
    torch.manual_seed(0)
    model = build(name, INPUTS, DIM, settings, numeric or Scale())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model


def feed(rows: int = ROWS) -> tuple[dict[str, Tensor], Tensor]:
    """Row 0 has no history, row 1 a full one, the others something between."""
    draw = torch.Generator().manual_seed(0)
    embeddings = {"embedding": torch.randn(rows, 3, DIM, generator=draw)}
    for name, length in (("past", LENGTH), ("bought", 2)):
        sizes = torch.tensor([0, length, *range(1, rows - 1)][:rows]).clamp(max=length)
        mask = torch.arange(length) >= length - sizes.unsqueeze(1)
        embeddings[f"mask/{name}"] = mask
        embeddings[f"embedding/{name}"] = torch.randn(rows, length, DIM, generator=draw) * mask.unsqueeze(2)
    dense = torch.randn(rows, 2, generator=draw)
    dense[2, 0] = torch.nan
    return embeddings, dense


def shuffled(embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
    """The full history of row 1 in another order."""
    past = embeddings["embedding/past"].clone()
    past[1] = past[1].flip(0)
    return embeddings | {"embedding/past": past}


@each_case
def test_logits_are_finite_and_gradients_reach_everything(name: str, settings: dict[str, Any]) -> None:
    model = make(name, settings, AutoDis(meta_embeddings=3))
    embeddings, dense = feed()
    for key, tensor in embeddings.items():
        tensor.requires_grad_(not key.startswith("mask"))
    logits = model(embeddings, dense)
    assert logits.shape == (ROWS,) and logits.isfinite().all()
    (logits * torch.linspace(-1, 2, ROWS)).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    for past, mask in (("embedding/past", "mask/past"), ("embedding/bought", "mask/bought")):
        gradient = embeddings[past].grad
        assert gradient is not None and torch.equal(gradient.abs().sum(2) > 0, embeddings[mask])


@each_case
@pytest.mark.parametrize("training", [True, False])
def test_what_stands_at_a_padded_place_counts_for_nothing(name: str, settings: dict[str, Any], training: bool) -> None:
    model = make(name, settings | {"dropout": 0.0}).train(training)
    embeddings, dense = feed()
    noisy = dict(embeddings)
    for field in ("past", "bought"):
        mask = embeddings[f"mask/{field}"].unsqueeze(2)
        noisy[f"embedding/{field}"] = embeddings[f"embedding/{field}"].masked_fill(~mask, 7.0)
    torch.testing.assert_close(model(noisy, dense), model(embeddings, dense))


@each_case
def test_order_matters_to_bst_and_not_to_din(name: str, settings: dict[str, Any]) -> None:
    model = make(name, settings).eval()
    embeddings, dense = feed()
    before, after = model(embeddings, dense), model(shuffled(embeddings), dense)
    if name == "din":
        torch.testing.assert_close(before, after)
    else:
        assert abs(before[1] - after[1]) > 1e-4
        torch.testing.assert_close(before[2:], after[2:])


@each_case
def test_a_row_is_scored_alike_in_any_batch_and_without_history(name: str, settings: dict[str, Any]) -> None:
    model = make(name, settings).eval()
    embeddings, dense = feed()
    together = model(embeddings, dense)
    for row in range(ROWS):
        alone = model({key: e[row : row + 1] for key, e in embeddings.items()}, dense[row : row + 1])
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-5, atol=1e-6)


@each_case
def test_a_batch_without_any_history_trains_and_bf16_stays_finite(name: str, settings: dict[str, Any]) -> None:
    model = make(name, settings)
    embeddings, dense = feed()
    for rows in (slice(0, 1), slice(0, ROWS)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model({key: e[rows] for key, e in embeddings.items()}, dense[rows]).float().square().sum()
        loss.backward()
        assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    assert model(embeddings, dense).isfinite().all(), "the running statistics too"


def test_the_activation_unit_is_its_formula() -> None:
    unit = ActivationUnit(2, (1,), "prelu")
    first, slope, last = unit.score.layers
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]]))
        first.bias.fill_(20.5)
        slope.weight.fill_(0.25)
        last.weight.fill_(2.0)
        last.bias.fill_(-1.0)
    target, history = torch.tensor([[1.0, -2.0]]), torch.tensor([[[9.0, 9.0], [0.5, 1.0], [-2.0, 0.0]]])
    mask = torch.tensor([[False, True, True]])

    def weight(e: tuple[float, float]) -> float:
        v = (1.0, -2.0)
        inputs = [*e, *v, v[0] - e[0], v[1] - e[1], v[0] * e[0], v[1] * e[1]]
        hidden = sum((k + 1) * x for k, x in enumerate(inputs)) + 20.5
        return 2 * (hidden if hidden > 0 else 0.25 * hidden) - 1

    w1, w2 = weight((0.5, 1.0)), weight((-2.0, 0.0))
    assert w1 * w2 < 0, "both sides of the bend"
    for training in (True, False):
        unit.train(training)
        torch.testing.assert_close(unit.weights(target, history, mask), torch.tensor([[0.0, w1, w2]]))
        torch.testing.assert_close(unit(target, history, mask), torch.tensor([[0.5 * w1 - 2 * w2, w1]]))


def test_dice_is_its_formula_in_training_and_after() -> None:
    dice = Dice(2)
    with torch.no_grad():
        dice.alpha.copy_(torch.tensor([0.25, -0.5]))
    s = torch.tensor([[1.0, 0.0], [2.0, 0.2], [6.0, -0.1]])

    def by_hand(x: float, unit: int, mean: float, variance: float) -> float:
        p = 1 / (1 + math.exp(-(x - mean) / math.sqrt(variance + 1e-8)))
        return p * x + (1 - p) * (0.25, -0.5)[unit] * x

    columns = s.t().tolist()
    means = [sum(c) / 3 for c in columns]
    variances = [sum((x - m) ** 2 for x in c) / 3 for c, m in zip(columns, means, strict=True)]
    expected = [[by_hand(row[u], u, means[u], variances[u]) for u in range(2)] for row in s.tolist()]
    torch.testing.assert_close(dice(s), torch.tensor(expected))

    dice.eval()  # one batch has been seen: its mean, and its variance without bias
    expected = [[by_hand(row[u], u, means[u], variances[u] * 3 / 2) for u in range(2)] for row in s.tolist()]
    torch.testing.assert_close(dice(s), torch.tensor(expected))


def test_dice_at_zero_alpha_and_equal_inputs_halves() -> None:
    """p is one half where s is its mean: between PReLU's two branches."""
    torch.testing.assert_close(Dice(1)(torch.full((4, 1), 3.0)), torch.full((4, 1), 1.5))


def test_a_transformer_layer_is_torchs_encoder_layer_with_leaky_relu() -> None:
    """An independent implementation: same formula, post-norm, keys masked."""
    torch.manual_seed(0)
    ours = TransformerLayer(8, heads=2, dropout=0.0)
    theirs = torch.nn.TransformerEncoderLayer(8, 2, 32, 0.0, torch.nn.functional.leaky_relu, batch_first=True)
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.self_attn.out_proj.weight.copy_(ours.join.weight)
        theirs.linear1.load_state_dict(ours.inner.state_dict())
        theirs.linear2.load_state_dict(ours.outer.state_dict())
    e, mask = torch.randn(3, 5, 8), torch.rand(3, 5) < 0.5
    mask[:, -1] = True
    torch.testing.assert_close(ours(e, mask), theirs(e, src_key_padding_mask=~mask), atol=1e-5, rtol=1e-5)


def test_attention_weights_are_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = TransformerLayer(8, heads=2, dropout=0.0), torch.nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    e, mask = torch.randn(3, 5, 8), torch.rand(3, 5) < 0.5
    mask[:, -1] = True
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        _, expected = theirs(e, e, e, key_padding_mask=~mask, average_attn_weights=False)
    torch.testing.assert_close(ours.weights(e, mask), expected)


@each_case
def test_a_mask_of_shares_counts_a_place_by_so_much(name: str, settings: dict[str, Any]) -> None:
    """Shares of 0 and 1 are the mask; in between the logit moves from that without a place to that with it."""
    model = make(name, settings).eval()
    embeddings, dense = feed()
    shares = {key: e.float() if key.startswith("mask/") else e for key, e in embeddings.items()}
    torch.testing.assert_close(model(shares, dense), model(embeddings, dense))
    logits = []
    for share in (1.0, 0.9999, 0.5, 1e-6, 0.0):
        mask = embeddings["mask/past"].float()
        mask[:, -1] *= share
        logits.append(model(embeddings | {"mask/past": mask}, dense))
    without = embeddings["mask/past"].clone()
    without[:, -1] = False
    torch.testing.assert_close(logits[-1], model(embeddings | {"mask/past": without}, dense))
    near = (logits[0] - logits[1]).abs().max(), (logits[-2] - logits[-1]).abs().max()
    assert max(near) < 0.05 * (logits[0] - logits[-1]).abs().max()
    assert (logits[2] - logits[0]).abs().max() > 1e-3 < (logits[2] - logits[-1]).abs().max()


def test_two_halves_of_a_value_are_the_value() -> None:
    """Of a history, for what is made of the target: by the activation unit and by a transformer layer."""
    torch.manual_seed(0)
    target, value, half = torch.randn(1, 4), torch.randn(1, 1, 4), torch.full((1, 2), 0.5)
    unit = ActivationUnit(4, (3,), "prelu").eval()
    torch.testing.assert_close(unit(target, value.expand(1, 2, 4), half), unit(target, value, torch.ones(1, 1)))
    layer = TransformerLayer(4, heads=2, dropout=0.0).eval()
    one = layer(torch.cat([value, target.unsqueeze(1)], dim=1), torch.ones(1, 2))
    two = layer(torch.cat([value, value, target.unsqueeze(1)], dim=1), torch.tensor([[0.5, 0.5, 1.0]]))
    torch.testing.assert_close(two[:, -1], one[:, -1])


@each_case
def test_explanations_are_the_weights_that_the_model_uses(name: str, settings: dict[str, Any]) -> None:
    model = make(name, settings).eval()
    embeddings, dense = feed()
    shown = {one.sequence: one for one in model.explanations(embeddings, dense)}
    assert set(shown) == {"past", "bought"}
    for sequence, one in shown.items():
        mask = embeddings[f"mask/{sequence}"]
        for weights in one.weights.values():
            assert weights.shape == mask.shape and (weights[~mask] == 0).all() and (weights[mask] != 0).all()
            assert not one.normalised or ((weights >= 0).all() and (weights.sum(1) < 1).all())
    if name == "din":
        unit = model.units[0]
        seen = embeddings["embedding"][:, 2], embeddings["embedding/past"], embeddings["mask/past"]
        torch.testing.assert_close(shown["past"].weights["weight"].unsqueeze(1) @ seen[1], unit(*seen).unsqueeze(1))
    else:
        assert len(shown["past"].weights) == settings.get("layers", 1) * settings.get("heads", 2)


@pytest.mark.parametrize("name", ["din", "bst"])
def test_a_model_of_histories_needs_one(name: str) -> None:
    inputs = Inputs(id_fields=(IdField(name="item", rows=9),), numeric_fields=("n",))
    with pytest.raises(CtrkitError, match=f"model '{name}' attends to the history.*kind: sequence"):
        build(name, inputs, DIM, {})


@pytest.mark.parametrize(
    "name,settings,message",
    [
        ("bst", {"heads": 3}, r"heads \(3\) must divide 8"),
        ("bst", {"layers": 0}, "layers"),
        ("din", {"activation": "relu"}, "'dice' or 'prelu'"),
        ("din", {"attention_hiden": (8,)}, "Did you mean 'attention_hidden'"),
        ("fgcnn", {"classifier": "din"}, "attends to the history"),
    ],
)
def test_bad_settings_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CtrkitError, match=message):
        build(name, INPUTS, DIM, settings)
