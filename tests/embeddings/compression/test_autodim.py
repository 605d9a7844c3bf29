"""AutoDim: the mixture of widths by hand, and the likeliest widths that fit, against all there are."""

import itertools
import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ctrkit.embeddings.compression.autodim import AutoDim, WidthMixture, likeliest
from ctrkit.embeddings.compression.codec import stored_bytes
from ctrkit.embeddings.compression.mixed import mixed_bytes
from ctrkit.errors import CtrkitError
from tests.embeddings.compression.made import FIELDS, counts_of, looked_up, made, method_of, tables_of

IDS = torch.arange(600)


def searched(budget: float, dim: int = 16, **options: Any) -> tuple[AutoDim, WidthMixture, dict[str, Tensor]]:
    """The method, its search, and the search's tables."""
    torch.manual_seed(0)
    method = method_of("autodim", budget, dim, **options)
    assert isinstance(method, AutoDim)
    supernet = method.supernet(counts_of(method.space))
    assert isinstance(supernet, WidthMixture)
    return method, supernet, tables_of(supernet.parts)


def prefer(supernet: WidthMixture, widths: list[int], by: float = 50.0) -> None:
    """Makes these widths by far the likeliest, one a field."""
    with torch.no_grad():
        for field, width in enumerate(widths):
            supernet.logits[field, supernet.widths.index(width)] = by


@pytest.mark.parametrize(("dim", "widths"), [(16, (1, 2, 4, 8, 16)), (6, (1, 2, 4, 6)), (2, (1, 2))])
def test_candidates_are_powers_of_two_and_the_full_width(dim: int, widths: tuple[int, ...]) -> None:
    _, supernet, _ = searched(0.9, dim)
    assert supernet.widths == widths


@pytest.mark.parametrize("width", [1, 4, 16])
def test_a_field_that_prefers_a_width_has_its_projected_rows_standardised(width: int) -> None:
    _, supernet, tables = searched(0.5)
    prefer(supernet, [width] * 4)
    vectors = looked_up(supernet.eval().train(), tables, IDS)
    table = supernet.space.table_of(IDS)
    for field, name in enumerate(FIELDS):
        rows = tables[f"width_{width}"][table == field]
        if width < 16:
            rows = rows @ dict(supernet.named_parameters())[f"projections.{supernet.widths.index(width)}"][field]
        expected = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()
        torch.testing.assert_close(vectors[table == field], expected, atol=1e-4, rtol=1e-4, msg=name)


def test_noise_makes_each_width_the_largest_as_often_as_it_is_likely() -> None:
    _, supernet, _ = searched(0.5)
    with torch.no_grad():
        supernet.logits[0] = torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1]).log()
    draws = torch.stack([supernet.shares()[0].detach() for _ in range(3000)])
    often = draws.argmax(1).bincount(minlength=5) / 3000
    torch.testing.assert_close(often, torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1]), atol=0.03, rtol=0)
    torch.testing.assert_close(supernet.eval().shares()[0], torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1]))


def test_the_mixture_hardens_as_the_search_goes_on() -> None:
    _, supernet, _ = searched(0.5, search_epochs=4)
    largest = []
    for epoch in (0.0, 2.0, 3.6, 4.0):
        supernet.advance(epoch, 0)
        largest.append(float(torch.stack([supernet.shares().detach().amax(1).mean() for _ in range(200)]).mean()))
    assert largest == sorted(largest) and largest[0] < 0.6 and largest[-1] > 0.97


def test_all_of_the_search_learns() -> None:
    _, supernet, tables = searched(0.5)
    tables = {name: table.requires_grad_() for name, table in tables.items()}
    (looked_up(supernet, tables, IDS) - torch.randn(600, 16)).square().sum().backward()
    for name, tensor in [*supernet.named_parameters(), *tables.items()]:
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.abs().sum() > 0, name
    assert supernet.deciding() == [supernet.logits]


def test_a_batch_without_some_field_is_mixed_too() -> None:
    _, supernet, tables = searched(0.5)
    vectors = looked_up(supernet, tables, torch.tensor([3, 599, 3]))
    assert vectors.isfinite().all() and torch.equal(vectors[0], vectors[2])


@pytest.mark.parametrize("dim", [16, 6])
@pytest.mark.parametrize("budget", [0.2, 0.3, 0.7, 1.0])
def test_rows_and_projections_are_what_is_stored(budget: float, dim: int) -> None:
    method, supernet, tables = searched(budget, dim)
    prefer(supernet, [dim] * 4, by=1.0)
    decision = method.decide(supernet, tables, counts_of(method.space))
    codec = method.codec(decision, counts_of(method.space))
    stored = stored_bytes(codec.stored(tables_of(codec.parts)))
    assert stored == sum(mixed_bytes(rows, w, dim) for rows, w in zip(method.space.rows, decision["widths"].tolist(), strict=True))
    assert stored <= method.allowed_bytes


def test_the_preferred_widths_are_taken_where_they_fit_and_what_saves_nothing_is_full() -> None:
    method, supernet, tables = searched(0.8)
    prefer(supernet, [8, 2, 4, 2])
    assert method.decide(supernet, tables, counts_of(method.space))["widths"].tolist() == [8, 2, 4, 2]
    prefer(supernet, [8, 2, 4, 8], by=100.0)
    widths = method.decide(supernet, tables, counts_of(method.space))["widths"].tolist()
    assert widths[:3] == [8, 2, 4] and widths[3] in (2, 16), "7 rows of 8 and a projection take more than 7 rows of 16"


def test_the_whole_budget_can_be_the_full_table() -> None:
    method, supernet, tables = searched(1.0)
    prefer(supernet, [16] * 4)
    codec = method.codec(method.decide(supernet, tables, counts_of(method.space)), counts_of(method.space))
    assert not list(codec.parameters())
    full = tables_of(codec.parts)
    assert torch.equal(codec.stored(full)(IDS), full["width_16"][:-1])


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 4), st.integers(0, 100))
def test_the_choice_is_the_best_of_all_that_fit(data: st.DataObject, fields: int, choices: int, room: int) -> None:
    many = fields * choices
    chances = torch.tensor(data.draw(st.lists(st.floats(-5, 0), min_size=many, max_size=many)), dtype=torch.float64).view(fields, choices)
    sizes = torch.tensor(data.draw(st.lists(st.integers(1, 40), min_size=many, max_size=many))).view(fields, choices).tolist()
    allowed = sum(map(min, sizes)) + room
    chosen = likeliest(chances, sizes, allowed)

    def total(choice: tuple[int, ...]) -> tuple[float, int]:
        return sum(float(chances[f, k]) for f, k in enumerate(choice)), sum(sizes[f][k] for f, k in enumerate(choice))

    every = map(total, itertools.product(range(choices), repeat=fields))
    chance, size = total(tuple(chosen))
    assert size <= allowed
    assert chance == pytest.approx(max(c for c, size in every if size <= allowed))


def test_many_fields_of_large_logs_are_chosen_within_seconds() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = (10 ** (torch.rand(60, generator=draw) * 6 + 0.5)).long().tolist()
    sizes = [[mixed_bytes(count, width, 16) for width in (1, 2, 4, 8, 16)] for count in rows]
    chances = (torch.randn(60, 5, generator=draw) + torch.arange(5)).log_softmax(1)
    allowed = sum(of_field[-1] for of_field in sizes) // 4
    started = time.perf_counter()
    choices = likeliest(chances, sizes, allowed)
    assert time.perf_counter() - started < 5
    assert 0.95 * allowed < sum(of_field[k] for of_field, k in zip(sizes, choices, strict=True)) <= allowed


def test_less_than_a_number_a_row_is_refused() -> None:
    with pytest.raises(CtrkitError, match="at least a number wide"):
        searched(0.01)


def test_the_same_training_draws_the_same_noise_and_another_draws_other() -> None:
    method, one, _ = searched(0.5)
    _, same, _ = searched(0.5)
    other = method.supernet(counts_of(method.space))
    assert isinstance(other, WidthMixture)
    assert torch.equal(one.shares(), same.shares())
    assert not torch.equal(one.shares(), other.shares())


def test_a_search_of_its_own_is_stored_as_evaluation_has_it() -> None:
    _, supernet, tables = searched(0.5)
    looked_up(supernet, tables, IDS)
    stored = supernet.stored(tables)
    torch.testing.assert_close(stored(IDS), looked_up(supernet.eval(), tables, IDS).detach())


def test_what_is_decided_is_made() -> None:
    codec, tables = made(method_of("autodim", 0.5))
    assert looked_up(codec, tables, IDS).shape == (600, 8)
