"""Quotient-remainder embeddings: their sizes, and which rows an id has."""

import pytest
import torch

from ctrkit.embeddings.compression.codec import stored_bytes
from ctrkit.errors import CtrkitError
from tests.embeddings.compression.made import looked_up, made, method_of, space_of


@pytest.mark.parametrize("dim", [4, 5, 16])
@pytest.mark.parametrize("budget", [1.0, 0.37, 0.1])
def test_the_remainders_are_the_most_that_fit(budget: float, dim: int) -> None:
    method = method_of("compositional", budget, dim)
    total, rows = method.space.total, method.allowed_bytes // (4 * dim)
    most = max(m for m in range(1, rows) if m + -(-total // m) <= rows)
    codec, tables = made(method)
    assert [(part.name, part.rows) for part in codec.parts] == [("remainder", most), ("quotient", -(-total // most))]
    assert stored_bytes(codec.stored(tables)) == (most + -(-total // most)) * 4 * dim
    assert method.allowed_bytes - stored_bytes(codec.stored(tables)) < 2 * 4 * dim, "a row is the grain, the quotients' number rounds"


@pytest.mark.parametrize("rows", [4, 5, 6, 97, 100, 101, 600])
def test_the_least_budget_is_the_least_that_there_is(rows: int) -> None:
    space = space_of({"only": rows})
    least = min(m + -(-rows // m) for m in range(1, rows + 1))
    assert len(made(method_of("compositional", least / rows, 8, space))[0].parts) == 2
    with pytest.raises(CtrkitError, match=rf"needs {least * 8 * 4:,} bytes at the least"):
        method_of("compositional", (least - 0.5) / rows, 8, space)


@pytest.mark.parametrize("budget", [1.0, 0.2])
def test_no_two_ids_have_both_rows_in_common(budget: float) -> None:
    codec, _ = made(method_of("compositional", budget))
    remainder, quotient = codec.places(torch.arange(600))
    assert len(set(zip(remainder.tolist(), quotient.tolist(), strict=True))) == 600
    assert int(remainder.max()) < codec.parts[0].rows and int(quotient.max()) == codec.parts[1].rows - 1


def test_with_the_full_table_s_bytes_nearly_every_id_has_a_row_of_its_own() -> None:
    codec, _ = made(method_of("compositional", 1.0))
    assert [part.rows for part in codec.parts] == [598, 2]


def test_the_operation_joins_the_two_rows() -> None:
    tables = {"remainder": torch.arange(12.0).view(6, 2), "quotient": torch.tensor([[1.0, 10.0], [2.0, 0.5]])}
    space = space_of({"only": 12})
    ids = torch.tensor([0, 5, 7, 11])
    for operation, expected in [
        ("product", [[0, 11], [20, 121], [6, 4.5], [30, 16.5]]),
        ("sum", [[1, 11], [11, 21], [4, 3.5], [12, 11.5]]),
    ]:
        method = method_of("compositional", 8 / 12, 2, space, operation=operation)
        codec = method.codec({}, torch.zeros(12))
        assert [part.rows for part in codec.parts] == [6, 2]
        torch.testing.assert_close(looked_up(codec, tables, ids), torch.tensor(expected, dtype=torch.float32))
        torch.testing.assert_close(codec.stored(tables)(ids), torch.tensor(expected, dtype=torch.float32))


def test_products_start_as_spread_as_a_plain_table() -> None:
    assert {part.init_std for part in made(method_of("compositional", 0.5))[0].parts} == {None}
    codec, tables = made(method_of("compositional", 0.5))
    tables["quotient"].zero_()
    assert torch.equal(looked_up(codec, tables, torch.arange(600)), tables["remainder"][torch.arange(600) % codec.parts[0].rows])


def test_another_operation_is_refused() -> None:
    with pytest.raises(CtrkitError, match="operation"):
        method_of("compositional", 0.5, operation="difference")
