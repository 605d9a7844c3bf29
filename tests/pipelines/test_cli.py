import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import typer
from sklearn.metrics import log_loss, roc_auc_score
from typer.testing import CliRunner

from ctrkit.errors import CtrkitError
from pipelines.cli import app, share_the_cores
from pipelines.terminal import Terminal, terminal, to_json

VERBS = [
    ["quickstart"],
    ["data", "list"],
    ["data", "simulate"],
    ["validate"],
    ["prepare"],
    ["train"],
    ["evaluate"],
    ["explain"],
    ["export"],
    ["score"],
    ["serve"],
    ["models"],
    ["doctor"],
    ["bench", "prepare"],
    ["bench", "training"],
    ["bench", "models"],
    ["bench", "unified"],
]


# -- the journey: every verb's JSON


def test_every_verb_of_the_journey_succeeds_with_one_json_line_on_stdout(journey) -> None:
    for said in (journey.simulate, journey.validate, journey.prepare, journey.train, journey.evaluate, journey.export, journey.score):
        assert said.status == 0
        assert len(said.stdout.splitlines()) == 1
        assert said.stderr.strip()


def test_simulate(journey) -> None:
    assert journey.simulate.json["rows"] == 3000
    assert pl.scan_parquet(journey.simulate.json["files"]).select(pl.len()).collect().item() == 3000


def test_validate(journey) -> None:
    assert journey.validate.json["ok"] is True
    assert journey.validate.json["features"] == 8
    assert set(journey.validate.json["unused"]) == {"interest", "country", "brand", "site", "position", "visits", "true_probability"}


def test_prepare(journey) -> None:
    said = journey.prepare.json
    assert {"dataset", "rows", "rows_per_s", "peak_mb", "seconds"} <= set(said)
    assert set(said["rows"]) == {"train", "valid", "test"}
    assert sum(said["rows"].values()) == 3000
    assert (Path(said["dataset"]) / "dataset.json").is_file()


def test_train_reuses_the_prepared_dataset(journey) -> None:
    said = journey.train.json
    assert {"run", "valid", "test", "samples_per_s", "params", "epochs", "seconds"} <= set(said)
    assert {"auc", "logloss"} <= set(said["valid"]) & set(said["test"])
    assert said["epochs"] == 2
    assert [path.name for path in (journey.folder / "out/datasets").iterdir()] == [Path(journey.prepare.json["dataset"]).name]


def test_evaluate_measures_what_training_measured(journey) -> None:
    assert journey.evaluate.json["split"] == "test"
    assert journey.evaluate.json["metrics"] == pytest.approx(journey.train.json["test"], abs=1e-6)


def test_export(journey) -> None:
    said = journey.export.json
    assert {"bundle", "max_abs_diff", "bytes"} <= set(said)
    assert said["max_abs_diff"] <= 1e-5
    assert {"model.onnx", "manifest.json"} <= {path.name for path in journey.bundle.iterdir()}


def test_the_size_of_a_small_bundle_is_no_zero(journey) -> None:
    assert re.search(r"\([1-9][0-9.]* kB\)", journey.export.stderr), journey.export.stderr


def test_scores_of_the_test_rows_have_the_metrics_of_training(journey) -> None:
    assert {"rows", "rows_per_s", "output"} <= set(journey.score.json)
    scored = pl.read_parquet(journey.score.json["output"])
    assert scored.columns == ["click", "probability"]
    assert journey.score.json["rows"] == scored.height == 3000
    test = scored.tail(journey.prepare.json["rows"]["test"])
    assert roc_auc_score(test["click"], test["probability"]) == pytest.approx(journey.train.json["test"]["auc"], abs=1e-4)
    assert log_loss(test["click"], test["probability"]) == pytest.approx(journey.train.json["test"]["logloss"], abs=1e-4)


def test_people_get_tables_on_stdout(journey, ctrkit: Callable) -> None:
    said = ctrkit("evaluate", journey.run, as_json=False)
    assert said.status == 0
    assert "auc" in said.stdout and "logloss" in said.stdout


# -- models, data, doctor, bench


def test_models(ctrkit: Callable) -> None:
    said = ctrkit("models")
    assert {model["name"] for model in said.json} >= {"lr", "fm", "dnn", "dlrm", "deepfm", "autoint"}
    assert all({"name", "kind", "paper"} <= set(model) for model in said.json)
    autoint = next(model for model in said.json if model["name"] == "autoint")
    assert {"layers", "heads"} <= {setting["name"] for setting in autoint["settings"]}


def test_data_list_names_the_shipped_configs(ctrkit: Callable) -> None:
    said = ctrkit("data", "list")
    root = Path(__file__).parents[2]
    assert len(said.json) >= 6
    for known in said.json:
        assert {"name", "config"} <= set(known)
        assert (root / known["config"]).is_file()


def test_doctor(ctrkit: Callable) -> None:
    said = ctrkit("doctor")
    assert said.status == 0
    assert said.json["ok"] is True
    assert {"torch", "torchrec", "onnxruntime", "polars"} <= {package["package"] for package in said.json["packages"]}


def test_simulate_csv(tmp_path: Path, ctrkit: Callable) -> None:
    said = ctrkit("data", "simulate", "--rows", 1000, "--format", "csv", "--out", tmp_path / "log")
    frame = pl.read_csv(said.json["files"][0])
    assert frame.height == 1000
    assert {"click", "true_probability", "tags"} <= set(frame.columns)


# -- help


@pytest.mark.parametrize("verb", [[], ["data"], ["bench"], *VERBS], ids=" ".join)
def test_every_verb_has_help_with_every_option_explained(verb: list[str]) -> None:
    result = CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": "300", "TERM": "dumb"})
    assert result.exit_code == 0
    options = [line for line in result.stdout.splitlines() if re.match(r"│ (\*\s+)?-", line)]
    assert options
    for line in options:
        assert re.search(r"[A-Za-z][^<>]{12,}│$", line), line


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_takes_json(verb: list[str]) -> None:
    assert "--json" in CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": "300", "TERM": "dumb"}).stdout


def test_help_lists_the_verbs_in_the_order_of_use() -> None:
    said = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
    order = ["quickstart", "data", "validate", "prepare", "train", "evaluate", "explain", "export", "score", "serve", "models", "doctor"]
    places = [said.index(f"│ {verb} ") for verb in order]
    assert places == sorted(places)


def test_version() -> None:
    import ctrkit

    assert CliRunner().invoke(app, ["--version"]).stdout.strip() == ctrkit.__version__


# -- errors: one line on stderr, exit status 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["validate", "nothing.yaml"], "no config file at 'nothing.yaml'"),
        (["validate", "CONFIG", "--set", "trainig.epochs=1"], "Did you mean 'training'?"),
        (["validate", "CONFIG", "--set", "data.path=nothing.csv"], "no file at 'nothing.csv'"),
        (["validate", "CONFIG", "--set", "features.price.name=prize"], "no column 'prize'"),
        (["validate", "CONFIG", "--set", "label=clicks"], "Did you mean 'click'?"),
        (["validate", "CONFIG", "--set", "split.column=timestmp"], "Did you mean 'timestamp'?"),
        (["validate", "CONFIG", "--set", "model.name=autoimt"], "Did you mean 'autoint'?"),
        (["validate", "CONFIG", "--set", "model.hiden=[4]"], "Did you mean 'hidden'?"),
        (["train", "CONFIG", "--set", "model.name=autoimt"], "Did you mean 'autoint'?"),
        (["train", "CONFIG", "--set", "split.valid=0.0001"], "split"),
        (["train", "CONFIG", "--set", "name=other", "--resume"], "to resume"),
        (["evaluate", "nothing"], "no run folder at 'nothing'"),
        (["evaluate", "RUN", "--split", "tests"], "tests"),
        (["explain", "nothing"], "no run folder at 'nothing'"),
        (["explain", "LOG"], "is not a run"),
        (["explain", "RUN", "--split", "tests"], "Name one of train, valid, test"),
        (["explain", "RUN", "--row", "100000"], "no row 100000"),
        (["explain", "RUN", "--row-json", '{"user": "u1"}'], "Did you mean 'user_id'?"),
        (["explain", "RUN", "--row-json", '{"price": "9.5"}'], "expected a number"),
        (["explain", "RUN", "--row-json", '["u1"]'], "expected an object"),
        (["explain", "RUN", "--row-json", "{user_id: u1}"], "--row-json is not JSON"),
        (["explain", "RUN", "--row-json", "{}", "--row", "1"], "Give one of them"),
        (["explain", "RUN", "--row", "1", "--out", "CONFIG"], "Name a folder with --out"),
        (["export", "nothing"], "no run folder at 'nothing'"),
        (["score", "nothing", "a.csv"], "nothing"),
        (["score", "BUNDLE", "nothing.csv"], "no file at 'nothing.csv'"),
        (["serve", "nothing"], "nothing"),
        (["data", "simulate", "--out", "LOG"], "already holds a log"),
        (["data", "simulate", "--out", "CONFIG"], "cannot be made: File exists. Name a folder that can be written"),
        (["quickstart", "--out", "CONFIG"], "cannot be made: Not a directory. Name a folder that can be written"),
        (["tune", "CONFIG", "--out", "CONFIG"], "cannot be made: File exists. Give an --out that can be written"),
        (["validate", "PART"], "cannot be read: Not a directory. Check the path"),
    ],
)
def test_what_the_user_can_mend_is_one_line(journey, ctrkit: Callable, arguments: list[str], expected: str) -> None:
    places = {"CONFIG": journey.config, "RUN": journey.run, "BUNDLE": journey.bundle, "LOG": journey.folder / "log"}
    places["PART"] = journey.config / "part.yaml"
    said = ctrkit(*(places.get(a, a) for a in arguments))
    assert said.status == 2
    (line,) = [line for line in said.stderr.splitlines() if line.startswith("error: ")]
    assert expected in line
    assert said.json == {"error": line.removeprefix("error: ")}
    assert "Traceback" not in said.stderr


def test_validate_says_all_that_is_wrong_at_once(journey, ctrkit: Callable) -> None:
    said = ctrkit("validate", journey.config, "--set", "features.price.name=prize", "--set", "model.name=autoimt")
    assert "'prize'" in said.json["error"] and "'autoimt'" in said.json["error"]


def test_validate_reads_no_rows(journey, ctrkit: Callable, tmp_path: Path) -> None:
    """A log whose rows are broken beyond its header is still fine for validate, and not for prepare."""
    log = tmp_path / "broken.csv"
    log.write_bytes(b"user,price,click\n" + b"u1,2.5,1\n" * 200_000 + b"\xff\xfe broken,\n")
    config = tmp_path / "broken.yaml"
    features = "[{name: user, kind: categorical}, {name: price, kind: numeric}]"
    config.write_text(f"name: broken\ndata: {{path: {log}}}\nlabel: click\nfeatures: {features}\noutput: {tmp_path}/out\n")
    assert ctrkit("validate", config).status == 0
    said = ctrkit("prepare", config)
    assert said.status == 2
    assert "row 200,001" in said.json["error"]


def test_a_wrong_separator_is_named(ctrkit: Callable, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user;click\nu1;1\n")
    config = tmp_path / "a.yaml"
    config.write_text(f"name: a\ndata: {{path: {tmp_path}/log.csv}}\nlabel: click\nfeatures: [{{name: user, kind: categorical}}]\n")
    assert "separator" in ctrkit("validate", config).json["error"]


def test_a_damaged_bundle_is_refused(journey, ctrkit: Callable, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "small" / "1"
    shutil.copytree(journey.bundle, copy)
    model = copy / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    said = ctrkit("score", copy, journey.folder / "log/part-00000.parquet", "--output", tmp_path / "p.csv")
    assert said.status == 2
    assert "model.onnx" in said.json["error"]
    assert not (tmp_path / "p.csv").exists()


def test_several_processes_want_a_prepared_dataset(journey, ctrkit: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = ctrkit("train", journey.config, "--set", "name=unprepared")
    assert said.status == 2
    assert "Run ctrkit prepare CONFIG first" in said.json["error"]


def test_scoring_and_serving_never_import_torch(journey, tmp_path: Path) -> None:
    """With a torch that explodes on import in front of the real one."""
    for name in ("torch", "torchrec", "onnx"):
        (tmp_path / "traps" / name).mkdir(parents=True)
        (tmp_path / "traps" / name / "__init__.py").write_text("raise ImportError('imported where it must not be')\n")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "traps"), str(root)])}
    log = journey.folder / "log/part-00000.parquet"
    command = [sys.executable, "-m", "pipelines.cli", "score", str(journey.bundle), str(log), "--output", str(tmp_path / "p.csv"), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    expected = pl.read_parquet(journey.score.json["output"])["probability"].to_numpy()
    assert np.abs(pl.read_csv(tmp_path / "p.csv")["probability"].to_numpy() - expected).max() < 1e-6
    program = f"from serving.app import create_app; create_app({str(journey.bundle.parents[1])!r}); import pipelines.serve"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr


def test_serve_says_where_it_is_and_leaves_with_130_when_interrupted(journey) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(journey.bundle.parents[1]), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["repo"] == str(journey.bundle.parents[1])
        assert any("running on" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.stdout.read() == ""


# -- the terminal


def test_an_interrupt_is_130_and_an_error_of_ours_shows_its_traceback() -> None:
    with pytest.raises(typer.Exit) as leaving, terminal(False):
        raise KeyboardInterrupt
    assert leaving.value.exit_code == 130
    with pytest.raises(ZeroDivisionError), terminal(True):
        raise ZeroDivisionError


def test_an_error_keeps_brackets_and_long_lines_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    problem = "wrong [bold]value[/] in " + "x" * 300
    with pytest.raises(typer.Exit) as leaving, terminal(False):
        raise CtrkitError(problem, "Mend it")
    assert leaving.value.exit_code == 2
    assert capsys.readouterr().err == f"error: {problem}. Mend it.\n"


def test_only_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    with terminal(True) as screen:
        screen.console.print("words")
        screen.table(("a",), [("b",)])
        screen.result({"c": 1})
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": float("nan"), "b": math.inf}, {"a": None, "b": None}),
        ({"a": np.float32(0.5), "b": np.int64(2**40), "c": np.arange(2)}, {"a": 0.5, "b": 2**40, "c": [0, 1]}),
        ({"a": Path("x") / "y", 1: True}, {"a": "x/y", "1": True}),
        ([], []),
    ],
)
def test_json_is_strict(value: object, expected: object) -> None:
    line = to_json(value)
    assert "\n" not in line
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name)) == expected


def test_people_read_stdout_and_programs_too_but_never_both(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(False).console.print("for people")
    Terminal(False).result({"a": 1})
    assert capsys.readouterr() == ("for people\n", "")
    Terminal(True).console.print("for people")
    Terminal(True).result({"a": 1})
    assert capsys.readouterr() == ('{"a":1}\n', "for people\n")


@pytest.mark.parametrize(
    ("set_by_hand", "spins"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_let_go_of_their_cores_unless_the_environment_says_how(
    set_by_hand: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_by_hand.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    share_the_cores()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_the_command_imports_no_torch_before_it_has_told_its_threads_how_to_wait() -> None:
    """libgomp reads it once, when torch is imported."""
    subprocess.run([sys.executable, "-c", "import sys, pipelines.cli; assert 'torch' not in sys.modules"], check=True)
