"""MMoE, PLE and ESMM against plain loops, and where one model is another."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits

from ctrkit.layers.experts import Experts, Gate, mix
from ctrkit.models.base import RankingModel
from ctrkit.models.registry import build
from ctrkit.schema import IdField, Inputs

DIM, ROWS = 3, 5
THREE = Inputs(id_fields=tuple(IdField(name=f"c{k}", rows=9) for k in range(4)), numeric_fields=("n",), tasks=("a", "b", "c"))
TWO = THREE.model_copy(update={"tasks": ("click", "buy")})


def make(name: str, inputs: Inputs = THREE, **settings: Any) -> Any:
    """A model with random parameters, those that start at zero too."""
    torch.manual_seed(0)
    model = build(name, inputs, DIM, settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


def feed(model: RankingModel) -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(1)
    return {"embedding": torch.randn(ROWS, 4, DIM)}, torch.randn(ROWS, 1)


def flat(model: Any) -> Tensor:
    embeddings, dense = feed(model)
    return torch.cat([embeddings["embedding"], dense.unsqueeze(2) * model.vectors.numeric.weight], dim=1).flatten(1)


def mixed(gate: Gate, x: Tensor, experts: list[Tensor]) -> Tensor:
    """The gate's mean of the experts, row by row and expert by expert."""
    scores = x @ gate.scores.weight.t()
    assert scores.shape[1] == len(experts)
    shares = scores.exp() / scores.exp().sum(1, keepdim=True)
    return torch.stack([sum(shares[row, i] * expert[row] for i, expert in enumerate(experts)) for row in range(ROWS)])  # pyright: ignore


def test_gates_are_distributions_and_mix_within_the_experts() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 6) * 20
    weights = Gate(6, 4)(x)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(50))
    experts = Experts(6, 4, (5, 3))(x)
    assert experts.shape == (50, 4, 3)
    result = mix(weights, experts)
    assert ((result <= experts.amax(1) + 1e-4) & (result >= experts.amin(1) - 1e-4)).all()


def test_mmoe_is_the_sum_over_experts() -> None:
    model = make("mmoe", experts=4, expert_hidden=(7, 6), hidden=(5,))
    x = flat(model)
    experts = [tower(x) for tower in model.experts.towers]
    expected = [tower(mixed(gate, x, experts)) for gate, tower in zip(model.gates, model.towers, strict=True)]
    torch.testing.assert_close(model(*feed(model)), torch.cat(expected, dim=1))


def test_mmoe_with_one_expert_is_the_shared_bottom_model() -> None:
    model = make("mmoe", experts=1, expert_hidden=(7, 6), hidden=(5,))
    (bottom,) = model.experts.towers
    shared = bottom(flat(model))
    torch.testing.assert_close(model(*feed(model)), torch.cat([tower(shared) for tower in model.towers], dim=1))


def test_ple_is_its_equations() -> None:
    model = make("ple", layers=3, shared_experts=2, task_experts=3, expert_hidden=(6,), hidden=(5,))
    tasks, shared = [flat(model)] * 3, flat(model)
    for number, layer in enumerate(model.extraction):
        own = [[tower(x) for tower in experts.towers] for experts, x in zip(layer.task_experts, tasks, strict=True)]
        common = [tower(shared) for tower in layer.shared_experts.towers]
        tasks = [mixed(gate, x, mine + common) for gate, x, mine in zip(layer.task_gates, tasks, own, strict=True)]
        if number < 2:
            shared = mixed(layer.shared_gate, shared, own[0] + own[1] + own[2] + common)
    assert model.extraction[2].shared_gate is None
    torch.testing.assert_close(model(*feed(model)), torch.cat([t(x) for t, x in zip(model.towers, tasks, strict=True)], dim=1))


def test_ple_without_shared_experts_is_a_model_a_task() -> None:
    model = make("ple", layers=2, shared_experts=0, task_experts=2, expert_hidden=(6,), hidden=(5,))
    model(*feed(model))[:, 1].sum().backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0}
    names = [name for name, _ in model.named_parameters()]
    own = {name for name in names if re.match(r"(towers|extraction\.\d\.task_(experts|gates))\.1\.", name)}
    assert len(own) > 10 and {name for name in touched if not name.startswith("vectors.")} == own
    assert not any("shared" in name for name in names)


def test_ple_without_shared_experts_and_one_of_its_own_is_independent_towers() -> None:
    model = make("ple", layers=1, shared_experts=0, task_experts=1, expert_hidden=(6,), hidden=(5,))
    (layer,) = model.extraction
    towers = [tower(experts.towers[0](flat(model))) for tower, experts in zip(model.towers, layer.task_experts, strict=True)]
    torch.testing.assert_close(model(*feed(model)), torch.cat(towers, dim=1))


def test_ple_of_one_layer_with_shared_experts_alone_reaches_every_task() -> None:
    model = make("ple", layers=1, shared_experts=3, task_experts=1, expert_hidden=(6,), hidden=())
    for task in range(3):
        model.zero_grad()
        model(*feed(model))[:, task].sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in model.extraction[0].shared_experts.parameters() if p.ndim == 2)


def test_esmm_predicts_the_product() -> None:
    model = make("esmm", TWO, hidden=(6, 5))
    ctr, cvr = (tower(flat(model)).sigmoid().squeeze(1) for tower in (model.click, model.conversion))
    click, both = model(*feed(model)).sigmoid().unbind(1)
    torch.testing.assert_close(click, ctr)
    torch.testing.assert_close(both, ctr * cvr)


@pytest.mark.parametrize("size", [30.0, 100.0, 1e4])
def test_esmm_stays_finite_where_probabilities_vanish(size: float) -> None:
    """Each tower's logit far from zero, in every combination of signs: finite losses, finite gradients, and the right limit."""
    model = make("esmm", TWO, hidden=())
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]) * size
    towers = signs.clone().requires_grad_()
    model.click.forward = lambda x: towers[:, :1]
    model.conversion.forward = lambda x: towers[:, 1:]
    logits = model({"embedding": torch.zeros(4, 4, DIM)}, torch.zeros(4, 1))
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[1:, 1], torch.tensor([-size, -size, -2 * size]))
    torch.testing.assert_close(logits[0, 1], torch.tensor(size - torch.log(torch.tensor(2.0)).item()))
    binary_cross_entropy_with_logits(logits, torch.ones(4, 2)).backward()
    assert towers.grad is not None and towers.grad.isfinite().all()


def test_esmm_learns_through_the_two_losses_alone() -> None:
    """The gradient of logloss(click, pCTR) + logloss(click and conversion, pCTR pCVR), and no loss on pCVR by itself."""
    model = make("esmm", TWO, hidden=(6,))
    labels = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    targets = model.targets(labels)
    assert targets.tolist() == [[1, 1], [1, 0], [0, 0], [0, 0], [1, 1]]
    binary_cross_entropy_with_logits(model(*feed(model)), targets, reduction="sum").backward()
    got = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    ctr, cvr = (tower(flat(model)).squeeze(1).sigmoid() for tower in (model.click, model.conversion))
    click, both = labels[:, 0], labels[:, 0] * labels[:, 1]
    (binary_cross_entropy(ctr, click, reduction="sum") + binary_cross_entropy(ctr * cvr, both, reduction="sum")).backward()
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(got[name], expected, rtol=1e-4, atol=1e-6)
    model.zero_grad()
    model(*feed(model))[:, 0].sum().backward()
    assert all(parameter.grad is None or (parameter.grad == 0).all() for parameter in model.conversion.parameters())
