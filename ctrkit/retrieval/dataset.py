"""What ``prepare`` wrote for a retrieval experiment."""

import hashlib
import json
import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import ValidationError

from ctrkit.data.files import find_files
from ctrkit.data.splits import random_keys
from ctrkit.errors import CtrkitError
from ctrkit.retrieval.config import RetrievalExperiment
from ctrkit.retrieval.events import TRAIN, Events, Queries, queries_of
from ctrkit.retrieval.rows import Rows, slices
from ctrkit.schema import Feature, Inputs
from ctrkit.transforms import FittedTransforms, canonical_dtype
from ctrkit.transforms.canonical import regroup

FILE, TRANSFORMS = "retrieval.json", "transforms"
USERS, ITEMS, EVENTS, GOLDEN = "users.parquet", "items.parquet", "events.parquet", "golden_queries.parquet"
KEY = "@key"


class Catalogue:
    """The items and the fitted transforms: what a trained run keeps of its dataset, and all that its export needs.

    Args:
        path: the folder.

    Attributes:
        about: what ``prepare`` wrote of the dataset.
        transforms: of all features, those of the user tower first.
        query_inputs, item_inputs: fields of the user tower and of the item tower.
        context_names: the user tower's features that are the event's.
        items: canonical raw features with ``@key``, row by row as the events number them.

    Raises:
        CtrkitError: the folder is missing or not whole.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.about: dict[str, Any] = json.loads((self.path / FILE).read_text(encoding="utf8"))
            self.fingerprint: str = self.about["fingerprint"]
            self.user_key, self.item_key = (Feature.model_validate(self.about[side]) for side in ("user", "item"))
            queries: list[str] = self.about["query_features"]
            self.context_names: list[str] = self.about["context_features"]
            self.items = pl.read_parquet(self.path / ITEMS)
        except (OSError, ValueError, KeyError, ValidationError, pl.exceptions.PolarsError) as error:
            raise _damaged(self.path, error) from error
        self.transforms = FittedTransforms.load(self.path / TRANSFORMS)
        self.query_inputs = side_inputs(self.transforms.inputs, queries, True)
        self.item_inputs = side_inputs(self.transforms.inputs, queries, False)

    @property
    def query_features(self) -> tuple[Feature, ...]:
        """Of the user tower."""
        return tuple(f for f in self.transforms.features if f.name in field_names(self.query_inputs))

    @property
    def item_features(self) -> tuple[Feature, ...]:
        """Of the item tower."""
        return tuple(f for f in self.transforms.features if f.name in field_names(self.item_inputs))

    @cached_property
    def golden_queries(self) -> pl.DataFrame:
        """Canonical raw rows of the user tower that exports are checked on: the first test queries."""
        try:
            return pl.read_parquet(self.path / GOLDEN)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise _damaged(self.path, error) from error

    def copy_to(self, folder: Path) -> None:
        """Copies what this class reads, whoever it is of."""
        folder.mkdir()
        shutil.copytree(self.path / TRANSFORMS, folder / TRANSFORMS)
        for name in (FILE, ITEMS, GOLDEN):
            shutil.copy2(self.path / name, folder / name)


class RetrievalDataset(Catalogue):
    """The catalogue with users and events, in memory.

    Attributes:
        users: canonical raw features with ``@key``, row by row as the events number them.
        events: all of them.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        try:
            self.rows: dict[str, int] = self.about["rows"]
            self.profile: dict[str, Any] = self.about["profile"]
            self.users, self._table = pl.read_parquet(self.path / USERS), pl.read_parquet(self.path / EVENTS)
            self.events = Events(**{name: self._table[name].to_numpy() for name in ("user", "item", "time", "split", "cold")})
        except (OSError, KeyError, pl.exceptions.PolarsError) as error:
            raise _damaged(self.path, error) from error

    @cached_property
    def encoded_items(self) -> Rows:
        """The catalogue as the item tower takes it."""
        return self._encoded(self.items, self.item_inputs)

    @cached_property
    def counts(self) -> np.ndarray:
        """Training events of each item, int64 ``[items]``: all that training may know of popularity."""
        return np.bincount(self.events.item[self.events.split == TRAIN], minlength=self.items.height)

    @cached_property
    def user_counts(self) -> np.ndarray:
        """Training events of each user, int64 ``[users]``."""
        return np.bincount(self.events.user[self.events.split == TRAIN], minlength=self.users.height)

    def queries(self, split: str, at_most: int | None = None) -> Queries:
        """What is asked on a split: all, or so many of them, drawn at random, the same whenever they are asked for."""
        queries = queries_of(self.events, split)
        if at_most is None or at_most >= len(queries):
            return queries
        return queries.take(np.sort(np.argsort(random_keys(0, len(queries), seed=0))[:at_most]))

    def encoded_users(self, events: np.ndarray) -> Rows:
        """What the user tower takes of these events' users and contexts, without their histories."""
        return self._encoded_users.take(self.events.user[events]).beside(self._encoded_context.take(events))

    def encoded_queries(self, events: np.ndarray) -> Rows:
        """What the user tower takes of the users and moments of these events: history, user and context."""
        rows = self.encoded_users(events)
        bags = {}
        if self.query_inputs.sequences:
            items, offsets = self.events.histories(events)
            ids = self.encoded_items.ids[self.item_key.name][items]
            for field in self.query_inputs.sequences:
                starts = np.maximum(offsets[:-1], offsets[1:] - field.length)
                bags[field.name] = slices(ids, starts, offsets[1:])
        return rows.beside(Rows(len(events), {}, bags, {}))

    def raw_queries(self, events: np.ndarray) -> pl.DataFrame:
        """The same as canonical raw values, a column a feature of the user tower."""
        columns = [*self.users[self.events.user[events]].drop(KEY).get_columns(), *self._of_context(self._table[events])]
        items, offsets = self.events.histories(events)
        lists = regroup(self.items[KEY].gather(items), np.diff(offsets))
        columns += [lists.cast(canonical_dtype(f)).alias(f.name) for f in self.query_features if f.of is not None]
        return pl.DataFrame(columns).select(f.name for f in self.query_features)

    @cached_property
    def _encoded_users(self) -> Rows:
        return self._encoded(self.users, self.query_inputs)

    @cached_property
    def _encoded_context(self) -> Rows:
        return self._encoded(pl.DataFrame(self._of_context(self._table)), self.query_inputs)

    def _of_context(self, events: pl.DataFrame) -> list[pl.Series]:
        return [events[f"context:{name}"].alias(name) for name in self.context_names]

    def _encoded(self, frame: pl.DataFrame, inputs: Inputs) -> Rows:
        """Those of a side's columns that are features of the frame."""
        held = [t for t in self.transforms.transforms if t.feature.name in frame.columns and t.feature.name in field_names(inputs)]
        part = side_inputs(inputs, [t.feature.name for t in held], True)
        return Rows.of(frame.select(t.to_polars() for t in held), part) if held else Rows(frame.height, {}, {}, {})


def side_inputs(inputs: Inputs, names: list[str], named: bool) -> Inputs:
    """The fields that are among the names, or those that are not."""
    return Inputs(
        id_fields=tuple(f for f in inputs.id_fields if (f.name in names) == named),
        numeric_fields=tuple(name for name in inputs.numeric_fields if (name in names) == named),
    )


def _damaged(path: Path, error: Exception) -> CtrkitError:
    return CtrkitError(f"'{path}' is not a prepared dataset ({type(error).__name__}: {error})", "Run ctrkit prepare CONFIG")


def field_names(inputs: Inputs) -> set[str]:
    return {field.name for field in inputs.id_fields} | set(inputs.numeric_fields)


def fingerprint(experiment: RetrievalExperiment) -> str:
    """Hash of all that a dataset depends on: the settings, and names, sizes and times of the input files."""
    exclude = {"model", "embedding", "training", "evaluation", "export", "output"}
    settings = experiment.model_dump(mode="json", exclude=exclude)
    tables = [table.path for table in (experiment.users, experiment.items) if table is not None]
    paths = [path for path in (experiment.data.path, *tables) if path is not None]
    files = [(file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for path in paths for file in find_files(path)]
    return hashlib.sha256(json.dumps([settings, files, experiment.export.golden_rows], sort_keys=True).encode()).hexdigest()


def dataset_dir(experiment: RetrievalExperiment) -> Path:
    """Where ``prepare`` puts the dataset: a folder of its own for each fingerprint."""
    return Path(experiment.output) / "datasets" / f"{experiment.name}-{fingerprint(experiment)[:8]}"


def open_dataset(experiment: RetrievalExperiment) -> RetrievalDataset | None:
    """The experiment's dataset if it has been prepared, from the same settings and files."""
    folder = dataset_dir(experiment)
    return RetrievalDataset(folder) if (folder / FILE).exists() else None
