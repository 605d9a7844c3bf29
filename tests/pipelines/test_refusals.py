"""What cannot be trained is refused before anything is read or written: one line, exit status 2, no folder left. Every model of the registry."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ctrkit.models.registry import ModelInfo, Setting, models

ZOO = models()
RANKING = [m.name for m in ZOO if m.kind == "ranking"]
SEQUENCE = [m.name for m in ZOO if m.kind == "sequence"]
MULTI_TASK = [m.name for m in ZOO if m.kind == "multi-task"]

FEATURES = {
    "user": "{name: user, kind: categorical}",
    "item": "{name: item, kind: categorical}",
    "price": "{name: price, kind: numeric}",
    "past": "{name: past, kind: sequence, of: item}",
}


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """``config("user", "price", label="click")``: an experiment with these of ``FEATURES``."""
    (tmp_path / "log.csv").write_text("user,item,past,price,click,buy\n" + "u1,i1,i2|i3,2.5,1,0\nu2,i2,,,0,1\n" * 30)

    def write(*features: str, label: str = "click") -> Path:
        path = tmp_path / "refused.yaml"
        listed = ", ".join(FEATURES[name] for name in features)
        path.write_text(
            f"name: refused\ndata: {{path: {tmp_path}/log.csv}}\nlabel: {label}\nfeatures: [{listed}]\noutput: {tmp_path}/out\n"
        )
        return path

    return write


def config_for(model: str, config: Callable[..., Path]) -> Path:
    """An experiment that the model could be trained on."""
    label = "{first: click, second: buy}" if model in MULTI_TASK else "click"
    return config("user", "item", "price", *(["past"] if model in SEQUENCE else []), label=label)


def refusal(ctrkit: Callable[..., Any], path: Path, *settings: str, verb: str = "train") -> str:
    said = ctrkit(verb, path, *(part for setting in settings for part in ("--set", setting)))
    assert said.status == 2, settings
    assert "Traceback" not in said.stderr
    assert not (path.parent / "out").exists(), settings
    return said.json["error"]


def bad_values(setting: Setting) -> Iterator[str]:
    """Of the wrong type, and out of range, as a config would have them."""
    if isinstance(setting.default, dict):
        yield "5"
        return
    yield "{a: {b: c}}"
    if isinstance(setting.default, bool | str):
        yield "perhaps"
    elif isinstance(setting.default, tuple):
        yield from ("perhaps", "-1", "[-1]")
    else:
        yield from ("perhaps", "-1", "[-1]", ".nan", ".inf")
    if "dropout" in setting.name:
        yield from ("-0.1", "1")


@pytest.mark.parametrize("info", ZOO, ids=lambda info: info.name)
def test_every_setting_of_every_model_is_checked(info: ModelInfo, config: Callable[..., Path], ctrkit: Callable[..., Any]) -> None:
    path = config_for(info.name, config)
    assert ctrkit("validate", path, "--set", f"model.name={info.name}").status == 0
    for setting in info.settings:
        for value in bad_values(setting):
            error = refusal(ctrkit, path, f"model.name={info.name}", f"model.{setting.name}={value}")
            assert f"model '{info.name}'" in error and setting.name in error, error
    for key in ("colour", *(f"{setting.name}s" for setting in info.settings)):
        error = refusal(ctrkit, path, f"model.name={info.name}", f"model.{key}=1")
        assert f"unknown key '{key}'" in error and ("Did you mean" in error or key == "colour")


@pytest.mark.parametrize("verb", ["validate", "train"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.name=autoimt"], "unknown model 'autoimt'. Did you mean 'autoint'?"),
        (["model.name=autoint", "model.heads=3"], "heads (3) must divide attention_dim (64)"),
        (["model.name=bst", "model.heads=3"], "heads (3) must divide 32, the width of a vector (16) and its position's"),
        (["model.name=finalmlp", "model.heads=7"], "heads (7) must divide"),
        (["model.name=finalmlp", "model.context1=[usr]"], "no field 'usr' to be a gate's context. Did you mean 'user'?"),
        (["model.name=fgcnn", "model.kernel=4"], "kernel (4) must be odd"),
        (["model.name=fgcnn", "model.classifier=deepfn"], "Did you mean 'deepfm'?"),
        (["model.name=fgcnn", "model.classifier=ffm"], "cannot take 'ffm' as its classifier"),
        (["model.name=fgcnn", "model.classifier=mmoe"], "model 'mmoe' predicts several labels"),
        (["model.name=optfs", "model.base=deepfn"], "Did you mean 'deepfm'?"),
        (["model.name=optfs", "model.base=optfs"], "has a search of its own"),
        (["model.name=optfs", "model.base_settings={heads: 3}"], "unknown key 'heads'"),
        (
            ["model={name: fm, hidden: [8]}"],
            "unknown key 'hidden'. There are none. Settings of another model go if the model is given whole",
        ),
        (["training.monitor=gauc"], "Set 'group' to a column"),
        (["training.batch_size=0"], "training.batch_size"),
        (["training.learning_rate=-1"], "training.learning_rate"),
        (["training.learning_rate=.nan"], "training.learning_rate"),
        (["embedding.init_std=.inf"], "embedding.init_std"),
        (["embedding.dim=-4"], "embedding.dim"),
        (["embedding={kind: unified}"], "'embedding.rows' is required"),
        (["embedding={kind: unified, rows: 100, feature_lookups: {usr: 2}}"], "Did you mean 'user'?"),
        (["features=[]"], "features"),
        (
            ["embedding={l2: 0.1, compression: {method: robe, budget: 0.5}}"],
            "holds down rows of tables, and compression method 'robe' has none",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_settings_that_do_not_go_together(
    settings: list[str], message: str, verb: str, config: Callable[..., Path], ctrkit: Callable[..., Any]
) -> None:
    features = [*FEATURES] if "model.name=bst" in settings else ["user", "item", "price"]
    assert message in refusal(ctrkit, config(*features), *settings, verb=verb)


def test_an_output_that_cannot_be_written(config: Callable[..., Path], ctrkit: Callable[..., Any]) -> None:
    path = config("user", "item")
    for verb in ("prepare", "train"):
        assert "cannot be made" in refusal(ctrkit, path, f"output={path}", verb=verb)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_file_of_a_split_that_is_not_there(split: str, config: Callable[..., Path], ctrkit: Callable[..., Any]) -> None:
    path = config("user", "item")
    files = {name: f"{path.parent}/log.csv" for name in ("train", "valid", "test")} | {split: "nothing.csv"}
    assert f"no file at 'nothing.csv'. Check data.{split}" in refusal(ctrkit, path, f"data={files}", verb="validate")


@pytest.mark.parametrize("info", ZOO, ids=lambda info: info.name)
def test_fields_and_labels_that_a_model_cannot_work_on(info: ModelInfo, config: Callable[..., Path], ctrkit: Callable[..., Any]) -> None:
    name, whole = f"model.name={info.name}", config_for(info.name, config).read_text()
    one, two = "label: click", "label: {first: click, second: buy}"
    path = config("user", "item")
    several = info.name in MULTI_TASK
    path.write_text(whole.replace(two, one) if several else whole.replace(one, two))
    assert ("predicts several labels" if several else "predicts one label") in refusal(ctrkit, path, name)

    path.write_text(whole.replace(", " + FEATURES["past"], ""))
    if info.name in SEQUENCE:
        assert "{name: recent_items, kind: sequence, of: item_id}" in refusal(ctrkit, path, name)
    for alone in ("user", "price"):
        path.write_text(config(alone).read_text().replace(one, two if several else one))
        said = ctrkit("validate", path, "--set", name)
        if said.status:
            assert "field" in refusal(ctrkit, path, name), "one field alone is too few, and the message says so"


@pytest.mark.parametrize("name", [m.name for m in ZOO])
def test_a_unified_embedding_is_taken_or_refused_by_name(name: str, config: Callable[..., Path], ctrkit: Callable[..., Any]) -> None:
    path = config_for(name, config)
    settings = (f"model.name={name}", "embedding={kind: unified, rows: 100, dim: 4}")
    said = ctrkit("validate", path, *(part for setting in settings for part in ("--set", setting)))
    if said.status:
        error = refusal(ctrkit, path, *settings)
        assert f"model '{name}'" in error and "Leave embedding.kind out" in error
