"""Kept ids in smaller tables, and bags taken apart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrec import KeyedJaggedTensor

from ctrkit.embeddings.bags import one_value_a_row, pool
from ctrkit.embeddings.selection import Selection
from ctrkit.schema import IdField, Inputs
from tests.embeddings.recorder import keyed

INPUTS = Inputs(id_fields=(IdField(name="a", rows=6), IdField(name="bag", rows=4, multi_valued=True)), numeric_fields=("x",))


def batch(*bags: list[list[int]]) -> KeyedJaggedTensor:
    """One list of bags a field of ``INPUTS``."""
    return keyed(["a", "bag"], list(zip(*bags, strict=True)))


def unpacked(sparse: KeyedJaggedTensor) -> dict[str, list[list[int]]]:
    return {key: [bag.tolist() for bag in jagged.values().split(jagged.lengths().tolist())] for key, jagged in sparse.to_dict().items()}


def test_known_answer() -> None:
    kept = {"a": torch.tensor([False, True, False, False, True, True]), "bag": torch.tensor([False, False, True, True])}
    selection = Selection(INPUTS, kept)
    assert {f.name: f.rows for f in selection.inputs.id_fields} == {"a": 4, "bag": 3}
    assert {name: ids.tolist() for name, ids in selection.new_ids.items()} == {"a": [0, 1, 0, 0, 2, 3], "bag": [0, 0, 1, 2]}
    got = selection(batch([[1], [2], [5]], [[1, 2], [], [3, 1, 2]]))
    assert unpacked(got) == {"a": [[1], [], [3]], "bag": [[1], [], [2, 1]]}
    assert selection.shrink("a", torch.arange(6.0)).tolist() == [0, 1, 4, 5]


def test_a_field_without_a_kept_id_looks_nothing_up() -> None:
    selection = Selection(INPUTS, {"a": torch.zeros(6, dtype=torch.bool), "bag": torch.ones(4, dtype=torch.bool)})
    assert selection.inputs.id_fields[0].rows == 2
    assert unpacked(selection(batch([[3], [1]], [[1], [3]]))) == {"a": [[], []], "bag": [[1], [3]]}
    assert selection.shrink("a", torch.arange(6.0)).tolist() == [0, 0]


@given(data=st.data())
def test_looked_up_in_the_smaller_tables_the_kept_ids_have_their_rows(data: st.DataObject) -> None:
    masks = {f.name: torch.tensor(data.draw(st.lists(st.booleans(), min_size=f.rows, max_size=f.rows))) for f in INPUTS.id_fields}
    rows = data.draw(st.integers(1, 4))
    one = [[data.draw(st.integers(1, 5))] for _ in range(rows)]
    bags = data.draw(st.lists(st.lists(st.integers(1, 3), max_size=4), min_size=rows, max_size=rows))
    selection = Selection(INPUTS, masks)
    selected = unpacked(selection(batch(one, bags)))
    for name, given_bags in {"a": one, "bag": bags}.items():
        table = selection.shrink(name, torch.arange(6.0 if name == "a" else 4.0))
        expected = [[float(i) for i in bag if masks[name][i]] for bag in given_bags]
        assert [[table[i].item() for i in bag] for bag in selected[name]] == expected


@pytest.mark.parametrize("pooling", ["mean", "sum"])
@given(bags=st.lists(st.lists(st.integers(1, 3), max_size=4), min_size=1, max_size=5))
def test_bags_taken_apart_and_pooled_again_are_the_bags(pooling: str, bags: list[list[int]]) -> None:
    inputs = INPUTS.model_copy(update={"id_fields": (INPUTS.id_fields[0], INPUTS.id_fields[1].model_copy(update={"pooling": pooling}))})
    one = [[1 + k % 5] for k in range(len(bags))]
    sparse = batch(one, bags)
    apart = unpacked(one_value_a_row(sparse))
    rows = max(len(bags), sum(map(len, bags)))
    assert all(len(values) == rows and all(len(bag) <= 1 for bag in values) for values in apart.values())
    vectors = torch.tensor([[[float(bag[0]) if bag else 0.0] for bag in apart[name]] for name in ("a", "bag")]).transpose(0, 1)
    pooled = pool(vectors, sparse, inputs)[:, :, 0]
    expected = [sum(bag) / (max(1, len(bag)) if pooling == "mean" else 1) for bag in bags]
    torch.testing.assert_close(pooled, torch.tensor([[float(a[0]), e] for a, e in zip(one, expected, strict=True)]))
