"""The two-tower method, with the auxiliary tasks of its item tower."""

from pydantic import Field

from ctrkit.errors import CtrkitError
from ctrkit.retrieval.auxiliary import Auxiliary, AuxiliarySettings, FeatureDropout, SelfSupervision, make_auxiliary
from ctrkit.retrieval.job import Fitted, Job
from ctrkit.retrieval.towers import FeatureTower, TowerSettings, TwoTowers
from ctrkit.retrieval.training import TowerTraining
from ctrkit.schema import Inputs
from ctrkit.training.distributed import process_group


class TwoTowerSettings(TowerSettings):
    auxiliary: AuxiliarySettings | None = Field(
        default=None, description="ssl (self-supervised views of items), spread_out or feature_dropout; default none"
    )


def build_two_tower(query_inputs: Inputs, item_inputs: Inputs, dim: int, settings: TwoTowerSettings) -> TwoTowers:
    """The towers with fresh weights.

    Args:
        dim: width of a field's vector.
    """
    maskable = isinstance(settings.auxiliary, SelfSupervision | FeatureDropout)
    return TwoTowers(FeatureTower(query_inputs, dim, settings), FeatureTower(item_inputs, dim, settings, maskable))


def fit_two_tower(job: Job, settings: TwoTowerSettings) -> Fitted:
    """
    Raises:
        CtrkitError: several processes, too few item features to mask, a loss that is not finite.
    """
    dataset = job.dataset
    auxiliary: Auxiliary | None = None
    if settings.auxiliary is not None:
        auxiliary = make_auxiliary(settings.auxiliary, dataset.encoded_items, dataset.item_inputs, dataset.counts.nonzero()[0])
    with process_group() as worker:
        if worker.world > 1:
            raise CtrkitError("a retrieval model trains in one process", "Start ctrkit train without torchrun")
        towers = build_two_tower(dataset.query_inputs, dataset.item_inputs, job.experiment.embedding.dim, settings)
        return TowerTraining(job, towers, settings, auxiliary, worker).run()
