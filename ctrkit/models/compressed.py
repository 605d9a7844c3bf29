"""Any model with compressed embeddings: its codecs, and the search for their form that some methods need."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torchrec import KeyedJaggedTensor

from ctrkit.config import Compression, Embedding
from ctrkit.embeddings.compression.codec import Codec
from ctrkit.embeddings.compression.method import Method
from ctrkit.embeddings.compression.registry import plan_method
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.compression.tables import Codecs
from ctrkit.embeddings.tables import Group
from ctrkit.errors import CtrkitError
from ctrkit.models.base import Decision, RankingModel
from ctrkit.models.search import Search
from ctrkit.schema import Inputs

COUNTS = "@counts"
"""In a decision: how often each id is in the training rows."""


def plan_methods(choice: Compression, inputs: Inputs, groups: tuple[Group, ...]) -> dict[str, Method]:
    """Group -> its method.

    Raises:
        CtrkitError: as ``plan_method``; or there are no ids at all.
    """
    if not inputs.id_fields:
        raise CtrkitError("embedding.compression is set, but no feature is looked up: all are numbers without buckets", "Leave it out")
    space = IdSpace(inputs)
    return {group.name: plan_method(choice, space, group.dim) for group in groups}


def compress(model: RankingModel, embedding: Embedding, choice: Compression, decision: Decision) -> None:
    """Gives a model the codecs of a decision."""
    groups = model.groups(embedding.width)
    methods = plan_methods(choice, model.inputs, groups)
    codecs = {name: method.codec(_of_group(name, decision), decision[COUNTS]) for name, method in methods.items()}
    model.codecs = Codecs(model.inputs, groups, codecs)


class CompressionSearch(Search):
    """Counts the ids, and trains the methods' supernets where they have some.

    Args:
        model: without codecs; gets those of the search once the ids are counted.

    Its decision is the counts and ``<group>/<what the group's method decided>``.
    """

    def __init__(self, model: RankingModel, embedding: Embedding, choice: Compression) -> None:
        self.groups = model.groups(embedding.width)
        self.methods = methods = plan_methods(choice, model.inputs, self.groups)
        main = max(methods.values(), key=lambda method: method.search_epochs)
        super().__init__(model, main.search_epochs, main.search_stops_early, main.starts_from, main.deciding_learning_rate, [])
        self.alternates_from = main.alternates_from
        self.space = IdSpace(model.inputs)

    def observe(self, batches: Iterable[KeyedJaggedTensor]) -> None:
        self.counts = self.space.count(batches)
        if self.epochs:
            codecs = {name: m.supernet(self.counts) or m.codec({}, self.counts) for name, m in self.methods.items()}
            self.model.codecs = Codecs(self.model.inputs, self.groups, codecs)
            self.deciding = [parameter for codec in codecs.values() for parameter in codec.deciding()]

    def advance(self, epoch: int, step: int, steps: int) -> None:
        """The codecs are told by the trainer."""

    def decide(self, weights: Mapping[str, Any]) -> Decision:
        decision = {COUNTS: self.counts}
        for name, method in self.methods.items():
            if self._searched(name):
                found = method.decide(self._codec(name), _of_group(name, weights["tables"]), self.counts)
                decision |= {f"{name}/{key}": value for key, value in found.items()}
        return decision

    def rewound(self, weights: Mapping[str, Any], decision: Decision) -> dict[str, Any]:
        """The search's weights where they fit, the other model's fresh ones for codecs that have another form."""
        tables: dict[str, Tensor] = {}
        for name, method in self.methods.items():
            own = _of_group(name, weights["tables"])
            started = method.start(_of_group(name, decision), own) if self._searched(name) else own
            tables |= {f"{name}/{part}": table for part, table in started.items()}
        return {
            "dense_arch": {key: value for key, value in weights["dense_arch"].items() if not key.startswith("codecs.")},
            "tables": tables,
        }

    def _searched(self, group: str) -> bool:
        return self.epochs > 0 and self.methods[group].search_epochs > 0

    def _codec(self, group: str) -> Codec:
        codecs = self.model.codecs
        assert codecs is not None
        return codecs.codec(group)


def _of_group(group: str, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{group}/"): value for key, value in named.items() if key.startswith(f"{group}/")}
