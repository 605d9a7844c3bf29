"""A prepared log on disk. Read without torch."""

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from pydantic import ValidationError

from ctrkit.config import Experiment
from ctrkit.data.files import find_files
from ctrkit.data.splits import SPLITS
from ctrkit.errors import CtrkitError
from ctrkit.schema import Feature, Inputs

if TYPE_CHECKING:
    from ctrkit.transforms.fitted import FittedTransforms

FILE = "dataset.json"
GOLDEN_FILE = "golden.parquet"


class Dataset:
    """What ``prepare`` wrote: Parquet shards of ids a split, the fitted transforms and a profile.

    Args:
        path: the dataset's folder.

    Raises:
        CtrkitError: the folder is missing or not whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self._about: dict[str, Any] = json.loads((self.path / FILE).read_text(encoding="utf8"))
            self.name: str = self._about["name"]
            self.fingerprint: str = self._about["fingerprint"]
            self.label: str | dict[str, str] = self._about["label"]
            self.group: str | None = self._about["group"]
            self.inputs = Inputs.model_validate(self._about["inputs"])
            self.features = tuple(Feature.model_validate(feature) for feature in self._about["features"])
            self.rows: dict[str, int] = self._about["rows"]
            self.profile: dict[str, Any] = self._about["profile"]
        except (OSError, ValueError, KeyError, ValidationError) as error:
            raise CtrkitError(
                f"'{self.path}' is not a prepared dataset ({type(error).__name__}: {error})", "Run ctrkit prepare CONFIG"
            ) from error

    @classmethod
    def open(cls, path: str | Path) -> "Dataset":
        return cls(Path(path))

    def parts(self, split: str) -> list[Path]:
        """The shards of ``train``, ``valid`` or ``test``, in order."""
        if split not in SPLITS:
            raise CtrkitError(f"no split '{split}'", f"Name one of {', '.join(SPLITS)}")
        return sorted((self.path / split).glob("part-*.parquet"))

    def transforms(self) -> "FittedTransforms":
        from ctrkit.transforms.fitted import FittedTransforms

        return FittedTransforms.load(self.path / "transforms")

    def golden(self) -> pl.DataFrame:
        """Raw rows, in canonical form, that exported models are checked on.

        Raises:
            CtrkitError: they are gone.
        """
        file = self.path / GOLDEN_FILE
        try:
            return pl.read_parquet(file)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise CtrkitError(
                f"'{file}' cannot be read: {str(error).splitlines()[0]}", "Copy the whole folder again, or train anew"
            ) from error

    @cached_property
    def summary(self) -> dict[str, Any]:
        """{dataset, rows, rows_per_s, peak_mb, seconds} of the preparation."""
        return {"dataset": str(self.path), "rows": self.rows, **self.profile["preparation"]}


def fingerprint(experiment: Experiment) -> str:
    """Hash of all that a dataset depends on: the settings, and names, sizes and times of the input files."""
    settings = experiment.model_dump(mode="json", include={"data", "label", "group", "split", "features"})
    data = experiment.data
    paths = [path for path in (data.path, data.train, data.valid, data.test) if path is not None] + [join.path for join in data.joins]
    files = [(file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for path in paths for file in find_files(path)]
    text = json.dumps([settings, files, experiment.export.golden_rows, *experiment.tasks], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def dataset_dir(experiment: Experiment) -> Path:
    """Where ``prepare`` puts the dataset: a folder of its own for each fingerprint."""
    return Path(experiment.output) / "datasets" / f"{experiment.name}-{fingerprint(experiment)[:8]}"


def open_dataset(experiment: Experiment) -> Dataset | None:
    """The experiment's dataset if it has been prepared, from the same settings and files."""
    folder = dataset_dir(experiment)
    return Dataset.open(folder) if (folder / FILE).exists() else None
