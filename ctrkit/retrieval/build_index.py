"""Both indexes over an exported catalogue, into its bundle."""

import shutil
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from ctrkit.bundle import sha256_of
from ctrkit.errors import CtrkitError
from ctrkit.retrieval.bundle import RetrievalBundle, open_retrieval_bundle, tower_versions
from ctrkit.retrieval.index import INDEX_FOLDER, ApproximateIndex, ExactIndex, recall, write_index
from ctrkit.retrieval.run import read_run
from ctrkit.training.run import WEIGHTS_FILE


def find_bundle(run: Path, repo: Path, name: str | None = None) -> RetrievalBundle:
    """The newest bundle that was exported from a run.

    Raises:
        CtrkitError: there is none.
    """
    experiment = read_run(run)
    folder = repo / (name or experiment.export.name or experiment.name)
    weights = run / WEIGHTS_FILE
    exported = sha256_of(weights) if weights.is_file() else None
    for number in reversed(tower_versions(folder)):
        bundle = open_retrieval_bundle(folder / str(number))
        if bundle.manifest.weights == exported:
            return bundle
    raise CtrkitError(f"'{folder}' holds no bundle of the run '{run}'", f"Write it first: ctrkit export {run} --to {repo}")


def build_index(bundle: RetrievalBundle) -> dict[str, Any]:
    """Encodes the catalogue with the exported item tower and writes both indexes; an older index is replaced when the new one is whole.

    Returns:
        ``{index, items, width, connectivity, breadth, seconds, recall}``; recall: the share of the exact index's first ten items that the
        approximate one finds, over the bundle's golden users.
    """
    started = time.perf_counter()
    folder = bundle.path / INDEX_FOLDER
    scratch = bundle.path / f".{INDEX_FOLDER}-{uuid4().hex[:8]}"
    try:
        scratch.mkdir()
        about = write_index(bundle.catalogue_vectors(), scratch)
        users = bundle.user_vectors(bundle.golden().users)
        exact, approximate = (kind(scratch).search(users, 10)[1] for kind in (ExactIndex, ApproximateIndex))
        if folder.exists():
            folder.rename(scratch / "old")
        scratch.rename(folder)
        shutil.rmtree(folder / "old", ignore_errors=True)
    except OSError as error:
        raise CtrkitError(
            f"the index cannot be written to '{bundle.path}': {error.strerror or error}", "Make room or mend the path"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {"index": str(folder), **about, "seconds": time.perf_counter() - started, "recall": recall(approximate, exact)}
