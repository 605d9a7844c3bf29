"""Writes a bundle into a model repository: all of it or nothing."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import orjson
import polars as pl
from torch import Tensor, nn

import ctrkit
from ctrkit.bundle import (
    CONFIG_FILE,
    GOLDEN_FILE,
    KNOWN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    Golden,
    Manifest,
    as_lists,
    describe_files,
    open_session,
    output_names,
)
from ctrkit.errors import CtrkitError
from ctrkit.export.cross import write_crosses
from ctrkit.export.graph import write_model
from ctrkit.export.selfcheck import Reference, check
from ctrkit.export.triton import triton_config
from ctrkit.export.twin import Twin
from ctrkit.export.version import NewVersion, new_version
from ctrkit.feeds import input_names
from ctrkit.known import KnownValues
from ctrkit.models.base import RankingModel
from ctrkit.schema import MISSING_INT, Inputs
from ctrkit.transforms import FittedTransforms


@dataclass(frozen=True)
class Trained:
    """A trained model and where it comes from.

    Attributes:
        model: its name in ctrkit, such as ``autoint``.
        transforms: raw values -> ids and floats.
        dense_arch: with its trained weights.
        tables: full weights, ``"<group>/<field>" -> [rows, dim]``.
        new_ids: where an id's row is in tables that hold some ids only, see ``Twin``.
        reference: the model as it was trained, to compare with.
        golden: canonical raw rows to compare on and to keep in the bundle.
        run: name of the run.
        label: column or expression it was trained on, or one for each task, the main one first.
        metrics: of the run, one entry a split.
        profile: of the training data, and of the scores on rows that were held out.
        stored: each group's stored form, of compressed embeddings; ``tables`` is not read then.
    """

    model: str
    transforms: FittedTransforms
    dense_arch: RankingModel
    tables: Mapping[str, Tensor]
    reference: Reference
    golden: pl.DataFrame
    run: str
    label: str | dict[str, str]
    metrics: dict[str, Any]
    profile: dict[str, Any]
    new_ids: Mapping[str, Tensor] | None = None
    stored: nn.ModuleDict | None = None

    @property
    def inputs(self) -> Inputs:
        """The fields, as the transforms give them, and the tasks."""
        tasks = tuple(self.label) if isinstance(self.label, dict) else ()
        return self.transforms.inputs.model_copy(update={"tasks": tasks})


@dataclass(frozen=True)
class Exported:
    """What was written: the version's folder, the self-check's largest difference, the bundle's size."""

    bundle: Path
    max_abs_diff: float
    bytes: int


def write_bundle(trained: Trained, repo: str | Path, name: str, *, external_mb: float = 1024) -> Exported:
    """Exports the model as the next version of ``<repo>/<name>``.

    It is renamed from a hidden name once it has passed its check.

    Args:
        external_mb: weights above it lie beside ``model.onnx``.

    Raises:
        CtrkitError: a name that cannot be used, no room, or a graph that does not predict what the trained model does;
            nothing is left behind.
    """
    features, inputs = trained.transforms.features, trained.inputs
    taken = {name for feature in features for name in input_names(feature)}.intersection(output_names(inputs.tasks))
    if taken:
        raise CtrkitError(f"a feature is named '{taken.pop()}', which is the name of the model's output", "Rename the column")
    with new_version(Path(repo), name) as version:
        scratch = version.scratch
        crosses = trained.dense_arch.crosses
        groups = trained.dense_arch.groups(trained.dense_arch.dim)
        twin = Twin(inputs, trained.tables, trained.dense_arch, groups, trained.new_ids, crosses, trained.stored).eval()
        parts = trained.transforms.onnx_graph() + ([write_crosses(crosses)] if crosses is not None else [])
        write_model(scratch, twin, parts, name=name, version=version.number, external_bytes=external_mb * 2**20)
        session = open_session(scratch / MODEL_FILE)
        checked = check(session, twin, trained.reference, trained.transforms, trained.golden, crosses)
        golden = Golden(rows=json_rows(trained.golden), probabilities=as_lists(checked.probabilities, inputs.tasks))
        (scratch / GOLDEN_FILE).write_bytes(orjson.dumps(golden.model_dump()))
        known_values(trained.transforms).save(scratch / KNOWN_FILE)
        manifest = Manifest(
            name=name,
            version=version.number,
            model=trained.model,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            run=trained.run,
            label=trained.label,
            features=features,
            inputs=inputs,
            metrics=trained.metrics,
            profile=trained.profile,
            max_abs_diff=checked.max_abs_diff,
            files=describe_files(scratch),
            versions={"ctrkit": ctrkit.__version__}
            | {package: installed(package) for package in ("torch", "torchrec", "onnx", "onnxruntime")},
        )
        (scratch / MANIFEST_FILE).write_bytes(orjson.dumps(manifest.model_dump(mode="json"), option=orjson.OPT_INDENT_2))
        _publish(version, triton_config(name, features, inputs.tasks))
    return Exported(version.folder, checked.max_abs_diff, sum(file.stat().st_size for file in version.folder.iterdir()))


def _publish(version: NewVersion, config: str) -> None:
    """Gives the version its name, and Triton its configuration just before."""
    version.refuse_taken()
    model_folder = version.folder.parent
    temporary = model_folder / f".{CONFIG_FILE}.tmp"
    temporary.write_text(config, encoding="utf8")
    os.replace(temporary, model_folder / CONFIG_FILE)
    version.publish()


def known_values(transforms: FittedTransforms) -> KnownValues:
    """The vocabularies' values; a sequence has those of its target feature, a hash knows all values."""
    found = ((t.feature, t.vocabulary()) for t in transforms.transforms if t.feature.of is None)
    return KnownValues.of({feature.name: values.to_list() for feature, values in found if values is not None})


def json_rows(golden: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows as a client would send them: null for a missing value."""
    return [{name: _json_value(value) for name, value in row.items()} for row in golden.to_dicts()]


def _json_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_json_value(element) for element in value]
    missing = value in ("", MISSING_INT) or (isinstance(value, float) and not math.isfinite(value))
    return None if missing else value
