"""An experiment's settings, typed. An unknown key is an error."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ctrkit.errors import CtrkitError, nearest
from ctrkit.schema import OUTPUT, Feature, Kind, Settings

TASK_NAME = r"[A-Za-z][A-Za-z0-9_]*"


class FileLayout(Settings):
    """How a file is laid out. What is left out is read off the file's name (``.csv``, ``.tsv.gz``, ``.parquet``, ``.jsonl`` ...)."""

    format: Literal["auto", "csv", "tsv", "parquet", "jsonl"] = "auto"
    separator: str | None = Field(default=None, min_length=1, description="of csv: any string, '::' too; default ',' (tab for tsv)")
    header: bool = Field(default=True, description="whether the first line of a csv holds the column names")
    columns: tuple[str, ...] | None = Field(default=None, description="column names of a csv without header; a range is written 'C1..C26'")
    encoding: Literal["utf8", "latin-1"] = "utf8"

    @model_validator(mode="before")
    @classmethod
    def _expand_columns(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("columns"), list | tuple):
            return {**data, "columns": tuple(n for c in data["columns"] for n in expand_range(str(c)))}
        return data

    @model_validator(mode="after")
    def _names_given(self) -> "FileLayout":
        if not self.header and self.columns is None:
            raise ValueError("a file without header needs 'columns': the names of its columns, in order")
        if self.header and self.columns is not None:
            raise ValueError("'columns' names the columns of a file without header: set header: false, or leave columns out")
        return self


class SideTable(FileLayout):
    """A table joined to the log by key, such as users or items. Its other columns become features' columns."""

    path: str
    on: str = Field(description="key column, in the log and in the side table")

    @model_validator(mode="before")
    @classmethod
    def _unquoted_on(cls, data: object) -> object:
        """YAML 1.1 reads the bare word ``on`` as true."""
        return {("on" if key is True else key): value for key, value in data.items()} if isinstance(data, dict) else data


class Data(FileLayout):
    """Where the log is: one ``path`` (a file, a glob or a list of them), or one path a split."""

    path: str | tuple[str, ...] | None = None
    train: str | tuple[str, ...] | None = None
    valid: str | tuple[str, ...] | None = Field(default=None, description="without it, 'split' holds out split.valid of the train files")
    test: str | tuple[str, ...] | None = None
    joins: tuple[SideTable, ...] = ()

    @model_validator(mode="after")
    def _one_way(self) -> "Data":
        if (self.path is None) == (self.train is None):
            raise ValueError("give either 'path' (one log, split by 'split') or 'train' (with 'test' and perhaps 'valid')")
        beside = [name for name in ("valid", "test") if getattr(self, name) is not None]
        if self.path is not None and beside:
            raise ValueError(
                f"'{beside[0]}' stands beside 'path', one log that 'split' divides: give 'path' as 'train', or leave '{beside[0]}' out"
            )
        if self.train is not None and self.test is None:
            raise ValueError("'train' files are given without 'test' files")
        return self


class Split(Settings):
    """How rows are divided: those of ``data.path``, or of ``data.train`` if there is no ``data.valid``.

    ``valid`` and ``test`` are fractions of all rows, or whole numbers of rows.
    """

    by: Literal["random", "order", "time"] = Field(
        default="random", description="order: the last rows are the test; time: the latest by 'column'"
    )
    column: str | None = Field(default=None, description="time column, of by: time")
    valid: float = Field(default=0.1, gt=0)
    test: float = Field(default=0.1, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**64)

    @model_validator(mode="after")
    def _check(self) -> "Split":
        if self.by == "time" and not self.column:
            raise ValueError("split by time needs 'column', the time column's name")
        if self.by != "time" and self.column is not None:
            raise ValueError(f"'column' is of by: time, and the split is by: {self.by}: set by to time, or column to null")
        for name in ("valid", "test"):
            size = getattr(self, name)
            if size >= 1 and size != int(size):
                raise ValueError(f"split.{name} is {size}: give a fraction below 1, or a whole number of rows")
        if self.valid < 1 and self.test < 1 and self.valid + self.test >= 1:
            raise ValueError("split.valid + split.test must leave rows to train on")
        return self


class ModelChoice(BaseModel):
    """The model's name; the other keys are that model's own settings, see ``ctrkit models``."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "autoint"

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Scale(Settings):
    """A number times a vector of its field."""

    kind: Literal["scale"] = "scale"


class AutoDis(Settings):
    """Soft buckets that the model learns, as Guo et al. (KDD 2021)."""

    kind: Literal["autodis"] = "autodis"
    meta_embeddings: int = Field(default=20, ge=2, description="vectors a field's numbers are mixed of")
    skip: float = Field(default=0.1, ge=0, description="weight of the first layer's scores beside the second's")
    temperature: float = Field(default=0.1, gt=0, description="of the mixing softmax: low is hard buckets, high an average")


Numeric = Annotated[Scale | AutoDis, Field(discriminator="kind")]


class Compression(BaseModel):
    """Embeddings in less memory: ``ctrkit/embeddings/compression``. The other keys are the method's own settings."""

    model_config = ConfigDict(extra="allow", frozen=True)
    method: str
    budget: float = Field(default=0.1, gt=0, le=1, description="bytes that may be stored, of those of the full table")

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Embedding(Settings):
    """A table of its own for every field: width, optimizer and regularisation; and how numbers become vectors of that width."""

    kind: Literal["tables"] = "tables"
    dim: int = Field(default=16, ge=1)
    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = Field(
        default="adagrad", description="the first three are fused into the backward pass and touch looked-up rows only; adam is dense"
    )
    learning_rate: float = Field(default=0.02, gt=0)
    l2: float = Field(default=0.0, ge=0, description="lambda of lambda/2 ||rows||^2")
    l2_rows: Literal["touched", "all"] = Field(default="touched", description="all: every row at every step, needs optimizer: adam")
    init_std: float = Field(default=1e-4, gt=0, description="rows start as N(0, init_std^2)")
    numeric: Numeric = Field(default_factory=Scale, description="numeric fields that are no buckets: scale, or autodis with its settings")
    compression: Compression | None = Field(default=None, description="method and budget, see 'ctrkit compressions'; default none")

    @field_validator("numeric", mode="before")
    @classmethod
    def _kind_alone(cls, numeric: object) -> object:
        """``numeric: autodis`` is ``numeric: {kind: autodis}``."""
        return {"kind": numeric} if isinstance(numeric, str) else numeric

    @model_validator(mode="after")
    def _regime(self) -> "Embedding":
        if self.l2_rows == "all" and self.l2 > 0 and self.optimizer != "adam":
            raise ValueError("l2_rows: all needs optimizer: adam (the dense regime); fused optimizers see looked-up rows only")
        return self

    @property
    def width(self) -> int:
        """Width of a field's vector."""
        return self.dim


class UnifiedEmbedding(Embedding):
    """One table for all fields, each with a hash of its own: ``ctrkit/embeddings/unified.py``.

    A categorical or multi-valued feature without a transform is hashed to 2^31 - 1 ids: there is no vocabulary to fit or to store.
    """

    kind: Literal["unified"] = "unified"  # pyright: ignore[reportIncompatibleVariableOverride]
    rows: int = Field(ge=2, le=2**31 - 1, description="of the shared table; row 0 is padding")
    dim: int = Field(default=16, ge=1, description="width of one look-up; a field's vector is its look-ups side by side")
    lookups: int = Field(default=1, ge=1, description="look-ups of a field")
    feature_lookups: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="look-ups of single features, by name; their vectors are projected to the width of the others"
    )

    @model_validator(mode="after")
    def _no_compression(self) -> "UnifiedEmbedding":
        if self.compression is not None:
            raise ValueError("compression is for tables; a unified embedding is as small as its rows and dim make it")
        return self

    @property
    def width(self) -> int:
        return self.lookups * self.dim


AnyEmbedding = Annotated[Embedding | UnifiedEmbedding, Field(discriminator="kind")]


class Training(Settings):
    """The dense arch's optimizer, the schedule and when to stop."""

    batch_size: int = Field(default=4096, ge=1, description="rows a step at most, over all processes together; an epoch's steps are even")
    epochs: int = Field(default=20, ge=1)
    steps: int | None = Field(default=None, ge=1, description="stop after so many steps")
    optimizer: Literal["adam", "adamw", "sgd", "adagrad"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0, description="the learning rates rise linearly over so many steps")
    decay: Literal["none", "cosine", "linear", "plateau"] = Field(
        default="none", description="plateau: x 0.1 when the monitored metric does not improve"
    )
    clip_norm: float = Field(default=10.0, ge=0, description="gradient norm of the dense arch is cut to it; 0 is off")
    monitor: Literal["auc", "logloss", "gauc", "auc-logloss"] = "auc-logloss"
    patience: int = Field(default=2, ge=1, description="evaluations without improvement before stopping")
    evaluate_every: int | None = Field(default=None, ge=1, description="steps between evaluations; default one an epoch")
    checkpoint_every: int = Field(default=1000, ge=1, description="steps between resume points, besides every epoch's end")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="of the dense arch's matrix products in training; auto: bf16 where the processor has it in hardware"
    )
    compile: bool = Field(default=False, description="torch.compile the dense arch")
    task_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="of several labels: factor of a label's logloss in the loss; 1 where none is given"
    )
    seed: int = Field(default=2021, ge=0, lt=2**63)
    threads: int | None = Field(default=None, ge=1, description="CPU threads; default all cores")


class Export(Settings):
    """The bundle."""

    name: str | None = Field(default=None, description="model name in the repository; default the experiment's name")
    golden_rows: int = Field(default=64, ge=2, le=10_000)
    external_data_mb: float = Field(default=1024, gt=0, description="weights above it lie beside model.onnx, memory-mapped")


class Experiment(Settings):
    """One experiment: a log, its features, a model and how to train it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    data: Data
    label: str | dict[str, str] = Field(
        description="a column of 0 and 1, or an expression such as 'rating >= 4'; several labels: a name for each, the main one first"
    )
    group: str | None = Field(default=None, description="column whose groups gauc averages over, such as user_id")
    split: Split = Field(default_factory=Split)
    features: tuple[Feature, ...] = Field(min_length=1)
    model: ModelChoice = Field(default_factory=ModelChoice)
    embedding: AnyEmbedding = Field(default_factory=Embedding)
    training: Training = Field(default_factory=Training)
    export: Export = Field(default_factory=Export)
    output: str = Field(default="out", description="datasets and runs are written below this folder")

    @model_validator(mode="before")
    @classmethod
    def _expand_features(cls, data: object) -> object:
        """``name`` may be a list of names or a range ``C1..C26``: one entry for many columns."""
        if isinstance(data, dict) and isinstance(data.get("features"), list | tuple):
            return {**data, "features": expand_features(data["features"])}
        return data

    @model_validator(mode="before")
    @classmethod
    def _embedding_kind(cls, data: object) -> object:
        """``embedding`` without a kind is ``tables``; a unified one hashes the features that no transform is written for."""
        embedding = data.get("embedding") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(embedding, dict):
            return data
        data = {**data, "embedding": {"kind": "tables", **embedding}}
        if data["embedding"]["kind"] == "unified" and isinstance(data.get("features"), list | tuple):
            data["features"] = [_hashed(feature) for feature in data["features"]]
        return data

    @model_validator(mode="after")
    def _lookups_of_features(self) -> "Experiment":
        if isinstance(self.embedding, UnifiedEmbedding):
            with_ids = [f.name for f in self.features if f.is_id and f.of is None]
            if not with_ids:
                raise ValueError("embedding.kind is unified, but no feature is looked up: all are numbers without buckets")
            for name in self.embedding.feature_lookups:
                if name not in with_ids:
                    raise ValueError(f"embedding.feature_lookups: no feature '{name}' is looked up. {nearest(name, with_ids)}")
        return self

    @field_validator("features")
    @classmethod
    def _sequences(cls, features: tuple[Feature, ...]) -> tuple[Feature, ...]:
        """Gives every sequence the dtype and transform of the feature it is a history of."""
        known = {f.name: f for f in features if f.kind is Kind.CATEGORICAL}
        return tuple(f if f.of is None else of_target(f, known) for f in features)

    @model_validator(mode="after")
    def _histories_end_before_the_test(self) -> "Experiment":
        """A history holds what happened in rows before, so training rows must be the earlier ones."""
        if self.data.valid is not None:
            return self
        for feature in self.features:
            if feature.history is None:
                continue
            if self.split.by != "time":
                needs = "split.by: time" if self.data.path is not None else "data.valid, or split.by: time"
                raise ValueError(f"the history '{feature.name}' needs {needs}; else training rows would know of later rows' clicks")
            if feature.history.time != self.split.column:
                raise ValueError(
                    f"features.{feature.name}.history.time is '{feature.history.time}' and split.column is '{self.split.column}': name one "
                    "column in both; else training rows would know of later rows' clicks"
                )
        return self

    @model_validator(mode="after")
    def _something_to_split(self) -> "Experiment":
        if self.data.valid is not None and self.split.by == "time":
            raise ValueError("split.by is 'time', and data.valid leaves nothing to split: leave one of the two out")
        return self

    @field_validator("label", mode="plain")
    @classmethod
    def _label_or_labels(cls, label: object) -> str | dict[str, str]:
        if isinstance(label, str):
            return label
        if not isinstance(label, dict) or not all(isinstance(text, str) for text in label.values()):
            raise ValueError("give a column or an expression, or names with one each, such as {click: is_click, like: is_like}")
        if len(label) < 2:
            raise ValueError("give two names or more, or the column or expression alone")
        for name in label:
            if not isinstance(name, str) or not re.fullmatch(TASK_NAME, name):
                raise ValueError(f"'{name}' cannot name a label: use letters, digits and '_', starting with a letter")
        return label

    @model_validator(mode="after")
    def _tasks_fit(self) -> "Experiment":
        taken = [name for name in self.tasks if name in {f.name for f in self.features}]
        if taken:
            raise ValueError(f"label: '{taken[0]}' is the name of a feature too; call the label otherwise")
        if not self.tasks and any(f.name == OUTPUT and not f.multi_valued for f in self.features):
            raise ValueError(f"features: '{OUTPUT}' is the name of an exported model's output; rename the column")
        weights = self.training.task_weights
        for name in weights:
            if name not in self.tasks:
                known = nearest(name, self.tasks) if self.tasks else "There is one label"
                raise ValueError(f"training.task_weights: no label '{name}'. {known}")
        if self.tasks and all(weights.get(name, 1.0) == 0 for name in self.tasks):
            raise ValueError("training.task_weights: one must be above 0")
        return self

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the labels, the main one first; none for one label alone."""
        return tuple(self.label) if isinstance(self.label, dict) else ()

    @model_validator(mode="after")
    def _names_once(self) -> "Experiment":
        names = [f.name for f in self.features]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"feature named twice: {', '.join(twice)}")
        return self


def _hashed(feature: object) -> object:
    """A feature's entry, without a transform of its own hashed to more ids than any table has rows."""
    if not isinstance(feature, dict) or "transform" in feature or feature.get("kind") not in (Kind.CATEGORICAL, Kind.MULTI_VALUED):
        return feature
    return {**feature, "transform": {"kind": "hash", "buckets": 2**31 - 1}}


def of_target(sequence: Feature, categorical: Mapping[str, Feature]) -> Feature:
    """A sequence with the dtype and transform of the feature it is a history of. Raises ValueError if that is no categorical one."""
    target = categorical.get(cast(str, sequence.of))
    if target is None:
        raise ValueError(
            f"sequence '{sequence.name}' is of '{sequence.of}', which is no categorical feature. {nearest(str(sequence.of), list(categorical))}"
        )
    for key in ("dtype", "transform"):
        if key in sequence.model_fields_set and getattr(sequence, key) != getattr(target, key):
            raise ValueError(f"sequence '{sequence.name}' has the {key} of '{target.name}': leave its own out")
    return sequence.model_copy(update={"dtype": target.dtype, "transform": target.transform})


def expand_range(name: str) -> list[str]:
    """``C1..C26`` -> C1, C2 .. C26 (``C01..C26`` keeps the zeros); any other name -> itself."""
    match = re.fullmatch(r"(.*?)(\d+)\.\.\1(\d+)", name)
    if not match:
        return [name]
    first, last = int(match[2]), int(match[3])
    if last < first:
        raise CtrkitError(f"the range '{name}' runs backwards", f"Write {match[1]}{match[3]}..{match[1]}{match[2]}")
    width = len(match[2]) if match[2].startswith("0") else 0
    return [f"{match[1]}{i:0{width}d}" for i in range(first, last + 1)]


def expand_features(entries: list[Any] | tuple[Any, ...]) -> list[Any]:
    """Feature entries with one name each; other entries are left for the validation to judge."""
    expanded: list[Any] = []
    for entry in entries:
        if not isinstance(entry, dict) or "name" not in entry:
            expanded.append(entry)
            continue
        names = entry["name"] if isinstance(entry["name"], list) else [entry["name"]]
        expanded += [{**entry, "name": n} for name in names for n in expand_range(str(name))]
    return expanded
