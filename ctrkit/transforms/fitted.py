"""All features' transforms together: fit, encode, save, load, compile."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import polars as pl

from ctrkit.errors import CtrkitError
from ctrkit.schema import Buckets, Feature, Hash, Inputs, Kind, Vocabulary
from ctrkit.transforms.bag import BagFitter, BagTransform
from ctrkit.transforms.base import FittedTransform, Fitter, Lookup, LookupFitter
from ctrkit.transforms.buckets import BucketsFitter, BucketsTransform
from ctrkit.transforms.categorical import CategoricalFitter, CategoricalTransform
from ctrkit.transforms.hashing import HashFitter, HashLookup
from ctrkit.transforms.numeric import NumericFitter, NumericTransform
from ctrkit.transforms.vocabulary import VocabularyFitter, VocabularyLookup

if TYPE_CHECKING:
    from ctrkit.transforms.onnx_part import OnnxPart

_FILE = "transforms.json"
_FORMAT = 1

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)


def fitter_for(feature: Feature) -> Fitter:
    """The fitter of a feature's transform. A sequence has none, see ``with_sequences``."""
    settings = feature.transform
    if isinstance(settings, Buckets):
        return BucketsFitter(feature, settings)
    if isinstance(settings, Vocabulary):
        lookup: LookupFitter = VocabularyFitter(feature, settings)
    elif isinstance(settings, Hash):
        lookup = HashFitter(feature, settings)
    else:
        return NumericFitter(feature)
    return BagFitter(feature, lookup) if feature.kind is Kind.MULTI_VALUED else CategoricalFitter(feature, lookup)


def _restore(feature: Feature, state: dict[str, Any], vocabulary: pl.Series | None) -> FittedTransform:
    settings = feature.transform
    if isinstance(settings, Buckets):
        return BucketsTransform(feature, state["boundaries"])
    if isinstance(settings, Vocabulary):
        assert vocabulary is not None
        lookup: Lookup = VocabularyLookup(feature, settings, vocabulary)
    elif isinstance(settings, Hash):
        lookup = HashLookup(feature, settings)
    else:
        return NumericTransform(feature, state["mean"], state["std"])
    return BagTransform(feature, lookup) if feature.kind is Kind.MULTI_VALUED else CategoricalTransform(feature, lookup)


def with_sequences(features: Iterable[Feature], fitted: Mapping[str, FittedTransform]) -> list[FittedTransform]:
    """The transforms of all features in their order: the fitted ones, and the sequences', which share those of their ``of`` features.

    So a history's values get the ids that they have as a target. The vocabulary is that of the target column alone: an item's
    frequency is in how many rows it is the target, however often the histories of other rows repeat it, and ``min_count`` keeps its
    meaning. A value that was never a target is unknown in a history too.
    """
    transforms: list[FittedTransform] = []
    for feature in features:
        if feature.of is None:
            transforms.append(fitted[feature.name])
        else:
            target = fitted[feature.of]
            assert isinstance(target, CategoricalTransform)
            transforms.append(BagTransform(feature, target.lookup))
    return transforms


class FittedTransforms:
    """The fitted transforms of an experiment, in the order of its features.

    Raises:
        CtrkitError: two features need the same ONNX input, such as a multi-valued ``a`` and a feature ``a.values``.
    """

    def __init__(self, transforms: Sequence[FittedTransform]) -> None:
        self.transforms = tuple(transforms)
        _check_names(self.features)

    @property
    def features(self) -> tuple[Feature, ...]:
        return tuple(t.feature for t in self.transforms)

    @property
    def inputs(self) -> Inputs:
        """The fields a model is built from."""
        ids = [t.feature.id_field(t.rows) for t in self.transforms if t.rows is not None]
        return Inputs(id_fields=tuple(ids), numeric_fields=tuple(t.feature.name for t in self.transforms if t.rows is None))

    def __getitem__(self, name: str) -> FittedTransform:
        """The transform of the feature of that name."""
        return {t.feature.name: t for t in self.transforms}[name]

    def encode(self, frame: Frame) -> Frame:
        """Replaces every feature's canonical column by its ids or floats; other columns stay."""
        return frame.with_columns([t.to_polars() for t in self.transforms])

    def onnx_graph(self) -> list[OnnxPart]:
        """One part a feature, in order; ``onnx_part.assemble`` makes a model of them."""
        return [t.to_onnx() for t in self.transforms]

    def save(self, folder: Path) -> None:
        """Writes ``transforms.json`` and one Parquet file a vocabulary. An older folder is replaced, whole."""
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            fresh = scratch / "new"
            fresh.mkdir()
            self._write(fresh)
            if folder.exists():
                folder.rename(scratch / "old")
            fresh.rename(folder)
        finally:
            shutil.rmtree(scratch)

    def _write(self, folder: Path) -> None:
        entries = []
        for number, transform in enumerate(self.transforms):
            entry: dict[str, Any] = {"feature": transform.feature.model_dump(mode="json"), "state": transform.state()}
            vocabulary = transform.vocabulary()
            if vocabulary is not None and transform.feature.of is None:
                entry["vocabulary"] = f"vocabulary-{number:05d}.parquet"
                vocabulary.alias("value").to_frame().write_parquet(folder / entry["vocabulary"])
            entries.append(entry)
        text = json.dumps({"format": _FORMAT, "transforms": entries}, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / _FILE).write_text(text, encoding="utf8")

    @classmethod
    def load(cls, folder: Path) -> FittedTransforms:
        """Reads what ``save`` wrote.

        Raises:
            CtrkitError: the folder is missing or damaged, or a newer ctrkit wrote it.
        """
        path = Path(folder) / _FILE
        try:
            content = json.loads(path.read_text(encoding="utf8"))
            if content["format"] != _FORMAT:
                raise CtrkitError(f"'{path}' has format {content['format']}, this ctrkit reads {_FORMAT}", "Prepare the data again")
            entries = [(Feature.model_validate(entry["feature"]), entry) for entry in content["transforms"]]
            fitted = {
                feature.name: _restore(
                    feature,
                    entry["state"],
                    pl.read_parquet(path.parent / entry["vocabulary"])["value"] if "vocabulary" in entry else None,
                )
                for feature, entry in entries
                if feature.of is None
            }
            transforms = with_sequences((feature for feature, _ in entries), fitted)
        except FileNotFoundError as error:
            raise CtrkitError(
                f"no fitted transforms at '{folder}': {error.filename or path} is missing", "Prepare the data again"
            ) from error
        except (ValueError, KeyError, TypeError, AssertionError, pl.exceptions.PolarsError) as error:
            raise CtrkitError(f"the fitted transforms at '{folder}' are damaged: {error}", "Prepare the data again") from error
        return cls(transforms)


def _check_names(features: Sequence[Feature]) -> None:
    owners: dict[str, str] = {}
    for feature in features:
        for name in [f"{feature.name}.values", f"{feature.name}.lengths"] if feature.multi_valued else [feature.name]:
            if name in owners:
                raise CtrkitError(
                    f"features '{owners[name]}' and '{feature.name}' both need the model input '{name}'", "Rename one of the two columns"
                )
            owners[name] = feature.name
