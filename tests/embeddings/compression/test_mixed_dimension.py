import pytest
import torch

from ctrkit.embeddings.compression.codec import stored_bytes
from ctrkit.embeddings.compression.mixed_dimension import MixedDimension
from ctrkit.errors import CtrkitError
from tests.embeddings.compression.made import looked_up, made, method_of, space_of


def method_with(budget: float, dim: int = 16, **settings: float) -> MixedDimension:
    method = method_of("mixed_dimension", budget, dim, **settings)
    assert isinstance(method, MixedDimension)
    return method


@pytest.mark.parametrize("dim", [16, 7])
@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8, 1.0])
def test_rows_and_projections_are_what_is_stored(budget: float, dim: int) -> None:
    method = method_with(budget, dim)
    codec, tables = made(method)
    of_field = [rows * w + (w * dim if w < dim else 0) for rows, w in zip(method.space.rows, method.widths, strict=True)]
    assert stored_bytes(codec.stored(tables)) == 4 * sum(of_field) <= method.allowed_bytes


def test_larger_fields_are_narrower_and_temperature_zero_makes_all_alike() -> None:
    space = space_of({"a": 20_000, "b": 4_000, "c": 500})
    widths = {}
    for temperature in (0.0, 0.3):
        method = method_of("mixed_dimension", 0.4, 16, space, temperature=temperature)
        assert isinstance(method, MixedDimension)
        widths[temperature] = method.widths
    assert len(set(widths[0.0])) == 1
    a, b, c = widths[0.3]
    assert a < b < c
    assert b / a == pytest.approx(5**0.3, rel=0.15)


def test_a_vector_is_the_row_times_its_fields_projection_and_the_stored_form_agrees() -> None:
    codec, tables = made(method_with(0.4))
    ids = torch.arange(codec.space.total)
    vectors = looked_up(codec, tables, ids)
    torch.testing.assert_close(codec.stored(tables)(ids), vectors)
    projection = dict(codec.named_parameters())
    part = codec.parts[0]
    torch.testing.assert_close(vectors[0], tables[part.name][0] @ projection[f"projections.{part.name}"][0])


def test_the_whole_budget_is_the_full_table() -> None:
    codec, tables = made(method_with(1.0))
    ids = torch.arange(codec.space.total)
    assert not list(codec.parameters())
    assert torch.equal(codec.stored(tables)(ids), tables["width_16"][:-1])


def test_an_id_moves_only_rows_of_its_own_and_the_spare_one_gets_nothing() -> None:
    codec, tables = made(method_with(0.4))
    tables = {name: table.requires_grad_() for name, table in tables.items()}
    looked_up(codec, tables, torch.tensor([5])).sum().backward()
    moved = {name: table.grad.abs().sum(1).nonzero().flatten().tolist() for name, table in tables.items() if table.grad is not None}
    assert moved == {part.name: [5] if k == 0 else [] for k, part in enumerate(codec.parts)}


def test_less_than_a_number_a_row_is_refused() -> None:
    with pytest.raises(CtrkitError, match="at least a number wide"):
        method_with(0.01)
