"""OptEmbed: the step's derivative and the supernet by hand, candidates that fill the budget, what the search makes of them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ctrkit.embeddings.compression.codec import stored_bytes
from ctrkit.embeddings.compression.kept import kept_bytes
from ctrkit.embeddings.compression.optembed import OptEmbed, Step, Supernet
from tests.embeddings.compression.made import counts_of, looked_up, made, method_of, space_of, tables_of

FIELDS = torch.arange(4).repeat_interleave(torch.tensor(space_of().rows))


def supernet_of(budget: float = 0.3, dim: int = 8, **settings: float) -> tuple[OptEmbed, Supernet]:
    method = method_of("optembed", budget, dim, **settings)
    assert isinstance(method, OptEmbed)
    return method, method.supernet(counts_of(method.space))


def decided(method: OptEmbed, supernet: Supernet, table: Tensor, evaluate: Callable[[int], float]) -> tuple[Tensor, Tensor]:
    decision = method.decide(supernet, {"rows": table}, counts_of(method.space), evaluate)
    return decision["kept"], decision["widths"]


def test_the_step_and_its_derivative() -> None:
    z = torch.tensor([-1.5, -1.0, -0.5, -0.2, 0.0, 0.1, 0.4, 0.7, 1.2], requires_grad=True)
    step = Step.apply(z)
    assert step.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    step.sum().backward()
    torch.testing.assert_close(z.grad, torch.tensor([0.0, 0.4, 0.4, 1.2, 2.0, 1.6, 0.4, 0.4, 0.0]))


def test_rows_below_their_fields_threshold_are_zero() -> None:
    _, supernet = supernet_of(dim=2)
    supernet.eval().thresholds.data = torch.tensor([0.5, 2.0, 0.0, -1.0])
    rows = torch.tensor([[0.25, -0.5], [0.25, 0.125], [-1.0, 1.0], [0.0, 0.0]])
    ids = torch.tensor([3, 3, 450, 561])  # users, and an item and a city exactly at their thresholds
    assert supernet.combine(ids, [rows]).tolist() == [[0.25, -0.5], [0, 0], [0, 0], [0, 0]]


def test_widths_are_drawn_anew_for_each_field_and_step_and_uniformly() -> None:
    _, supernet = supernet_of(dim=5)
    ids, rows = torch.tensor([1, 2, 401, 561, 594]), torch.ones(5, 5)
    seen = []
    for step in range(400):
        supernet.advance(0.0, step)
        vectors = supernet.combine(ids, [rows])
        widths = vectors.sum(1).to(torch.int64)
        assert widths[0] == widths[1] and torch.equal(vectors, (torch.arange(5) < widths.unsqueeze(1)).float())
        seen.append(widths[1:])
    counts = torch.stack([torch.bincount(of_field, minlength=6) for of_field in torch.stack(seen, 1)])
    assert (counts[:, 0] == 0).all() and ((counts[:, 1:] - 80).abs() < 40).all(), "five standard deviations"
    assert supernet.eval().combine(ids, [rows]).all(), "in evaluation all is there"


def test_thresholds_learn_from_the_loss_and_are_drawn_up() -> None:
    _, supernet = supernet_of(alpha=0.5)
    table = tables_of(supernet.parts)["rows"].requires_grad_()
    supernet.thresholds.data.fill_(0.3)
    supernet.advance(0.0, 0)
    looked_up(supernet, {"rows": table}, torch.arange(600)).sum().backward()
    of_loss = supernet.thresholds.grad
    assert of_loss is not None and (of_loss != 0).all() and supernet.deciding() == [supernet.thresholds]
    supernet.thresholds.grad = None
    supernet.penalty().backward()
    torch.testing.assert_close(supernet.thresholds.grad, torch.full((4,), -0.5) * torch.tensor(-0.3).exp())


@pytest.mark.parametrize("dim", [4, 6, 11])
@pytest.mark.parametrize("budget", [0.03, 0.3, 0.7])
def test_every_candidate_fills_the_budget_with_the_largest_margins(budget: float, dim: int) -> None:
    method, supernet = supernet_of(budget, dim)
    table = tables_of(supernet.parts)["rows"]
    supernet.eval().thresholds.data = torch.tensor([0.1, -0.2, 0.0, 0.3])
    margins = table.abs().sum(1) - supernet.thresholds.detach()[FIELDS]

    def evaluate(rows: int) -> float:
        assert rows == method.settings.rows
        shown = looked_up(supernet, {"rows": table}, torch.arange(600)).detach()
        kept, widths = shown.any(1), supernet.widths[FIELDS]
        assert torch.equal(shown, table * (kept.unsqueeze(1) & (torch.arange(dim) < widths.unsqueeze(1))))
        assert margins[kept].min() >= margins[~kept].max() if not kept.all() else True
        taken = int(kept_bytes(method.space.rows, dim, kept.sum().view(1), widths[kept].sum().view(1)))
        assert taken <= method.allowed_bytes
        assert kept.all() or taken > method.allowed_bytes - dim * 4 - 4, "not one row more fits"
        return 0.0

    kept, widths = decided(method, supernet, table, evaluate)
    assert (widths == dim).all() and 0 < kept.sum() < 600, "all are as good as the first, which has full width"


def test_the_widths_that_score_best_are_taken() -> None:
    method, supernet = supernet_of(0.3, 8, generations=40, population=20)
    table = tables_of(supernet.parts)["rows"]
    best = torch.tensor([2, 7, 1, 8])
    kept, widths = decided(method, supernet, table, lambda rows: -float((supernet.widths - best).abs().sum()))
    assert widths.tolist() == best.tolist() == supernet.widths.tolist()
    codec = method.codec({"kept": kept, "widths": widths}, counts_of(method.space))
    stored = codec.stored({"rows": table})
    assert method.allowed_bytes - 36 < stored_bytes(stored) <= method.allowed_bytes
    ids = torch.arange(600)
    assert torch.equal(stored(ids), looked_up(codec, {"rows": table}, ids))
    assert torch.equal(stored(ids), looked_up(supernet.eval(), {"rows": table}, ids)), "what was judged"


def test_high_thresholds_prune_their_field_first() -> None:
    method, supernet = supernet_of()
    supernet.thresholds.data = torch.tensor([0.0, 5.0, 0.0, 0.0])
    kept, _ = decided(method, supernet, tables_of(supernet.parts)["rows"], lambda rows: 0.0)
    assert not kept[FIELDS == 1].any() and kept[FIELDS == 0].any()


def test_the_whole_budget_keeps_the_whole_table() -> None:
    method = method_of("optembed", 1.0)
    codec, tables = made(method)
    ids = torch.arange(600)
    assert torch.equal(codec.stored(tables)(ids), tables["rows"])
    assert stored_bytes(codec.stored(tables)) == method.full_bytes


def test_the_training_goes_on_from_the_supernets_weights() -> None:
    method = method_of("optembed", 0.3)
    assert method.starts_from == "end" and method.search_stops_early
    codec, tables = made(method)
    vectors = looked_up(codec, tables, torch.arange(600))
    kept = vectors != 0
    assert torch.equal(vectors[kept], tables_of(codec.parts, seed=1)["rows"][kept]) and 0 < kept.sum() < kept.numel()
