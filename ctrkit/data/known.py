"""The logs that ``configs/`` has an experiment for."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class KnownLog:
    """A log that the project knows.

    Attributes:
        files: below the folder ``$CTRKIT_DATA``; none for the simulated log.
        source: where to get them.
    """

    name: str
    rows: str
    what: str
    licence: str
    source: str
    files: tuple[str, ...]

    @property
    def config(self) -> str:
        return f"configs/{self.name}.yaml"

    @property
    def found(self) -> bool:
        """Whether all files are there; the simulated log is made where it is needed."""
        root = os.environ.get("CTRKIT_DATA")
        return not self.files or (root is not None and all((Path(root) / file).exists() for file in self.files))


KNOWN_LOGS = (
    KnownLog(
        "simulated",
        "as many as you like",
        "Simulated impressions: users, items, context; the true click probability is known",
        "none needed",
        "ctrkit data simulate",
        (),
    ),
    KnownLog(
        "criteo",
        "80,000",
        "Display ads: 13 counts, 26 hashed categories, in the order of time",
        "Criteo's terms: research, no redistribution",
        "https://ailab.criteo.com/ressources/",
        ("criteo-80k/criteo_80k.tsv.gz",),
    ),
    KnownLog(
        "avazu",
        "9,999",
        "Mobile ads: site, app, device and banner, one hour",
        "Kaggle's competition rules: no redistribution",
        "https://www.kaggle.com/c/avazu-ctr-prediction",
        ("avazu-25k/avazu_head_10k.csv.gz",),
    ),
    KnownLog(
        "frappe",
        "86,582",
        "Which app is used in which context",
        "research use",
        "https://huggingface.co/datasets/reczoo/Frappe_x1",
        ("frappe-x1/valid.csv.gz", "frappe-x1/test.csv.gz"),
    ),
    KnownLog(
        "movielens-tag",
        "200,686",
        "Which user gives which film which tag",
        "GroupLens' terms: research, no redistribution",
        "https://huggingface.co/datasets/reczoo/MovielensLatest_x1",
        ("movielens-tag-x1/test.csv.gz",),
    ),
    KnownLog(
        "movielens-1m",
        "1,000,209",
        "Film ratings, joined with users and films; genres are multi-valued",
        "GroupLens' terms: research, no redistribution",
        "https://grouplens.org/datasets/movielens/1m/",
        ("movielens-1m/ratings.csv.gz", "movielens-1m/users.dat", "movielens-1m/movies.dat"),
    ),
    KnownLog(
        "kuairand",
        "41,828",
        "Short videos shown to users, with many kinds of feedback and timestamps",
        "CC BY-SA 4.0",
        "https://kuairand.com",
        ("kuairand-1k/processed_standard_kcore_15.csv.gz",),
    ),
    KnownLog(
        "kuairand-history",
        "41,828",
        "The same, with the videos that each user clicked before: for DIN and BST",
        "CC BY-SA 4.0",
        "https://kuairand.com",
        ("kuairand-1k/processed_standard_kcore_15.csv.gz",),
    ),
    KnownLog(
        "kuairand-multitask",
        "41,828",
        "The same, with two labels: clicked, and watched long",
        "CC BY-SA 4.0",
        "https://kuairand.com",
        ("kuairand-1k/processed_standard_kcore_15.csv.gz",),
    ),
    KnownLog(
        "census-income",
        "99,762",
        "People of the US census of 1994 and 1995, with two labels: income above 50,000 dollars, and never married",
        "the UCI repository's terms",
        "http://archive.ics.uci.edu/ml/datasets/Census-Income+(KDD)",
        ("census-income/census-income.test.gz",),
    ),
    KnownLog(
        "adult",
        "32,561",
        "People of the US census of 1994: income above 50,000 dollars",
        "the UCI repository's terms",
        "https://archive.ics.uci.edu/dataset/2/adult",
        ("adult/adult.data.gz",),
    ),
    KnownLog(
        "movielens-1m-retrieval",
        "1,000,209",
        "Which film will a user like next? Ratings with users and films, for retrieval",
        "GroupLens' terms: research, no redistribution",
        "https://grouplens.org/datasets/movielens/1m/",
        ("movielens-1m/ratings.csv.gz", "movielens-1m/users.dat", "movielens-1m/movies_extrainfos.dat.gz"),
    ),
    KnownLog(
        "movielens-1m-funnel",
        "1,000,209",
        "Which film will a user like next? Towers that find films, and a model that ranks them",
        "GroupLens' terms: research, no redistribution",
        "https://grouplens.org/datasets/movielens/1m/",
        ("movielens-1m/ratings.csv.gz", "movielens-1m/users.dat", "movielens-1m/movies_extrainfos.dat.gz"),
    ),
    KnownLog(
        "amazon-grocery-retrieval",
        "121,892",
        "Which product will a user buy next? Purchases by day, with the products' categories, for retrieval",
        "research use",
        "https://github.com/THUwangcy/ReChorus",
        ("amazon-grocery/train.csv.gz", "amazon-grocery/item_meta.csv.gz"),
    ),
    KnownLog(
        "taobao-retrieval",
        "211,022",
        "Which item will a user buy next? Users and items alone, for retrieval",
        "research use",
        "https://tianchi.aliyun.com/dataset/649",
        ("taobao-behaviour/buy.train.txt.gz",),
    ),
)
