"""Show how a run stands.

\b
  runner status warm
"""

import click

from runner.command_line import completion
from runner.command_line.arguments import JSON
from runner.terminal import Environment


@click.command(help=__doc__)
@click.argument("run", shell_complete=completion.runs)
@JSON
@click.pass_obj
def command(env: Environment, run: str, as_json: bool) -> int:
    from dataclasses import asdict

    from runner.jobs import WITH_RUN
    from runner.runs import caps
    from runner.runs.find import find_run
    from runner.runs.table import rows

    found = find_run(env, run)
    state = found.state
    if as_json:
        env.json(asdict(state))
        return 0
    for name, value in rows(state):
        env.write(f"{name:<9} {value}")
    if state.status == "dead" or (state.status == "failed" and state.reason is None):
        for line in found.target.output(run, 10):
            env.say(f"  {line}")
    if (cap := caps.in_words(run, state.left_by)) and not state.is_copy:
        env.say(cap)
    elif state.status in ("dead", "failed", "unfinished") and state.job in WITH_RUN:
        resume = f"runner resume {run}" + (" --on host" if state.is_copy else "")
        env.say(f"`{resume}` goes on from its newest checkpoint; `runner logs {run}` shows its log")
    return 0
