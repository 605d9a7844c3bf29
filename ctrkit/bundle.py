"""The exported artefact: ``<repo>/<name>/<version>/`` with the model, its manifest and golden rows.

Needs onnxruntime to predict; never torch.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ctrkit.errors import CtrkitError
from ctrkit.feeds import Columns, columns_to_feed, rows_to_columns
from ctrkit.known import KnownValues
from ctrkit.pieces import in_pieces
from ctrkit.schema import OUTPUT, Feature, Inputs

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = f"{MODEL_FILE}.data"
MANIFEST_FILE = "manifest.json"
GOLDEN_FILE = "golden.json"
KNOWN_FILE = "known.npz"
CONFIG_FILE = "config.pbtxt"
TOWERS_FILE = "retrieval.json"
"""The manifest of a bundle of another kind: two towers, see ``ctrkit.retrieval.bundle``."""

RUN_ROWS = 256
"""Of one run of a graph. A thousand rows of a wide model at once take a third longer: what lies between its layers outgrows the caches, and
is asked of the operating system anew each time. docs/benchmarks/serving.md has the figures."""


class _Document(BaseModel):
    """Read back from a file that a newer ctrkit may have written: unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class FileEntry(_Document):
    sha256: str
    bytes: int


class Manifest(_Document):
    """What a bundle holds and where it comes from."""

    name: str
    version: int = Field(ge=1)
    model: str = Field(description="the model's name in ctrkit, such as autoint")
    created: str = Field(description="UTC, ISO 8601")
    run: str = Field(description="name of the training run's folder")
    label: str | dict[str, str] = Field(description="a column or expression, or one for each task, the main one first")
    features: tuple[Feature, ...]
    inputs: Inputs
    metrics: dict[str, Any] = Field(description="of the run, one entry a split")
    profile: dict[str, Any] = Field(description="of the training data, as prepare wrote it, and of the scores")
    max_abs_diff: float = Field(description="largest difference of a probability found by the export's self-check")
    files: dict[str, FileEntry] = Field(description="every other file of the folder")
    versions: dict[str, str] = Field(description="of the software that wrote it")


class Golden(_Document):
    """Rows with the probabilities they must get, a list for each of several tasks."""

    rows: list[dict[str, Any]]
    probabilities: list[float] | dict[str, list[float]]


class Bundle:
    """One version of an exported model: raw values in, probabilities out. Safe to call from several threads.

    Args:
        path: the version's folder.
        manifest: what it says it holds.
        threads: CPU threads of one call; default all cores.
    """

    def __init__(self, path: Path, manifest: Manifest, threads: int | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self._threads = threads

    @property
    def features(self) -> tuple[Feature, ...]:
        return self.manifest.features

    @cached_property
    def session(self) -> Any:
        """The ``onnxruntime.InferenceSession``, loaded at first use."""
        return open_session(self.path / MODEL_FILE, self._threads)

    def feed(self, columns: Columns) -> dict[str, np.ndarray]:
        """One canonical raw column a feature -> the graph's inputs."""
        return columns_to_feed(columns, self.features)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of several labels, the main one first; none for one label."""
        return self.manifest.inputs.tasks

    def predict(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        """The graph's inputs -> probabilities, float32 ``[rows]``; ``[rows, tasks]`` of several labels."""
        pieces = in_pieces(feed, self.features, RUN_ROWS)
        return np.concatenate([run_graph(self.session, self.tasks, piece) for piece in pieces])

    def score(self, rows: Sequence[Any]) -> np.ndarray:
        """JSON objects -> probabilities, float32 ``[rows]``; ``[rows, tasks]`` of several labels.

        Raises:
            RowError: a row that does not fit the features.
        """
        return self.predict(self.feed(rows_to_columns(rows, self.features)))

    @cached_property
    def known_values(self) -> KnownValues | None:
        """Which values the vocabularies hold; None if the bundle does not say."""
        file = self.path / KNOWN_FILE
        return KnownValues.load(file) if file.is_file() else None

    def golden(self) -> Golden:
        return Golden.model_validate_json((self.path / GOLDEN_FILE).read_bytes())


def output_names(tasks: Sequence[str]) -> tuple[str, ...]:
    """The graph's outputs: ``probability``, or one a task under its name."""
    return tuple(tasks) or (OUTPUT,)


def run_graph(session: Any, tasks: Sequence[str], feed: dict[str, np.ndarray]) -> np.ndarray:
    """Probabilities, float32 ``[rows]``; ``[rows, tasks]`` of several labels."""
    outputs = session.run(list(output_names(tasks)), feed)
    return np.stack(outputs, axis=1) if tasks else outputs[0]


def as_lists(probabilities: np.ndarray, tasks: Sequence[str]) -> list[float] | dict[str, list[float]]:
    """As JSON has them: a list, or one for each of several tasks."""
    if not tasks:
        return probabilities.tolist()
    return {task: column.tolist() for task, column in zip(tasks, probabilities.T, strict=True)}


def open_session(model: Path, threads: int | None = None) -> Any:
    """An ``onnxruntime.InferenceSession`` on CPU.

    Raises:
        CtrkitError: onnxruntime cannot load the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # no slower for RUN_ROWS, and memory is given back
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise CtrkitError(f"onnxruntime {onnxruntime.__version__} cannot load '{model}': {error}", "Export the run again") from error


def open_bundle(path: str | Path, *, threads: int | None = None, verify: bool = True) -> Bundle:
    """Opens a version's folder, or the latest version in a model's folder.

    Args:
        threads: CPU threads of one call; default all cores.
        verify: compare every file with its checksum.

    Raises:
        CtrkitError: no bundle there, a file is missing, cut short or altered.
    """
    folder = Path(path)
    if not (folder / MANIFEST_FILE).is_file():
        found = versions(folder)
        if not found:
            raise CtrkitError(f"no bundle at '{path}'", "Give the folder '<repo>/<name>' or '<repo>/<name>/<version>' that export wrote")
        folder = folder / str(found[-1])
    manifest = _read_manifest(folder / MANIFEST_FILE)
    if verify:
        verify_files(folder, manifest.files)
    return Bundle(folder, manifest, threads)


def versions(model_folder: Path, manifests: Sequence[str] = (MANIFEST_FILE,)) -> list[int]:
    """The versions in a model's folder, oldest first.

    Args:
        manifests: a version's folder holds a file of one of these names.
    """
    if not model_folder.is_dir():
        return []
    names = [entry.name for entry in model_folder.iterdir() if any((entry / manifest).is_file() for manifest in manifests)]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and not name.startswith("0"))


def model_names(repo: str | Path, manifests: Sequence[str] = (MANIFEST_FILE,)) -> list[str]:
    """The models of a repository, by name.

    Args:
        manifests: as ``versions`` takes them.

    Raises:
        CtrkitError: no such folder, or none of its folders holds a version.
    """
    folder = Path(repo)
    if not folder.is_dir():
        raise CtrkitError(f"no model repository at '{repo}'", "Give the folder that `ctrkit export RUN --to REPO` wrote")
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".") and versions(entry, manifests))
    if not names and (versions(folder, manifests) or any((folder / manifest).is_file() for manifest in manifests)):
        raise CtrkitError(f"'{repo}' is a model, not a repository of models", "Give the folder that holds it, the REPO of `ctrkit export`")
    if not names:
        raise CtrkitError(f"the model repository '{repo}' holds no model", "Write one with `ctrkit export RUN --to REPO`")
    return names


def describe_files(folder: Path) -> dict[str, FileEntry]:
    """Size and checksum of every file in a folder but the manifest."""
    files = sorted(entry for entry in folder.iterdir() if entry.name != MANIFEST_FILE)
    return {file.name: FileEntry(sha256=sha256_of(file), bytes=file.stat().st_size) for file in files}


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CtrkitError(f"'{path}' is no manifest of a bundle: {where or 'the file'}: {first['msg']}", "Export the run again") from error


def verify_files(folder: Path, files: Mapping[str, FileEntry]) -> None:
    """Raises CtrkitError if a bundle's file is missing, cut short or altered."""
    for name, entry in files.items():
        file = folder / name
        if not file.is_file():
            raise CtrkitError(f"the bundle '{folder}' lacks its file '{name}'", "Copy the bundle again, or export the run again")
        size = file.stat().st_size
        if size != entry.bytes or sha256_of(file) != entry.sha256:
            what = f"has {size} bytes instead of {entry.bytes}" if size != entry.bytes else "does not match its sha256 checksum"
            raise CtrkitError(f"the bundle's file '{file}' is corrupted: it {what}", "Copy the bundle again, or export the run again")


def sha256_of(file: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
