"""A retrieval experiment: one YAML file with ``task: retrieval`` -> typed settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ctrkit.config import Data, Embedding, Export, ModelChoice, SideTable, Split, of_target
from ctrkit.config_file import load_settings
from ctrkit.schema import Feature, Kind, Settings

FEATURE_LISTS = ("user_features", "item_features", "context_features")


class RetrievalSplit(Settings):
    """Which events are for validation and test.

    ``leave-last-out``: a user's last event is for test, the one before for validation; users of fewer than three events are for training
    alone; events of cold items and users, of which there are none by default, do not count. It compares methods on every user; it does not stand for time, since one user's training events may be later than another's
    test. ``leave-random-out``: the same with each user's events in a random order, for a log whose order means nothing; a history then
    holds the events that come before by chance. ``time``: the latest events of all users, by ``time`` or, without it, by their order in the log.
    """

    by: Literal["leave-last-out", "leave-random-out", "time"] = "leave-last-out"
    valid: float = Field(default=0.1, gt=0, description="of by: time; a fraction of the events, or a number of them")
    test: float = Field(default=0.1, gt=0, description="of by: time")
    cold_items: float = Field(default=0.0, ge=0, lt=1, description="share of items whose events are all for test: never trained on")
    cold_users: float = Field(default=0.0, ge=0, lt=1, description="share of users whose events are all for test, without a history")
    train_share: float = Field(default=1.0, gt=0, le=1, description="share of the training events that is kept, drawn at random")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of what is drawn: cold items and users, kept training events, a random order")

    @model_validator(mode="after")
    def _sizes(self) -> "RetrievalSplit":
        self.cut()
        return self

    def cut(self) -> Split:
        """The sizes of ``by: time``."""
        return Split(by="order", valid=self.valid, test=self.test)


class Evaluation(Settings):
    """What is measured over the full catalogue."""

    at: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(10, 50), min_length=1, description="lengths of the recommended lists")
    valid_queries: int | None = Field(
        default=None, ge=1, description="validation asks so many, the same in every epoch, drawn at random; default all; the test asks all"
    )


class RetrievalTraining(Settings):
    """The optimizer of the towers and when to stop."""

    batch_size: int = Field(default=1024, ge=2, description="events a step at most; an epoch's steps are even")
    epochs: int = Field(default=100, ge=1, description="at most; validation says when to stop")
    learning_rate: float = Field(default=1e-3, gt=0, description="of Adam over the towers; the tables have their own")
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=10.0, ge=0, description="gradient norm of the towers is cut to it; 0 is off")
    monitor: str = Field(default="ndcg@10", pattern=r"^(recall|ndcg|hit)@[1-9][0-9]*$|^mrr$", description="of validation")
    patience: int = Field(default=3, ge=1, description="epochs without improvement before stopping")
    seed: int = Field(default=2021, ge=0, lt=2**63)
    threads: int | None = Field(default=None, ge=1, description="CPU threads; default all cores")


class RetrievalExperiment(Settings):
    """A log of events between users and items, what is known of both, and a model that finds items for users.

    ``users`` and ``items`` are side tables; the items of theirs that the log never names belong to the catalogue too. Without a side
    table the features are columns of the log, read off the earliest row of each user or item.
    """

    task: Literal["retrieval"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    data: Data
    users: SideTable | None = None
    items: SideTable | None = None
    user: str = Field(description="user column of the log")
    item: str = Field(description="item column of the log")
    positive: str | None = Field(default=None, description="rows that count as events: a column of 0 and 1, or an expression; default all")
    time: str | None = Field(default=None, description="time column; default the order of the rows")
    split: RetrievalSplit = Field(default_factory=RetrievalSplit)
    item_features: tuple[Feature, ...] = Field(min_length=1)
    user_features: tuple[Feature, ...] = Field(default=(), description="of the user; a sequence 'of' the item column is his history")
    context_features: tuple[Feature, ...] = Field(default=(), description="of the event, such as the device; read by the user tower")
    model: ModelChoice = Field(default_factory=lambda: ModelChoice(name="two_tower"), description="two_tower unless named")
    embedding: Embedding = Field(default_factory=lambda: Embedding(dim=32, learning_rate=0.05, init_std=0.05))
    training: RetrievalTraining = Field(default_factory=RetrievalTraining)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    export: Export = Field(default_factory=Export)
    output: str = "out"

    @field_validator("model", mode="before")
    @classmethod
    def _towers_unless_named(cls, model: Any) -> Any:
        return {"name": "two_tower", **model} if isinstance(model, dict) else model

    @model_validator(mode="after")
    def _one_log(self) -> "RetrievalExperiment":
        if self.data.path is None or self.data.joins:
            raise ValueError("data: a retrieval experiment has one log, 'path', without joins; its side tables are 'users' and 'items'")
        if self.split.by == "leave-random-out" and self.time is not None:
            raise ValueError("split.by: leave-random-out puts events in a random order: leave 'time' out, or split by leave-last-out")
        for side, column in (("users", self.user), ("items", self.item)):
            table = getattr(self, side)
            if table is not None and table.on != column:
                raise ValueError(f"{side}.on is '{table.on}', and the log's column is '{column}': they must have one name")
        return self

    @model_validator(mode="after")
    def _features_fit(self) -> "RetrievalExperiment":
        names = [feature.name for feature in self.features]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"feature named twice: {', '.join(twice)}")
        if not self.user_features and not self.context_features:
            raise ValueError("user_features: name one at least, such as the user column or a sequence 'of' the item column")
        if wrong := [f.name for f in (*self.item_features, *self.context_features) if f.kind is Kind.SEQUENCE]:
            raise ValueError(f"'{wrong[0]}' is a sequence, which is for user_features: the user's history")
        for feature in self.user_features:
            if feature.kind is Kind.SEQUENCE and feature.of != self.item:
                raise ValueError(f"the history '{feature.name}' must be 'of: {self.item}', the item column")
            if feature.history is not None:
                raise ValueError(f"the history '{feature.name}' is made from the events: leave 'history' out")
        if self.embedding.kind != "tables" or self.embedding.compression is not None:
            raise ValueError("embedding: a retrieval model has tables of its own, without compression")
        if self.embedding.numeric != Embedding.model_fields["numeric"].get_default(call_default_factory=True):
            raise ValueError("embedding.numeric: a retrieval model scales numbers: leave it out, or put a number into buckets")
        return self

    @field_validator("user", "item")
    @classmethod
    def _plain_names(cls, column: str) -> str:
        if "@" in column or ":" in column:
            raise ValueError(f"the column '{column}' has '@' or ':' in its name, which ctrkit's own columns have: rename it in the file")
        return column

    @field_validator("user_features")
    @classmethod
    def _histories_share_the_items_transform(cls, features: tuple[Feature, ...], info: ValidationInfo) -> tuple[Feature, ...]:
        known = {f.name: f for f in info.data.get("item_features", ()) if f.kind is Kind.CATEGORICAL}
        return tuple(f if f.of is None else of_target(f, known) for f in features)

    @model_validator(mode="after")
    def _monitor_is_measured(self) -> "RetrievalExperiment":
        at = self.training.monitor.partition("@")[2]
        if at and int(at) not in self.evaluation.at:
            raise ValueError(
                f"training.monitor is '{self.training.monitor}', and evaluation.at is {list(self.evaluation.at)}: add {at} to it"
            )
        return self

    @property
    def features(self) -> tuple[Feature, ...]:
        """Those of the user tower, the user's before the context's, then those of the item tower."""
        return (*self.query_features, *self.item_features)

    @property
    def query_features(self) -> tuple[Feature, ...]:
        """Those of the user tower."""
        return (*self.user_features, *self.context_features)

    def key_feature(self, column: str) -> Feature:
        """How the keys of a column are read: as the feature of that column says, or as text."""
        named = [f for f in self.features if f.name == column and f.kind is Kind.CATEGORICAL]
        return named[0] if named else Feature(name=column, kind=Kind.CATEGORICAL)


def load_retrieval(path: str | Path, overrides: Sequence[str] = ()) -> RetrievalExperiment:
    """Reads a retrieval experiment. Raises as ``ctrkit.config_file.load_config``."""
    return load_settings(path, overrides, RetrievalExperiment, FEATURE_LISTS)
