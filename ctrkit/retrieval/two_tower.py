"""The two-tower method, with the auxiliary tasks of its item tower."""

import numpy as np
from pydantic import Field

from ctrkit.retrieval.auxiliary import Auxiliary, AuxiliarySettings, FeatureDropout, SelfSupervision, make_auxiliary
from ctrkit.retrieval.dataset import Catalogue
from ctrkit.retrieval.job import Fitted, Job
from ctrkit.retrieval.towers import FeatureTower, TowerSettings, TwoTowers
from ctrkit.retrieval.training import fit_towers


class TwoTowerSettings(TowerSettings):
    auxiliary: AuxiliarySettings | None = Field(
        default=None, description="ssl (self-supervised views of items), spread_out or feature_dropout; default none"
    )


def build_two_tower(catalogue: Catalogue, dim: int, settings: TwoTowerSettings) -> TwoTowers:
    """The towers with fresh weights.

    Args:
        dim: width of a field's vector.
    """
    maskable = isinstance(settings.auxiliary, SelfSupervision | FeatureDropout)
    user = FeatureTower(catalogue.query_inputs, dim, settings)
    return TwoTowers(user, FeatureTower(catalogue.item_inputs, dim, settings, maskable))


def fit_two_tower(job: Job, settings: TwoTowerSettings) -> Fitted:
    """Raises CtrkitError as ``fit_towers``, or if there are too few item features to mask."""
    dataset = job.dataset
    auxiliary: Auxiliary | None = None
    if settings.auxiliary is not None:
        trained = np.flatnonzero(dataset.counts)
        auxiliary = make_auxiliary(settings.auxiliary, dataset.encoded_items, dataset.item_inputs, trained)
    return fit_towers(job, build_two_tower, settings, auxiliary)
