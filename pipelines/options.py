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
Select = Annotated[
    Path | None,
    typer.Option("--select", metavar="RANKING", help="Only the best features of what 'ctrkit rank' wrote, see --top.", show_default=False),
]
Top = Annotated[int | None, typer.Option(min=1, help="With --select: how many features. Default: 20.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout's last line; the rest goes to stderr.")]
