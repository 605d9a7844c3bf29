"""The options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="An experiment in YAML, such as configs/simulated.yaml.", show_default=False)
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, as printed by 'ctrkit train'.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as training.epochs=3. Repeatable.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout's last line; the rest goes to stderr.")]
