"""Check this machine, the checkout and the Modal account; put right what can be.

Engine, compose, clock, GPUs as the engine and as torch see them, .env, disk,
Dockerfile, recipes and their keys, leftovers of what was interrupted, Modal.
Ends 1 when something must be fixed. --fix writes .env (compose files, your
uid and gid; other lines stay), makes the folders under volumes/, deletes
half-written checkpoints and lets `latest` name a whole one.

\b
  runner doctor --fix
  runner doctor --parity quickstart     ten steps on each target, compared
"""

import click

from runner import completion
from runner.cli_options import JSON, YES
from runner.console import CliContext

MARKS = {"ok": "ok     ", "note": "note   ", "warning": "warning", "error": "error  "}
COLORS = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}


@click.command(help=__doc__)
@click.option("--fix", is_flag=True, help="Put right what can be put right.")
@click.option(
    "--parity",
    "recipe",
    metavar="RECIPE",
    help="Train ten steps on each target that is here; 1 where losses differ by more than 1e-3.",
    shell_complete=completion.recipes,
)
@JSON
@YES
@click.pass_obj
def command(cli: CliContext, fix: bool, recipe: str | None, as_json: bool, yes: bool) -> int:
    if recipe is not None:
        from runner.doctor.parity import parity
        from runner.errors import usage

        if fix:
            raise usage("--parity trains and mends nothing; type it without --fix")
        return parity(cli, recipe, yes, as_json)
    from dataclasses import asdict

    from runner.doctor import CheckContext, examine, repair
    from runner.project import find_checkout

    scene = CheckContext(find_checkout(cli.cwd), cli.environ)
    if fix:
        for line in repair(scene):
            cli.info(line)
    findings = list(examine(scene))
    if as_json:
        cli.json([asdict(finding) for finding in findings])
    for finding in findings if not as_json else []:
        where = f"{finding.file}:{finding.line}: " if finding.file and finding.line else ""
        mark = click.style(MARKS[finding.severity], fg=COLORS[finding.severity])
        cli.write(f"{mark if cli.color else MARKS[finding.severity]}  {where}{finding.message}")
        if finding.remedy:
            cli.write(f"         {finding.remedy}")
    return int(any(finding.severity == "error" for finding in findings))
