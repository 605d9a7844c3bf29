"""Raw log -> Parquet shards of ids, in bounded memory.

The text is parsed, joined and made canonical once, into scratch files; then the transforms are fitted on the training rows
of those, and all rows are encoded and written. Nothing stands under the dataset's name before it is whole.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import ctrkit
from ctrkit.config import Experiment
from ctrkit.data.columns import Columns, check_columns
from ctrkit.data.dataset import FILE, GOLDEN_FILE, Dataset, dataset_dir, fingerprint
from ctrkit.data.folder import whole_folder
from ctrkit.data.profile import Profiler
from ctrkit.data.readers import ahead
from ctrkit.data.scratch import Scratch
from ctrkit.data.shards import ShardWriters
from ctrkit.data.splitter import Splitter
from ctrkit.schema import Feature
from ctrkit.transforms.categorical import CategoricalFitter
from ctrkit.transforms.fitted import FittedTransforms, fitter_for, with_sequences

__all__ = ["Progress", "check_columns", "prepare"]

Progress = Callable[[str, int, int | None], None]
"""Called with the stage (read, fit, encode), the rows done and how many there are (None while unknown)."""


def prepare(experiment: Experiment, out_dir: Path | None = None, *, progress: Progress | None = None) -> Dataset:
    """Fits the transforms on the training split and writes the dataset, replacing an older one of that name.

    Args:
        out_dir: the dataset's folder; default ``dataset_dir(experiment)``.
        progress: told how far it is.

    Raises:
        CtrkitError: anything wrong with the log, with its file, row and column; an empty split; an output that cannot be written.
    """
    started = time.perf_counter()
    columns = Columns(experiment)
    out_dir = Path(out_dir) if out_dir is not None else dataset_dir(experiment)
    with whole_folder(out_dir) as unfinished:
        about = _write(experiment, columns, unfinished, progress or (lambda stage, done, total: None))
        seconds = time.perf_counter() - started
        about["profile"]["preparation"] = {
            "rows_per_s": sum(about["rows"].values()) / seconds,
            "peak_mb": peak_mb(),
            "seconds": seconds,
        }
        (unfinished / FILE).write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf8")
    return Dataset.open(out_dir)


def peak_mb() -> float:
    """The most memory this process has held, in MB. (``getrusage`` would count that of the process it was forked from.)"""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


def _write(experiment: Experiment, columns: Columns, folder: Path, say: Progress) -> dict[str, Any]:
    """Writes all of a dataset but its ``dataset.json``, whose content is returned."""
    scratch = Scratch(folder / "scratch", columns.features)
    for part, reader in columns.readers.items():
        for chunk in reader.chunks():
            scratch.append(part, columns.read(chunk))
            say("read", scratch.rows, None)
    scratch.finish()
    splitter = Splitter(experiment, scratch)

    transforms = _fit(columns.features, scratch, splitter, say)
    transforms.save(folder / "transforms")

    texts = {name: dictionary.texts() for name, dictionary in scratch.dictionaries.items()}
    profiler = Profiler(transforms, splitter.rows, experiment.tasks, texts)
    names = [feature.name for feature in columns.features]
    golden = _Golden("test" if splitter.rows["test"] else "valid", experiment.export.golden_rows, names)
    done = 0
    with ShardWriters(folder) as shards:
        for split, raw, encoded in ahead(_encoded(transforms, scratch, splitter), depth=1):
            shards.write(split, encoded)
            profiler.add(split, raw, encoded)
            golden.add(split, raw)
            done += encoded.height
            say("encode", done, scratch.rows)
    golden.write(folder / GOLDEN_FILE, scratch)
    shutil.rmtree(scratch.folder)
    return {
        "name": experiment.name,
        "fingerprint": fingerprint(experiment),
        "label": experiment.label,
        "group": experiment.group,
        "inputs": transforms.inputs.model_copy(update={"tasks": experiment.tasks}).model_dump(mode="json"),
        "features": [feature.model_dump(mode="json") for feature in columns.features],
        "rows": splitter.rows,
        "profile": profiler.describe(),
        "ctrkit": ctrkit.__version__,
    }


def _fit(features: tuple[Feature, ...], scratch: Scratch, splitter: Splitter, say: Progress) -> FittedTransforms:
    fitters = {feature.name: fitter_for(feature) for feature in features if feature.of is None}
    texts = {name: dictionary.texts() for name, dictionary in scratch.dictionaries.items()}
    counts = {name: np.zeros(len(values), np.int64) for name, values in texts.items()}

    def take_in(name: str, frame: pl.DataFrame) -> None:
        if name in counts:
            counts[name] += np.bincount(frame[name].to_numpy(), minlength=len(counts[name]))
        else:
            fitters[name].update(frame)

    done = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split, frame in ahead(splitter.divide(scratch.frames())):
            if split == "train":
                list(pool.map(take_in, fitters, [frame] * len(fitters)))
                done += frame.height
                say("fit", done, splitter.rows["train"])
        for name, count in counts.items():
            fitter = fitters[name]
            assert isinstance(fitter, CategoricalFitter)
            seen = pl.DataFrame({"value": texts[name], "count": count}).filter(pl.col("count") > 0)
            fitter.update_counts(seen)
        fitted = dict(zip(fitters, pool.map(lambda fitter: fitter.finish(), fitters.values()), strict=True))
        return FittedTransforms(with_sequences(features, fitted))


def _encoded(transforms: FittedTransforms, scratch: Scratch, splitter: Splitter) -> Iterator[tuple[str, pl.DataFrame, pl.DataFrame]]:
    """(split, canonical rows, encoded rows). A column with a dictionary is encoded by encoding its dictionary."""
    expressions = []
    for transform in transforms.transforms:
        name = transform.feature.name
        if name in scratch.dictionaries:
            ids = scratch.dictionaries[name].texts().alias(name).to_frame().select(transform.to_polars()).to_series()
            expressions.append(pl.lit(ids).gather(pl.col(name)).alias(name))
        else:
            expressions.append(transform.to_polars())
    for split, raw in splitter.divide(scratch.frames()):
        yield split, raw, raw.with_columns(expressions)


class _Golden:
    """The first rows of a split in canonical form, a column a feature: exported models are checked on them."""

    def __init__(self, split: str, rows: int, features: list[str]) -> None:
        self._split = split
        self._left = rows
        self._features = features
        self._frames: list[pl.DataFrame] = []

    def add(self, split: str, raw: pl.DataFrame) -> None:
        if split == self._split and self._left:
            self._frames.append(raw.select(self._features).head(self._left))
            self._left -= self._frames[-1].height

    def write(self, file: Path, scratch: Scratch) -> None:
        texts = [pl.lit(dictionary.texts()).gather(pl.col(name)).alias(name) for name, dictionary in scratch.dictionaries.items()]
        pl.concat(self._frames).with_columns(texts).write_parquet(file)
