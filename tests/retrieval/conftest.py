"""A small shop: users of two tastes, items of two kinds, which a good recommender tells apart."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ctrkit.retrieval.config import RetrievalExperiment
from ctrkit.retrieval.dataset import RetrievalDataset
from ctrkit.retrieval.prepare import prepare

USERS, ITEMS = 120, 40


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``log.csv``, ``users.csv`` and ``items.csv``; items 38 and 39 are in no event."""
    folder = tmp_path_factory.mktemp("shop")
    random = np.random.default_rng(0)
    users, items, rating, hour = [], [], [], []
    for user in range(USERS):
        own = [i for i in range(ITEMS - 2) if i % 2 == user % 2]
        for item in random.choice(own, 8, replace=False):
            users.append(f"u{user}")
            items.append(int(item))
            rating.append(int(random.integers(4, 6)))
            hour.append(int(random.integers(0, 24)))
        other = random.choice([i for i in range(ITEMS - 2) if i % 2 != user % 2])
        users.append(f"u{user}")
        items.append(int(other))
        rating.append(1)
        hour.append(0)
    time = random.permutation(len(users))
    log = pl.DataFrame({"user": users, "item": items, "rating": rating, "hour": hour, "time": time}).sort("time")
    log.write_csv(folder / "log.csv")
    number = range(ITEMS)
    pl.DataFrame(
        {
            "item": number,
            "colour": [("red", "blue")[i % 2] for i in number],
            "shape": [("ball", "cube")[i % 2] for i in number],
            "tags": ["|".join(["odd" if i % 2 else "even", f"t{i % 5}"]) for i in number],
            "price": [float(i) if i % 7 else None for i in number],
        }
    ).write_csv(folder / "items.csv")
    pl.DataFrame({"user": [f"u{u}" for u in range(USERS)], "taste": [u % 2 for u in range(USERS)]}).write_csv(folder / "users.csv")
    return folder


def config(shop: Path, output: Path, **changes: object) -> RetrievalExperiment:
    """The shop's experiment, with other settings."""
    settings = {
        "task": "retrieval",
        "name": "shop",
        "data": {"path": str(shop / "log.csv")},
        "users": {"path": str(shop / "users.csv"), "on": "user"},
        "items": {"path": str(shop / "items.csv"), "on": "item"},
        "user": "user",
        "item": "item",
        "positive": "rating >= 4",
        "time": "time",
        "item_features": [
            {"name": "item", "kind": "categorical", "dtype": "int"},
            {"name": "colour", "kind": "categorical"},
            {"name": "shape", "kind": "categorical"},
            {"name": "tags", "kind": "multi_valued"},
            {"name": "price", "kind": "numeric"},
        ],
        "user_features": [
            {"name": "user", "kind": "categorical"},
            {"name": "taste", "kind": "categorical"},
            {"name": "recent", "kind": "sequence", "of": "item", "max_length": 5},
        ],
        "context_features": [{"name": "hour", "kind": "numeric", "transform": {"kind": "buckets", "count": 4}}],
        "embedding": {"dim": 8, "learning_rate": 0.05, "init_std": 0.05},
        "training": {"batch_size": 64, "epochs": 3, "threads": 1, "monitor": "ndcg@5"},
        "evaluation": {"at": [5]},
        "output": str(output),
    }
    return RetrievalExperiment.model_validate({**settings, **changes})


@pytest.fixture(scope="session")
def experiment(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> RetrievalExperiment:
    return config(shop, tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="session")
def dataset(experiment: RetrievalExperiment) -> RetrievalDataset:
    return prepare(experiment)
