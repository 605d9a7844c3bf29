"""What would stop a training, found before it starts: before the log is read, or over the dataset at hand."""

import shutil

from ctrkit.config import Experiment
from ctrkit.embeddings.compression.registry import check_compression
from ctrkit.errors import CtrkitError
from ctrkit.models.registry import build_for, build_search_for
from ctrkit.schema import Inputs

FEWEST_ROWS = 3
"""Of a table: padding, unknown and a value."""


def check_experiment(experiment: Experiment) -> None:
    """``check_training`` over the fields that the experiment's features will be. Reads no file.

    Raises:
        CtrkitError: as ``check_training``.
    """
    embedding = experiment.embedding
    if embedding.compression is not None:  # what its budget allows is known with the tables' rows
        check_compression(embedding.compression)
        build_for(embedding, experiment.model.name, _fields(experiment), experiment.model.settings)
        experiment = experiment.model_copy(update={"embedding": embedding.model_copy(update={"compression": None})})
    check_training(experiment, _fields(experiment), experiment.group)


def check_training(experiment: Experiment, inputs: Inputs, group: str | None) -> None:
    """Builds the experiment's model and its search, and throws them away.

    Args:
        inputs: the model's fields.
        group: column that ``gauc`` averages over.

    Raises:
        CtrkitError: a model or a setting that there is not, one that does not go with the fields, the labels or the embedding, a
            metric to watch that will not be there, no compiler.
    """
    model, embedding, settings = experiment.model, experiment.embedding, experiment.training
    build_for(embedding, model.name, inputs, model.settings)
    build_search_for(embedding, model.name, inputs, model.settings)
    if settings.monitor == "gauc" and group is None:
        raise CtrkitError("training.monitor is gauc, and there are no groups", "Set 'group' to a column such as user_id")
    if settings.compile and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise CtrkitError("training.compile needs a C++ compiler, and there is none", "Install g++, or set training.compile to false")


def _fields(experiment: Experiment) -> Inputs:
    features = experiment.features
    return Inputs(
        id_fields=tuple(feature.id_field(FEWEST_ROWS) for feature in features if feature.is_id),
        numeric_fields=tuple(feature.name for feature in features if not feature.is_id),
        tasks=experiment.tasks,
    )
