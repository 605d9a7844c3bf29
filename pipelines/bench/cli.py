"""``ctrkit bench``: the measurements behind the README's figures, each to be repeated on one's own machine."""

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from ctrkit.errors import CtrkitError
from pipelines.options import Config, Json, Overrides
from pipelines.terminal import training_terminal

bench_app = typer.Typer(
    help="Benchmarks: speed, models, compressed embeddings, rankings of features, searches, retrieval, serving.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


Grid = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE,VALUE", help="Settings to try, chosen on validation. Repeatable: every combination.", show_default=False
    ),
]
Out = Annotated[Path, typer.Option(help="Folder of the results; a benchmark goes on where it was stopped.")]
Seeds = Annotated[int, typer.Option(min=1, help="Runs with the best settings, seeds 1, 2, ...")]


def _python(name: str) -> Path:
    """An interpreter, by its path or by a name on PATH; a link to it stays one, since an environment is known by it."""
    found = shutil.which(name)
    if found is None:
        raise typer.BadParameter(f"cannot run {name}: name a Python interpreter")
    return Path(found).absolute()


@bench_app.command("prepare")
def prepare(
    rows: Annotated[int, typer.Option(min=1000, help="Rows of the Criteo-layout file.")] = 2_000_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the file's perturbation.")] = 0,
    json: Json = False,
) -> None:
    """Rows per second of prepare, against the same encoding in pandas."""
    with training_terminal(json) as screen:
        from pipelines.bench.prepare import bench_prepare

        screen.result(bench_prepare(rows, seed, screen.console))


@bench_app.command("training")
def training(
    rows: Annotated[
        list[int] | None,
        typer.Option(min=1000, help="Rows of all tables together. Repeatable; default 1 and 10 million.", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option(min=10, help="Training steps of each side.")] = 100,
    attention_dim: Annotated[int, typer.Option(min=2, help="Width of AutoInt's layers, both heads together.")] = 64,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default all cores.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the rows and the weights.")] = 0,
    json: Json = False,
) -> None:
    """Samples per second of training AutoInt, against the same model written plainly."""
    with training_terminal(json) as screen:
        from pipelines.bench.training import Sizes, bench_training

        sizes = Sizes(attention_dim=attention_dim)
        measured = bench_training(rows or [1_000_000, 10_000_000], steps, sizes, seed=seed, threads=threads, console=screen.console)
        screen.result(measured)


@bench_app.command("models")
def models(
    configs: Annotated[list[str], typer.Argument(metavar="CONFIG...", help="Experiments in YAML.", show_default=False)],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help="A model to train. Repeatable; default all that fit the config.", show_default=False),
    ] = None,
    seeds: Seeds = 3,
    grid: Grid = None,
    out: Out = Path("out/bench"),
    json: Json = False,
) -> None:
    """Models x data sets x seeds: test AUC and logloss, mean and spread."""
    with training_terminal(json) as screen:
        from pipelines.bench.models import bench_models

        screen.result(bench_models(configs, model or [], seeds, grid or [], out, screen.console.print))


@bench_app.command("unified")
def unified(
    config: Config,
    budget: Annotated[
        list[int], typer.Option("--budget", min=2, help="Rows of width embedding.dim in all. Repeatable.", show_default=False)
    ],
    lookups: Annotated[
        list[int] | None,
        typer.Option("--lookups", min=1, help="Look-ups of a field in the shared table. Repeatable; default 1 and 2.", show_default=False),
    ] = None,
    seeds: Seeds = 3,
    grid: Grid = None,
    out: Out = Path("out/bench-unified"),
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """One table that all features share against a table for each, at equal numbers of parameters."""
    with training_terminal(json) as screen:
        from pipelines.bench.unified import bench_unified

        rows = bench_unified(config, overrides or [], budget, lookups or [1, 2], seeds, grid or [], out, screen.console.print)
        screen.result(rows)


@bench_app.command("compression")
def compression(
    config: Config,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", metavar="NAME", help="See 'ctrkit compressions'. Repeatable; default all.", show_default=False),
    ] = None,
    budget: Annotated[
        list[float] | None,
        typer.Option(
            "--budget",
            min=1e-9,
            max=1,
            help="Bytes, of those of the full table. Repeatable; default 0.5, 0.1, 0.01, 0.001.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each, seeds 1, 2, ...; default 3.", show_default=False)] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side; they share the cores. Default 1.", show_default=False)
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A look: one seed, budgets 0.1 and 0.01, one epoch, a process a core, if not given.")
    ] = False,
    out: Out = Path("out/bench-compression"),
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Methods of compressed embeddings x budgets x seeds: quality, bytes, latency and speed against the full table."""
    with training_terminal(json) as screen:
        from pipelines.bench.compression import bench_compression

        rows = bench_compression(config, overrides or [], method or [], budget or [], seeds, processes, quick, out, screen)
        screen.result(rows)


@bench_app.command("retrieval")
def retrieval(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG...", help="Experiments with task: retrieval.", show_default=False)],
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="two_tower, ssl, ssl_random, spread_out, feature_dropout, fusion, popularity, item_knn, als, bpr_mf, lightgcn, autorec, deepfm, boosting "
            "or sasrec; "
            "of RecBole recbole_bpr, recbole_lightgcn or recbole_sasrec. Repeatable; default all.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 1, 2, ...")] = 3,
    share: Annotated[
        list[float] | None,
        typer.Option("--share", min=1e-6, max=1, help="Of the training events. Repeatable; default all of them.", show_default=False),
    ] = None,
    peer: Annotated[
        Path | None,
        typer.Option(
            "--peer-python",
            metavar="PYTHON",
            help="The Python that RecBole 1.2, scipy<1.12 and pandas<3 are installed for.",
            parser=_python,
            show_default=False,
        ),
    ] = None,
    peer_settings: Annotated[
        list[str] | None,
        typer.Option(
            "--peer-set", metavar="KEY=VALUE", help="A setting of RecBole's, as learning_rate=0.005. Repeatable.", show_default=False
        ),
    ] = None,
    out: Out = Path("out/bench-retrieval"),
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Retrieval methods x data x seeds x shares of the training events, over the full catalogue and by slices."""
    with training_terminal(json) as screen:
        from pipelines.bench.recbole import RecBole, parse_settings
        from pipelines.bench.retrieval import bench_retrieval

        if peer_settings and peer is None:
            raise CtrkitError("--peer-set is for RecBole, and no Python that has it is named", "Name it: --peer-python PYTHON")
        recbole = None if peer is None else RecBole(peer, parse_settings(peer_settings or []))
        say = screen.console.print
        screen.result(bench_retrieval(configs, overrides or [], method or [], seeds, share or [], out, say, recbole))


@bench_app.command("recommend")
def recommend(
    items: Annotated[
        list[int] | None,
        typer.Option("--items", min=100, help="Of a synthetic catalogue. Repeatable; default 100,000 and a million.", show_default=False),
    ] = None,
    width: Annotated[int, typer.Option(min=2, help="Of vectors.")] = 64,
    queries: Annotated[int, typer.Option(min=1, help="Users that are searched for.")] = 1000,
    concurrency: Annotated[
        list[int] | None, typer.Option("--concurrency", min=1, max=200, help="Connections. Repeatable; default 1, 16.", show_default=False)
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Of each load.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the results; catalogues lie there while they are measured.")] = Path(
        "out/bench-recommend"
    ),
    json: Json = False,
) -> None:
    """Recall and speed of the index of items against exact search, and latency of :recommend over HTTP."""
    with training_terminal(json) as screen:
        from pipelines.bench.recommend import bench_recommend

        sizes = items or [100_000, 1_000_000]
        screen.result(bench_recommend(sizes, width, queries, concurrency or [1, 16], seconds, out, screen))


@bench_app.command("rank")
def rank(
    rows: Annotated[int, typer.Option(min=1000, help="Rows of the synthetic log.")] = 1_000_000,
    features: Annotated[int, typer.Option(min=4, help="Features of it; a quarter matter.")] = 100,
    peer: Annotated[
        Path | None,
        typer.Option(
            "--peer-python", metavar="PYTHON", help="The Python that outrank 0.97 is installed for.", parser=_python, show_default=False
        ),
    ] = None,
    limit: Annotated[float, typer.Option("--peer-limit", min=1, help="Seconds that each run of outrank may take.")] = 1800,
    processes: Annotated[int | None, typer.Option(min=1, help="Of outrank; default as many as cores.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the log.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("out/bench-rank"),
    json: Json = False,
) -> None:
    """Ranking features against the outrank package: time, memory, and whether what matters comes first."""
    with training_terminal(json) as screen:
        from pipelines.bench.rank import bench_rank

        screen.result(bench_rank(rows, features, seed, peer, limit, processes or os.cpu_count() or 1, out, screen))


@bench_app.command("selection")
def selection(
    configs: Annotated[list[Path] | None, typer.Argument(metavar="[CONFIG]...", help="Experiments in YAML.", show_default=False)] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="outrank, 3mr, optfs, permutation, lasso, forest, boosting or random. Repeatable; default all.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[
        list[int] | None,
        typer.Option(
            "--top",
            min=1,
            help="Features to keep. Repeatable; default an eighth, a quarter, a half, three quarters, all.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 1, 2, ... of rankings and trainings.")] = 3,
    synthetic: Annotated[int, typer.Option(min=0, help="Rows of a synthetic log whose relevant features are known; 0: without.")] = 0,
    out: Out = Path("out/bench-selection"),
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """AUC against the number of kept features, by rankings: OutRank, OptFS, permutation, lasso, forest, boosting."""
    with training_terminal(json) as screen:
        from pipelines.bench.selection import bench_selection

        rows = bench_selection(configs or [], overrides or [], method or [], top or [], seeds, synthetic, out, screen)
        screen.result(rows)


@bench_app.command("tune")
def tune(
    config: Config,
    space: Annotated[Path | None, typer.Option(metavar="FILE", help="The search space, as of 'ctrkit tune'.", show_default=False)] = None,
    trials: Annotated[int, typer.Option(min=2, help="Of each search.")] = 30,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 1, 2, ... of searches and trainings.")] = 3,
    out: Out = Path("out/bench-tune"),
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Search with OutRank's ranking first against a search over all subsets of the features: AUC and time."""
    with training_terminal(json) as screen:
        from pipelines.bench.tune import bench_tune

        screen.result(bench_tune(config, overrides or [], space, trials, seeds, out, screen))


@bench_app.command("serving")
def serving(
    repo: Annotated[Path, typer.Argument(metavar="REPO", help="A model repository; its first model is asked.", show_default=False)],
    rows: Annotated[
        list[int] | None,
        typer.Option("--rows", min=1, max=10_000, help="Candidates of a request. Repeatable; default 1, 100, 1000.", show_default=False),
    ] = None,
    concurrency: Annotated[
        list[int] | None,
        typer.Option("--concurrency", min=1, max=200, help="Connections. Repeatable; default 1, 16, 64.", show_default=False),
    ] = None,
    workers: Annotated[
        list[int] | None,
        typer.Option("--workers", min=1, max=64, help="Processes that answer. Repeatable; default 1.", show_default=False),
    ] = None,
    peer_python: Annotated[
        Path | None,
        typer.Option(
            metavar="PYTHON", help="Interpreter with ctrkit[serving], litserve and bentoml: measures these two too.", parser=_python
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=86_400, help="Of each load, or of the soak.")] = 3,
    soak: Annotated[bool, typer.Option("--soak", help="One load while new versions arrive: count failures, watch memory.")] = False,
    reload_every: Annotated[float, typer.Option(min=0.1, help="Soak: seconds between two versions.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("out/bench-serving"),
    json: Json = False,
) -> None:
    """Requests a second and latency over HTTP, beside the same ONNX model behind plain FastAPI, LitServe and BentoML."""
    with training_terminal(json) as screen:
        if soak:
            if workers or peer_python or len(rows or []) > 1 or len(concurrency or []) > 1:
                remedy = "Leave --workers and --peer-python out, and give one --rows and one --concurrency"
                raise CtrkitError("--soak is one load on one worker of ctrkit's own", remedy)
            from pipelines.bench.soak import bench_soak

            screen.result(bench_soak(repo, (rows or [10])[0], (concurrency or [8])[0], seconds, reload_every, out, screen))
            return
        from pipelines.bench.serving import bench_serving

        loads = (rows or [1, 100, 1000], concurrency or [1, 16, 64], workers or [1])
        screen.result(bench_serving(repo, *loads, seconds, peer_python, out, screen))
