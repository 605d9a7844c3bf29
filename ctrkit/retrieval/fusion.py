"""Cold starts: weights of features that adapt to the row, a fusion of modalities, and a contrastive term.

After Hu et al., "Contrastive Learning for Cold Start Recommendation with Adaptive Feature Fusion", arXiv 2502.03664, whose abstract names these
parts. Their form here is this module's choice, since no code of the paper's and no equations were at hand::

    selection   x_f <- k a_f e_f,  a = softmax(W2 relu(W1 concat(e)))     k fields of a side; weights of a row, which compete
    modality    z_m = MLP_m(concat(x_f of modality m))                    user: attributes, history, context; item: id, metadata
    fusion      v = normalise(W concat(g_m z_m)),  g = softmax(V concat(z))
    loss        sampled softmax + weight (contrastive(v_item, v_item') + contrastive(v_user, v_user'))

v' is of the same row as a cold one would be: without its id, and without a share of the other fields, of which one stays.
Rows of other items, or other users, of the batch are its negatives. What is masked has a vector that is learned, and an id that was never
trained on has that same vector.
"""

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ctrkit.layers.fields import FieldVectors
from ctrkit.layers.tower import Tower, linear
from ctrkit.retrieval.auxiliary import Encoded, Extra, Share, Temperature, Weight
from ctrkit.retrieval.dataset import Catalogue
from ctrkit.retrieval.job import Fitted, Job
from ctrkit.retrieval.losses import contrastive
from ctrkit.retrieval.rows import Rows
from ctrkit.retrieval.towers import TowerSettings, TwoTowers
from ctrkit.retrieval.training import fit_towers
from ctrkit.schema import Inputs


class FusionSettings(TowerSettings):
    selection: bool = Field(default=True, description="adaptive weights of features; false: all weigh the same")
    gate: bool = Field(default=True, description="adaptive weights of modalities; false: all weigh the same")
    weight: Weight = 0.1
    share: Share = Field(default=0.3, description="of the fields beside the id that a cold view lacks; one stays")
    auxiliary_temperature: Temperature = 0.1


class FusionTower(nn.Module):
    """One side. ``[rows, id fields, dim]``, ``[rows, numeric fields]``, masked bool ``[rows, fields]`` -> ``[rows, width]``.

    Args:
        modalities: numbers of the fields in each, id fields first; none is empty.
    """

    def __init__(self, inputs: Inputs, modalities: Sequence[Sequence[int]], dim: int, settings: FusionSettings) -> None:
        super().__init__()
        self.modalities = [list(fields) for fields in modalities]
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.default = nn.Parameter(torch.randn(inputs.count, dim) * 0.01)
        units = max(4, inputs.count)
        self.selection = (
            nn.Sequential(linear(inputs.count * dim, units), nn.ReLU(), linear(units, inputs.count)) if settings.selection else None
        )
        self.towers = nn.ModuleList(
            Tower(len(fields) * dim, settings.hidden, outputs=settings.width, dropout=settings.dropout) for fields in self.modalities
        )
        joined = len(self.modalities) * settings.width
        self.gate = linear(joined, len(self.modalities)) if settings.gate else None
        self.join = linear(joined, settings.width)
        self.normalise = settings.normalise

    def forward(self, embeddings: Tensor, dense: Tensor, masked: Tensor | None = None) -> Tensor:
        e = self.vectors(embeddings, dense)
        hidden = torch.zeros(e.shape[:2], dtype=torch.bool, device=e.device) if masked is None else masked
        e = torch.where(hidden.unsqueeze(2), self.default, e)
        x = e * self.weights(e).unsqueeze(2)
        z = torch.stack([tower(x[:, fields].flatten(1)) for tower, fields in zip(self.towers, self.modalities, strict=True)], dim=1)
        out = self.join((z * self.shares(z).unsqueeze(2)).flatten(1))
        return functional.normalize(out, dim=1) if self.normalise else out

    def weights(self, e: Tensor) -> Tensor:
        """Of the fields, ``[rows, fields]``; their mean is 1."""
        if self.selection is None:
            return torch.ones(e.shape[:2], device=e.device)
        return e.shape[1] * torch.softmax(self.selection(e.flatten(1)), dim=1)

    def shares(self, z: Tensor) -> Tensor:
        """Of the modalities, ``[rows, modalities]``; their mean is 1."""
        if self.gate is None:
            return torch.ones(z.shape[:2], device=z.device)
        return z.shape[1] * torch.softmax(self.gate(z.flatten(1)), dim=1)


class ColdViews:
    """The contrastive term: each row of the batch and itself as a cold one.

    Args:
        query_id, item_id: numbers of the user's and the item's own field in their side; None where it is no feature.
    """

    masks = True

    def __init__(
        self, settings: FusionSettings, query_inputs: Inputs, item_inputs: Inputs, query_id: int | None, item_id: int | None
    ) -> None:
        self._settings = settings
        self._sides = ((query_inputs.count, query_id), (item_inputs.count, item_id))

    def main_mask(self, items: int, random: np.random.Generator) -> None:
        return None

    def draw(self, queries: Rows, positives: Rows, random: np.random.Generator) -> Extra:
        (queries, query_mask), (items, item_mask) = (
            self._view(rows, *side, random) for rows, side in zip((queries, positives), self._sides, strict=True)
        )
        return Extra(items, item_mask, queries, query_mask)

    def _view(self, rows: Rows, fields: int, own: int | None, random: np.random.Generator) -> tuple[Rows, np.ndarray]:
        """The rows and what is masked in them: one field beside the id stays; no rows where there is none."""
        others = [field for field in range(fields) if field != own]
        if not others:
            return rows.take(np.zeros(0, np.int64)), np.zeros((0, fields), bool)
        masked = random.random((rows.count, fields)) < self._settings.share
        if own is not None:
            masked[:, own] = True
        blank = np.flatnonzero(masked.all(1))
        masked[blank, random.choice(others, len(blank))] = False
        return rows, masked

    def loss(self, encoded: Encoded) -> Tensor:
        sides = (
            (encoded.positives, encoded.extra_items, encoded.item_numbers),
            (encoded.users, encoded.extra_users, encoded.user_numbers),
        )
        terms = [contrastive(whole, view, self._settings.auxiliary_temperature, who) for whole, view, who in sides if len(view)]
        return self._settings.weight * sum(terms, encoded.users.new_zeros(()))


def build_fusion(catalogue: Catalogue, dim: int, settings: FusionSettings) -> TwoTowers:
    """The towers with fresh weights; a side's modalities are those of its fields that there are."""
    queries, items = catalogue.query_inputs, catalogue.item_inputs
    context = set(catalogue.context_names)
    history = {field.name for field in queries.sequences}
    user = FusionTower(queries, _modalities(queries, history, context), dim, settings)
    item = FusionTower(items, _modalities(items, {catalogue.item_key.name}), dim, settings)
    return TwoTowers(user, item)


def fit_fusion(job: Job, settings: FusionSettings) -> Fitted:
    """Raises CtrkitError as ``fit_towers``."""
    dataset = job.dataset
    ids = (_number(dataset.query_inputs, dataset.user_key.name), _number(dataset.item_inputs, dataset.item_key.name))
    views = ColdViews(settings, dataset.query_inputs, dataset.item_inputs, *ids)
    return fit_towers(job, build_fusion, settings, views if settings.weight else None)


def field_list(inputs: Inputs) -> list[str]:
    """Names in the towers' order: id fields, then numeric ones."""
    return [*(field.name for field in inputs.id_fields), *inputs.numeric_fields]


def _modalities(inputs: Inputs, *groups: set[str]) -> list[list[int]]:
    """The fields of each group, and first those of none."""
    names = field_list(inputs)
    rest = [i for i, name in enumerate(names) if not any(name in group for group in groups)]
    found = [rest, *([i for i, name in enumerate(names) if name in group] for group in groups)]
    return [fields for fields in found if fields]


def _number(inputs: Inputs, name: str) -> int | None:
    names = field_list(inputs)
    return names.index(name) if name in names else None
