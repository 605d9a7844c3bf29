"""Crosses of pairs of fields: their keys, which of them have a row of their own, and what a batch gets."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrec import KeyedJaggedTensor

from ctrkit.embeddings.crosses import Crosses, Pair, cross_name, frequent_keys
from ctrkit.errors import CtrkitError
from ctrkit.schema import IdField, Inputs

ROWS = {"a": 4, "b": 6, "c": 3}
INPUTS = Inputs(
    id_fields=(*(IdField(name=name, rows=rows) for name, rows in ROWS.items()), IdField(name="bag", rows=5, multi_valued=True)),
    numeric_fields=("x",),
)
PAIRS: list[Pair] = [("a", "b"), ("a", "c"), ("b", "c")]
BUCKETS = 3


def batch(rows: list[tuple[int, int, int]]) -> KeyedJaggedTensor:
    """Values of a, b, c by row; the bag holds 1, 2 in the first row and nothing elsewhere."""
    columns = [row[k] for k in range(3) for row in rows]
    lengths = [1] * 3 * len(rows) + [2] + [0] * (len(rows) - 1)
    return KeyedJaggedTensor(
        keys=[*ROWS, "bag"], values=torch.tensor([*columns, 1, 2]), lengths=torch.tensor(lengths, dtype=torch.int32), stride=len(rows)
    )


some_rows = st.lists(st.tuples(*(st.integers(1, rows - 1) for rows in ROWS.values())), min_size=1, max_size=40)


@given(some_rows, some_rows, st.integers(1, 4))
def test_the_frequent_keys_are_those_counted_by_hand(first: list, second: list, min_count: int) -> None:
    found = frequent_keys(INPUTS, PAIRS, [batch(first), batch(second)], min_count)
    for pair in PAIRS:
        i, j = ("abc".index(name) for name in pair)
        counts = Counter(row[i] * ROWS[pair[1]] + row[j] for row in first + second)
        assert found[pair].tolist() == sorted(key for key, count in counts.items() if count >= min_count)


def test_counts_are_merged_however_few_are_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [batch([(1, 2, 1), (1, 3, 1)]), batch([(1, 2, 2)]), batch([(3, 5, 2), (1, 2, 1)])]
    whole = frequent_keys(INPUTS, PAIRS, batches, 2)
    monkeypatch.setattr("ctrkit.embeddings.crosses._PENDING", 1)
    pieces = frequent_keys(INPUTS, PAIRS, batches, 2)
    assert {pair: keys.tolist() for pair, keys in pieces.items()} == {pair: keys.tolist() for pair, keys in whole.items()}
    assert whole["a", "b"].tolist() == [1 * 6 + 2]


@given(some_rows)
def test_a_frequent_cross_has_a_row_of_its_own_and_the_others_share_the_tail(rows: list[tuple[int, int, int]]) -> None:
    frequent = {("a", "b"): torch.tensor([1 * 6 + 1, 2 * 6 + 5, 3 * 6 + 2]), ("b", "c"): torch.zeros(0, dtype=torch.int64)}
    crosses = Crosses(INPUTS, frequent, BUCKETS)
    crossed = crosses(batch(rows))
    assert crossed.keys() == [*ROWS, "bag", "a@b", "b@c"]
    ids = crossed["a@b"].values().tolist()
    for (a, b, _), found in zip(rows, ids, strict=True):
        expected = {(1, 1): 4, (2, 5): 5, (3, 2): 6}.get((a, b))
        assert found == expected if expected else 1 <= found <= BUCKETS
    assert all(1 <= found <= BUCKETS for found in crossed["b@c"].values().tolist())
    assert [crosses.inputs.id_fields[k].rows for k in (-2, -1)] == [1 + BUCKETS + 3, 1 + BUCKETS]
    assert crossed["bag"].values().tolist() == [1, 2] and crossed["bag"].lengths().tolist() == [2] + [0] * (len(rows) - 1)
    assert crossed["a"].values().tolist() == [row[0] for row in rows]


def test_equal_pairs_of_values_have_equal_ids_and_the_tail_is_spread() -> None:
    inputs = Inputs(id_fields=(IdField(name="a", rows=300), IdField(name="b", rows=300)), numeric_fields=())
    crosses = Crosses(inputs, {("a", "b"): torch.zeros(0, dtype=torch.int64)}, 50)
    values = torch.randint(1, 300, (2, 20_000), generator=torch.Generator().manual_seed(0))
    sparse = KeyedJaggedTensor(keys=["a", "b"], values=values.flatten(), lengths=torch.ones(40_000, dtype=torch.int32), stride=20_000)
    ids = crosses(sparse)["a@b"].values()
    of_pair: dict[tuple[int, int], int] = {}
    for pair, found in zip(map(tuple, values.T.tolist()), ids.tolist(), strict=True):
        assert of_pair.setdefault(pair, found) == found
    shares = ids.bincount(minlength=51)[1:] / len(ids)
    assert len(shares) == 50 and 0.015 < shares.min() and shares.max() < 0.025


def test_pairs_too_many_for_63_bits_are_refused() -> None:
    inputs = Inputs(id_fields=tuple(IdField(name=name, rows=2**32) for name in "ab"), numeric_fields=())
    with pytest.raises(CtrkitError, match="do not fit 63 bits; 'a' and 'b' have 4,294,967,296"):
        frequent_keys(inputs, [("a", "b")], [], 1)
    assert cross_name(("a", "b")) == "a@b"
