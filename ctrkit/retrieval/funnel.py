"""A funnel: one YAML file with ``task: funnel``, for towers that find items and a model that ranks what they find."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ctrkit.config import Experiment
from ctrkit.config_file import load_settings, task_of
from ctrkit.errors import CtrkitError
from ctrkit.feeds import reads
from ctrkit.retrieval.config import FEATURE_LISTS, RetrievalExperiment
from ctrkit.schema import Settings


class Funnel(Settings):
    """Two experiments whose models are served together: each is what a config of its own would hold, and is exported under its own name.

    What the ranker reads of an item is what the towers' catalogue has of it; all else it reads is sent with a request, as the user's.
    """

    task: Literal["funnel"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    retrieval: RetrievalExperiment
    ranking: Experiment

    @model_validator(mode="after")
    def _names_differ(self) -> "Funnel":
        if self.towers == self.ranker:
            raise ValueError(f"retrieval and ranking would both be exported as '{self.ranker}': give them names of their own")
        return self

    @model_validator(mode="after")
    def _the_ranker_reads_the_items(self) -> "Funnel":
        key = self.retrieval.key_feature(self.retrieval.item)
        items = {feature.name: feature for feature in (key, *self.retrieval.item_features)}
        shared = [feature for feature in self.ranking.features if feature.name in items]
        if not shared:
            raise ValueError(f"ranking.features: name one of the items' features at least: {', '.join(items)}")
        for feature in shared:
            if not reads(feature, items[feature.name]):
                raise ValueError(f"ranking.features.{feature.name}: its kind or dtype does not fit that of retrieval.item_features")
        return self

    @property
    def towers(self) -> str:
        """The retrieval model's name in the repository."""
        return self.retrieval.export.name or self.retrieval.name

    @property
    def ranker(self) -> str:
        """The ranking model's name in the repository."""
        return self.ranking.export.name or self.ranking.name


def load_funnel(path: str | Path, overrides: Sequence[str] = ()) -> Funnel:
    """Reads a funnel. Raises as ``ctrkit.config_file.load_config``."""
    if (task := task_of(path)) != "funnel":
        raise CtrkitError(
            f"'{path}' is {'of no task' if task is None else f'of task: {task}'}, and a funnel is of task: funnel",
            f"Train it alone: ctrkit train {path}",
        )
    return load_settings(path, overrides, Funnel, ("ranking.features", *(f"retrieval.{name}" for name in FEATURE_LISTS)))
