"""``ctrkit doctor``: the installed packages against the tested set, and whether they load."""

import platform
from typing import Any

from ctrkit import __version__
from ctrkit.doctor import TRAINING, check, installed, try_imports
from pipelines.terminal import Terminal


def examine(screen: Terminal) -> dict[str, Any]:
    """Prints a table and, for all that is wrong, what mends it.

    Returns:
        ``{ok, ctrkit, python, packages: [{package, installed, wanted, ok, problem, remedy}]}``; ``ok`` says whether all is well.
    """
    serving_only = all(installed(package.name) is None for package in TRAINING)
    findings = check("serving" if serving_only else "training")
    packages = [
        {
            "package": finding.package,
            "installed": finding.installed,
            "wanted": finding.wanted,
            "ok": finding.ok,
            "problem": finding.problem,
            "remedy": finding.remedy,
        }
        for finding in findings
    ]
    problems = [f"{finding.problem}. Run in ctrkit's folder: {finding.remedy}" for finding in findings if not finding.ok]
    if not problems:
        modules = ["onnxruntime", "polars"] if serving_only else ["onnxruntime", "polars", "torch", "fbgemm_gpu", "torchrec"]
        failure = try_imports(modules)
        if failure:
            problems.append(f"The versions are right, but {', '.join(modules)} do not load: {failure}")
    rows = [(f.package, f.installed or "-", f.wanted, "[green]ok[/]" if f.ok else "[red]wrong[/]") for f in findings]
    screen.table(("package", "installed", "needed", ""), rows)
    for problem in problems:
        screen.console.print(problem, style="red", markup=False)
    if not problems:
        scope = "serve and score; for training install the train extra" if serving_only else "train, export and serve"
        screen.console.print(f"All is well: ctrkit {__version__} on Python {platform.python_version()} can {scope}.", style="green")
    return {
        "ok": not problems,
        "ctrkit": __version__,
        "python": platform.python_version(),
        "packages": packages,
        "problems": problems,
    }
