"""One config trains what finds items and what ranks them; the service then answers with both."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ctrkit.bundle import open_bundle
from ctrkit.client import Client
from ctrkit.retrieval.bundle import open_retrieval_bundle
from serving.settings import ServingSettings
from tests.serving.live import service

CONFIG = """
task: funnel
name: shop-funnel
retrieval:
  task: retrieval
  name: shop
  data: {path: FOLDER/log.csv}
  items: {path: FOLDER/items.csv, on: item}
  user: user
  item: item
  positive: liked
  item_features:
    - {name: item, kind: categorical, dtype: int}
    - {name: colour, kind: categorical}
    - {name: tags, kind: multi_valued}
    - {name: price, kind: numeric}
  user_features:
    - {name: user, kind: categorical}
    - {name: recent, kind: sequence, of: item}
  model: {name: two_tower, hidden: [8], width: 8}
  embedding: {dim: 8, init_std: 0.1}
  training: {epochs: 1, batch_size: 64, threads: 1, monitor: mrr}
  evaluation: {at: [3]}
  output: FOLDER/out
ranking:
  name: likes
  data:
    path: FOLDER/log.csv
    joins: [{path: FOLDER/items.csv, on: item}]
  label: liked
  split: {by: random, valid: 0.2, test: 0.2}
  features:
    - {name: [user, item, colour, device], kind: categorical}
    - {name: tags, kind: multi_valued}
    - {name: price, kind: numeric}
  model: {name: lr}
  training: {epochs: 1, batch_size: 64, threads: 1}
  output: FOLDER/out
"""
USERS, ITEMS = 40, 30


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("funnel")
    random = np.random.default_rng(0)
    pairs = [(u, int(i)) for u in range(USERS) for i in random.permutation(ITEMS - 2)[:12]]
    log = pl.DataFrame(pairs, schema=["user", "item"], orient="row").with_columns(
        liked=((pl.col("user") + pl.col("item")) % 2 == 0).cast(pl.Int8), device=pl.Series(random.choice(["phone", "desktop"], len(pairs)))
    )
    log.with_columns(user=pl.format("u{}", pl.col("user"))).write_csv(folder / "log.csv")
    number = pl.Series("item", range(ITEMS))
    items = pl.DataFrame({"item": number, "colour": [("red", "blue")[i % 2] for i in number], "price": number * 1.5})
    items.with_columns(tags=pl.format("t{}|all", pl.col("item") % 3)).write_csv(folder / "items.csv")
    path = folder / "funnel.yaml"
    path.write_text(CONFIG.replace("FOLDER", str(folder)))
    return path


def test_a_funnel_is_trained_and_served(config: Path, ctrkit: Callable) -> None:
    repo = config.parent / "repo"
    said = ctrkit("funnel", config, "--to", repo)
    assert said.status == 0, said.stderr
    assert said.json["retrieval"]["model"] == "shop" and said.json["ranking"]["model"] == "likes"
    assert "recall@3" in said.json["retrieval"]["test"] and "auc" in said.json["ranking"]["test"]
    towers, ranker = open_retrieval_bundle(repo / "shop"), open_bundle(repo / "likes")
    user = {"user": "u3", "recent": [1, 5]}
    with service(repo, ServingSettings(poll_s=0)) as address, Client(address) as client:
        found = client.recommend("shop", user, 5)
        scores = towers.user_vectors([user]) @ towers.catalogue_vectors().T
        seen = set(towers.catalogue["@key"].is_in([1, 5]).arg_true())
        best = [place for place in np.argsort(-scores[0], kind="stable") if place not in seen][:5]
        assert [one.item for one in found] == towers.catalogue["@key"].gather(best).to_list()
        assert [one.score for one in found] == pytest.approx(scores[0][best].tolist(), abs=1e-5)

        ranked = client.recommend("shop", {**user, "device": "phone"}, 5, rank_by={"model": "likes"}, candidates=20)
        catalogue = towers.catalogue.rows_by_key("@key", named=True, unique=True)
        rows = [
            {"user": "u3", "device": "phone", "item": str(one.item)} | {f: catalogue[one.item][f] for f in ("colour", "tags", "price")}
            for one in ranked
        ]
        assert [one.score for one in ranked] == pytest.approx(ranker.score(rows).tolist(), abs=1e-6)
        assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)

        assert client.upsert_items("shop", [{"item": 99, "colour": "green", "tags": ["all"]}])["added"] == 1
        assert [one.item for one in client.recommend("shop", user, where={"colour": "green"})] == [99]
        assert client.recommend("shop", user, allow=[99], rank_by={"model": "likes"})[0].item == 99
        assert client.remove_items("shop", [99])["removed"] == 1
        assert client.recommend("shop", user, where={"colour": "green"}) == []


def test_both_halves_are_checked(config: Path, ctrkit: Callable) -> None:
    said = ctrkit("validate", config)
    assert said.json["ok"] and said.json["retrieval"]["name"] == "shop" and said.json["ranking"]["name"] == "likes"


@pytest.mark.parametrize(
    ("verb", "changes", "said"),
    [
        ("train", (), "Run ctrkit funnel"),
        ("prepare", (), "Run ctrkit funnel"),
        ("funnel", ("ranking.name=shop",), "would both be exported as 'shop'"),
        ("funnel", ("ranking.features=[{name: user, kind: categorical}]",), "name one of the items' features at least: item, colour"),
        ("funnel", ("ranking.features.colour.dtype=int",), "ranking.features.colour: its kind or dtype does not fit"),
        ("funnel", ("retrieval.model.name=two_twoer",), "Did you mean 'two_tower'"),
        ("funnel", ("ranking.trainng=1",), "unknown key 'ranking.trainng'. Did you mean 'training'?"),
        ("validate", ("ranking.label=liekd",), "Did you mean 'liked'"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_trained(
    config: Path, ctrkit: Callable, verb: str, changes: tuple[str, ...], said: str
) -> None:
    overrides = [part for change in changes for part in ("--set", change)]
    refused = ctrkit(verb, config, *overrides)
    assert refused.status == 2 and said in refused.json["error"]


def test_what_is_no_funnel_is_told_what_it_is(config: Path, ctrkit: Callable, tmp_path: Path) -> None:
    for task, said in (("task: retrieval", "is of task: retrieval"), ("name: clicks", "is of no task")):
        (tmp_path / "other.yaml").write_text(task)
        refused = ctrkit("funnel", tmp_path / "other.yaml", "--to", tmp_path / "repo")
        assert refused.status == 2 and said in refused.json["error"] and "ctrkit train" in refused.json["error"]
