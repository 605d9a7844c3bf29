"""A dataset of fewer features out of a prepared one: nothing is read from the log, fitted or encoded again.

Each feature's transform is fitted alone and the split does not look at features, so it is the dataset that ``prepare`` would make of the
narrower experiment. Its shards are links to those of the wider one, of which a loader reads the columns it needs.
"""

import json
import os
from pathlib import Path

from ctrkit.config import Experiment
from ctrkit.data.dataset import FILE, GOLDEN_FILE, Dataset, fingerprint
from ctrkit.data.splits import SPLITS
from ctrkit.errors import CtrkitError
from ctrkit.transforms.fitted import FittedTransforms


def narrow(dataset: Dataset, experiment: Experiment, folder: Path) -> Dataset:
    """Writes the dataset of an experiment that has some of ``dataset``'s features, in their order.

    Args:
        dataset: prepared of the same log, label and split.
        folder: of the narrower dataset; made here.

    Raises:
        CtrkitError: the experiment has a feature that the dataset lacks, or has otherwise; or the folder exists.
    """
    wide = {feature.name: feature for feature in dataset.features}
    for feature in experiment.features:
        if wide.get(feature.name) != feature:
            raise CtrkitError(f"the dataset '{dataset.path}' has no feature '{feature.name}' of these settings", "Prepare the experiment")
    names = [feature.name for feature in experiment.features]
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise CtrkitError(f"the dataset's folder '{folder}' is there already", "Delete it, or name another") from error
    for split in SPLITS:
        (folder / split).mkdir()
        for part in dataset.parts(split):
            os.symlink(part.resolve(), folder / split / part.name)
    fitted = dataset.transforms()
    transforms = FittedTransforms([fitted[name] for name in names])
    transforms.save(folder / "transforms")
    dataset.golden().select(names).write_parquet(folder / GOLDEN_FILE)
    about = json.loads((dataset.path / FILE).read_text(encoding="utf8"))
    about |= {
        "fingerprint": fingerprint(experiment),
        "inputs": transforms.inputs.model_copy(update={"tasks": dataset.inputs.tasks}).model_dump(mode="json"),
        "features": [feature.model_dump(mode="json") for feature in experiment.features],
    }
    about["profile"]["features"] = {name: about["profile"]["features"][name] for name in names}
    (folder / FILE).write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf8")
    return Dataset.open(folder)
