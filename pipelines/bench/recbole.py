"""RecBole's own implementations on a dataset's split, measured as ctrkit's methods are."""

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ctrkit.config_file import read_pair
from ctrkit.errors import CtrkitError
from ctrkit.retrieval.config import Evaluation
from ctrkit.retrieval.dataset import RetrievalDataset
from ctrkit.retrieval.evaluate import Ranked, measure, measure_slices
from ctrkit.retrieval.events import Queries

MODELS = {"recbole_bpr": "BPR", "recbole_lightgcn": "LightGCN", "recbole_sasrec": "SASRec"}
_SCRIPT = Path(__file__).parent / "recbole_script.py"
_SAME_FOR_ALL = {
    *("data_path", "checkpoint_dir", "benchmark_filename", "load_col", "eval_args", "metrics", "topk", "valid_metric"),
    *("use_gpu", "show_progress", "seed", "state", "alias_of_item_id", "MAX_ITEM_LIST_LENGTH"),
}
"""Settings of RecBole's that the script gives."""
_LONGEST = 50
"""Items of a history where the dataset has none: RecBole's default."""


@dataclass(frozen=True)
class RecBole:
    """
    Attributes:
        python: that has RecBole 1.2.
        settings: of RecBole's, in place of its defaults.
    """

    python: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def train(self, dataset: RetrievalDataset, method: str, seed: int, evaluation: Evaluation) -> dict[str, Any]:
        """Trains one of ``MODELS`` and measures it.

        Args:
            evaluation: validation asks as many queries, the same ones.

        Returns:
            ``{valid, test, slices, epochs, params, seconds}``, as of a run of ctrkit's; of ``valid`` the NDCG@10 that it stopped by.

        Raises:
            CtrkitError: RecBole fails, or there are users that it cannot know.
        """
        queries = dataset.queries("test")
        if queries.cold_user.any():
            raise CtrkitError(
                f"{int(queries.cold_user.sum())} users have no training events: RecBole has no answer for them", "Leave it out"
            )
        started, at = time.perf_counter(), evaluation.at
        with tempfile.TemporaryDirectory(prefix="ctrkit-recbole-") as name:
            folder = Path(name)
            longest = max((history.length for history in dataset.query_inputs.sequences), default=_LONGEST)
            _write_logs(dataset, evaluation.valid_queries, longest, folder)
            _write_queries(queries, dataset.items.height, folder)
            (folder / "settings.json").write_text(json.dumps(self.settings), encoding="utf8")
            command = [str(self.python), "-P", str(_SCRIPT), str(folder), MODELS[method], str(seed), str(max(at)), str(longest)]
            ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
            if ended.returncode != 0:
                raise CtrkitError(f"RecBole's {MODELS[method]} failed: {ended.stderr.strip()[-500:]}")
            found = np.load(folder / "ranked.npz")
            ranked = Ranked(found["lists"], found["ranks"])
            told = json.loads((folder / "result.json").read_text(encoding="utf8"))
        return {
            "valid": {"ndcg@10": told["valid"]},
            "test": measure(ranked, queries, dataset.counts, at),
            "slices": measure_slices(ranked, queries, dataset.counts, dataset.user_counts, at),
            "epochs": told["epochs"],
            "params": told["params"],
            "seconds": time.perf_counter() - started,
        }


def parse_settings(given: Sequence[str]) -> dict[str, Any]:
    """
    Args:
        given: ``key=value``.

    Raises:
        CtrkitError: one that is not of that form, or that the benchmark itself sets.
    """
    found = dict(read_pair(one, "--peer-set", "key=value, such as --peer-set learning_rate=0.005") for one in given)
    if taken := sorted(found.keys() & _SAME_FOR_ALL):
        raise CtrkitError(f"--peer-set {taken[0]}: the benchmark sets it, the same for all methods", "Leave it out")
    return found


def _write_logs(dataset: RetrievalDataset, valid_queries: int | None, longest: int, folder: Path) -> None:
    """RecBole's files: pairs of users and items, and the same with the history of each moment."""
    for kind in ("pairs", "sequences"):
        (folder / kind).mkdir()
    events, train, valid = dataset.events, dataset.events.of_split("train"), dataset.queries("valid", valid_queries)
    asked = np.repeat(valid.event, np.diff(valid.targets[1]))
    for split, index, item in (("train", train, events.item[train]), ("valid", asked, valid.targets[0])):
        pairs = pl.DataFrame({"user_id:token": events.user[index], "item_id:token": item})
        pairs.write_csv(folder / "pairs" / f"pairs.{split}.inter", separator="\t")
        items, offsets = events.histories(index)
        past = pl.Series([" ".join(map(str, items[max(a, b - longest) : b])) for a, b in pairwise(offsets)])
        known = pairs.with_columns(past.alias("item_id_list:token_seq")).filter(pl.Series(np.diff(offsets) > 0))
        known.write_csv(folder / "sequences" / f"sequences.{split}.inter", separator="\t", quote_style="never")


def _write_queries(queries: Queries, items: int, folder: Path) -> None:
    (targets, targets_offsets), (history, history_offsets), (seen, seen_offsets) = queries.targets, queries.history, queries.seen
    np.savez(
        folder / "queries.npz",
        user=queries.user,
        items=np.int64(items),
        targets=targets,
        targets_offsets=targets_offsets,
        history=history,
        history_offsets=history_offsets,
        seen=seen,
        seen_offsets=seen_offsets,
    )
