import gzip
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import pipelines.score
from ctrkit.bundle import MANIFEST_FILE, MODEL_FILE
from ctrkit.errors import CtrkitError
from pipelines.score import score
from tests.handmade import make_bundle, probability

ROWS = [
    {
        "user": ["u1", "u2", "nobody", None][i % 4],
        "age": i if i % 3 else None,
        "price": i / 10 if i % 5 else None,
        "tags": [None, "a", "a|b"][i % 3],
    }
    for i in range(50)
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repo = tmp_path_factory.mktemp("repo")
    make_bundle(repo, version=1, shift=5.0)
    return make_bundle(repo, version=2)


@pytest.fixture
def log() -> pl.DataFrame:
    return pl.DataFrame(ROWS, schema={"user": pl.String, "age": pl.Int64, "price": pl.Float64, "tags": pl.String})


def test_every_layout_gets_the_same_probabilities(bundle: Path, log: pl.DataFrame, tmp_path: Path) -> None:
    log = log.with_columns(other=pl.lit("not a feature"))
    log.write_csv(tmp_path / "log.csv")
    log.write_csv(tmp_path / "log.tsv", separator="\t")
    log.write_parquet(tmp_path / "log.parquet")
    log.write_ndjson(tmp_path / "log.jsonl")
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress((tmp_path / "log.csv").read_bytes()))
    expected = [probability(row) for row in ROWS]
    for name in ("log.csv", "log.tsv", "log.parquet", "log.jsonl", "log.csv.gz"):
        done = score(bundle, tmp_path / name, tmp_path / "out.parquet")
        got = pl.read_parquet(tmp_path / "out.parquet")
        assert got.schema == {"probability": pl.Float32} and done["rows"] == len(ROWS)
        np.testing.assert_allclose(got["probability"], expected, rtol=1e-5, err_msg=name)


def test_batches_and_chunks_join_in_order(bundle: Path, log: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.score, "READ_ROWS", 7)
    monkeypatch.setattr(pipelines.score, "BATCH_ROWS", 3)
    log.with_row_index("row").write_parquet(tmp_path / "log.parquet")
    for name in ("out.parquet", "out.csv"):
        score(bundle, tmp_path / "log.parquet", tmp_path / name, keep=["row", "user"], threads=3)
        got = (pl.read_parquet if name == "out.parquet" else pl.read_csv)(tmp_path / name)
        assert got.columns == ["row", "user", "probability"]
        assert got["row"].to_list() == list(range(len(ROWS)))
        np.testing.assert_allclose(got["probability"], [probability(row) for row in ROWS], rtol=1e-5)


def test_a_models_folder_stands_for_its_latest_version(bundle: Path, log: pl.DataFrame, tmp_path: Path) -> None:
    log.write_parquet(tmp_path / "log.parquet")
    score(bundle.parent, tmp_path / "log.parquet", tmp_path / "out.parquet")
    np.testing.assert_allclose(pl.read_parquet(tmp_path / "out.parquet")["probability"][0], probability(ROWS[0]), rtol=1e-5)


def test_the_layout_may_come_from_an_experiment(bundle: Path, log: pl.DataFrame, tmp_path: Path) -> None:
    log.drop("price").with_columns(item=pl.int_range(pl.len()) % 2).write_csv(tmp_path / "log.dat", separator=";", include_header=False)
    pl.DataFrame({"item": [0, 1], "price": [1.5, 2.5]}).write_csv(tmp_path / "items.csv")
    (tmp_path / "config.yaml").write_text(
        f"""
name: shop
data: {{path: elsewhere.csv, separator: ";", header: false, columns: [user, age, tags, item], joins: [{{path: {tmp_path}/items.csv, on: item}}]}}
label: click
features: [{{name: user, kind: categorical}}]
"""
    )
    score(bundle, tmp_path / "log.dat", tmp_path / "out.csv", config=tmp_path / "config.yaml")
    expected = [probability({**row, "price": [1.5, 2.5][i % 2]}) for i, row in enumerate(ROWS)]
    np.testing.assert_allclose(pl.read_csv(tmp_path / "out.csv")["probability"], expected, rtol=1e-5)


def test_a_file_without_rows_gives_a_file_without_rows(bundle: Path, log: pl.DataFrame, tmp_path: Path) -> None:
    log.clear().write_csv(tmp_path / "log.csv")
    for name in ("out.csv", "out.parquet"):
        assert score(bundle, tmp_path / "log.csv", tmp_path / name)["rows"] == 0
    assert (tmp_path / "out.csv").read_text() == "probability\n"
    assert pl.read_parquet(tmp_path / "out.parquet").shape == (0, 1)


def test_what_is_wrong_is_named_and_no_output_is_left(bundle: Path, log: pl.DataFrame, tmp_path: Path) -> None:
    log.drop("price").write_csv(tmp_path / "short.csv")
    log.with_columns(pl.when(pl.int_range(pl.len()) == 30).then(pl.lit("much")).otherwise(pl.lit("1")).alias("price")).write_csv(
        tmp_path / "text.csv"
    )
    log.write_csv(tmp_path / "log.csv")
    log.rename({"tags": "probability"}).with_columns(tags=pl.lit("")).write_csv(tmp_path / "taken.csv")
    inputs = sorted(path.name for path in tmp_path.iterdir())
    for arguments, message in (
        (("short.csv", "out.csv"), "no column 'price' in .*short.csv"),
        (("text.csv", "out.parquet"), "column 'price', row 31: 'much' is not a number"),
        (("nowhere.csv", "out.csv"), "no file at .*nowhere.csv"),
        (("log.csv", "out.xlsx"), "neither the suffix .parquet nor .csv"),
    ):
        with pytest.raises(CtrkitError, match=message):
            score(bundle, *(tmp_path / argument for argument in arguments))
    with pytest.raises(CtrkitError, match="'probability' cannot be kept"):
        score(bundle, tmp_path / "taken.csv", tmp_path / "out.csv", keep=["probability"])
    with pytest.raises(CtrkitError, match="cannot be written"):
        score(bundle, tmp_path / "log.csv", tmp_path / "log.csv" / "out.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == inputs


def test_the_input_is_not_replaced_by_its_predictions(bundle: Path, log: pl.DataFrame, tmp_path: Path) -> None:
    log.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "log.parquet")
    before = (tmp_path / "log.parquet").read_bytes()
    for input, output in (("log.parquet", "log.parquet"), ("link.parquet", "log.parquet"), ("lo?.parquet", "log.parquet")):
        with pytest.raises(CtrkitError, match="the output '.*log.parquet' is a file that is read. Name another with --output"):
            score(bundle, tmp_path / input, tmp_path / output)
    assert (tmp_path / "log.parquet").read_bytes() == before


def test_a_bad_cell_is_named_with_its_file(bundle: Path, log: pl.DataFrame, tmp_path: Path) -> None:
    log.write_csv(tmp_path / "part1.csv")
    log.with_columns(price=pl.lit("much")).write_csv(tmp_path / "part2.csv")
    with pytest.raises(CtrkitError, match="in '.*part2.csv': column 'price', row 1: 'much' is not a number"):
        score(bundle, tmp_path / "part?.csv", tmp_path / "out.csv")


def test_columns_that_cannot_be_kept(bundle: Path, log: pl.DataFrame, tmp_path: Path) -> None:
    lists = log.with_columns(lists=pl.concat_list("user"), binary=pl.lit(b"x"))
    lists.with_columns(note=pl.lit(1)).write_parquet(tmp_path / "part1.parquet")
    lists.with_columns(note=pl.lit("x")).write_parquet(tmp_path / "part2.parquet")
    inputs = sorted(path.name for path in tmp_path.iterdir())
    for keep, output, message in (
        (["user", "user"], "out.csv", "the column 'user' is to be kept twice. Name it once with --keep"),
        (
            ["lists"],
            "out.csv",
            r"the column 'lists' to keep is of type List\(String\) in '.*part1.parquet'.* Write the predictions to a .parquet",
        ),
        (["binary"], "out.csv", "the column 'binary' to keep is of type Binary"),
        (
            ["note"],
            "out.parquet",
            "the column 'note' to keep is of type large_string in '.*part2.parquet', and was of type int32.* to a .csv",
        ),
    ):
        with pytest.raises(CtrkitError, match=message):
            score(bundle, tmp_path / "part?.parquet", tmp_path / output, keep=keep)
    assert sorted(path.name for path in tmp_path.iterdir()) == inputs
    score(bundle, tmp_path / "part?.parquet", tmp_path / "out.parquet", keep=["lists"])
    score(bundle, tmp_path / "part?.parquet", tmp_path / "out.csv", keep=["note"])
    assert pl.read_csv(tmp_path / "out.csv")["note"].to_list() == ["1"] * len(ROWS) + ["x"] * len(ROWS)


def test_a_row_whose_probability_is_no_number_is_named_and_nothing_is_written(
    log: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.score, "READ_ROWS", 7)
    monkeypatch.setattr(pipelines.score, "BATCH_ROWS", 3)
    folder = make_bundle(tmp_path / "repo", shift=math.inf)
    low = pl.when(pl.int_range(pl.len()) == 30).then(-1e300).otherwise("price")
    log.with_columns(low.alias("price")).write_csv(tmp_path / "low.csv")
    for name in ("out.parquet", "out.csv"):
        with pytest.raises(CtrkitError, match=r"row 31 of '.*low.csv', column 'price': .* whose largest number is -1e\+300: correct it"):
            score(folder, tmp_path / "low.csv", tmp_path / name, threads=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["low.csv", "repo"]


def test_a_file_laid_out_otherwise_wants_a_config(bundle: Path, log: pl.DataFrame, tmp_path: Path) -> None:
    log.write_csv(tmp_path / "semicolons.csv", separator=";")
    (tmp_path / "headless.csv").write_text("u1,,,,u1\n")
    (tmp_path / "log.txt").write_text("user\nu1\n")
    for name, message in (
        ("semicolons", "separator may be wrong"),
        ("headless", "names the column '' more than once"),
        ("log.txt", "format"),
    ):
        with pytest.raises(CtrkitError, match=f"{message}.* in an experiment that you name with --config"):
            score(bundle, tmp_path / (name if "." in name else f"{name}.csv"), tmp_path / "out.csv")


def test_a_history_is_no_column_of_the_log_it_was_made_of(log: pl.DataFrame, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    history = {"by": "user", "time": "time"}
    manifest["features"][3] |= {"kind": "sequence", "of": "user", "history": history}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    log.drop("tags").write_csv(tmp_path / "log.csv")
    with pytest.raises(CtrkitError, match="no column 'tags': a history, which prepare made of the log. Give it as a column"):
        score(folder, tmp_path / "log.csv", tmp_path / "out.csv")


def test_a_damaged_bundle_is_refused(log: pl.DataFrame, tmp_path: Path) -> None:
    log.write_csv(tmp_path / "log.csv")
    folder = make_bundle(tmp_path / "repo")
    with (folder / MODEL_FILE).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CtrkitError, match="corrupted"):
        score(folder, tmp_path / "log.csv", tmp_path / "out.csv")


def test_scoring_needs_no_torch(bundle: Path, log: pl.DataFrame, tmp_path: Path) -> None:
    log.write_csv(tmp_path / "log.csv")
    program = """
import sys
sys.modules.update(dict.fromkeys(["torch", "torchrec", "onnx", "polars_hash", "matplotlib"]))  # importing one raises ImportError
from pipelines.score import score
assert score(*sys.argv[1:])["rows"] == 50
"""
    subprocess.run([sys.executable, "-c", program, str(bundle), str(tmp_path / "log.csv"), str(tmp_path / "out.csv")], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_long_file_is_scored_in_bounded_memory(bundle: Path, tmp_path: Path) -> None:
    rows = 1_000_000
    log = pl.DataFrame({"user": ["u" * 500, "v" * 500]}).select(
        pl.col("user").repeat_by(rows // 2).explode(), age=1, price=0.5, tags=pl.lit("a")
    )
    log.write_parquet(tmp_path / "log.parquet", row_group_size=50_000)
    program = """
import re, sys
from pipelines.score import score
assert score(*sys.argv[1:])["rows"] == 1_000_000
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024)
"""
    command = [sys.executable, "-c", program, str(bundle), str(tmp_path / "log.parquet"), str(tmp_path / "out.parquet")]
    peak_mb = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peak_mb < 800, "all rows at once would take 500 MB as a column and as much again as Python strings, beside 300 MB of libraries"
