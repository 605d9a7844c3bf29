"""All retrieval methods by name: what ``model.name`` of a retrieval experiment chooses from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import ValidationError

from ctrkit import schema
from ctrkit.config import Embedding, ModelChoice
from ctrkit.config_errors import explain
from ctrkit.errors import CtrkitError, nearest
from ctrkit.retrieval.baselines.als import AlsSettings, fit_als
from ctrkit.retrieval.baselines.autorec import AutoRecSettings, fit_autorec
from ctrkit.retrieval.baselines.boosting import BoostingSettings, fit_boosting
from ctrkit.retrieval.baselines.bpr_mf import BprSettings, fit_bpr
from ctrkit.retrieval.baselines.deepfm import DeepFmSettings, fit_deepfm
from ctrkit.retrieval.baselines.item_knn import ItemKnnSettings, fit_item_knn
from ctrkit.retrieval.baselines.lightgcn import LightGcnSettings, fit_lightgcn
from ctrkit.retrieval.baselines.popularity import PopularitySettings, fit_popularity
from ctrkit.retrieval.config import RetrievalExperiment
from ctrkit.retrieval.dataset import Catalogue
from ctrkit.retrieval.fusion import FusionSettings, build_fusion, fit_fusion
from ctrkit.retrieval.job import Fitted, Job
from ctrkit.retrieval.sasrec import SasRecSettings, fit_sasrec
from ctrkit.retrieval.sasrec_trained import TrainedSasRec
from ctrkit.retrieval.towers import TwoTowers
from ctrkit.retrieval.trained import Trained, TrainedTowers
from ctrkit.retrieval.two_tower import TwoTowerSettings, build_two_tower, fit_two_tower


class Fit(Protocol):
    """Trains on the job's training events; validation says when to stop; the test split is not looked at."""

    def __call__(self, job: Job, settings: Any, /) -> Fitted: ...


class Build(Protocol):
    """The towers with fresh weights, to load trained ones into."""

    def __call__(self, catalogue: Catalogue, dim: int, settings: Any, /) -> TwoTowers: ...


class Load(Protocol):
    """The method with the weights that its run kept."""

    def __call__(self, experiment: RetrievalExperiment, catalogue: Catalogue, weights: Mapping[str, Any], settings: Any, /) -> Trained: ...


def _towers(build: Build) -> Load:
    def load(experiment: RetrievalExperiment, catalogue: Catalogue, weights: Mapping[str, Any], settings: Any, /) -> Trained:
        towers = build(catalogue, experiment.embedding.dim, settings)
        return TrainedTowers(towers, settings.width, experiment, catalogue, weights)

    return load


@dataclass(frozen=True)
class Method:
    """
    Attributes:
        load: of a method that keeps its weights, and so can be evaluated anew and exported.
        ignores: settings of the experiment that are nothing to it.
    """

    name: str
    paper: str
    settings: type[schema.Settings]
    fit: Fit
    load: Load | None = None
    ignores: tuple[str, ...] = ()


_TABLES = tuple(f"embedding.{name}" for name in Embedding.model_fields)
_STEPS = tuple(f"training.{name}" for name in ("batch_size", "epochs", "learning_rate", "weight_decay", "clip_norm", "monitor", "patience"))
_NO_EPOCHS = (*_TABLES, *_STEPS)
_OWN_OPTIMIZER = (*_TABLES, "training.learning_rate", "training.weight_decay", "training.clip_norm")
_STEPS_OF_USERS = (*_TABLES, "training.batch_size", "training.weight_decay", "training.clip_norm")
_ADAM_ALONE = (*(f"embedding.{name}" for name in ("optimizer", "learning_rate", "l2")), "training.learning_rate", "training.clip_norm")

METHODS = {
    method.name: method
    for method in (
        Method(
            "two_tower",
            "Yi et al., Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations, RecSys 2019",
            TwoTowerSettings,
            fit_two_tower,
            _towers(build_two_tower),
        ),
        Method(
            "fusion",
            "Hu et al., Contrastive Learning for Cold Start Recommendation with Adaptive Feature Fusion, arXiv 2502.03664, 2025",
            FusionSettings,
            fit_fusion,
            _towers(build_fusion),
        ),
        Method(
            "item_knn",
            "Deshpande & Karypis, Item-Based Top-N Recommendation Algorithms, TOIS 2004",
            ItemKnnSettings,
            fit_item_knn,
            ignores=_NO_EPOCHS,
        ),
        Method(
            "als",
            "Hu, Koren & Volinsky, Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008",
            AlsSettings,
            fit_als,
            ignores=_NO_EPOCHS,
        ),
        Method(
            "bpr_mf",
            "Rendle et al., BPR: Bayesian Personalized Ranking from Implicit Feedback, UAI 2009",
            BprSettings,
            fit_bpr,
            ignores=_OWN_OPTIMIZER,
        ),
        Method("lightgcn", "He et al., LightGCN, SIGIR 2020", LightGcnSettings, fit_lightgcn, ignores=_OWN_OPTIMIZER),
        Method("autorec", "Sedhain et al., AutoRec, WWW 2015", AutoRecSettings, fit_autorec, ignores=_STEPS_OF_USERS),
        Method("deepfm", "Guo et al., DeepFM, IJCAI 2017, asked of every pair", DeepFmSettings, fit_deepfm, ignores=_ADAM_ALONE),
        Method(
            "boosting",
            "Ke et al., LightGBM, NeurIPS 2017, on features of users and items",
            BoostingSettings,
            fit_boosting,
            ignores=_NO_EPOCHS,
        ),
        Method(
            "sasrec",
            "Kang & McAuley, Self-Attentive Sequential Recommendation, ICDM 2018",
            SasRecSettings,
            fit_sasrec,
            TrainedSasRec,
            ignores=_STEPS_OF_USERS,
        ),
        Method(
            "popularity",
            "the items with the most training events, the same for everyone",
            PopularitySettings,
            fit_popularity,
            ignores=_NO_EPOCHS,
        ),
    )
}


def not_read(experiment: RetrievalExperiment) -> list[str]:
    """Settings that the experiment has changed and that are nothing to its method."""
    found = []
    for name in METHODS[experiment.model.name].ignores:
        section, _, key = name.partition(".")
        default = RetrievalExperiment.model_fields[section].get_default(call_default_factory=True)
        if getattr(getattr(experiment, section), key) != getattr(default, key):
            found.append(name)
    return found


def method_of(choice: ModelChoice) -> tuple[Method, Any]:
    """The method and its checked settings.

    Raises:
        CtrkitError: no such method, no such setting, or a bad value.
    """
    if choice.name not in METHODS:
        raise CtrkitError(f"unknown retrieval model '{choice.name}'", nearest(choice.name, list(METHODS)))
    method = METHODS[choice.name]
    try:
        return method, method.settings.model_validate(choice.settings)
    except ValidationError as error:
        raise CtrkitError(f"model '{choice.name}': {explain(error, method.settings, choice.settings)}") from error
