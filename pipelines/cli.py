"""The ``ctrkit`` command: one verb a stage, in the order they are used. Heavy imports happen inside the verbs."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import ctrkit
from pipelines.bench.cli import bench_app
from pipelines.options import Config, Json, Overrides, Run, Select, Top
from pipelines.terminal import terminal, training_terminal

START, OWN, LOOK = "Start here", "Your own log, step by step", "Look around"

app = typer.Typer(
    name="ctrkit",
    help="From a raw click log to click predictions over HTTP. New here? Run: [bold]ctrkit quickstart[/bold]",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Known public logs, and a simulated one to play with.", no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(data_app, name="data", rich_help_panel=START)
app.add_typer(bench_app, name="bench", rich_help_panel=LOOK)


class FileFormat(StrEnum):
    PARQUET = "parquet"
    CSV = "csv"


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        print(ctrkit.__version__)
        raise typer.Exit


@app.command(rich_help_panel=START)
def quickstart(
    rows: Annotated[int, typer.Option(min=2000, help="Rows of the simulated log.")] = 150_000,
    out: Annotated[Path, typer.Option(help="Everything is written below this folder.")] = Path("out/quickstart"),
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another simulated world.")] = 1,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """The whole path in two minutes: simulate a log, train AutoInt, export it, serve it, ask it over HTTP."""
    with training_terminal(json) as screen:
        from pipelines.quickstart import run_quickstart

        screen.result(run_quickstart(rows, out, seed, overrides or [], screen))


@data_app.command("list")
def data_list(json: Json = False) -> None:
    """The public logs that configs/ has an experiment for: what they hold and where they come from."""
    with terminal(json) as screen:
        from pipelines.data import list_known

        screen.result(list_known(screen))


@data_app.command("simulate")
def data_simulate(
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another world.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the log's files.")] = Path("out/simulated"),
    file_format: Annotated[FileFormat, typer.Option("--format", help="Kind of files.")] = FileFormat.PARQUET,
    json: Json = False,
) -> None:
    """Write a realistic click log, with the true click probability of every row beside the click."""
    with terminal(json) as screen:
        from ctrkit.doctor import require_serving_stack

        require_serving_stack()
        from pipelines.data import simulate_log

        screen.result(simulate_log(rows, seed, out, screen, file_format.value))


@app.command(rich_help_panel=OWN)
def validate(config: Config, overrides: Overrides = None, json: Json = False) -> None:
    """Check an experiment against the log's header and the model's settings. Reads no rows: instant on any log."""
    with terminal(json) as screen:
        if _is_funnel(config):
            from pipelines.funnel import validate_funnel

            screen.result(validate_funnel(config, overrides or [], screen))
            return
        if _is_retrieval(config):
            from pipelines.retrieval import validate_retrieval

            screen.result(validate_retrieval(config, overrides or [], screen))
            return
        experiment = _load(config, overrides, "training")
        from pipelines.validate import validate_experiment

        screen.result(validate_experiment(experiment, screen))


@app.command(rich_help_panel=OWN)
def prepare(config: Config, select: Select = None, top: Top = None, overrides: Overrides = None, json: Json = False) -> None:
    """Fit the features' transforms on the training rows and write the log as shards of ids."""
    with terminal(json) as screen:
        if _is_retrieval(config, select, top):
            from pipelines.retrieval import prepare_retrieval

            screen.result(prepare_retrieval(config, overrides or [], screen))
            return
        experiment = _selected(_load(config, overrides, "training"), select, top)
        from pipelines.prepare import prepare_log

        screen.result(prepare_log(experiment, screen))


@app.command(rich_help_panel=OWN)
def rank(
    config: Config,
    by: Annotated[
        str, typer.Option(metavar="MEASURE", help="information, 3mr, mi, nmi, ami, correlation, logistic or trees.")
    ] = "information",
    rows: Annotated[int, typer.Option(min=100, help="At most so many training rows, drawn uniformly.")] = 10_000_000,
    with_pairs: Annotated[bool, typer.Option("--pairs/--no-pairs", help="Compare features with one another too.")] = True,
    most_pairs: Annotated[int, typer.Option(min=1, help="Pairs of the best features only, no more than so many.")] = 20_000,
    order: Annotated[int, typer.Option(min=2, max=6, help="Crosses of up to so many features.")] = 2,
    crosses: Annotated[int, typer.Option(min=1, help="Crosses tried of each order above 2.")] = 100,
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of several labels. Default: the main one.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the rows that are drawn.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the ranking. Default: OUTPUT/rankings/NAME of the config.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Rank the features by what they say of the label beyond chance; who says the same, who is broken. Writes tables, a page and pictures."""
    with terminal(json) as screen:
        experiment = _load(config, overrides, "training")
        from pipelines.rank import rank_features

        found = rank_features(
            experiment,
            screen,
            by=by,
            most_rows=rows,
            pairs=with_pairs,
            most_pairs=most_pairs,
            order=order,
            crosses=crosses,
            seed=seed,
            task=task,
            out=out,
        )
        screen.result(found)


@app.command(rich_help_panel=OWN)
def train(
    config: Config,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last run of this experiment that was interrupted.")] = False,
    run: Annotated[Path | None, typer.Option("--run", help="The run's folder. Default: a new one below the output folder.")] = None,
    select: Select = None,
    top: Top = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Train the model; prepares the log first if that has not been done. Several processes: torchrun -m pipelines.cli train ..."""
    with terminal(json) as screen:
        if _is_retrieval(config, select, top):
            from pipelines.retrieval import train_retrieval

            screen.result(train_retrieval(config, overrides or [], run, resume, screen))
            return
        experiment = _selected(_load(config, overrides, "training"), select, top)
        from pipelines.train import train_experiment

        screen.result(train_experiment(experiment, run, resume, screen))


@app.command(rich_help_panel=OWN)
def tune(
    config: Config,
    space: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The search space in YAML. Default: around the config's own settings.", show_default=False),
    ] = None,
    select: Annotated[
        Path | None,
        typer.Option(metavar="RANKING", help="Search how many of its best features to keep, not which ones.", show_default=False),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials in all, earlier calls' included. Default: 50, or no limit with --minutes.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop after so many minutes.", show_default=False)] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the search.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other trials.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The study's folder. Default: tune/NAME below the output folder.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Search models, settings and features for the best AUC on validation. Run again, it goes on where it stopped."""
    with terminal(json) as screen:
        experiment = _load(config, overrides, "training")
        from pipelines.tune import tune as search
        from pipelines.tuning.space import read_space

        limit = 50 if trials is None and minutes is None else trials
        searched = read_space(space, experiment) if space is not None else None
        options = {"space": searched, "select": select, "trials": limit, "minutes": minutes, "workers": workers, "seed": seed, "out": out}
        screen.result(search(experiment, screen, **options))


@app.command(rich_help_panel=OWN)
def evaluate(
    run: Run,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    json: Json = False,
) -> None:
    """Measure a trained run on a split."""
    with terminal(json) as screen:
        _require("training")
        from pipelines.evaluate import evaluate_split
        from pipelines.retrieval import evaluate_retrieval, run_is_retrieval

        screen.result((evaluate_retrieval if run_is_retrieval(run) else evaluate_split)(run, split, screen))


@app.command(rich_help_panel=OWN)
def explain(
    run: Run,
    split: Annotated[str, typer.Option(help="Which rows: train, valid or test.")] = "test",
    rows: Annotated[int, typer.Option(min=2, help="So many rows of the split, drawn at random.")] = 2000,
    repeats: Annotated[int, typer.Option(min=2, help="How often each field's values are shuffled.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other rows and shuffles.")] = 0,
    row: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Explain this row alone: a raw row kept of the test split (of valid if that is empty).",
            show_default=False,
        ),
    ] = None,
    row_json: Annotated[
        str | None,
        typer.Option("--row-json", metavar="ROW", help="Explain this row alone: raw values, as a client sends them.", show_default=False),
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of several labels. Default: the main one.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for page, pictures and JSON. Default: RUN/explain, or RUN/explain/TASK.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Show why a trained run predicts what it predicts: over a split, or for one row. Writes HTML, PNG and JSON."""
    with terminal(json) as screen:
        _require("training")
        from pipelines.explain import explain_run

        screen.result(
            explain_run(run, screen, split=split, rows=rows, repeats=repeats, seed=seed, row=row, row_json=row_json, task=task, out=out)
        )


@app.command(rich_help_panel=OWN)
def export(
    run: Run,
    to: Annotated[Path, typer.Option("--to", metavar="REPO", help="Model repository: a folder of <name>/<version>/.")] = Path("repo"),
    name: Annotated[str | None, typer.Option(help="The model's name there. Default: the experiment's name.")] = None,
    json: Json = False,
) -> None:
    """Write the run as one ONNX file that takes raw values, checked against the trained model; a retrieval run as one a tower."""
    with terminal(json) as screen:
        _require("training")
        from pipelines.export import export_run_to
        from pipelines.retrieval import export_retrieval, run_is_retrieval

        screen.result((export_retrieval if run_is_retrieval(run) else export_run_to)(run, to, name, screen))


@app.command(rich_help_panel=OWN)
def index(
    run: Run,
    to: Annotated[Path, typer.Option("--to", metavar="REPO", help="The model repository that it was exported to.")] = Path("repo"),
    name: Annotated[str | None, typer.Option(help="The model's name there. Default: the experiment's name.")] = None,
    json: Json = False,
) -> None:
    """Index the catalogue of an exported retrieval run for search: exactly and approximately, in its bundle."""
    with terminal(json) as screen:
        _require("training")
        from pipelines.retrieval import index_run

        screen.result(index_run(run, to, name, screen))


@app.command(rich_help_panel=OWN)
def funnel(
    config: Config,
    to: Annotated[Path, typer.Option("--to", metavar="REPO", help="Model repository: a folder of <name>/<version>/.")] = Path("repo"),
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Train, export and index a config with task: funnel: what finds items, and what ranks them, for 'ctrkit serve'."""
    with terminal(json) as screen:
        _require("training")
        from pipelines.funnel import run_funnel

        screen.result(run_funnel(config, overrides or [], to, screen))


@app.command(rich_help_panel=OWN)
def score(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="An exported model, <repo>/<name>/<version>.", show_default=False)],
    input: Annotated[
        Path, typer.Argument(metavar="INPUT", help="CSV, TSV, Parquet or JSON lines with the features' columns.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the predictions go: .parquet or .csv.")] = Path(
        "predictions.parquet"
    ),
    config: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="An experiment that says how INPUT is laid out and joined.", show_default=False)
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Write this column of INPUT too. Repeatable.", show_default=False)
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all cores.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Predict a file with an exported model, in batches. Needs no torch."""
    with terminal(json) as screen:
        _require("serving")
        from pipelines.score import score as score_file

        screen.result(score_file(bundle, input, output, screen, config=config, keep=keep or [], threads=threads))


@app.command(rich_help_panel=OWN)
def serve(
    repo: Annotated[Path, typer.Argument(metavar="REPO", help="A model repository, as written by 'ctrkit export'.", show_default=False)],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    key_file: Annotated[
        Path | None, typer.Option(help="API keys, one a line; CTRKIT_API_KEYS holds more. Default: none is needed.", show_default=False)
    ] = None,
    pin: Annotated[
        list[str] | None, typer.Option(metavar="MODEL=VERSION", help="Serve this version, not the latest. Repeatable.", show_default=False)
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=VERSION:SHARE", help="Give this version a share of the requests that name none. Repeatable.", show_default=False
        ),
    ] = None,
    shadow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=VERSION", help="Let this version score, unseen, what another has answered. Repeatable.", show_default=False
        ),
    ] = None,
    control: Annotated[bool, typer.Option("--control", help="Let clients load and unload models.")] = False,
    cors: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Let pages of this web origin ask. Repeatable.", show_default=False)
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that answer, each with the models loaded.")] = 1,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate with its chain, PEM: answer HTTPS.", show_default=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key, PEM, without a password.", show_default=False)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another setting, such as max_rows=1000. Repeatable.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Answer predictions over HTTP; see /docs and /ui in a browser. Needs no torch."""
    with terminal(json) as screen:
        _require("serving")
        from pipelines.serve import serve_repository, serving_settings

        chosen = serving_settings(
            key_file, pin or [], control, cors or [], settings or [], split or [], shadow or [], workers, (tls_cert, tls_key)
        )
        screen.result({"repo": str(repo), "url": f"{'https' if tls_cert else 'http'}://{host}:{port}"})
        serve_repository(repo, host, port, chosen)


@app.command(rich_help_panel=LOOK)
def models(json: Json = False) -> None:
    """The models, their papers and their settings."""
    with terminal(json) as screen:
        _require("training")
        from pipelines.models import list_models

        screen.result(list_models(screen))


@app.command(rich_help_panel=LOOK)
def compressions(json: Json = False) -> None:
    """The methods of compressed embeddings, their papers and their settings."""
    with terminal(json) as screen:
        _require("training")
        from pipelines.compressions import list_compressions

        screen.result(list_compressions(screen))


@app.command(rich_help_panel=LOOK)
def doctor(json: Json = False) -> None:
    """Check what is installed: is it the set that works together, does it load, and what mends it if not."""
    with terminal(json) as screen:
        from pipelines.doctor import examine

        report = examine(screen)
        screen.result(report)
        if not report["ok"]:
            raise typer.Exit(2)


def _require(stack: str) -> None:
    from ctrkit.doctor import require_serving_stack, require_training_stack

    (require_training_stack if stack == "training" else require_serving_stack)()


def _is_funnel(config: Path) -> bool:
    from ctrkit.config_file import task_of

    _require("training")
    return task_of(config) == "funnel"


def _is_retrieval(config: Path, select: Path | None = None, top: int | None = None) -> bool:
    from ctrkit.errors import CtrkitError
    from pipelines.retrieval import is_retrieval

    _require("training")
    if top is not None and select is None:
        raise CtrkitError("--top is of a ranking's features, and no ranking is named", "Name one with --select, or leave --top out")
    found = is_retrieval(config)
    if found and select is not None:
        raise CtrkitError("--select keeps features of a click log, and this is a retrieval experiment", "Leave --select out")
    return found


def _load(config: Path, overrides: list[str] | None, stack: str) -> Any:
    from ctrkit.config_file import load_config

    _require(stack)
    return load_config(config, overrides or [])


def _selected(experiment: Any, ranking: Path | None, top: int | None) -> Any:
    """The experiment with the best features of a ranking, if one is named."""
    if ranking is None:
        return experiment
    from ctrkit.selection.select import select_features

    return select_features(experiment, ranking, 20 if top is None else top)


def main() -> None:
    """The console script."""
    share_the_cores()
    app()


def share_the_cores() -> None:
    """Threads of torch that wait for one another let go of their cores soon: beside another program on the machine, training is
    several times faster so, and by itself as fast. Read by libgomp when torch is imported; what the environment says is kept."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


if __name__ == "__main__":
    main()
