"""Set up a machine or a folder: checks, templates, shell completion."""

from __future__ import annotations

import keyword
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from job.files import write_atomically
from runner import completion
from runner.cli_options import JSON, YES, Choice
from runner.console import CliContext
from runner.errors import RunnerError, usage
from runner.home import PACKAGES
from runner.project import INSTALLED, find_checkout

if TYPE_CHECKING:
    from runner.doctor import CheckContext, Finding


# Packages that an experiment imports; a file of that name in its folder would hide them.
RESERVED_NAMES = (*PACKAGES, "torch")
COLORS = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}


@click.command()
@click.option("--fix", is_flag=True, help="Fix what can be fixed.")
@click.option(
    "--parity",
    "recipe",
    metavar="RECIPE",
    help="Train ten steps on each available target; exit with 1 if losses differ by over 1e-3.",
    shell_complete=completion.recipes,
)
@JSON
@YES
@click.pass_obj
def doctor_command(cli: CliContext, fix: bool, recipe: str | None, as_json: bool, yes: bool) -> int:
    """Check this machine, the checkout, boxes and the Modal account.

    Checks Docker, Compose, the clock, GPUs, torch, .env, disks, the Dockerfile,
    recipes and their keys, leftovers of interrupted jobs, the boxes that were used,
    and Modal. Exits with 1 if something must be fixed. --fix writes .env (compose
    files, your user and group ID; other lines stay), creates the folders in
    volumes/, deletes partial checkpoints and the code of earlier versions, and
    makes `latest` name a complete checkpoint.

    \b
      runner doctor --fix
      runner doctor --parity quickstart     train ten steps on each target and compare
    """
    if recipe is not None:
        from runner.doctor.parity import parity

        if fix:
            raise usage("--parity cannot be combined with --fix; run them one after the other")
        return parity(cli, recipe, yes, as_json)
    from runner.doctor import CheckContext, project, storage

    context = CheckContext(find_checkout(cli.cwd), cli.environ)
    if fix:
        fixes = (project.fix_home, project.fix_dotenv, storage.fix_volumes, storage.fix_leftovers)
        for repair in fixes:
            for line in repair(context):
                cli.info(line)
    findings = list(examine(context))
    if as_json:
        cli.json(findings)
    for finding in findings if not as_json else []:
        where = f"{finding.file}:{finding.line}: " if finding.file and finding.line else ""
        mark = f"{finding.severity:<7}"
        cli.write(f"  {where}{finding.message}", label=mark, color=COLORS[finding.severity])
        if finding.remedy:
            cli.write(f"         {finding.remedy}")
    return int(any(finding.severity == "error" for finding in findings))


def examine(context: CheckContext) -> Iterator[Finding]:
    """Run every check and yield its findings; one that can't run is a finding too."""
    from runner.doctor import Finding, Severity, project, storage, system

    checks = (  # in the order of the report: later ones build on earlier ones
        system.check_engine,
        system.check_clock,
        system.check_compose,
        system.check_gpus,
        system.check_torch,
        project.check_home,
        project.check_dotenv,
        storage.check_volumes,
        project.check_dockerfile,
        project.check_recipes,
        project.check_secrets,
        storage.check_leftovers,
        system.check_boxes,
        system.check_modal,
    )
    seen = set()
    for check in checks:
        try:
            yield from check(context)
        except RunnerError as error:
            message, _, remedy = error.message.partition("; ")
            if message not in seen:  # several checks read .env
                yield Finding(Severity.ERROR, message, remedy)
            seen.add(message)


@click.command()
@click.pass_obj
def init_command(cli: CliContext) -> None:
    """Write a recipe, an experiment and .env.example into this folder, to start from.

    \b
      runner init                  configs/my_gpt.yaml, my_experiment.py, .env.example
      runner local my_gpt          train the recipe: recipes in ./configs are found by name
      runner host run my_experiment.py

    Existing files are kept.
    """
    checkout = find_checkout(cli.cwd)
    files = {
        "configs/my_gpt.yaml": (checkout / "configs" / "quickstart.yaml").read_text("utf-8"),
        ".env.example": (checkout / ".env.example").read_text("utf-8"),
        "my_experiment.py": _example_experiment("my_experiment.py"),
    }
    for name, content in files.items():
        if os.path.lexists(cli.cwd / name):
            cli.info(f"kept {name}")
        else:
            write_atomically(cli.cwd / name, content)
            cli.write(name)
    cli.info("train the recipe with `runner host my_gpt`, `local my_gpt` or `cloud my_gpt`")


@click.command()
@click.argument("template", type=Choice(["experiment"]))
@click.argument("name")
@click.pass_obj
def new_command(cli: CliContext, template: str, name: str) -> None:
    """Write an example experiment to edit: `runner new experiment NAME`.

    \b
      runner new experiment my_gpt
      runner host run my_gpt.py

    The experiment is a small GPT that trains in seconds on a CPU, logs its loss and
    resumes exactly after an interruption.
    """
    path = cli.cwd / Path(name).expanduser()
    path = path if path.suffix == ".py" else path.with_name(f"{path.name}.py")
    if not path.stem.isidentifier() or keyword.iskeyword(path.stem):
        raise usage(
            f"{path.stem!r} is not a valid name of a Python module; use letters, digits and _"
        )
    if path.stem in RESERVED_NAMES:
        raise usage(f"'{path.stem}' is a package that the file imports; choose a different name")
    if os.path.lexists(path):
        raise RunnerError(f"{path} exists; choose a different name")
    write_atomically(path, _example_experiment(path.name))
    cli.write(str(path))
    cli.info(f"written; run it with `runner host run {path.name}`")


def _example_experiment(name: str) -> str:
    text = (INSTALLED / "experiment" / "example.py").read_text(encoding="utf-8")
    return text.replace("EXAMPLE.py", name)


@click.command()
@click.argument("shell", type=Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands, recipes, runs and GPUs with TAB.

    \b
      echo 'eval "$(runner completion bash)"' >> ~/.bashrc
      echo 'eval "$(runner completion zsh)"' >> ~/.zshrc
      runner completion fish > ~/.config/fish/completions/runner.fish
    """
    from click.shell_completion import get_completion_class

    cli = ctx.ensure_object(CliContext)
    complete = get_completion_class(shell)
    assert complete is not None
    cli.write(complete(ctx.find_root().command, {}, "runner", "_RUNNER_COMPLETE").source().rstrip())
