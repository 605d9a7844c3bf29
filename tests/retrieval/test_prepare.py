"""From files to events, users and a catalogue; what is fitted is fitted on training events alone."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ctrkit.errors import CtrkitError
from ctrkit.retrieval.config import RetrievalExperiment, load_retrieval
from ctrkit.retrieval.dataset import KEY, RetrievalDataset, dataset_dir, open_dataset
from ctrkit.retrieval.prepare import check_columns, prepare
from ctrkit.schema import UNKNOWN_ID
from tests.retrieval.conftest import ITEMS, USERS, config


def test_the_catalogue_holds_items_that_nobody_had(dataset: RetrievalDataset) -> None:
    assert dataset.items.height == ITEMS and dataset.users.height == USERS
    assert dataset.items[KEY].to_list() == list(range(ITEMS))
    assert dataset.encoded_items.ids["item"][-2:].tolist() == [UNKNOWN_ID] * 2
    assert dataset.encoded_items.ids["colour"][-1] == dataset.encoded_items.ids["colour"][1], "its colour is known"
    assert dataset.counts[-2:].tolist() == [0, 0]


def test_only_positive_rows_are_events(dataset: RetrievalDataset) -> None:
    assert len(dataset.events) == USERS * 8
    assert dataset.rows == {"train": USERS * 6, "valid": USERS, "test": USERS}
    parity = np.array([int(key[1:]) % 2 for key in dataset.users[KEY]])
    np.testing.assert_array_equal(parity[dataset.events.user], dataset.events.item % 2)


def test_raw_queries_encode_to_the_encoded_ones(dataset: RetrievalDataset) -> None:
    index = dataset.queries("test").event
    raw, encoded = dataset.raw_queries(index), dataset.encoded_queries(index)
    again = raw.select(t.to_polars() for t in dataset.transforms.transforms if t.feature.name in raw.columns)
    for name in ("user", "taste", "hour"):
        np.testing.assert_array_equal(again[name].to_numpy(), encoded.ids[name])
    values, offsets = encoded.bags["recent"]
    assert again["recent"].to_list() == [values[a:b].tolist() for a, b in pairwise(offsets)]
    assert np.diff(offsets).max() == 5, "the last so many"


def test_a_repeated_event_counts_once_at_its_first_time(tmp_path: Path, shop: Path) -> None:
    log = pl.DataFrame({"user": ["u0"] * 5, "item": [1, 2, 1, 3, 4], "rating": [5] * 5, "hour": [0] * 5, "time": [1, 2, 3, 4, 5]})
    log.write_csv(tmp_path / "log.csv")
    dataset = prepare(config(shop, tmp_path, data={"path": str(tmp_path / "log.csv")}))
    assert dataset.items[KEY].gather(dataset.events.item).to_list() == [1, 2, 3, 4]
    assert dataset.events.time.tolist() == [1, 2, 4, 5]


def test_transforms_know_nothing_of_test_events(tmp_path: Path, shop: Path) -> None:
    """Another test item's features change no transform."""
    log = pl.read_csv(shop / "log.csv")
    a = prepare(config(shop, tmp_path / "a"))
    test = a.events.of_split("test")
    victim = a.users[KEY][int(a.events.user[test[0]])], a.items[KEY][int(a.events.item[test[0]])]
    moved = log.with_columns(item=pl.when((pl.col("user") == victim[0]) & (pl.col("item") == victim[1])).then(39).otherwise(pl.col("item")))
    moved.write_csv(tmp_path / "moved.csv")
    b = prepare(config(shop, tmp_path / "b", data={"path": str(tmp_path / "moved.csv")}))
    np.testing.assert_array_equal(a.counts, b.counts)
    for one, two in zip(a.transforms.transforms, b.transforms.transforms, strict=True):
        assert one.state() == two.state()
        left, right = one.vocabulary(), two.vocabulary()
        assert (left is None and right is None) or (left is not None and right is not None and left.equals(right))


def test_without_side_tables_features_are_columns_of_the_log(tmp_path: Path) -> None:
    rows = [("a", i, "red" if i % 2 else "blue", "fr") for i in range(5)] + [("b", i, "grey", "de") for i in range(1, 6)]
    pl.DataFrame(rows, schema=["user", "item", "colour", "country"], orient="row").write_csv(tmp_path / "log.csv")
    experiment = RetrievalExperiment.model_validate(
        {
            "task": "retrieval",
            "name": "plain",
            "data": {"path": str(tmp_path / "log.csv")},
            "user": "user",
            "item": "item",
            "item_features": [{"name": ["item", "colour"][i], "kind": "categorical"} for i in range(2)],
            "user_features": [{"name": "country", "kind": "categorical"}],
            "output": str(tmp_path),
        }
    )
    dataset = prepare(experiment)
    assert dict(zip(dataset.items[KEY], dataset.items["colour"], strict=True)) == {
        "0": "blue",
        "1": "red",
        "2": "blue",
        "3": "red",
        "4": "blue",
        "5": "grey",
    }
    assert dataset.users["country"].to_list() == ["fr", "de"]
    assert dataset.events.item[dataset.events.user == 0].tolist() == [0, 1, 2, 3, 4], "in the order of the rows"


def test_without_side_tables_features_are_those_of_the_earliest_row_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [(user, (user + step) % 7, f"mood{step}", step) for user in range(9) for step in range(5)]
    for name, ordered in (("oldest", rows), ("newest", rows[::-1])):
        pl.DataFrame(ordered, schema=["user", "item", "mood", "time"], orient="row").write_csv(tmp_path / f"{name}.csv")
        experiment = RetrievalExperiment.model_validate(
            {
                "task": "retrieval",
                "name": name,
                "data": {"path": str(tmp_path / f"{name}.csv")},
                "user": "user",
                "item": "item",
                "time": "time",
                "item_features": [{"name": "item", "kind": "categorical"}],
                "user_features": [{"name": "mood", "kind": "categorical"}],
                "output": str(tmp_path),
            }
        )
        assert prepare(experiment).users["mood"].to_list() == ["mood0"] * 9, "never that of the test event"


def test_an_item_without_a_key_is_named(shop: Path, tmp_path: Path) -> None:
    text = (shop / "items.csv").read_text().splitlines()
    (tmp_path / "items.csv").write_text("\n".join([*text[:3], "," + text[3].partition(",")[2], *text[4:]]))
    with pytest.raises(CtrkitError, match="row 3.* has no .*item"):
        prepare(config(shop, tmp_path, items={"path": str(tmp_path / "items.csv"), "on": "item"}))
    named = {"item_features": [{"name": "colour", "kind": "categorical"}], "user_features": [{"name": "taste", "kind": "categorical"}]}
    with pytest.raises(CtrkitError, match="row 3.* has no .*item"):
        prepare(config(shop, tmp_path, items={"path": str(tmp_path / "items.csv"), "on": "item"}, **named))


def test_columns_named_as_ctrkits_own_are_refused(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'user:token' has '@' or ':' in its name"):
        config(shop, tmp_path, user="user:token")


def test_numbers_are_scaled_alone(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"embedding\.numeric: a retrieval model scales numbers"):
        config(shop, tmp_path, embedding={"dim": 8, "numeric": "autodis"})


def test_a_dataset_is_found_again_and_another_one_is_not(
    experiment: RetrievalExperiment, dataset: RetrievalDataset, tmp_path: Path
) -> None:
    found = open_dataset(experiment)
    assert found is not None and found.path == dataset.path == dataset_dir(experiment)
    other = experiment.model_copy(update={"split": experiment.split.model_copy(update={"cold_items": 0.1})})
    assert open_dataset(other) is None
    assert open_dataset(experiment.model_copy(update={"export": experiment.export.model_copy(update={"golden_rows": 9})})) is None
    assert open_dataset(experiment.model_copy(update={"training": experiment.training.model_copy(update={"seed": 9})})) is not None
    with pytest.raises(CtrkitError, match="is not a prepared dataset"):
        RetrievalDataset(tmp_path)


def test_a_random_order_knows_nothing_of_the_rows(tmp_path: Path) -> None:
    """Every user has the same items in the same order: leaving the last out tests one item, leaving any out tests all alike."""
    pl.DataFrame([(u, i) for u in range(300) for i in range(6)], schema=["user", "item"], orient="row").write_csv(tmp_path / "log.csv")
    tree = {
        "task": "retrieval",
        "name": "plain",
        "data": {"path": str(tmp_path / "log.csv")},
        "user": "user",
        "item": "item",
        "item_features": [{"name": "item", "kind": "categorical"}],
        "user_features": [{"name": "recent", "kind": "sequence", "of": "item"}],
        "output": str(tmp_path),
    }
    tested = {}
    for by in ("leave-last-out", "leave-random-out"):
        dataset = prepare(RetrievalExperiment.model_validate({**tree, "split": {"by": by}}))
        queries = dataset.queries("test")
        assert len(queries) == 300 and np.diff(queries.history[1]).tolist() == [5] * 300
        tested[by] = np.bincount(queries.targets[0], minlength=6)
    assert tested["leave-last-out"].tolist() == [0, 0, 0, 0, 0, 300]
    assert tested["leave-random-out"].min() > 30
    with pytest.raises(ValueError, match="leave 'time' out"):
        RetrievalExperiment.model_validate({**tree, "time": "t", "split": {"by": "leave-random-out"}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"item": "itm", "items": None, "user_features": []}, "no column 'itm'"),
        ({"positive": "rating >> 4 ("}, "positive: 'rating >> 4"),
        (
            {"item_features": [{"name": "color", "kind": "categorical"}], "user_features": []},
            "has no column 'color'. Did you mean 'colour'",
        ),
        ({"time": "tme"}, "no column 'tme'"),
    ],
)
def test_columns_that_are_not_there(shop: Path, tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(CtrkitError) as error:
        check_columns(config(shop, tmp_path, **changes))
    assert said in str(error.value)


def test_a_row_without_a_user_is_named(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,rating,hour,time\na,1,5,0,1\n,2,5,0,2\n")
    with pytest.raises(CtrkitError, match="row 2 of '.*log.csv' has no 'user'"):
        prepare(config(shop, tmp_path, data={"path": str(tmp_path / "log.csv")}))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["log.csv"], "nothing half-written is left"


def test_no_positive_rows(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(CtrkitError, match="none of the 1,080 rows of the log is an event"):
        prepare(config(shop, tmp_path, positive="rating > 9"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"users": {"path": "u.csv", "on": "uid"}}, "users.on is 'uid', and the log's column is 'user'"),
        ({"user_features": [], "context_features": []}, "user_features: name one at least"),
        ({"user_features": [{"name": "h", "kind": "sequence", "of": "colour"}]}, "must be 'of: item'"),
        ({"training": {"monitor": "ndcg@7"}}, "add 7 to it"),
        ({"training": {"seed": -1}}, "greater than or equal to 0"),
        ({"split": {"seed": 2**63}}, "less than 9223372036854775808"),
        ({"split": {"by": "time", "valid": 0.6, "test": 0.6}}, "must leave rows to train on"),
        ({"user_features": [{"name": "colour", "kind": "categorical"}]}, "feature named twice: colour"),
    ],
)
def test_settings_that_do_not_fit(shop: Path, tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(shop, tmp_path, **changes)


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("task: retrieval\nname: x\ndata: {path: log.csv}\nuser: u\nitm: i\nitem_features: []\n")
    with pytest.raises(CtrkitError, match="unknown key 'itm'. Did you mean 'item'"):
        load_retrieval(tmp_path / "x.yaml")
