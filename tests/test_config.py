from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ctrkit.config import Experiment, UnifiedEmbedding, expand_range
from ctrkit.config_file import load_config, task_of, to_yaml
from ctrkit.errors import CtrkitError
from ctrkit.retrieval.config import load_retrieval
from ctrkit.retrieval.funnel import load_funnel
from ctrkit.schema import Buckets, Hash, Kind, Log1p, Standardise, Vocabulary

SMALL = """
name: small
data: {path: log.csv}
label: click
features:
  - {name: [user, C1..C3], kind: categorical}
  - {name: I1..I2, kind: numeric}
  - {name: genres, kind: multi_valued, max_length: 5}
"""


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def load_text(text: str, *overrides: str) -> Experiment:
        path = tmp_path / "experiment.yaml"
        path.write_text(text, encoding="utf8")
        return load_config(path, overrides)

    return load_text


def message(load: Any, text: str, *overrides: str) -> str:
    with pytest.raises(CtrkitError) as caught:
        load(text, *overrides)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_a_config_for_a_new_log_is_short_and_complete(load: Any) -> None:
    experiment = load(SMALL)
    assert [f.name for f in experiment.features] == ["user", "C1", "C2", "C3", "I1", "I2", "genres"]
    assert [f.kind for f in experiment.features][-2:] == [Kind.NUMERIC, Kind.MULTI_VALUED]
    assert isinstance(experiment.features[0].transform, Vocabulary)
    assert isinstance(experiment.features[4].transform, Standardise)
    assert experiment.model.name == "autoint"
    assert len(SMALL.strip().splitlines()) < 20


def test_an_experiment_survives_being_written_and_read_again(load: Any) -> None:
    experiment = load(SMALL, "model.heads=4", "embedding.learning_rate=1e-3")
    assert load(to_yaml(experiment)) == experiment


PRINTABLE = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="@:"), min_size=1)


@given(st.lists(PRINTABLE, min_size=1, max_size=3, unique=True), st.floats(1e-30, 1e30))
@example(["1e5", "on", "0x1F", "null", "~", "007", "true", "2024-01-01", "1_0", ".5"], 1e-5)
def test_any_name_survives_being_written_and_read_again(names: list[str], rate: float) -> None:
    names = [name for name in names if ".." not in name and "${" not in name]
    assume(names)
    features = [{"name": name, "kind": "categorical"} for name in names]
    content = {"name": "a", "data": {"path": names[0]}, "label": names[0], "features": features, "training": {"learning_rate": rate}}
    experiment = Experiment.model_validate({**content, "model": {"name": "dnn", "word": names[0]}})
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.yaml"
        path.write_text(to_yaml(experiment), encoding="utf8", newline="")
        assert load_config(path) == experiment


def test_shipped_configs_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTRKIT_DATA", "data")
    paths = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
    assert {p.stem for p in paths} >= {"simulated", "criteo", "avazu", "frappe", "movielens-tag", "movielens-1m", "kuairand"}
    loaders = {None: load_config, "retrieval": load_retrieval, "funnel": load_funnel}
    names = [loaders[task_of(path)](path).name for path in paths]
    assert len(set(names)) == len(names)


def test_an_experiment_of_another_task_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("task: retrieval\nname: x\n")
    with pytest.raises(CtrkitError, match="is of task: retrieval"):
        load_config(tmp_path / "x.yaml")


# -- YAML: plain values mean what people mean


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("0.001", 0.001), ("1E-5", 1e-5), ("2.5e+1", 25.0), ("3", 3.0)])
def test_numbers(load: Any, text: str, value: float) -> None:
    assert load(SMALL + f"training: {{learning_rate: {text}}}").training.learning_rate == value
    assert load(SMALL, f"training.learning_rate={text}").training.learning_rate == value


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "n", "2024-01-01", "12:30", "0x1F", "007", "1_000"])
def test_words_that_older_yaml_turns_into_something_else_stay_words(load: Any, word: str) -> None:
    assert load(SMALL + f"group: {word}").group == word


def test_on_is_the_key_of_a_join(load: Any) -> None:
    joined = SMALL.replace("{path: log.csv}", "{path: log.csv, joins: [{path: users.dat, separator: '::', on: user}]}")
    (join,) = load(joined).data.joins
    assert (join.path, join.on, join.separator) == ("users.dat", "user", "::")


@pytest.mark.parametrize("word", ["true", "True", "false", "FALSE"])
def test_booleans(load: Any, word: str) -> None:
    assert load(SMALL + f"training: {{compile: {word}}}").training.compile == (word.lower() == "true")


# -- sequences


def test_a_sequence_has_the_dtype_and_transform_of_what_it_is_a_history_of(load: Any) -> None:
    text = SMALL + "  - {name: past, kind: sequence, of: item, max_length: 7}\n"
    text += "  - {name: item, kind: categorical, dtype: int, transform: {kind: hash, buckets: 9}}\n"
    experiment = load(text)
    past, item = experiment.features[-2:]
    assert (past.kind, past.of, past.max_length) == (Kind.SEQUENCE, "item", 7)
    assert (past.dtype, past.transform) == (item.dtype, item.transform) == ("int", Hash(buckets=9))
    assert load(to_yaml(experiment)) == experiment


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("{name: past, kind: sequence}", "sequence 'past' needs 'of'"),
        ("{name: past, kind: sequence, of: uses}", "'past' is of 'uses', which is no categorical feature. Did you mean 'user'?"),
        ("{name: past, kind: sequence, of: genres}", "'past' is of 'genres', which is no categorical feature"),
        ("{name: past, kind: sequence, of: user, dtype: int}", "'past' has the dtype of 'user': leave its own out"),
        ("{name: past, kind: sequence, of: user, transform: {min_count: 3}}", "'past' has the transform of 'user': leave its own out"),
        ("{name: past, kind: sequence, of: user, pooling: sum}", "takes no pooling"),
        ("{name: tags, kind: categorical, separator: ','}", "has 'separator', which is for kind: multi_valued"),
        ("{name: tags, kind: numeric, max_length: 5}", "has 'max_length', which is for kind: multi_valued"),
        ("{name: past, kind: multi_valued, of: user}", "has 'of', which is for kind: sequence"),
    ],
)
def test_a_sequence_that_is_no_history_is_refused(load: Any, entry: str, expected: str) -> None:
    assert expected in message(load, SMALL + f"  - {entry}")


# -- transforms


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("{name: x, kind: numeric, transform: log1p}", Log1p()),
        ("{name: x, kind: numeric, transform: {kind: log1p}}", Log1p()),
        ("{name: x, kind: numeric, transform: {kind: buckets, count: 8}}", Buckets(count=8)),
        ("{name: x, kind: categorical, transform: {min_count: 3}}", Vocabulary(min_count=3)),
        ("{name: x, kind: categorical, transform: {kind: hash, buckets: 10, salt: 7}}", Hash(buckets=10, salt=7)),
    ],
)
def test_transforms(load: Any, entry: str, expected: object) -> None:
    assert load(SMALL + f"  - {entry}").features[-1].transform == expected


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            "{name: x, kind: numeric, transform: vocabulary}",
            "cannot take the transform 'vocabulary'; use one of: standardise, log1p, buckets",
        ),
        ("{name: x, kind: categorical, transform: log1p}", "cannot take the transform 'log1p'; use one of: vocabulary, hash"),
        ("{name: x, kind: categorical, transform: {kind: hash}}", "'features.x.transform.buckets' is required"),
        ("{name: x, kind: categorical, transform: hsh}", "features.x.transform: unknown kind 'hsh'. Did you mean 'hash'?"),
        (
            "{name: x, kind: categorical, transform: {min_cuont: 3}}",
            "unknown key 'features.x.transform.min_cuont'. Did you mean 'min_count'?",
        ),
        ("{name: x, kind: numeric, transform: {kind: buckets, cuont: 3}}", "Did you mean 'count'?"),
        ("{name: x}", "'features.x.kind' is required"),
        ("{name: x, kind: category}", "not 'category'"),
        ("{name: 'a@b', kind: numeric}", "features.a@b.name"),
        ("{name: user, kind: categorical}", "feature named twice: user"),
        ("{name: C9..C4, kind: categorical}", "the range 'C9..C4' runs backwards. Write C4..C9"),
    ],
)
def test_feature_errors_name_the_feature(load: Any, entry: str, expected: str) -> None:
    assert expected in message(load, SMALL + f"  - {entry}")


# -- overrides


def test_overrides_by_name_number_and_path(load: Any) -> None:
    experiment = load(
        SMALL,
        "features.C2.transform.min_count=7",
        "features.0.dtype=int",
        "features.I2.transform=log1p",
        "data.path=[a.csv, b.csv]",
        "split={by: time, column: at}",
        "model={name: dnn, hidden: [64, 32]}",
        "training.seed=5",
    )
    assert experiment.features[2].transform == Vocabulary(min_count=7)
    assert experiment.features[1].transform == Vocabulary()
    assert experiment.features[0].dtype == "int"
    assert experiment.features[5].transform == Log1p()
    assert experiment.data.path == ("a.csv", "b.csv")
    assert (experiment.split.by, experiment.split.column) == ("time", "at")
    assert (experiment.model.name, experiment.model.settings) == ("dnn", {"hidden": [64, 32]})
    assert experiment.training.seed == 5


def test_the_last_override_wins_and_a_value_may_hold_an_equals_sign(load: Any) -> None:
    experiment = load(SMALL, "training.epochs=3", "training.epochs=4", "label=rating == 5")
    assert experiment.training.epochs == 4
    assert experiment.label == "rating == 5"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainig.epochs=3", "unknown key 'trainig'. Did you mean 'training'?"),
        ("training.epoch=3", "unknown key 'training.epoch'. Did you mean 'epochs'?"),
        ("embedding.optimiser=sgd", "Did you mean 'optimizer'?"),
        ("data.seperator=;", "Did you mean 'separator'?"),
        ("zzz=3", "Known: data, embedding, export, features, group, label, model, name, output, split, training"),
        ("training.epochs=three", "training.epochs: Input should be a valid integer"),
        ("training.epochs=0", "greater than or equal to 1, not 0"),
        ("training=3", "'training' is a group of settings, not 3: give its keys, such as {"),
        ("model=deepfm", "'model' is a group of settings, not 'deepfm': give its keys, such as {name: ..}"),
        ("name.x=1", "'name' is a single value, not a group of settings. Write --set name=value"),
        ("features.C9.dtype=int", "no entry 'C9'. Did you mean 'C3'?"),
        ("features.99.dtype=int", "no entry '99'"),
        ("training.epochs", "has no value. Write --set key.sub=value"),
        ("=3", "has no value"),
        ("data.path=[a", "cannot be read as YAML"),
        ("data.path=null", "give either 'path'"),
        ("data.train=a.csv", "give either 'path'"),
        ("data={train: a.csv}", "without 'test' files"),
        ("data.header=false", "needs 'columns'"),
        ("split.by=time", "split by time needs 'column'"),
        ("split.test=1.5", "a fraction below 1, or a whole number of rows"),
        ("split.valid=0.95", "must leave rows to train on"),
        ("embedding={l2: 1e-5, l2_rows: all}", "needs optimizer: adam"),
        ("features=[]", "features: List should have at least 1 item"),
        ("features=5", "features: Input should be a list, not 5"),
        ("embedding.numeric=autodiss", "embedding.numeric: unknown kind 'autodiss'. Did you mean 'autodis'?"),
        ("embedding.init_std=.inf", "embedding.init_std: Input should be a finite number"),
        ("Training.epochs=3", "Did you mean 'training'?"),
        ("name=a/b", "name: "),
    ],
)
def test_override_errors(load: Any, override: str, expected: str) -> None:
    said = message(load, SMALL, override)
    assert expected in said
    assert "--set" in said


def test_several_findings_come_in_one_line(load: Any) -> None:
    said = message(load, SMALL + "trainig: {epochs: 3}\nsplt: {}\n")
    assert "'training'" in said and "'split'" in said


def test_an_entry_that_is_wrong_is_not_said_to_be_missing_too(load: Any) -> None:
    said = message(load, SMALL, "features=[{name: x, kind: numerical}]")
    assert said.count("features") == 2, "once in what was given, and once in what is wrong with it"


# -- a unified embedding


def test_a_unified_embedding_hashes_what_has_no_transform(load: Any) -> None:
    text = SMALL.replace("[user, C1..C3], kind: categorical", "[user, C1..C3], kind: categorical, transform: {min_count: 2}", 1)
    experiment = load(text, "embedding={kind: unified, rows: 100, dim: 4, lookups: 2, feature_lookups: {user: 3}}")
    assert isinstance(experiment.embedding, UnifiedEmbedding) and experiment.embedding.width == 8
    assert experiment.features[0].transform == Vocabulary(min_count=2)
    assert isinstance(experiment.features[4].transform, Standardise)
    assert experiment.features[-1].transform == Hash(buckets=2**31 - 1)
    assert load(to_yaml(experiment)) == experiment


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("embedding={kind: unifed}", "embedding: unknown kind 'unifed'. Did you mean 'unified'?"),
        ("embedding.kind=unified", "'embedding.rows' is required"),
        ("embedding={kind: unified, rows: 1}", "embedding.rows: Input should be greater than or equal to 2"),
        ("embedding={kind: unified, rows: 3000000000}", "embedding.rows: Input should be less than or equal to 2147483647"),
        ("embedding={kind: unified, rows: 9, lookups: 0}", "embedding.lookups: "),
        ("embedding={kind: unified, rows: 9, lokups: 2}", "unknown key 'embedding.lokups'. Did you mean 'lookups'?"),
        ("embedding={kind: unified, rows: 9, feature_lookups: {user: 0}}", "embedding.feature_lookups.user: "),
        ("embedding={kind: unified, rows: 9, feature_lookups: {usr: 2}}", "no feature 'usr' is looked up. Did you mean 'user'?"),
        ("embedding={kind: unified, rows: 9, feature_lookups: {I1: 2}}", "no feature 'I1' is looked up"),
        ("embedding={kind: unified, rows: 9, l2: 1, l2_rows: all}", "needs optimizer: adam"),
        ("embedding.lookups=2", "unknown key 'embedding.lookups'"),
    ],
)
def test_bad_unified_embeddings(load: Any, override: str, expected: str) -> None:
    assert expected in message(load, SMALL, override)


def test_a_unified_embedding_needs_a_feature_to_look_up(load: Any) -> None:
    text = "name: a\ndata: {path: a.csv}\nlabel: y\nfeatures: [{name: x, kind: numeric}]\nembedding: {kind: unified, rows: 9}\n"
    assert "no feature is looked up" in message(load, text)


# -- several labels


def test_several_labels_have_names_and_an_order(load: Any) -> None:
    assert load(SMALL).tasks == ()
    experiment = load(SMALL, "label={watched: seconds > 9, click: is_click}", "training.task_weights.click=0.5")
    assert experiment.tasks == ("watched", "click") and experiment.label == {"watched": "seconds > 9", "click": "is_click"}
    assert load(to_yaml(experiment)).tasks == ("watched", "click")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("label=3", "label: give a column or an expression, or names with one each, such as {click: is_click, like: is_like}, not 3"),
        ("label=[a, b]", "label: give a column or an expression"),
        ("label={a: x, b: 1}", "label: give a column or an expression"),
        ("label={a: x}", "label: give two names or more, or the column or expression alone"),
        ("label={a: x, b-c: y}", "'b-c' cannot name a label"),
        ("label={a: x, 2: y}", "'2' cannot name a label"),
        ("label={a: x, user: y}", "label: 'user' is the name of a feature too"),
        ("features.user.name=probability", "features: 'probability' is the name of an exported model's output; rename the column"),
        ("training.task_weights={click: 2}", "training.task_weights: no label 'click'. There is one label"),
    ],
)
def test_labels_that_are_none(load: Any, override: str, expected: str) -> None:
    assert expected in message(load, SMALL, override)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("{clik: 2}", "no label 'clik'. Did you mean 'click'?"),
        ("{click: -1}", "task_weights.click: "),
        ("{click: 0, like: 0}", "must be above 0"),
    ],
)
def test_weights_that_fit_no_label(load: Any, weights: str, expected: str) -> None:
    assert expected in message(load, SMALL, "label={click: x, like: y}", f"training.task_weights={weights}")


# -- files and environment


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "does not hold settings"),
        ("- a\n- b\n", "does not hold settings"),
        ("name: [a\nlabel: b", "is not valid YAML"),
        ("name: a\n? [b, c]\n: 3\n", "found unhashable key"),
        ("name: a\ntraining:\n  epochs: 3\n  epochs: 4\n", "the key 'epochs' is there twice in \"<unicode string>\", line 4"),
        ("name: a", "'data' is required; 'label' is required; 'features' is required"),
    ],
)
def test_bad_files(load: Any, text: str, expected: str) -> None:
    assert expected in message(load, text)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.yaml", tmp_path):
        with pytest.raises(CtrkitError, match="no config file at"):
            load_config(path)


def test_a_binary_file_is_not_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CtrkitError, match="not valid YAML"):
        load_config(tmp_path / "a.yaml")


def test_environment_variables(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGS", "/data/logs")
    text = SMALL.replace("log.csv", "'${LOGS}/a.csv'")
    assert load(text).data.path == "/data/logs/a.csv"
    assert load(text, "data.path=['${LOGS}/b.csv', c.csv]").data.path == ("/data/logs/b.csv", "c.csv")
    monkeypatch.delenv("LOGS")
    assert "needs the environment variable LOGS, which is not set. export LOGS=<folder>" in message(load, text)


# -- ranges


@given(st.from_regex(r"[A-Za-z_ .-]*[A-Za-z_]|", fullmatch=True), st.integers(0, 400), st.integers(0, 60))
def test_a_range_is_the_names_between_its_ends(prefix: str, first: int, more: int) -> None:
    names = expand_range(f"{prefix}{first}..{prefix}{first + more}")
    assert names == [f"{prefix}{i}" for i in range(first, first + more + 1)]
    assert [n for name in names for n in expand_range(name)] == names


@given(st.text().filter(lambda text: ".." not in text))
def test_any_other_name_is_itself(name: str) -> None:
    assert expand_range(name) == [name]


@pytest.mark.parametrize("name", ["a..b", "C1..D4", "C1..", "..C4", "1..x", "price.."])
def test_what_only_looks_like_a_range_is_itself(name: str) -> None:
    assert expand_range(name) == [name]


def test_leading_zeros_are_kept() -> None:
    assert expand_range("f08..f11") == ["f08", "f09", "f10", "f11"]


def test_ranges_in_the_columns_of_a_file_without_header(load: Any) -> None:
    text = SMALL.replace("{path: log.csv}", "{path: log.tsv, header: false, columns: [click, I1..I2, C1..C3, user, genres]}")
    assert load(text).data.columns == ("click", "I1", "I2", "C1", "C2", "C3", "user", "genres")
