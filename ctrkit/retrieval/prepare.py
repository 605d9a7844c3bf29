"""The log of a retrieval experiment -> its events, users and catalogue, with transforms fitted on the training events.

All of it is held in memory: about 100 bytes an event, and the users' and items' features.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import ctrkit
from ctrkit.config import SideTable
from ctrkit.data.folder import whole_folder
from ctrkit.data.labels import LABEL, TIME, LabelRule, TimeRule
from ctrkit.data.prepare import Progress
from ctrkit.data.readers import Chunk, open_log, side_columns, side_table
from ctrkit.data.splits import random_keys
from ctrkit.errors import CtrkitError, nearest
from ctrkit.retrieval.config import RetrievalExperiment
from ctrkit.retrieval.dataset import EVENTS, FILE, GOLDEN, ITEMS, KEY, TRANSFORMS, USERS, RetrievalDataset, dataset_dir, fingerprint
from ctrkit.retrieval.events import SPLIT_CODES, TRAIN, assign_splits
from ctrkit.schema import MISSING_INT, Feature
from ctrkit.transforms import FittedTransforms, canonicalise, fitter_for, with_sequences

_USER, _ITEM = "@user", "@item"
_FIT_ROWS = 131_072


def prepare(experiment: RetrievalExperiment, out_dir: Path | None = None, *, progress: Progress | None = None) -> RetrievalDataset:
    """Reads the log, divides its events, fits the transforms on the training events and writes the dataset.

    An item counts once for each user, at the first time: what was seen is not recommended again, so a repeat cannot be a target.

    Args:
        out_dir: the dataset's folder; default ``dataset_dir(experiment)``.
        progress: told how far it is.

    Raises:
        CtrkitError: anything wrong with the log or a side table, an empty split, an output that cannot be written.
    """
    started = time.perf_counter()
    columns = LogColumns(experiment)
    say = progress or (lambda stage, done, total: None)
    out_dir = Path(out_dir) if out_dir is not None else dataset_dir(experiment)
    with whole_folder(out_dir) as folder:
        log = _positive_rows(columns, say)
        users = _side(log, _USER, experiment.users, columns.user, columns.user_features)
        items = _side(log, _ITEM, experiment.items, columns.item, columns.item_features)
        events = _events(experiment, log, users, items)
        transforms = _fit(experiment, users, items, events, say)
        transforms.save(folder / TRANSFORMS)
        users.write_parquet(folder / USERS)
        items.write_parquet(folder / ITEMS)
        events.write_parquet(folder / EVENTS)
        about = _about(experiment, transforms, events, users, items)
        seconds = time.perf_counter() - started
        about["profile"]["preparation"] = {"rows_per_s": columns.rows_read / seconds, "seconds": seconds}
        (folder / FILE).write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf8")
        whole = RetrievalDataset(folder)
        whole.raw_queries(whole.queries("test").event[: experiment.export.golden_rows]).write_parquet(folder / GOLDEN)
    return RetrievalDataset(out_dir)


def check_columns(experiment: RetrievalExperiment) -> list[str]:
    """Checks the experiment against the headers of its files; the columns of the log that it reads. Raises CtrkitError."""
    return LogColumns(experiment).needed


class LogColumns:
    """What is read of the log and of the side tables.

    Attributes:
        needed: columns of the log.
        user_features, item_features: those that are columns; histories are not.
        rows_read: of the log so far.

    Raises:
        CtrkitError: a file or a column is missing.
    """

    def __init__(self, experiment: RetrievalExperiment) -> None:
        self.experiment = experiment
        self.reader = open_log(experiment.data)
        self.user, self.item = experiment.key_feature(experiment.user), experiment.key_feature(experiment.item)
        self.user_features = tuple(f for f in experiment.user_features if f.of is None)
        self.item_features = experiment.item_features
        self.positive = LabelRule(experiment.positive, self.reader, setting="positive") if experiment.positive else None
        self.time = TimeRule(experiment.time, "time") if experiment.time else None
        of_log = [*experiment.context_features]
        for table, setting, features in (
            (experiment.users, "users", self.user_features),
            (experiment.items, "items", self.item_features),
        ):
            if table is None:
                of_log += features
            else:
                known = side_columns(table, setting)
                for feature in features:
                    if feature.name not in known:
                        raise CtrkitError(f"{setting}: '{table.path}' has no column '{feature.name}'", nearest(feature.name, known))
        self.features_of_log = tuple(of_log)
        others = [*(self.positive.columns if self.positive else ()), *([experiment.time] if experiment.time else ())]
        self.needed = list(dict.fromkeys([experiment.user, experiment.item, *(f.name for f in of_log), *others]))
        self.reader.require(self.needed)
        self.reader.needed = self.needed
        self.rows_read = 0

    def read(self, chunk: Chunk) -> pl.DataFrame:
        """A chunk's positive rows: ``@user``, ``@item``, ``@time`` and the features that are columns of the log, canonical."""
        frame, first = chunk.frame, chunk.first_row - 1
        try:
            keys = [
                canonicalise(frame.select(f.name), [f], first).to_series().alias(name)
                for f, name in ((self.user, _USER), (self.item, _ITEM))
            ]
            features = canonicalise(frame.select(f.name for f in self.features_of_log), self.features_of_log, first)
        except CtrkitError as error:
            raise CtrkitError(f"in '{chunk.file}': {error.problem}", error.remedy) from error
        for feature, key in zip((self.user, self.item), keys, strict=True):
            missing = (key == _missing(feature)).arg_true()
            if len(missing):
                raise CtrkitError(f"{chunk.place(missing[0])} has no '{feature.name}'", "Every row needs a user and an item")
        order = pl.Series(TIME, self._order(frame.height))
        self.rows_read += frame.height
        rows = pl.DataFrame([*keys, self.time.values(chunk) if self.time else order, *features.get_columns()])
        return rows if self.positive is None else rows.filter(self.positive.values(chunk).alias(LABEL).cast(pl.Boolean))

    def _order(self, rows: int) -> np.ndarray:
        """What stands for the time of the next rows: their numbers, or random ones."""
        split = self.experiment.split
        if split.by == "leave-random-out":
            return random_keys(self.rows_read, rows, split.seed + 3).astype(np.float64)
        return np.arange(self.rows_read, self.rows_read + rows, dtype=np.float64)


def _positive_rows(columns: LogColumns, say: Progress) -> pl.DataFrame:
    frames = []
    for chunk in columns.reader.chunks():
        frames.append(columns.read(chunk))
        say("read", columns.rows_read, None)
    log = pl.concat(frames) if frames else pl.DataFrame()
    if log.is_empty():
        raise CtrkitError(f"none of the {columns.rows_read:,} rows of the log is an event", "Check 'positive' and the file")
    return log


def _side(log: pl.DataFrame, name: str, table: SideTable | None, key: Feature, features: Sequence[Feature]) -> pl.DataFrame:
    """The users or the catalogue: ``@key`` and the canonical features, keys of the side table first, then those of the log alone.

    Without a side table features are those of the earliest row, which is no test event where there is another.
    """
    seen = log.select(pl.col(name).alias(KEY)).unique(maintain_order=True)
    if table is None:
        earliest = log.sort(TIME, maintain_order=True).unique(name, keep="first", maintain_order=True)
        first = earliest.select(pl.col(name).alias(KEY), *(pl.col(f.name).alias(f"feature:{f.name}") for f in features))
        return seen.join(first, on=KEY, how="left", maintain_order="left").rename(lambda column: column.removeprefix("feature:"))
    raw = side_table(table, {table.on, *(f.name for f in features)}, "users" if name == _USER else "items")
    try:
        keys = canonicalise(raw.select(table.on), [key]).to_series().alias(KEY)
        if keys.is_duplicated().any():
            twice = keys.filter(keys.is_duplicated())[0]
            raise CtrkitError(f"the key {table.on} = {twice!r} is there more than once", "A side table has one row a key")
        if (empty := (keys == _missing(key)).arg_true()).len():
            raise CtrkitError(f"row {empty[0] + 1} has no '{table.on}'", "Every row of a side table needs its key")
        every = pl.concat([keys.to_frame(), seen]).unique(maintain_order=True) if name == _ITEM else seen
        joined = every.join(raw.with_columns(keys), on=KEY, how="left", maintain_order="left").with_columns(pl.col(KEY).alias(table.on))
        return joined.select(KEY).hstack(canonicalise(joined.select(f.name for f in features), features))
    except CtrkitError as error:
        raise CtrkitError(f"in '{table.path}': {error.problem}", error.remedy) from error


def _events(experiment: RetrievalExperiment, log: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """The events by user and time: columns ``user, item, time, split, cold`` and ``context:<feature>``."""
    events = log.select(
        pl.col(_USER).replace_strict(users[KEY], pl.int_range(users.height, eager=True), return_dtype=pl.Int64).alias("user"),
        pl.col(_ITEM).replace_strict(items[KEY], pl.int_range(items.height, eager=True), return_dtype=pl.Int64).alias("item"),
        pl.col(TIME).alias("time"),
        *(pl.col(f.name).alias(f"context:{f.name}") for f in experiment.context_features),
    )
    events = events.sort("user", "time", maintain_order=True).unique(("user", "item"), keep="first", maintain_order=True)
    split, cold = assign_splits(events["user"].to_numpy(), events["item"].to_numpy(), events["time"].to_numpy(), experiment.split)
    return events.with_columns(pl.Series("split", split), pl.Series("cold", cold))


def _fit(
    experiment: RetrievalExperiment, users: pl.DataFrame, items: pl.DataFrame, events: pl.DataFrame, say: Progress
) -> FittedTransforms:
    """Fits on the training events, each with its user's and its item's features: a value counts as often as it is trained on."""
    fitters = {feature.name: fitter_for(feature) for feature in experiment.features if feature.of is None}
    context = [pl.col(f"context:{f.name}").alias(f.name) for f in experiment.context_features]
    training = events.filter(pl.col("split") == TRAIN)
    for start in range(0, training.height, _FIT_ROWS):
        part = training.slice(start, _FIT_ROWS)
        sides = (users[part["user"]].drop(KEY), items[part["item"]].drop(KEY), part.select(context))
        frame = pl.DataFrame([column for side in sides for column in side.get_columns()])
        for fitter in fitters.values():
            fitter.update(frame)
        say("fit", start + part.height, training.height)
    fitted = {name: fitter.finish() for name, fitter in fitters.items()}
    return FittedTransforms(with_sequences(experiment.features, fitted))


def _about(
    experiment: RetrievalExperiment, transforms: FittedTransforms, events: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame
) -> dict[str, Any]:
    rows = {name: int((events["split"] == code).sum()) for name, code in SPLIT_CODES.items()}
    trained = events.filter(pl.col("split") == TRAIN)
    profile = {
        "users": users.height,
        "items": items.height,
        "trained_users": trained["user"].n_unique(),
        "trained_items": trained["item"].n_unique(),
        "tables": {t.feature.name: t.rows for t in transforms.transforms if t.rows is not None},
    }
    return {
        "name": experiment.name,
        "fingerprint": fingerprint(experiment),
        "user": experiment.key_feature(experiment.user).model_dump(mode="json"),
        "item": experiment.key_feature(experiment.item).model_dump(mode="json"),
        "query_features": [f.name for f in experiment.query_features],
        "context_features": [f.name for f in experiment.context_features],
        "rows": rows,
        "profile": profile,
        "ctrkit": ctrkit.__version__,
    }


def _missing(feature: Feature) -> str | int:
    return "" if feature.dtype == "string" else MISSING_INT
