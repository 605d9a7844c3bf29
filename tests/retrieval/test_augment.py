"""Views of items: what goes together is hidden together, and what is hidden leaves no trace."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from ctrkit.config import Embedding
from ctrkit.errors import CtrkitError
from ctrkit.retrieval.augment import CorrelatedMasking, RandomMasking, drop_values, masking, two_views
from ctrkit.retrieval.batch import tower_batch
from ctrkit.retrieval.correlation import mutual_information
from ctrkit.retrieval.rows import Rows, offsets_of
from ctrkit.retrieval.towers import FeatureTower, RetrievalModel, TowerSettings, TwoTowers
from ctrkit.schema import IdField, Inputs

ITEM = Inputs(
    id_fields=(IdField(name="item", rows=20), IdField(name="colour", rows=6), IdField(name="tags", rows=9, multi_valued=True)),
    numeric_fields=("price",),
)
USER = Inputs(id_fields=(IdField(name="recent", rows=20, multi_valued=True, of="item", length=5),), numeric_fields=())


def items(count: int, seed: int = 0) -> Rows:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 4, count)
    tags = random.integers(2, 9, lengths.sum()), offsets_of(lengths)
    ids = {"item": random.integers(2, 20, count), "colour": random.integers(2, 6, count)}
    return Rows(count, ids, {"tags": tags}, {"price": random.normal(size=count).astype(np.float32)})


def users(count: int) -> Rows:
    return Rows(count, {}, {"recent": (np.arange(count) % 18 + 2, np.arange(count + 1))}, {})


def test_information_of_single_values_is_that_of_scikit_learn() -> None:
    rows = items(300)
    found = mutual_information(rows, ITEM)
    a, b = rows.ids["item"], rows.ids["colour"]
    assert found[0, 1] == pytest.approx(mutual_info_score(a, b))
    assert found[0, 0] == pytest.approx(mutual_info_score(a, a)), "of itself: its entropy"
    np.testing.assert_allclose(found, found.T)


def test_information_of_bags() -> None:
    """A bag is a draw of one of its values: two items of {0, 1} and one of {}: P(0) = P(1) = P(empty) = 1/3."""
    inputs = Inputs(id_fields=(IdField(name="a", rows=9), IdField(name="b", rows=9, multi_valued=True)), numeric_fields=())
    rows = Rows(3, {"a": np.array([2, 2, 3])}, {"b": (np.array([4, 5, 4, 5]), np.array([0, 2, 4, 4]))}, {})
    entropy_of_a = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    assert mutual_information(rows, inputs)[0, 1] == pytest.approx(entropy_of_a), "the bag says whether it is the third"
    assert mutual_information(rows, inputs)[1, 1] == pytest.approx(entropy_of_a), "two draws of a bag share only whose it is"


def test_a_number_is_as_good_as_its_bucket() -> None:
    inputs = Inputs(id_fields=(IdField(name="a", rows=9),), numeric_fields=("x", "y"))
    numbers = np.repeat(np.array([0.0, 5.0, np.nan], np.float32), 10)
    rows = Rows(30, {"a": np.repeat([2, 3, 4], 10)}, {}, {"x": numbers, "y": np.tile(np.float32([0, 1]), 15)})
    found = mutual_information(rows, inputs)
    assert found[0, 1] == pytest.approx(np.log(3)) and found[0, 2] == pytest.approx(0, abs=1e-9)


def test_correlated_features_are_hidden_together() -> None:
    """Six features in two groups of three: whatever the seed, its group is hidden before any other."""
    information = np.full((6, 6), 0.1)
    information[:3, :3] = information[3:, 3:] = 0.9
    random, drawn = np.random.default_rng(0), set()
    masker = CorrelatedMasking(information)
    for _ in range(50):
        hidden = masker.draw(random)
        assert hidden.sum() == 4, "the seed and floor(6 / 2)"
        assert hidden[:3].all() or hidden[3:].all()
        drawn.add(tuple(hidden))
    assert len(drawn) > 1, "the seed changes"


@given(st.integers(2, 12), st.integers(0, 1000))
def test_each_view_shows_a_feature(fields: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    information = random.random((fields, fields))
    for masker in (CorrelatedMasking(information + information.T), RandomMasking(fields)):
        hidden = masker.draw(random)
        assert hidden.sum() == 1 + min(fields // 2, fields - 2)
        assert 0 < hidden.sum() < fields


def test_views_are_complementary() -> None:
    hidden = np.array([True, False, True, False])
    first, second, masked = two_views(items(5), hidden, 0.5, np.random.default_rng(0))
    assert masked.shape == (10, 4)
    np.testing.assert_array_equal(masked[:5], ~masked[5:])
    assert first.count == second.count == 5


@given(st.floats(0, 0.95), st.integers(0, 1000))
def test_dropout_leaves_a_part_of_each_bag_in_order(share: float, seed: int) -> None:
    rows = items(30, seed)
    dropped = drop_values(rows, share, np.random.default_rng(seed))
    (values, offsets), (kept, kept_offsets) = rows.bags["tags"], dropped.bags["tags"]
    for row in range(30):
        whole = values[offsets[row] : offsets[row + 1]].tolist()
        part = kept[kept_offsets[row] : kept_offsets[row + 1]].tolist()
        left = iter(whole)
        assert all(value in left for value in part), "a subsequence of its own bag"
    np.testing.assert_array_equal(dropped.ids["item"], rows.ids["item"])


def test_dropout_drops_its_share() -> None:
    rows = Rows(1, {}, {"tags": (np.arange(10_000), np.array([0, 10_000]))}, {})
    assert len(drop_values(rows, 0.3, np.random.default_rng(0)).bags["tags"][0]) == pytest.approx(7000, abs=200)


def test_one_feature_cannot_be_masked() -> None:
    one = Inputs(id_fields=(IdField(name="item", rows=20),), numeric_fields=())
    with pytest.raises(CtrkitError, match="two views of it need two"):
        masking("random", items(3), one)


@pytest.fixture
def model() -> RetrievalModel:
    torch.manual_seed(0)
    settings = TowerSettings(hidden=(8,), width=4)
    towers = TwoTowers(FeatureTower(USER, 8, settings), FeatureTower(ITEM, 8, settings, maskable=True))
    model = RetrievalModel(towers, USER, ITEM, Embedding(dim=8, optimizer="sgd"), "cpu")
    for bag in model.tables.collection.embedding_bags.values():
        torch.nn.init.normal_(bag.weight)  # pyright: ignore[reportArgumentType]
    return model


def test_masked_features_do_not_change_the_vector(model: RetrievalModel) -> None:
    """Two catalogues that differ in what is masked alone, ids in a table that histories share among them."""
    mine, other = items(12, 1), items(12, 2)
    for hidden in ([True, False, True, False], [False, True, False, True], [True, True, False, True]):
        masked = np.tile(np.array(hidden), (12, 1))
        seen = Rows(
            12,
            {name: (other if hidden[i] else mine).ids[name] for i, name in enumerate(("item", "colour"))},
            {"tags": (other if hidden[2] else mine).bags["tags"]},
            {"price": (other if hidden[3] else mine).numbers["price"]},
        )
        one, two = (model(tower_batch(users(12), rows, USER, ITEM, masked)) for rows in (mine, seen))
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_masked_features_get_no_gradient_even_in_a_shared_table(model: RetrievalModel) -> None:
    rows, masked = items(12), np.tile(np.array([True, False, False, True]), (12, 1))
    batch = tower_batch(None, rows, USER, ITEM, masked)
    assert batch.sparse["item"].values().numel() == 0, "the ids are not in the batch at all"
    model(batch)[1].square().mul(torch.arange(4.0)).sum().backward()
    gradient = {name: bag.weight.grad for name, bag in model.tables.collection.embedding_bags.items()}
    assert gradient["embedding/item"] is None or not gradient["embedding/item"].any()  # pyright: ignore[reportCallIssue]
    assert gradient["embedding/colour"].any()  # pyright: ignore[reportOptionalMemberAccess,reportCallIssue]
    weight = model.dense_arch.item.vectors.numeric.weight.grad  # pyright: ignore[reportAttributeAccessIssue]
    assert weight is None or not weight.any()
    assert model.dense_arch.item.default.grad[0].any()  # pyright: ignore[reportOptionalSubscript,reportAttributeAccessIssue]


def test_unmasked_rows_beside_masked_ones_see_everything(model: RetrievalModel) -> None:
    rows = items(6)
    masked = np.zeros((6, 4), bool)
    masked[3:] = True
    whole = model(tower_batch(None, rows, USER, ITEM))[1]
    mixed = model(tower_batch(None, rows, USER, ITEM, masked))[1]
    torch.testing.assert_close(whole[:3], mixed[:3])
    assert torch.unique(mixed[3:], dim=0).shape[0] == 1, "rows of nothing are all the same"


def test_users_and_items_are_looked_up_apart(model: RetrievalModel) -> None:
    """Sides of different sizes in one batch give what they give alone."""
    for count in (2, 9):
        both = model(tower_batch(users(5), items(count), USER, ITEM))
        torch.testing.assert_close(both[0], model(tower_batch(users(5), None, USER, ITEM))[0])
        torch.testing.assert_close(both[1], model(tower_batch(None, items(count), USER, ITEM))[1])
