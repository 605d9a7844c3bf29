"""The benchmark trains what it says, goes on where it was stopped and reports by slice."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from ctrkit.config import ModelChoice
from ctrkit.errors import CtrkitError
from ctrkit.retrieval.config import RetrievalExperiment, load_retrieval
from ctrkit.retrieval.methods import method_of
from pipelines.bench.process import Ended, run_command
from pipelines.bench.recbole import RecBole, parse_settings
from pipelines.bench.retrieval import NAMES, bench_retrieval, with_method

CONFIG = """
task: retrieval
name: shop
data: {path: log.csv}
user: user
item: item
item_features: [{name: item, kind: categorical}, {name: colour, kind: categorical}]
user_features: [{name: user, kind: categorical}]
model: {name: two_tower, hidden: [8], temperature: 0.2, auxiliary: {kind: ssl, weight: 0.5}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "shop.yaml"
    path.write_text(CONFIG)
    return path


def fake_training(ran: list[RetrievalExperiment]) -> Callable[..., Ended]:
    """In place of ``ctrkit train``: a recall by the seed and the share; nothing cold is found."""

    def run(arguments: list[str], threads: int | None = None) -> Ended:
        experiment = load_retrieval(arguments[1], [arguments[3]])
        ran.append(experiment)
        if experiment.model.name == "als":
            return Ended(2, json.dumps({"error": "no"}), "error: no")
        value = experiment.split.train_share * (0.1 + experiment.training.seed / 100)
        figures = {"recall@10": value, "ndcg@10": value / 2, "mrr": value / 3}
        whole = {**figures, "novelty@10": 9.0, "popularity_bias@10": None}
        slices = {"head": {**figures, "queries": 7}, "cold_items": {**dict.fromkeys(figures, 0.0), "queries": 2}}
        return Ended(0, "text\n" + json.dumps({"test": whole, "slices": slices, "seconds": 3.0}) + "\n", "")

    return run


def test_a_benchmark_is_resumed_and_reported(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[RetrievalExperiment] = []
    monkeypatch.setattr("pipelines.bench.retrieval.run_command", fake_training(ran))
    out, said = tmp_path / "bench", []

    def bench(seeds: int, *overrides: str) -> list[dict]:
        return bench_retrieval([config], overrides, ["two_tower", "ssl", "als"], seeds, [0.5, 1.0], out, said.append)

    rows = bench(2)
    assert len(ran) == 3 * 2 * 2
    assert any("shop als share 1 seed 1: failed: error: no" in text for text in said)
    first = rows[0]
    assert (first["method"], first["share"], first["slice"], first["seeds"]) == ("two_tower", 0.5, "all", 2)
    assert first["recall@10"] == pytest.approx(0.5 * 0.115) and first["recall@10_std"] == pytest.approx(0.5 * 0.005)
    assert first["popularity_bias@10"] is None
    assert {(row["method"], row["slice"]) for row in rows} == {
        (method, part) for method in ("two_tower", "ssl") for part in ("all", "head", "cold_items")
    }
    assert pl.read_parquet(out / "results.parquet").height == len(rows) == 12
    report = (out / "report.md").read_text()
    assert "## shop, 50% of the training events" in report and "| two_tower | 0.0000 ± 0.0000 | 0.0575 ± 0.0025 |" in report
    ran.clear()
    bench(3)
    assert sorted({e.training.seed for e in ran if e.model.name != "als"}) == [3], "the others are there already"
    with pytest.raises(CtrkitError, match="holds a benchmark of other settings"):
        bench(3, "training.batch_size=7")


def test_every_method_is_one_that_can_be_trained(config: Path) -> None:
    base = load_retrieval(config)
    for name in NAMES:
        experiment = with_method(base, name, 0.5)
        _, settings = method_of(experiment.model)
        assert experiment.split.train_share == 0.5
        if hasattr(settings, "temperature"):
            assert settings.temperature == 0.2, "the config's own"
    assert method_of(with_method(base, "two_tower", 1.0).model)[1].auxiliary is None
    assert method_of(with_method(base, "ssl_random", 1.0).model)[1].auxiliary.masking == "random"


def test_the_config_s_own_method_keeps_its_settings(config: Path) -> None:
    base = load_retrieval(config, ["model={name: sasrec, dropout: 0.4}"])
    assert method_of(with_method(base, "sasrec", 1.0).model)[1].dropout == 0.4
    assert method_of(with_method(base, "two_tower", 1.0).model)[1].dropout == 0, "and gives them to no other"
    assert method_of(with_method(base, "als", 1.0).model) == method_of(ModelChoice(name="als"))


def test_a_benchmark_of_which_all_fails_is_an_error(config: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(CtrkitError, match="no training ended well"):
        bench_retrieval([config], ["model={name: sasrec, dropout: 2}"], ["sasrec"], 1, [], tmp_path / "bench", said.append)
    assert "dropout: Input should be less than 1" in said[0]


def test_an_unknown_method_is_named(config: Path, tmp_path: Path) -> None:
    with pytest.raises(CtrkitError, match="Did you mean 'sasrec'"):
        bench_retrieval([config], [], ["sas_rec"], 1, [], tmp_path)


PERFECT_PEER = """#!{python}
import json, sys
from pathlib import Path
import numpy as np
safe, script, folder, model, seed, length, longest = sys.argv[1:]
folder = Path(folder)
assert (safe, Path(script).name, model, seed, longest) == ("-P", "recbole_script.py", "BPR", "1", "50")
asked = np.load(folder / "queries.npz")
for kind, columns, trained in (("pairs", 2, 8 * 4), ("sequences", 3, 8 * 3)):
    for split, count in (("train", trained), ("valid", 3)):
        lines = (folder / kind / f"{{kind}}.{{split}}.inter").read_text().splitlines()
        assert all(line.count("\\t") == columns - 1 for line in lines) and len(lines) == 1 + count
assert json.loads((folder / "settings.json").read_text()) == {{"learning_rate": 0.005, "layers": [8, 4]}}
lists = np.tile(np.arange(int(length)), (len(asked["user"]), 1))
np.savez(folder / "ranked.npz", lists=lists, ranks=np.ones(len(asked["targets"]), np.int64))
(folder / "result.json").write_text(json.dumps({{"params": 7, "epochs": 2, "valid": 0.5}}))
"""


def test_recbole_is_measured_on_the_same_queries(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer stands in for one that finds every target first."""
    monkeypatch.chdir(tmp_path)
    events = [(f"u{user}", f"i{(user + step) % 60}") for user in range(8) for step in range(6)]
    colours = "".join(f"i{item},{'red' if item % 2 else 'blue'}\n" for item in range(60))
    (tmp_path / "log.csv").write_text("user,item\n" + "".join(f"{user},{item}\n" for user, item in events))
    (tmp_path / "items.csv").write_text("item,colour\n" + colours)
    config.write_text(CONFIG.replace("user: user\n", "items: {path: items.csv, on: item}\nuser: user\n"))
    peer = tmp_path / "python"
    peer.write_text(PERFECT_PEER.format(python=sys.executable))
    peer.chmod(0o755)
    said: list[str] = []
    given = RecBole(peer, parse_settings(["learning_rate=5e-3", "layers=[8, 4]"]))

    def bench(recbole: RecBole) -> list[dict]:
        return bench_retrieval([config], ["evaluation.valid_queries=3"], ["recbole_bpr"], 1, [], tmp_path / "bench", said.append, recbole)

    rows = bench(given)
    assert not any("failed" in text for text in said), said
    assert (rows[0]["method"], rows[0]["slice"], rows[0]["recall@10"], rows[0]["mrr"]) == ("recbole_bpr", "all", 1.0, 1.0)
    (kept,) = map(json.loads, (tmp_path / "bench/results.jsonl").read_text().splitlines())
    assert (kept["result"]["valid"], kept["result"]["epochs"]) == ({"ndcg@10": 0.5}, 2)
    with pytest.raises(CtrkitError, match=r"holds a benchmark of other settings: .*recbole.json' differs"):
        bench(RecBole(peer))


def test_recbole_needs_its_python(config: Path, tmp_path: Path) -> None:
    with pytest.raises(CtrkitError, match="--peer-python"):
        bench_retrieval([config], [], ["recbole_bpr"], 1, [], tmp_path)


@pytest.mark.parametrize("verb", [["retrieval", "c.yaml"], ["rank"], ["serving", "repo"]])
def test_a_python_that_is_not_there_is_named(verb: list[str]) -> None:
    ended = run_command(["bench", *verb, "--peer-python", "/nowhere/python"])
    assert ended.status == 2
    assert "cannot run /nowhere/python" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--peer-set", "layers=[1]"], "no Python that has it is named"),
        (["--peer-python", sys.executable, "--peer-set", "layers"], "--peer-set layers has no value"),
        (["--peer-python", sys.executable, "--peer-set", "layers=["], "cannot be read as YAML"),
        (["--peer-python", sys.executable, "--peer-set", "seed=4"], "--peer-set seed: the benchmark sets it"),
        (["--peer-python", sys.executable, "--method", "als"], "--peer-python: no method of RecBole is measured"),
    ],
)
def test_settings_of_recbole_are_checked_before_anything_runs(options: list[str], said: str, config: Path, tmp_path: Path) -> None:
    ended = run_command(["bench", "retrieval", str(config), *options, "--out", str(tmp_path / "bench")])
    assert ended.status == 2 and said in ended.stderr, ended.stderr
    assert not (tmp_path / "bench").exists()
