"""AutoSrh: groups by frequency, the selection by hand, and the mask of what is selected."""

from typing import Any

import pytest
import torch

from ctrkit.embeddings.compression.autosrh import AutoSrh, SoftSelection, frequency_groups
from ctrkit.embeddings.compression.codec import stored_bytes
from tests.embeddings.compression.made import counts_of, looked_up, made, method_of, tables_of

IDS = torch.arange(600)


def searched(budget: float = 0.3, dim: int = 8, **settings: Any) -> tuple[AutoSrh, SoftSelection]:
    method = method_of("autosrh", budget, dim, **settings)
    assert isinstance(method, AutoSrh)
    supernet = method.supernet(counts_of(method.space))
    assert isinstance(supernet, SoftSelection)
    return method, supernet


def test_groups_by_hand() -> None:
    assert frequency_groups(torch.tensor([5, 0, 0, 9, 1, 1]), 3).tolist() == [2, 0, 0, 2, 1, 1]
    assert frequency_groups(torch.tensor([7, 7, 7, 7]), 3).tolist() == [0, 0, 0, 0], "equally frequent"


def test_groups_are_as_large_as_each_other_and_rise_with_frequency() -> None:
    counts = torch.randperm(600)
    group = frequency_groups(counts, 6).long()
    assert group.bincount().tolist() == [100] * 6
    assert (group[counts.argsort()].diff() >= 0).all()


def test_the_selection_by_hand() -> None:
    method, supernet = searched(groups=2)
    rows = tables_of(supernet.parts)["rows"]
    assert torch.equal(looked_up(supernet, {"rows": rows}, IDS), rows), "all is selected at the start"
    with torch.no_grad():
        supernet.selection[0] = 0.5
        supernet.selection[1] = torch.linspace(0, 1, 8)
    group = frequency_groups(counts_of(method.space), 2)
    expected = torch.where((group == 0).unsqueeze(1), 0.5 * rows, torch.linspace(0, 1, 8) * rows)
    torch.testing.assert_close(looked_up(supernet, {"rows": rows}, IDS), expected)
    torch.testing.assert_close(supernet.stored({"rows": rows})(IDS), expected)
    assert float(supernet.penalty().detach()) == pytest.approx(1e-5 * 8)


def test_the_selection_learns_and_stays_within_its_bounds() -> None:
    _, supernet = searched()
    looked_up(supernet, tables_of(supernet.parts), IDS).sum().backward()
    assert supernet.deciding() == [supernet.selection]
    assert supernet.selection.grad is not None and (supernet.selection.grad != 0).any(1).sum() > 1
    with torch.no_grad():
        supernet.selection[0], supernet.selection[1] = 1.5, -0.5
    group, rows = supernet.group[IDS], tables_of(supernet.parts)["rows"]
    vectors = looked_up(supernet, {"rows": rows}, IDS)  # a step on training rows comes between that of the selection and its clamp
    assert torch.equal(vectors[group == 0], rows[group == 0]) and not vectors[group == 1].any()
    supernet.after_step({}, lambda tensor: tensor)
    assert (supernet.selection[0] == 1).all() and (supernet.selection[1] == 0).all()


@pytest.mark.parametrize("dim", [8, 6])
@pytest.mark.parametrize("budget", [0.05, 0.3, 1.0])
def test_the_mask_fills_the_budget(budget: float, dim: int) -> None:
    method = method_of("autosrh", budget, dim)
    codec, tables = made(method)
    assert method.allowed_bytes - 12 < stored_bytes(codec.stored(tables)) <= method.allowed_bytes, "not one row more fits"


def test_what_is_not_selected_is_pruned_first_and_what_is_starts_as_it_was_selected() -> None:
    method, supernet = searched(groups=3)
    with torch.no_grad():
        supernet.selection[0] = 0.0
        supernet.selection[1] = 0.9
        supernet.selection[:, 5] = 0.0
    parts = tables_of(supernet.parts)
    counts = counts_of(method.space)
    decision = method.decide(supernet, parts, counts, lambda rows: 0.0)
    codec, started = method.codec(decision, counts), method.start(decision, parts)
    assert method.starts_from == "end"
    vectors = looked_up(codec, started, IDS)
    assert (vectors[supernet.group == 0] == 0).all() and (vectors[:, 5] == 0).all()
    kept = vectors != 0
    selected = looked_up(supernet, parts, IDS).detach()
    assert kept.any() and torch.equal(vectors[kept], selected[kept])
    assert selected[kept].abs().min() >= selected[~kept].abs().max()
    assert torch.equal(codec.stored(started)(IDS), vectors)


def test_the_whole_budget_is_the_full_table() -> None:
    codec, tables = made(method_of("autosrh", 1.0))
    assert torch.equal(codec.stored(tables)(IDS), tables["rows"])


def test_the_search_is_a_warm_up_and_turns() -> None:
    method, _ = searched(warmup_epochs=2, search_epochs=3)
    assert (method.search_epochs, method.alternates_from) == (5, 2)
