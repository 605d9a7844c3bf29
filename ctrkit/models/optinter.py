"""OptInter: for each pair of fields the way it is modelled, trained twice::

    naive        nothing: the pair is left to the network
    factorised   e_ij = v_i * v_j                                vectors of the two fields' values, multiplied
    memorised    e_ij = V[x_i, x_j]                              a vector for each pair of values, see ``ctrkit.embeddings.crosses``

    logit     = MLP(v'_1 .. v'_n, e_ij of all pairs that are not naive)
    search    e_ij = sum_k p_k e_ij^k,   p = softmax((a_ij + g) / t),   g ~ Gumbel(0, 1), t falls linearly from 1 to ``temperature``
    decision  the way of the largest a_ij
    retrain   the model with that way for each pair, from the start

a, the vectors and the network are learned together by the same loss. All pairs naive are a deep network, all factorised a product network,
all memorised Poly2 with a network on top; ``method`` makes these of the model, without a search.

As in the authors' code the vectors that are multiplied, v, are not those that the network reads, v', and have the width of a cross.
It has no noise g, which the paper has. ``layer_norm``, which both have, is off: it blows up vectors that start as small as here. Its crosses seen fewer than 20 times share one row,
here ``tail_buckets`` rows by hash. The noise of a step is the same for all its rows and in all processes; evaluation has none.

Only a pair of single-valued fields that have ids can be memorised; one with a bag, a sequence or a number is naive or factorised.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from ctrkit import schema
from ctrkit.embeddings.crosses import Crosses, CrossKeys, Pair, cross_name, frequent_keys
from ctrkit.embeddings.tables import Group
from ctrkit.layers.fields import FieldVectors
from ctrkit.layers.product import PairwiseProducts, all_pairs
from ctrkit.layers.tower import Tower
from ctrkit.models.base import Decision, RankingModel, at_least_two_fields
from ctrkit.models.registry import register
from ctrkit.models.search import Search
from ctrkit.models.settings import Dropout, Hidden
from ctrkit.schema import Inputs

METHODS = ("naive", "factorised", "memorised")
NAIVE, FACTORISED, MEMORISED = range(3)
FACTOR, CROSS = "factor", "cross"
"""Names of the groups of a pair's vectors."""
METHODS_KEY = "methods"
"""In the decision: int8 ``[pairs]``, a place in ``METHODS`` for each pair; beside it a memorised cross' name -> its frequent keys."""


class OptInterSettings(schema.Settings):
    method: Literal["search", "naive", "factorised", "memorised"] = Field("search", description="of the pairs; search: each its own")
    pair_dim: int = Field(8, ge=1, description="width of a pair's vector")
    min_count: int = Field(20, ge=1, description="a pair of values seen so often in training has a row of its own, memorised")
    tail_buckets: int = Field(100, ge=1, description="rows that the other pairs of values of two fields share, by hash")
    search_epochs: int = Field(10, ge=1, description="epochs of the search, at most; it stops early as a training does")
    temperature: float = Field(0.01, gt=0, le=1, description="of the choice at the search's end")
    choice_learning_rate: float = Field(3e-2, gt=0, description="of what decides; a log of many millions of rows needs less")
    hidden: Hidden = (400, 400, 400)
    dropout: Dropout = 0.0
    layer_norm: bool = Field(False, description="normalise each hidden layer before its relu, as the paper does")


@register("optinter", kind="ranking", paper="Lyu et al., Memorize, Factorize, or be Naive, ICDE 2022")
class OptInter(RankingModel):
    """
    Args:
        decision: see ``METHODS_KEY``. None: all pairs are naive.
    """

    Settings = OptInterSettings

    def __init__(self, inputs: Inputs, dim: int, settings: OptInterSettings, decision: Decision | None = None) -> None:
        super().__init__(inputs, dim, settings)
        pairs = all_pairs(at_least_two_fields("optinter", inputs))
        self.decision = decision
        self.methods = decision[METHODS_KEY].tolist() if decision is not None else [NAIVE] * len(pairs)
        factorised, memorised = ([p for p, m in zip(pairs, self.methods, strict=True) if m == way] for way in (FACTORISED, MEMORISED))
        if decision is not None and memorised:
            names = [_names(inputs, pair) for pair in memorised]
            self.crosses = Crosses(inputs, {pair: decision[cross_name(pair)] for pair in names}, settings.tail_buckets)
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.factors = Factors(inputs, factorised, settings.pair_dim) if factorised else None
        self.tower = _tower(inputs.count * dim + (len(factorised) + len(memorised)) * settings.pair_dim, settings)

    @classmethod
    def search(cls, inputs: Inputs, dim: int, settings: OptInterSettings) -> Search:
        return OptInterSearch(inputs, dim, settings)

    def describe(self) -> dict[str, Any] | None:
        if self.decision is None:
            return None
        fields = field_names(self.inputs)
        names = [(fields[i], fields[j]) for i, j in all_pairs(len(fields))]
        rows = {f.name: f.rows for f in self.crosses.inputs.id_fields} if self.crosses is not None else {}
        pairs = [
            {"fields": list(pair), "method": METHODS[way], "rows": rows[cross_name(pair)] if way == MEMORISED else 0}
            for pair, way in zip(names, self.methods, strict=True)
        ]
        counts = {way: sum(pair["method"] == way for pair in pairs) for way in METHODS}
        total = sum(pair["rows"] for pair in pairs)
        summary = f"of {len(pairs):,} pairs of fields {', '.join(f'{count:,} {way}' for way, count in counts.items())} ({total:,} rows)"
        return {"summary": summary, "counts": counts, "rows": total, "fields": fields, "pairs": pairs}

    def groups(self, dim: int) -> tuple[Group, ...]:
        factors = self.factors.groups if self.factors is not None else ()
        return (_fields_group(self.inputs, dim), *factors, *_cross_groups(self))

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        parts = [self.vectors(embeddings["embedding"], dense)]
        if self.factors is not None:
            parts.append(self.factors(embeddings, dense))
        if self.crosses is not None:
            parts.append(embeddings[CROSS])
        return self.tower(torch.cat([part.flatten(1) for part in parts], dim=1)).squeeze(1)


class Factors(nn.Module):
    """``v_i * v_j`` of chosen pairs of fields, from a group of vectors for the fields in them. -> ``[batch, pairs, dim]``."""

    def __init__(self, inputs: Inputs, pairs: Sequence[tuple[int, int]], dim: int) -> None:
        super().__init__()
        used = {field for pair in pairs for field in pair}
        tables = frozenset(field.table for i, field in enumerate(inputs.id_fields) if i in used)
        looked_up = [i for i, field in enumerate(inputs.id_fields) if field.table in tables]
        places = [*looked_up, *range(len(inputs.id_fields), inputs.count)]
        self.groups = (Group(FACTOR, dim, fields=tables),) if tables else ()
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.products = PairwiseProducts(len(places), [(places.index(i), places.index(j)) for i, j in pairs])
        self.dim = dim

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        looked_up = embeddings[FACTOR] if self.groups else dense.new_zeros(dense.shape[0], 0, self.dim)
        return self.products(self.vectors(looked_up, dense))


class Mixture(RankingModel):
    """Every pair in all three ways, mixed: what the search trains.

    Attributes:
        memorisable: the pairs that may be memorised, by number.
        noise: of this step, ``[pairs, ways]``.
    """

    noise: Tensor
    temperature: Tensor
    may_be: Tensor
    memorisable: Tensor

    def __init__(self, inputs: Inputs, dim: int, settings: OptInterSettings) -> None:
        super().__init__(inputs, dim, settings)
        pairs = all_pairs(at_least_two_fields("optinter", inputs))
        memorisable = [number for number, pair in enumerate(pairs) if all(_is_single(inputs, field) for field in pair)]
        self.choice = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(pairs), len(METHODS))))
        may_be = torch.ones(len(pairs), len(METHODS), dtype=torch.bool)
        may_be[:, MEMORISED] = False
        may_be[memorisable, MEMORISED] = True
        for name, value in (
            ("may_be", may_be),
            ("memorisable", torch.tensor(memorisable, dtype=torch.int64)),
            ("noise", torch.zeros(len(pairs), len(METHODS))),
            ("temperature", torch.ones(())),
        ):
            self.register_buffer(name, value, persistent=False)
        self.memorisable_names = [_names(inputs, pairs[number]) for number in memorisable]
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.factors = Factors(inputs, pairs, settings.pair_dim)
        self.tower = _tower(inputs.count * dim + len(pairs) * settings.pair_dim, settings)

    def groups(self, dim: int) -> tuple[Group, ...]:
        return (_fields_group(self.inputs, dim), *self.factors.groups, *_cross_groups(self))

    def shares(self) -> Tensor:
        """p: ``[pairs, ways]``."""
        noisy = self.choice + self.noise if self.training else self.choice
        return torch.softmax((noisy / self.temperature).masked_fill(~self.may_be, -torch.inf), dim=1)

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        shares = self.shares()
        mixed = self.factors(embeddings, dense) * shares[:, FACTORISED, None]
        if self.crosses is not None:
            crosses = embeddings[CROSS] * shares[self.memorisable, MEMORISED, None]
            mixed = mixed.index_add(1, self.memorisable, crosses.to(mixed.dtype))
        fields = self.vectors(embeddings["embedding"], dense)
        return self.tower(torch.cat([fields.flatten(1), mixed.flatten(1)], dim=1)).squeeze(1)


class OptInterSearch(Search):
    def __init__(self, inputs: Inputs, dim: int, settings: OptInterSettings) -> None:
        self.mixture = Mixture(inputs, dim, settings)
        epochs = settings.search_epochs if settings.method == "search" else 0
        super().__init__(self.mixture, epochs, True, None, settings.choice_learning_rate, [self.mixture.choice])
        self.settings = settings
        self.memorises = settings.method in ("search", "memorised") and bool(self.mixture.memorisable_names)
        if self.memorises:
            CrossKeys(inputs, self.mixture.memorisable_names)  # refuses what cannot be counted before anything is written
        self.seed = torch.initial_seed()
        self.frequent: dict[Pair, Tensor] = {}

    def observe(self, batches: Iterable[KeyedJaggedTensor]) -> None:
        if self.memorises:
            inputs = self.mixture.inputs
            self.frequent = frequent_keys(inputs, self.mixture.memorisable_names, batches, self.settings.min_count)
            self.mixture.crosses = Crosses(inputs, self.frequent, self.settings.tail_buckets)

    def advance(self, epoch: int, step: int, steps: int) -> None:
        m = self.mixture
        m.temperature.fill_(1 - (1 - self.settings.temperature) * step / max(1, steps - 1))
        draw = torch.Generator().manual_seed(self.seed + step)
        m.noise.copy_(-torch.empty(m.noise.shape).exponential_(generator=draw).log())

    def decide(self, weights: Mapping[str, Any], evaluate: Callable[[int], float]) -> Decision:
        m = self.mixture
        may_be = m.may_be.cpu()
        if self.settings.method == "search":
            ways = weights["dense_arch"]["choice"].masked_fill(~may_be, -torch.inf).argmax(1)
        else:
            way = METHODS.index(self.settings.method)
            ways = torch.where(may_be[:, way], way, NAIVE)
        memorised = {name for name, number in zip(m.memorisable_names, m.memorisable.tolist(), strict=True) if ways[number] == MEMORISED}
        return {METHODS_KEY: ways.to(torch.int8)} | {cross_name(pair): keys for pair, keys in self.frequent.items() if pair in memorised}


def field_names(inputs: Inputs) -> list[str]:
    return [field.name for field in inputs.id_fields] + list(inputs.numeric_fields)


def _is_single(inputs: Inputs, field: int) -> bool:
    return field < len(inputs.id_fields) and not inputs.id_fields[field].multi_valued


def _names(inputs: Inputs, pair: tuple[int, int]) -> Pair:
    return inputs.id_fields[pair[0]].name, inputs.id_fields[pair[1]].name


def _fields_group(inputs: Inputs, dim: int) -> Group:
    return Group("embedding", dim, fields=frozenset(field.table for field in inputs.id_fields))


def _cross_groups(model: RankingModel) -> tuple[Group, ...]:
    settings = model.settings
    assert isinstance(settings, OptInterSettings)
    return (Group(CROSS, settings.pair_dim, fields=frozenset(model.crosses.names)),) if model.crosses is not None else ()


def _tower(inputs: int, settings: OptInterSettings) -> Tower:
    return Tower(inputs, settings.hidden, outputs=1, dropout=settings.dropout, layer_norm=settings.layer_norm)
