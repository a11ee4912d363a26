"""Write an example experiment to edit: `runner new experiment NAME`.

\b
  runner new experiment my_gpt
  runner host run my_gpt.py

The experiment is a small GPT that trains in seconds on a CPU, logs its loss and
resumes exactly after an interruption.
"""

from __future__ import annotations

import keyword
import os
from pathlib import Path

import click

from job.files import write_atomically
from runner.cli_options import Choice
from runner.console import CliContext
from runner.errors import RunnerError, usage
from runner.home import PACKAGES

# Packages that the file imports; a file of that name in its folder would hide them.
RESERVED_NAMES = (*PACKAGES, "torch")


@click.command(help=__doc__)
@click.argument("template", type=Choice(["experiment"]))
@click.argument("name")
@click.pass_obj
def command(cli: CliContext, template: str, name: str) -> int:
    from runner.project import INSTALLED

    path = write_experiment(cli.cwd, name, INSTALLED)
    cli.write(str(path))
    cli.info(f"written; run it with `runner host run {path.name}`")
    return 0


def write_experiment(cwd: Path, name: str, installed: Path) -> Path:
    """Write NAME.py below ``cwd`` and return its path.

    ``installed`` is the folder that holds the package ``experiment``. Raises RunnerError: 2 for a
    name that can't be a module's, 1 if the file exists.
    """
    path = cwd / Path(name).expanduser()
    path = path if path.suffix == ".py" else path.with_name(f"{path.name}.py")
    stem = path.stem
    if not stem.isidentifier() or keyword.iskeyword(stem):
        raise usage(f"{stem!r} is not a valid name of a Python module; use letters, digits and _")
    if stem in RESERVED_NAMES:
        raise usage(f"'{stem}' is a package that the file imports; choose a different name")
    text = (installed / "experiment" / "example.py").read_text(encoding="utf-8")
    if os.path.lexists(path):
        raise RunnerError(f"{path} exists; choose a different name")
    write_atomically(path, text.replace("EXAMPLE.py", path.name))
    return path
