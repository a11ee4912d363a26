"""Check this machine, the checkout, boxes and the Modal account, and fix what can be fixed.

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

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from runner import completion
from runner.cli_options import JSON, YES
from runner.console import CliContext

if TYPE_CHECKING:
    from runner.doctor import CheckContext, Finding

COLORS = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}


@click.command(help=__doc__)
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
def command(cli: CliContext, fix: bool, recipe: str | None, as_json: bool, yes: bool) -> int:
    if recipe is not None:
        from runner.doctor.parity import parity
        from runner.errors import usage

        if fix:
            raise usage("--parity cannot be combined with --fix; run them one after the other")
        return parity(cli, recipe, yes, as_json)
    from dataclasses import asdict

    from runner.doctor import CheckContext, project, storage
    from runner.project import find_checkout

    context = CheckContext(find_checkout(cli.cwd), cli.environ)
    if fix:
        fixes = (
            project.fix_home,
            project.fix_dotenv,
            storage.fix_volumes,
            storage.fix_leftovers,
        )
        for repair in fixes:
            for line in repair(context):
                cli.info(line)
    findings = list(examine(context))
    if as_json:
        cli.json([asdict(finding) for finding in findings])
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
    from runner.errors import RunnerError

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
