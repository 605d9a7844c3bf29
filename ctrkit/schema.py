"""What a column is: its kind, its raw type, and how it becomes an id or a float.

A feature is a column of the log; a field is a feature inside a model; an id is an index into a table.
Id 0 is padding, id 1 is unknown: both in every table.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PADDING_ID = 0
UNKNOWN_ID = 1
MISSING_INT = NO_GROUP = -(2**63)
"""An int feature's missing value inside a graph; a missing string is ``""``, a missing number NaN."""
OUTPUT = "probability"
"""A graph's output for one label; several labels have one of their name each."""


class Settings(BaseModel):
    """Base of all settings: frozen; an unknown key is an error, and so is a number that is infinite or none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Kind(StrEnum):
    CATEGORICAL = "categorical"
    NUMERIC = "numeric"
    MULTI_VALUED = "multi_valued"
    SEQUENCE = "sequence"


class Vocabulary(Settings):
    """Values seen in training get ids of their own, the most frequent first; others are unknown."""

    kind: Literal["vocabulary"] = "vocabulary"
    min_count: int = Field(default=1, ge=1, description="values seen less often in training are unknown")
    max_size: int | None = Field(default=None, ge=1, description="keep only this many, the most frequent")
    oov_buckets: int = Field(default=1, ge=1, description="ids that unknown values are hashed to")


class Hash(Settings):
    """Murmur3 of the value modulo ``buckets``: no fitting, nothing to store."""

    kind: Literal["hash"] = "hash"
    buckets: int = Field(gt=0)
    salt: int = Field(default=0, ge=0, lt=2**32, description="murmur3 seed")


class Standardise(Settings):
    """(x - mean) / standard deviation of the training split."""

    kind: Literal["standardise"] = "standardise"


class Log1p(Settings):
    """sign(x) log(1 + |x|), then standardised: for counts and prices."""

    kind: Literal["log1p"] = "log1p"


class Buckets(Settings):
    """Quantile buckets of the training split: the number becomes an id."""

    kind: Literal["buckets"] = "buckets"
    count: int = Field(default=32, ge=2, le=4096)


TransformSettings = Annotated[Vocabulary | Hash | Standardise | Log1p | Buckets, Field(discriminator="kind")]

_ALLOWED: dict[Kind, tuple[type[Settings], ...]] = {
    Kind.CATEGORICAL: (Vocabulary, Hash),
    Kind.MULTI_VALUED: (Vocabulary, Hash),
    Kind.SEQUENCE: (Vocabulary, Hash),
    Kind.NUMERIC: (Standardise, Log1p, Buckets),
}


class History(Settings):
    """How ``prepare`` makes a sequence from the log itself: the values in earlier rows of the same user, say."""

    by: str = Field(description="column whose rows belong together, such as user_id")
    time: str = Field(description="time column; rows of the same time are not earlier")
    where: str | None = Field(default=None, description="rows that count: a column of 0 and 1, or an expression; default all")


class Feature(Settings):
    """One column of the log and how it becomes an input of the model.

    A sequence is a history of another feature's values, the most recent last. It has that feature's ``dtype`` and ``transform``, which
    the experiment fills in, and is looked up in that feature's table.
    """

    name: str = Field(min_length=1, pattern=r"^[^@:]+$", description="column name in the log")
    kind: Kind
    dtype: Literal["string", "int"] = Field(default="string", description="raw type of a categorical or multi-valued feature")
    transform: TransformSettings = Field(default_factory=Vocabulary)
    separator: str = Field(default="|", min_length=1, description="multi-valued text cells are split at it; list columns need none")
    max_length: int = Field(default=50, ge=1, description="multi-valued: the first so many values are kept; sequence: the last so many")
    pooling: Literal["mean", "sum"] = Field(default="mean", description="multi-valued: how a bag's embeddings are joined")
    of: str | None = Field(default=None, description="sequence: the categorical feature it is a history of")
    history: History | None = Field(default=None, description="sequence: made by prepare from earlier rows; default a column of the log")

    @model_validator(mode="before")
    @classmethod
    def _default_transform(cls, data: object) -> object:
        """``transform: log1p`` is ``transform: {kind: log1p}``; without a kind it is the feature kind's default."""
        if not isinstance(data, dict):
            return data
        if data.get("kind") == Kind.SEQUENCE and "transform" not in data:
            return data
        given = data.get("transform", {})
        if isinstance(given, str):
            given = {"kind": given}
        if isinstance(given, dict) and "kind" not in given:
            given = {"kind": "standardise" if data.get("kind") == Kind.NUMERIC else "vocabulary", **given}
        return {**data, "transform": given}

    @model_validator(mode="after")
    def _transform_fits(self) -> "Feature":
        allowed = _ALLOWED[self.kind]
        if not isinstance(self.transform, allowed):
            names = ", ".join(str(t.model_fields["kind"].default) for t in allowed)
            raise ValueError(
                f"feature '{self.name}' is {self.kind.value}, which cannot take the transform '{self.transform.kind}'; use one of: {names}"
            )
        return self

    @model_validator(mode="after")
    def _history_fits(self) -> "Feature":
        if self.kind is Kind.SEQUENCE and self.of is None:
            raise ValueError(f"sequence '{self.name}' needs 'of': the categorical feature it is a history of")
        for key in ("separator", "max_length", "pooling"):
            if not self.multi_valued and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"feature '{self.name}' is {self.kind.value} and has '{key}', which is for kind: multi_valued")
        for key in ("of", "history"):
            if self.kind is not Kind.SEQUENCE and getattr(self, key) is not None:
                raise ValueError(f"feature '{self.name}' is {self.kind.value} and has '{key}', which is for kind: sequence")
        if self.kind is Kind.SEQUENCE and self.pooling != "mean":
            raise ValueError(f"sequence '{self.name}' takes no pooling: models that do not look at its order take the mean")
        return self

    @property
    def multi_valued(self) -> bool:
        """Whether a row holds any number of values."""
        return self.kind in (Kind.MULTI_VALUED, Kind.SEQUENCE)

    @property
    def is_id(self) -> bool:
        """Whether the model sees an id (a table look-up) rather than a float."""
        return self.kind is not Kind.NUMERIC or isinstance(self.transform, Buckets)

    def id_field(self, rows: int) -> "IdField":
        """The field of a feature with ids, in a table of so many rows."""
        length = self.max_length if self.of is not None else 0
        return IdField(name=self.name, rows=rows, multi_valued=self.multi_valued, pooling=self.pooling, of=self.of, length=length)


class IdField(Settings):
    """A field looked up in a table of ``rows`` rows, padding and unknown included.

    A sequence is multi-valued, of at most ``length`` ids, the most recent last, and is looked up in the table of the field ``of``.
    """

    name: str
    rows: int = Field(ge=2)
    multi_valued: bool = False
    pooling: Literal["mean", "sum"] = "mean"
    of: str | None = None
    length: int = Field(default=0, ge=0)

    @property
    def table(self) -> str:
        """Name of the field whose table it is looked up in."""
        return self.of or self.name


class Inputs(Settings):
    """What a model is built from: its fields, in the order of the schema, and the names of the labels it predicts.

    ``tasks`` has the main label first; it is empty for one label alone.
    """

    id_fields: tuple[IdField, ...]
    numeric_fields: tuple[str, ...]
    tasks: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.id_fields) + len(self.numeric_fields)

    @property
    def tables(self) -> tuple[IdField, ...]:
        """The id fields that have a table of their own."""
        return tuple(field for field in self.id_fields if field.of is None)

    @property
    def sequences(self) -> tuple[IdField, ...]:
        return tuple(field for field in self.id_fields if field.of is not None)
