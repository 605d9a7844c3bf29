"""Trains a model of RecBole on what ``pipelines.bench.recbole`` wrote and ranks the catalogue for its queries.

Run as ``PYTHON recbole_script.py FOLDER MODEL SEED LENGTH LONGEST``, the lengths being those of the lists and of the histories, by a Python
that has RecBole 1.2.1, scipy<1.12 (its LightGCN needs it) and pandas<3 (that SciPy's NumPy needs it); it knows nothing of ctrkit. Settings
are those of ``settings.json`` and else RecBole's own defaults, but that histories are as long as the dataset's, and that it stops when NDCG@10
on the queries that ctrkit validates on has not risen for fifteen epochs, evaluated every fifth, and SASRec, whose epochs are long, for three,
as ctrkit's does; it takes the weights that were best.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config  # pyright: ignore[reportMissingImports]
from recbole.data import create_dataset, data_preparation  # pyright: ignore[reportMissingImports]
from recbole.data.interaction import Interaction  # pyright: ignore[reportMissingImports]
from recbole.utils import get_model, get_trainer, init_seed  # pyright: ignore[reportMissingImports]

QUERIES_AT_ONCE = 256
SEQUENTIAL = ("SASRec",)


def settings(folder: Path, model: str, seed: int, longest: int) -> dict[str, object]:
    sequential = model in SEQUENTIAL
    columns = ["user_id", "item_id", *(["item_id_list"] if sequential else [])]
    shared: dict[str, object] = {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "benchmark_filename": ["train", "valid", "valid"],
        "load_col": {"inter": columns},
        "eval_args": {"group_by": "user", "order": "TO" if sequential else "RO", "split": {"LS": "valid_and_test"}, "mode": "full"},
        "metrics": ["NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "eval_step": 5,
        "stopping_step": 3,
        "use_gpu": False,
        "show_progress": False,
        "seed": seed,
        "state": "WARNING",
    }
    own = {"alias_of_item_id": ["item_id_list"], "train_neg_sample_args": None, "MAX_ITEM_LIST_LENGTH": longest, "eval_step": 1}
    given = json.loads((folder / "settings.json").read_text(encoding="utf8"))
    return {**shared, **(own if sequential else {}), **given}


def main(folder: Path, name: str, seed: int, length: int, longest: int) -> None:
    config = Config(model=name, dataset="sequences" if name in SEQUENTIAL else "pairs", config_dict=settings(folder, name, seed, longest))
    init_seed(seed, config["reproducibility"])
    dataset = create_dataset(config)
    train, valid, _ = data_preparation(config, dataset)
    init_seed(seed, config["reproducibility"])
    model = get_model(name)(config, train.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
    best, _ = trainer.fit(train, valid, saved=True, show_progress=False)
    model.load_state_dict(torch.load(trainer.saved_model_file, weights_only=False)["state_dict"])
    model.eval()
    asked = dict(np.load(folder / "queries.npz"))  # the archive itself reads an array anew whenever it is named
    lists, ranks = ranked(model, dataset, asked, longest if name in SEQUENTIAL else 0, length)
    np.savez(folder / "ranked.npz", lists=lists, ranks=ranks)
    params = sum(parameter.numel() for parameter in model.parameters())
    told = {"valid": float(best), "epochs": len(trainer.train_loss_dict), "params": params}
    (folder / "result.json").write_text(json.dumps(told))


@torch.no_grad()
def ranked(
    model: torch.nn.Module, dataset: object, asked: dict[str, np.ndarray], longest: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first items of every query ``[queries, length]``, seen ones left out, and the rank of every target from 1.

    Args:
        longest: of the histories; 0 for a model that takes none.
    """
    user_ids, item_ids = (dataset.field2token_id[field] for field in ("user_id", "item_id"))  # pyright: ignore[reportAttributeAccessIssue]
    items = int(asked["items"])
    known = np.array([item_ids.get(str(item), 0) for item in range(items)])
    users = np.array([user_ids.get(str(user), 0) for user in asked["user"]])  # 0: no history, and SASRec reads nothing else
    lists, ranks = [], []
    for first in range(0, len(users), QUERIES_AT_ONCE):
        which = range(first, min(first + QUERIES_AT_ONCE, len(users)))
        batch = {"user_id": torch.from_numpy(users[which.start : which.stop])}
        if longest:
            past = [known[_bag(asked, "history", query)][-longest:] for query in which]
            batch["item_length"] = torch.tensor([max(1, len(one)) for one in past])
            batch["item_id_list"] = torch.zeros(len(past), longest, dtype=torch.int64)
            for row, one in enumerate(past):
                batch["item_id_list"][row, : len(one)] = torch.from_numpy(one)
        scores = model.full_sort_predict(Interaction(batch)).view(len(which), -1).numpy()[:, known]  # pyright: ignore[reportCallIssue]
        scores[:, known == 0] = np.finfo(np.float32).min
        for row, query in enumerate(which):
            scores[row, _bag(asked, "seen", query)] = -np.inf
            ranks += [1 + int((scores[row] > scores[row, target]).sum()) for target in _bag(asked, "targets", query)]
        lists.append(np.argsort(-scores, axis=1, kind="stable")[:, :length])
    return np.concatenate(lists), np.array(ranks)


def _bag(asked: dict[str, np.ndarray], name: str, query: int) -> np.ndarray:
    offsets = asked[f"{name}_offsets"]
    return asked[name][offsets[query] : offsets[query + 1]]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]))
