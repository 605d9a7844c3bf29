"""One small simulated log taken through every verb once; the tests look at what each of them said."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipelines.cli import app

CONFIG = """
name: small
data: {path: LOG/part-*.parquet}
label: click
group: user_id
split: {by: time, column: timestamp, valid: 0.1, test: 0.1}
features:
  - {name: [user_id, item_id], kind: categorical, transform: {min_count: 2}}
  - {name: [category, device], kind: categorical}
  - {name: hour, kind: categorical, dtype: int}
  - {name: tags, kind: multi_valued}
  - {name: age, kind: numeric, transform: {kind: buckets, count: 8}}
  - {name: price, kind: numeric, transform: log1p}
model: {name: dlrm, bottom_hidden: [8], hidden: [8]}
embedding: {dim: 4}
training: {epochs: 2, batch_size: 512, threads: 1}
output: OUT
"""


@dataclass(frozen=True)
class Said:
    """A verb's exit status, its JSON and what it said to people."""

    status: int
    json: Any
    stdout: str
    stderr: str


def call(*arguments: object, as_json: bool = True) -> Said:
    result: Result = CliRunner().invoke(app, [*(str(a) for a in arguments), *(["--json"] if as_json else [])])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    lines = result.stdout.splitlines()
    return Said(result.exit_code, json.loads(lines[-1]) if as_json and lines else None, result.stdout, result.stderr)


@pytest.fixture(scope="session")
def ctrkit() -> Callable[..., Said]:
    return call


@dataclass(frozen=True)
class Journey:
    """What every verb of the journey said, and where."""

    folder: Path
    config: Path
    simulate: Said
    validate: Said
    prepare: Said
    train: Said
    evaluate: Said
    export: Said
    score: Said

    @property
    def run(self) -> Path:
        return Path(self.train.json["run"])

    @property
    def bundle(self) -> Path:
        return Path(self.export.json["bundle"])


@pytest.fixture(scope="session")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    folder = tmp_path_factory.mktemp("journey")
    config = folder / "small.yaml"
    config.write_text(CONFIG.replace("LOG", str(folder / "log")).replace("OUT", str(folder / "out")))
    simulate = call("data", "simulate", "--rows", 3000, "--seed", 3, "--out", folder / "log")
    validate = call("validate", config)
    prepare = call("prepare", config)
    train = call("train", config)
    evaluate = call("evaluate", train.json["run"], "--split", "test")
    export = call("export", train.json["run"], "--to", folder / "repo")
    score = call(
        "score", export.json["bundle"], folder / "log/part-00000.parquet", "--output", folder / "predictions.parquet", "--keep", "click"
    )
    return Journey(folder, config, simulate, validate, prepare, train, evaluate, export, score)
