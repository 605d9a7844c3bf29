"""One process of a training, for tests that kill it or start several: CONFIG DATASET [STEP at which RANK kills itself]."""

import os
import signal
import sys
from pathlib import Path

from ctrkit.config_file import load_config
from ctrkit.data.dataset import Dataset
from ctrkit.training import loop, trainer

config, dataset, *kill = sys.argv[1:]
original, calls = loop.clip_grad_norm_, 0


def clip_and_count(*args, **kwargs):
    global calls
    calls += 1
    if kill and kill == [str(calls), os.environ.get("RANK", "0")]:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)


loop.clip_grad_norm_ = clip_and_count
experiment = load_config(Path(config))
trainer.train(experiment, Dataset.open(dataset), resume=(Path(experiment.output) / "runs").exists())
