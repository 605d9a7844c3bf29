"""A search on a tiny log, trained for real: gone on with after a stop, pruned, shared by two workers, and its best config trained again."""

from collections.abc import Callable, Iterator
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import polars as pl
import pytest

from ctrkit.config_file import load_config
from pipelines.tuning import worker
from pipelines.tuning.plan import read_plan
from pipelines.tuning.study import held

CONFIG = """
name: tiny
data: {path: LOG}
label: click
split: {valid: 300, test: 100}
features:
  - {name: [user, item, noise], kind: categorical}
  - {name: price, kind: numeric}
model: {name: dnn, hidden: [4], dropout: 0.1}
embedding: {dim: 4, learning_rate: 0.1, init_std: 0.01}
training: {epochs: 2, batch_size: 128, threads: 1, learning_rate: 0.01}
output: OUT
"""
SPACE = """
settings:
  model.dropout: {low: 0.0, high: 0.5}
  embedding.dim: [2, 4]
startup: 2
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    user, item, price = rng.integers(0, 20, 1200), rng.integers(0, 15, 1200), rng.normal(size=1200)
    taste = rng.normal(size=20)[user] + rng.normal(size=15)[item] + price
    columns = {
        "user": [f"u{u}" for u in user],
        "item": [f"i{i}" for i in item],
        "noise": [f"n{n}" for n in rng.integers(0, 30, 1200)],
        "price": price,
        "once": [1, *[0] * 1199],
        "click": (rng.random(1200) < 1 / (1 + np.exp(-2 * taste))).astype(int),
    }
    pl.DataFrame(columns).write_parquet(tmp_path / "log.parquet")
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.replace("LOG", str(tmp_path / "log.parquet")).replace("OUT", str(tmp_path / "out")))
    return path


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path


class Killed(BaseException):
    """Stands for a kill: nothing in the code under test catches it."""


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The experiments that trials have begun to train."""
    begun: list[Any] = []
    train = worker.train

    def noting(experiment: Any, *arguments: Any, **options: Any) -> Any:
        begun.append(experiment)
        return train(experiment, *arguments, **options)

    monkeypatch.setattr(worker, "train", noting)
    yield begun


def drawn(folder: Path) -> pl.DataFrame:
    """What was tried, and how it ended; without the trials that were stopped, and without their numbers."""
    return (
        pl.read_parquet(folder / "trials.parquet")
        .filter(pl.col("state") != "stopped")
        .drop("trial", "began", "ended", "cpu_seconds", "worker")
    )


def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(
    config: Path, space: Path, tmp_path: Path, ctrkit: Callable[..., Any], trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune(trials: int, out: str) -> Any:
        return ctrkit("tune", config, "--space", space, "--trials", trials, "--seed", 3, "--out", tmp_path / out)

    straight = tune(5, "straight")
    assert straight.status == 0, straight.stderr
    assert len(trained) == 5
    first = trained[0]
    assert (first.model.settings["dropout"], first.embedding.dim, len(first.features)) == (0.1, 4, 4), "the config as it stands"
    assert {len(experiment.features) for experiment in trained} != {4}

    trained.clear()
    assert tune(2, "stopped").json["trials"] == {"complete": 2, "pruned": 0, "failed": 0, "stopped": 0}
    look = worker._look
    with monkeypatch.context() as patch:
        patch.setattr(worker, "_look", lambda trial, step, *rest: killed() if trial.number == 3 else look(trial, step, *rest))
        with pytest.raises(Killed):
            tune(5, "stopped")
    assert len(trained) == 4
    said = tune(5, "stopped")
    assert len(trained) == 6, "the one that was killed is trained again, and no other"
    assert said.json["trials"]["stopped"] == 1
    assert drawn(tmp_path / "stopped").equals(drawn(tmp_path / "straight"))
    assert {key: said.json["best"][key] for key in ("valid_auc", "parameters")} == {
        key: straight.json["best"][key] for key in ("valid_auc", "parameters")
    }

    trained.clear()
    assert tune(5, "stopped").json["best"] == said.json["best"]
    assert trained == [], "the budget of trials is the study's"


def killed() -> None:
    raise Killed


def test_an_interrupted_search_leaves_its_best_so_far(
    config: Path, space: Path, tmp_path: Path, ctrkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(trial: Any, step: int, auc: float, *_: Any) -> None:
        if trial.number == 1:
            raise KeyboardInterrupt
        trial.report(auc, step)

    monkeypatch.setattr(worker, "_look", interrupt)
    said = ctrkit("tune", config, "--space", space, "--trials", 5, "--out", tmp_path / "study", as_json=False)
    assert said.status == 130 and "The same command goes on with it" in said.stdout
    frame = pl.read_parquet(tmp_path / "study/trials.parquet")
    assert frame["state"].to_list() == ["complete", "stopped"]
    assert load_config(tmp_path / "study/best.yaml").model.settings["dropout"] == 0.1


def test_the_best_config_trains_to_the_best_trials_auc(config: Path, space: Path, tmp_path: Path, ctrkit: Callable[..., Any]) -> None:
    said = ctrkit("tune", config, "--space", space, "--trials", 4, "--out", tmp_path / "study")
    best = said.json["best"]
    assert best["valid_auc"] == max(pl.read_parquet(tmp_path / "study/trials.parquet")["valid_auc"].drop_nulls())
    written = load_config(said.json["config"])
    assert (len(written.features), written.output) == (best["features"], str(tmp_path / "out"))
    again = ctrkit("train", said.json["config"], "--set", f"output={tmp_path / 'anew'}")
    assert again.status == 0, again.stderr
    assert again.json["valid"]["auc"] == best["valid_auc"]
    names = {path.name for path in (tmp_path / "study").iterdir()}
    assert names >= {"best.yaml", "trials.csv", "trials.parquet", "plan.yaml", "study.db"}
    assert all((tmp_path / "study" / name).read_bytes().startswith(b"\x89PNG") for name in ("history.png", "importance.png"))
    assert not [path for path in (tmp_path / "study").rglob("*") if path.name.startswith("trial-") or path.suffix == ".tmp"]


def test_bad_trials_are_pruned_and_twins_not_trained(
    config: Path, space: Path, tmp_path: Path, ctrkit: Callable[..., Any], trained: list[Any]
) -> None:
    space.write_text(
        "settings: {embedding.learning_rate: [0.1, 1.0e-9], training.learning_rate: [0.01, 1.0e-9]}\nfeatures: all\nstartup: 1"
    )
    said = ctrkit("tune", config, "--space", space, "--trials", 8, "--set", "training.epochs=4", "--out", tmp_path / "study")
    frame = pl.read_parquet(tmp_path / "study/trials.parquet")
    bad = frame.filter(pl.col("embedding.learning_rate") == 1e-9, pl.col("training.learning_rate") == 1e-9)
    assert len(bad) and set(bad["state"]) == {"pruned"}
    assert set(bad["evaluations"]) == {1} and set(frame.filter(state="complete")["evaluations"]) == {4}
    assert said.json["best"]["valid_auc"] > 0.7
    twins = frame.filter(pl.col("as_trial").is_not_null())
    assert len(twins) == 8 - len(trained) >= 4, "there are four points in this space"
    joined = twins.join(frame, left_on="as_trial", right_on="trial")
    assert joined["valid_auc"].equals(joined["valid_auc_right"], null_equal=True) and joined["state"].equals(joined["state_right"])


def test_two_workers_share_a_study(config: Path, space: Path, tmp_path: Path, ctrkit: Callable[..., Any]) -> None:
    said = ctrkit("tune", config, "--space", space, "--trials", 5, "--workers", 2, "--out", tmp_path / "study")
    assert said.status == 0, said.stderr
    frame = pl.read_parquet(tmp_path / "study/trials.parquet")
    assert frame["trial"].to_list() == list(range(5)) and set(frame["state"]) <= {"complete", "pruned"}
    assert frame["worker"].n_unique() == 2
    again = ctrkit("train", said.json["config"])
    assert again.json["valid"]["auc"] == said.json["best"]["valid_auc"]


def test_workers_have_their_share_of_the_cores_and_so_has_the_best_config(
    config: Path, space: Path, tmp_path: Path, ctrkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.tune.os.cpu_count", lambda: 6)
    monkeypatch.setattr("pipelines.tune._work_together", lambda folder, dataset, budget, *_: worker.work(folder, dataset, budget, print))
    call = ("tune", config, "--space", space, "--set", "training.threads=null", "--out", tmp_path / "study", "--trials")
    said = ctrkit(*call, 1, "--workers", 3)
    assert load_config(said.json["config"]).training.threads == 2
    assert ctrkit(*call, 2, "--workers", 1).status == 0, "the study keeps the threads it began with"
    assert read_plan(tmp_path / "study").experiment.training.threads == 2


def test_minutes_stop_the_search_within_a_trial(
    config: Path, space: Path, tmp_path: Path, ctrkit: Callable[..., Any], trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ("tune", config, "--space", space, "--out", tmp_path / "study")
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.tuning.study.time", lambda: time() + 3600 * len(trained))
        said = ctrkit(*call, "--minutes", 150)
    assert said.json["trials"] == {"complete": 2, "pruned": 0, "failed": 0, "stopped": 1}
    interrupted = trained[-1]
    assert ctrkit(*call, "--trials", 3).json["trials"] == {"complete": 3, "pruned": 0, "failed": 0, "stopped": 1}
    assert trained[3:] == [interrupted]


def test_settings_that_do_not_go_together_fail_a_trial_and_not_the_search(
    config: Path, space: Path, tmp_path: Path, ctrkit: Callable[..., Any]
) -> None:
    space.write_text("settings: {embedding.l2: [0.0, 0.1], embedding.l2_rows: [touched, all]}\nfeatures: all")
    said = ctrkit("tune", config, "--space", space, "--trials", 8, "--out", tmp_path / "study")
    frame = pl.read_parquet(tmp_path / "study/trials.parquet")
    clash = (pl.col("embedding.l2") == 0.1) & (pl.col("embedding.l2_rows") == "all")
    failed = frame.filter(clash)
    assert len(failed) and set(failed["state"]) == {"failed"} and failed["error"].str.contains("needs optimizer: adam").all()
    assert "failed" not in frame.filter(~clash)["state"]
    assert said.json["trials"]["failed"] == len(failed)


def test_a_study_of_other_settings_or_another_log_or_at_work_is_left_alone(
    config: Path, space: Path, tmp_path: Path, ctrkit: Callable[..., Any]
) -> None:
    call = ("tune", config, "--space", space, "--trials", 1, "--out", tmp_path / "study")
    assert ctrkit(*call).status == 0
    for change, name in ((("--seed", 1), "seed"), (("--set", "training.batch_size=64"), "experiment.training.batch_size")):
        other = ctrkit(*call, *change)
        assert other.status == 2 and f"holds a study of other settings: {name}. Give another --out" in other.stderr
    with held(tmp_path / "study"):
        busy = ctrkit(*call)
    assert busy.status == 2 and "another search is at work in" in busy.stderr
    assert ctrkit(*call).status == 0
    log = tmp_path / "log.parquet"
    pl.read_parquet(log).head(1100).write_parquet(log)
    stale = ctrkit(*call)
    assert stale.status == 2 and "holds a study of another log: its files have changed since. Give another --out" in stale.stderr


def test_what_cannot_be_searched_is_seen_before_a_plan_is_kept(
    config: Path, tmp_path: Path, ctrkit: Callable[..., Any], trained: list[Any]
) -> None:
    study = tmp_path / "study"
    call = ("tune", config, "--trials", 1, "--out", study)
    for change, said in (
        (("--set", "model.name=dnm"), "unknown model 'dnm'. Did you mean 'dnn'?"),
        (("--set", "label=clik"), "no column 'clik'"),
        (("--set", "label=once", "--set", "training.monitor=logloss"), "its labels are all of one class"),
    ):
        refused = ctrkit(*call, *change)
        assert refused.status == 2 and said in refused.stderr, refused.stderr
    assert trained == [] and not (study / "plan.yaml").exists()
    assert ctrkit(*call).status == 0, "with the label mended the same folder will do"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: [deepfmm]", "models: unknown model 'deepfmm'. Did you mean 'deepfm'?"),
        ("models: [mmoe]", "models: mmoe: model 'mmoe' predicts several labels"),
        ("setings: {}", "unknown key 'setings'. Did you mean 'settings'?"),
        ("settings: {embedding.dimm: [4]}", "settings.embedding.dimm: unknown key 'embedding.dimm'. Did you mean 'dim'?"),
        ("settings: {embedding.dim: 4}", "settings.embedding.dim: give a list of choices, or {low: .., high: ..}"),
        ("settings: {embedding.dim: [4, 0]}", "settings.embedding.dim: embedding.dim: Input should be greater than or equal to 1"),
        ("settings: {embedding.dim: {lwo: 1, high: 4}}", "unknown key 'settings.embedding.dim.lwo'. Did you mean 'low'?"),
        ("settings: {embedding.dim: {low: 4, high: 2}}", "low (4) must be below high (2)"),
        ("settings: {training.learning_rate: {low: 0, high: 1, log: true}}", "log needs a 'low' above 0"),
        ("settings: {training.learning_rate: {low: 0.1}}", "give a list of choices, or 'low' and 'high'"),
        ("settings: {embedding.dim: [4, 4]}", "a choice is there twice"),
        ("settings: {model.dropuot: [0.1]}", "no model of dnn has a setting 'dropuot'. Did you mean 'dropout'?"),
        (
            "settings: {model.dropout: {low: 0.5, high: 1.5}}",
            "settings.model.dropout: 1.5: model 'dnn': dropout: Input should be less than 1",
        ),
        ("settings: {features.price.transform: [log1p]}", "'features.price.transform' cannot be searched"),
        ("settings: {split.seed: [1, 2]}", "Name a setting of model, embedding, training, such as embedding.dim"),
        ("features: some", "features: Input should be 'all' or 'subsets'"),
        ("top: [0]", "top: keep at least 1 feature"),
        ("top: {low: 1.5, high: 4}", "top: keep at least 1 feature, counted in whole ones"),
        ("startup: 0", "startup: Input should be greater than or equal to 1"),
    ],
)
def test_a_bad_space_is_refused_with_its_key(
    config: Path, space: Path, ctrkit: Callable[..., Any], trained: list[Any], text: str, said: str
) -> None:
    space.write_text(text)
    refused = ctrkit("tune", config, "--space", space)
    assert refused.status == 2
    assert said in refused.stderr and str(space) in refused.stderr
    assert trained == []


def test_the_default_space_is_around_the_config(config: Path, tmp_path: Path, ctrkit: Callable[..., Any]) -> None:
    said = ctrkit("tune", config, "--trials", 2, "--out", tmp_path / "study")
    assert said.status == 0, said.stderr
    plan = read_plan(tmp_path / "study")
    assert plan.models == ("dnn", "deepfm", "dcnv2") and plan.space.settings["embedding.dim"].choices == (2, 4, 8)
    frame = pl.read_parquet(tmp_path / "study/trials.parquet")
    assert frame.row(0, named=True) | {"model": "dnn", "embedding.dim": 4, "feature.noise": True} == frame.row(0, named=True)


def test_a_ranking_narrows_the_features(config: Path, space: Path, tmp_path: Path, ctrkit: Callable[..., Any], trained: list[Any]) -> None:
    ranking = tmp_path / "ranking.csv"
    pl.DataFrame({"feature": ["item", "price", "user", "noise"], "score": [0.4, 0.3, 0.2, 0.0]}).write_csv(ranking)
    said = ctrkit("tune", config, "--space", space, "--select", ranking, "--trials", 5, "--out", tmp_path / "study")
    assert said.status == 0, said.stderr
    best_first = {("user", "item", "noise", "price"), ("user", "item", "price"), ("item", "price"), ("item",)}
    tried = {tuple(f.name for f in experiment.features) for experiment in trained}
    assert len(tried) > 1 and tried <= best_first, "in the config's order"
    frame = pl.read_parquet(tmp_path / "study/trials.parquet")
    assert not [name for name in frame.columns if name.startswith("feature.")] and frame["top"][0] == 4

    space.write_text(SPACE + "top: [3, 2]")
    trained.clear()
    assert ctrkit("tune", config, "--space", space, "--select", ranking, "--trials", 3, "--out", tmp_path / "narrow").status == 0
    assert {len(experiment.features) for experiment in trained} <= {2, 3}


@pytest.mark.parametrize(
    ("text", "select", "said"),
    [
        ("top: [2]", False, "'top', and there is no ranking. Give one with --select"),
        ("top: {low: 1, high: 5}", True, "'top: 5', and there are 4 features. Give at most 4."),
        ("features: all", True, "'features: all', and there is a ranking. Set features to subsets"),
    ],
)
def test_a_ranking_and_a_space_go_together(
    config: Path, space: Path, tmp_path: Path, ctrkit: Callable[..., Any], trained: list[Any], text: str, select: bool, said: str
) -> None:
    space.write_text(text)
    pl.DataFrame({"feature": ["item", "price", "user", "noise"], "score": [0.4, 0.3, 0.2, 0.0]}).write_csv(tmp_path / "ranking.csv")
    refused = ctrkit("tune", config, "--space", space, *(("--select", tmp_path / "ranking.csv") if select else ()))
    assert refused.status == 2 and said in refused.stderr
    assert trained == []


def test_no_outcome_without_a_trial_that_ended(config: Path, space: Path, ctrkit: Callable[..., Any]) -> None:
    said = ctrkit("tune", config, "--space", space, "--minutes", 0)
    assert said.status == 2 and "no trial in" in said.stderr and "Mend the search space, or give a larger budget" in said.stderr
