"""``ctrkit export``: a trained run -> a bundle in a model repository."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.terminal import Terminal


def export_run_to(run: Path, to: Path, name: str | None, screen: "Terminal") -> dict[str, Any]:
    """Exports and says what came of it."""
    from ctrkit.training.report import size_words

    done = export_run(run, to, name)
    screen.console.print(f"wrote {done['bundle']} ({size_words(done['bytes'])})")
    screen.console.print(f"trained model (reloaded), serving twin and ONNX graph differ by at most {done['max_abs_diff']:.1e}")
    return done


def export_run(run: str | Path, repo: str | Path, name: str | None = None) -> dict[str, Any]:
    """Writes the next version of ``<repo>/<name>`` from a finished run; {bundle, max_abs_diff, bytes}.

    Args:
        name: the model's name in the repository; default ``export.name``, else the experiment's name.

    Raises:
        CtrkitError: no finished run, or the graph does not predict what the trained model does.
    """
    from copy import deepcopy

    import numpy as np
    import torch

    from ctrkit.data.batch import Batch
    from ctrkit.data.dataset import Dataset
    from ctrkit.export.writer import Trained, write_bundle
    from ctrkit.models.registry import rebuild, stored_form
    from ctrkit.training.distributed import load_full_weights, process_group
    from ctrkit.training.evaluate import model_without_optimizer
    from ctrkit.training.run import DATASET_FOLDER, load_run, read_result
    from ctrkit.transforms.selected import without_unused_words

    run = Path(run)
    experiment, inputs, weights = load_run(run)
    dataset = Dataset.open(run / DATASET_FOLDER)
    result = read_result(run)
    transforms = dataset.transforms()
    dense_arch = rebuild(weights, inputs).eval()
    if dense_arch.selection is not None:
        kept = {name: mask.numpy() for name, mask in dense_arch.selection.kept.items()}
        transforms, kept = without_unused_words(transforms, kept)
        decision = weights["decision"] | {name: torch.from_numpy(mask) for name, mask in kept.items()}
        dense_arch = rebuild({**weights, "decision": decision}, transforms.inputs).eval()
    stored = stored_form(dense_arch, weights["tables"])
    with process_group() as worker:
        reloaded = model_without_optimizer(deepcopy(dense_arch), experiment, worker, stored)
        load_full_weights(reloaded, weights["tables"])
        reloaded.eval()

        def predict(batch: Batch) -> np.ndarray:
            with torch.no_grad():
                return reloaded(batch.to(worker.device)).sigmoid().cpu().numpy()

        exported = write_bundle(
            Trained(
                model=weights["model"],
                transforms=transforms,
                dense_arch=dense_arch,
                tables=weights["tables"],
                stored=stored,
                reference=predict,
                golden=dataset.golden(),
                run=run.name,
                label=experiment.label,
                metrics={"valid": result.to_json()["valid"], "test": result.to_json()["test"]} if result else {},
                profile=_profile(dataset.profile, run, dataset.inputs.tasks, narrowed=dense_arch.selection is not None),
                new_ids=dense_arch.selection.new_ids if dense_arch.selection is not None else None,
            ),
            repo,
            name or experiment.export.name or experiment.name,
            external_mb=experiment.export.external_data_mb,
        )
    return {"bundle": str(exported.bundle), "max_abs_diff": exported.max_abs_diff, "bytes": exported.bytes}


def _profile(profile: dict[str, Any], run: Path, tasks: Sequence[str], narrowed: bool) -> dict[str, Any]:
    """The training data's profile, and bins of the scores that the run gave its validation rows under the names of the graph's outputs.

    Args:
        narrowed: the model has dropped words of its vocabularies: which values it does not know is not what the profile says.
    """
    from ctrkit.bundle import output_names
    from ctrkit.drift import narrowed_profile
    from ctrkit.training.run import read_score_bins

    scores = {name: bins.to_json() for name, bins in zip(output_names(tasks), read_score_bins(run), strict=False)}
    return {**(narrowed_profile(profile) if narrowed else profile), "scores": scores}
