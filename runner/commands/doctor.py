"""Check this machine: engine, compose, GPUs, torch, disk, .env, recipes.

Ends 1 when something must be fixed. --fix writes .env (compose files, your
uid and gid; other lines stay) and makes the folders under volumes/.
"""

import click

from runner.arguments import JSON
from runner.terminal import Environment

MARKS = {"ok": "ok     ", "note": "note   ", "warning": "warning", "error": "error  "}
COLORS = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}


@click.command(help=__doc__)
@click.option("--fix", is_flag=True, help="Put right what can be put right.")
@JSON
@click.pass_obj
def command(env: Environment, fix: bool, as_json: bool) -> int:
    from dataclasses import asdict

    from runner.checkout import find_checkout
    from runner.checks import Scene, examine, repair

    scene = Scene(find_checkout(env.cwd), env.environ)
    if fix:
        for line in repair(scene):
            env.say(line)
    findings = list(examine(scene))
    if as_json:
        env.json([asdict(finding) for finding in findings])
    for finding in findings if not as_json else []:
        where = f"{finding.file}:{finding.line}: " if finding.file and finding.line else ""
        mark = click.style(MARKS[finding.severity], fg=COLORS[finding.severity])
        env.write(f"{mark if env.color else MARKS[finding.severity]}  {where}{finding.message}")
        if finding.remedy:
            env.write(f"         {finding.remedy}")
    return int(any(finding.severity == "error" for finding in findings))
