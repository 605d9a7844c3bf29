"""The benchmark of rank measures whole commands and judges rankings by what is known. outrank is played by a script."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.bench.rank import Feature, make_log, quality
from pipelines.bench.watch import watch

PEER = """#!{python}
import sys, time
options = dict(zip(sys.argv[3::2], sys.argv[4::2]))
assert sys.argv[1:3] == ["-m", "outrank"] and options["--subsampling"] == "1" and options["--data_source"] == "csv-raw"
header = open(options["--data_path"] + "/data.csv").readline().strip().split(",")
assert header[0] == "label"
time.sleep({sleep})
with open(options["--output_folder"] + "/pairwise_ranks.tsv", "w") as out:
    out.write("FeatureA\\tFeatureB\\tScore\\n")
    for feature in header:
        score = 1.0 if feature == "label" else 0.5 * feature.startswith("noise")
        out.write(f"{{feature}}\\tlabel\\t{{score}}\\nlabel\\t{{feature}}\\t{{score}}\\n")
sys.exit({status})
"""


@pytest.fixture
def peer(tmp_path: Path) -> Callable[..., Path]:
    def write(sleep: float = 0, status: int = 0) -> Path:
        path = tmp_path / "python"
        path.write_text(PEER.format(python=sys.executable, sleep=sleep, status=status))
        path.chmod(0o755)
        return path

    return write


def test_both_sides_are_measured_and_judged(tmp_path: Path, ctrkit: Callable[..., Any], peer: Callable[..., Path]) -> None:
    said = ctrkit("bench", "rank", "--rows", 20_000, "--features", 8, "--peer-python", peer(), "--out", tmp_path / "out")
    assert said.status == 0, said.stderr
    single, pairs, *theirs = said.json
    assert (single["side"], single["what"], pairs["what"]) == ("ctrkit", "single features", "all pairs")
    assert single["times_seconds"] == 1 and single["peak_mb"] > 50 and single["seconds"] > 0.1 < single["cpu_seconds"]
    assert single["auc"] > 0.5
    assert [run["how"] for run in theirs] == ["batches of 16,384", "one batch of all rows", "one batch of 16,384"]
    assert all((run["recall"], run["auc"]) == (0, 0) for run in theirs)  # it puts all noise first
    assert theirs[2]["times_seconds"] == pytest.approx(theirs[2]["seconds"] / pairs["seconds"])
    assert pl.read_parquet(tmp_path / "out/table.parquet").height == 5


def test_a_peer_that_takes_too_long_is_stopped(tmp_path: Path, ctrkit: Callable[..., Any], peer: Callable[..., Path]) -> None:
    options = ("--rows", 2000, "--features", 4, "--peer-limit", 1, "--out", tmp_path / "out")
    said = ctrkit("bench", "rank", *options, "--peer-python", peer(sleep=60))
    assert said.status == 0, said.stderr
    assert all(not run["finished"] and 1 < run["seconds"] < 20 and run["recall"] is None for run in said.json[2:])
    assert "more than 1" in (tmp_path / "out/table.md").read_text()


def test_a_peer_that_fails_is_an_error(tmp_path: Path, ctrkit: Callable[..., Any], peer: Callable[..., Path]) -> None:
    said = ctrkit("bench", "rank", "--rows", 2000, "--features", 4, "--out", tmp_path / "out", "--peer-python", peer(status=3))
    assert said.status == 2 and "outrank ended with status 3" in said.json["error"]


def test_quality_of_a_ranking() -> None:
    truth = [Feature("a", 10, 0.1), Feature("b", 10, 0.1), Feature("wide", 5000, 0), Feature("narrow", 3, 0)]
    assert quality(["a", "b", "narrow", "wide"], truth) == {"recall": 1, "wide_noise": 0, "auc": 1}
    assert quality(["wide", "a", "narrow", "b"], truth) == {"recall": 0.5, "wide_noise": 1, "auc": 0.25}


def test_the_log_holds_what_it_says(tmp_path: Path) -> None:
    truth = make_log(tmp_path / "data.csv", 5000, 12, seed=1)
    frame = pl.read_csv(tmp_path / "data.csv")
    assert set(frame.columns) == {"label", *(feature.name for feature in truth)} and frame.columns[0] == "label"
    assert sum(feature.relevant for feature in truth) == 3
    assert all(frame[feature.name].n_unique() <= feature.values for feature in truth)
    assert make_log(tmp_path / "again.csv", 5000, 12, seed=1) == truth
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "data.csv").read_bytes()


def test_children_are_watched_with_their_parents(tmp_path: Path) -> None:
    child = "x = bytearray(150_000_000)\nimport time\nfor i in range(0, len(x), 4096): x[i] = 1\ntime.sleep(1)"
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    seen = watch([sys.executable, "-c", parent], tmp_path / "log")
    assert seen.finished and seen.status == 0 and seen.seconds > 1
    assert 150 < seen.peak_mb < 250
