"""The contract between tables and a model's dense arch, and the two put together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ctrkit import schema
from ctrkit.config import Embedding, UnifiedEmbedding
from ctrkit.data.batch import Batch
from ctrkit.embeddings.compression.tables import Codecs, CompressedTables, StoredTables
from ctrkit.embeddings.crosses import Crosses
from ctrkit.embeddings.gated import GatedTables
from ctrkit.embeddings.selection import Selection
from ctrkit.embeddings.tables import Group, Tables, own_outputs, own_tables
from ctrkit.embeddings.unified import UnifiedTables
from ctrkit.errors import CtrkitError
from ctrkit.layers.gate import ContinuousGate
from ctrkit.layers.normalisation import statistics_kept
from ctrkit.schema import Inputs

if TYPE_CHECKING:
    from ctrkit.models.search import Search

Decision = dict[str, Tensor]
"""What a search found out, to build the model of that form again; each model's docstring says what is in it."""


@dataclass(frozen=True)
class FieldMaps:
    """What a model has to say of the pairs of fields of each row: pictures of a kind, for ``ctrkit explain``.

    Attributes:
        title: such as ``Attention``.
        about: how to read them, a sentence or two.
        maps: name -> ``[batch, fields, fields]``, id fields first.
        neutral: the value of an entry that says nothing.
    """

    title: str
    about: str
    maps: dict[str, Tensor]
    neutral: float


@dataclass(frozen=True)
class PlaceWeights:
    """What a model makes of each place of a sequence, of each row, for ``ctrkit explain``.

    Attributes:
        sequence: the field.
        about: how to read a weight, a sentence or two.
        weights: name -> ``[batch, length]``, the most recent last.
        normalised: whether a row's weights and one of the target itself sum to 1.
    """

    sequence: str
    about: str
    weights: dict[str, Tensor]
    normalised: bool


class RankingModel(nn.Module, ABC):
    """The dense arch of a ranking model: looked-up embeddings and numeric fields in, a logit out, or one for each of several tasks.

    Plain tensors only, so that it exports; the tables are not part of it.

    Args:
        inputs: the fields.
        dim: width of group ``embedding``.
        settings: the model's own, an instance of its ``Settings``.

    Attributes:
        selection: the ids that have rows in the tables; None is all of them.
        crosses: pairs of fields that are looked up as one, beside the fields; None is none.
        gate: what a gate's number does to a row, of a model with a group of gates.
        codecs: of compressed embeddings; None: the tables hold the vectors themselves.
    """

    Settings: ClassVar[type[schema.Settings]] = schema.Settings
    selection: Selection | None
    crosses: Crosses | None
    gate: ContinuousGate | None
    codecs: Codecs | None

    def __init__(self, inputs: Inputs, dim: int, settings: schema.Settings) -> None:
        super().__init__()
        self.inputs = inputs
        self.dim = dim
        self.settings = settings
        self.join: nn.Module = nn.Identity()
        """Of what the tables give, ``forward``'s vectors: more than the identity for a unified embedding."""
        self.selection = None
        self.crosses = None
        self.gate = None
        self.codecs = None

    @classmethod
    def search(cls, inputs: Inputs, dim: int, settings: Any) -> Search | None:
        """What decides on this model's form; None for a model that has one form only."""
        return None

    def describe(self) -> dict[str, Any] | None:
        """What the search decided, as JSON values with a ``summary`` in words; None for a model that has one form only."""
        return None

    def groups(self, dim: int) -> tuple[Group, ...]:
        """The table groups ``forward`` reads."""
        return (Group("embedding", dim),)

    @abstractmethod
    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        """
        Args:
            embeddings: group name -> ``[batch, id fields, group's dim]``. An unpooled group's sequences are not among these fields:
                theirs are ``<group>/<field>`` -> ``[batch, length, dim]``, the most recent last, and ``mask/<field>`` ->
                ``[batch, length]``, whether there is anything at a place: bool, or shares between none (0) and something (1), in
                evaluation only.
            dense: ``[batch, numeric fields]``, NaN is missing.

        Returns:
            logits ``[batch]``; of a multi-task model ``[batch, tasks]``.
        """

    def explanations(self, embeddings: dict[str, Tensor], dense: Tensor) -> Sequence[FieldMaps | PlaceWeights]:
        """What the model itself can show of how it read these rows (arguments as of ``forward``); most have nothing."""
        return ()

    def targets(self, labels: Tensor) -> Tensor:
        """What the logits are trained and measured against, of the log's labels: those, unless the model says otherwise."""
        return labels

    def statistics_kept(self) -> AbstractContextManager[None]:
        """Whatever rows it sees in training meanwhile, the running statistics of its normalisation are those of before."""
        return statistics_kept(self)


def with_sequences(model: str, inputs: Inputs) -> tuple[Inputs, tuple[int, ...]]:
    """The inputs without the sequences, and each sequence's target: the place of its ``of`` field among those inputs.

    Raises:
        CtrkitError: there is no sequence.
    """
    if not inputs.sequences:
        raise CtrkitError(
            f"model '{model}' attends to the history of a field, and there is none among the features",
            "List a feature such as {name: recent_items, kind: sequence, of: item_id}",
        )
    fields = [field.name for field in inputs.tables]
    return inputs.model_copy(update={"id_fields": inputs.tables}), tuple(fields.index(s.table) for s in inputs.sequences)


def histories(inputs: Inputs, targets: Sequence[int], embeddings: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each sequence what a model that attends to it is given in ``embeddings``: the target's vector ``[batch, dim]``, those of the
    history ``[batch, length, dim]`` and the mask ``[batch, length]``.

    Args:
        targets: as ``with_sequences`` gives them.
    """
    for sequence, target in zip(inputs.sequences, targets, strict=True):
        yield embeddings["embedding"][:, target], embeddings[f"embedding/{sequence.name}"], embeddings[f"mask/{sequence.name}"]


def at_least_two_fields(model: str, inputs: Inputs) -> int:
    """How many fields there are; CtrkitError if there is no pair among them for ``model`` to work on."""
    if inputs.count < 2:
        raise CtrkitError(f"model '{model}' is made of pairs of fields and has {inputs.count}", "List at least two features in the config")
    return inputs.count


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to multiply matrices in bfloat16: as told, or for ``auto`` on a GPU or CPU (AVX-512 BF16, AMX) that has it in hardware."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class TabledModel(nn.Module):
    """What ``ctrkit.training.distributed`` shards: tables, and a dense arch that is replicated."""

    tables: Tables
    dense_arch: nn.Module


class CTRModel(TabledModel):
    """Tables (sparse arch) and dense arch: what is sharded and trained.

    Args:
        precision: ``bf16`` runs the dense arch's matrix products in bfloat16 while training; weights, sums and logits stay float32,
            and so does all of evaluation: what is measured is what is exported. ``auto`` is ``bf16`` where ``use_bfloat16`` says so.
        stored: each group's stored form, of trained compressed embeddings; ``dense_arch`` then has no codecs. None: there are tables.
    """

    dense_arch: RankingModel

    def __init__(self, dense_arch: RankingModel, settings: Embedding, precision: str = "fp32", stored: nn.ModuleDict | None = None) -> None:
        super().__init__()
        changed = dense_arch.selection or dense_arch.crosses
        inputs = changed.inputs if changed is not None else dense_arch.inputs
        groups = dense_arch.groups(settings.width)
        if stored is not None:
            self.tables = StoredTables(inputs, groups, stored, settings)
        elif dense_arch.codecs is not None:
            self.tables = CompressedTables(dense_arch.codecs, settings)
        elif isinstance(settings, UnifiedEmbedding):
            self.tables = UnifiedTables(inputs, groups, settings)
        elif any(group.gates for group in groups):
            self.tables = GatedTables(inputs, groups, settings)
        else:
            unpooled = inputs.sequences if any(group.unpooled for group in groups) else ()
            self.tables = Tables(own_tables(inputs, groups), own_outputs(inputs, groups), settings, unpooled)
        self.dense_arch = dense_arch
        self.tasks = dense_arch.inputs.tasks
        self.targets = dense_arch.targets
        self.precision = precision

    def forward(self, batch: Batch) -> Tensor:
        """Logits ``[batch]`` or ``[batch, tasks]``, float32."""
        embeddings = self.look_up(batch)
        device = batch.dense.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.training and use_bfloat16(self.precision, device)):
            return self.dense_arch(embeddings, batch.dense).float()

    def look_up(self, batch: Batch) -> dict[str, Tensor]:
        """What the dense arch takes of a batch's ids."""
        if self.dense_arch.codecs is not None:
            return self.dense_arch.codecs(self.tables(batch.sparse), batch.sparse)
        changed, gate = self.dense_arch.selection or self.dense_arch.crosses, self.dense_arch.gate
        sparse = batch.sparse if changed is None else changed(batch.sparse)
        return self.dense_arch.join(self.tables(sparse) if gate is None else self.tables(sparse, gate))
