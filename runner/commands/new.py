"""Write a file to begin with: runner new experiment NAME.

\b
The experiment is a small GPT that trains in seconds on a CPU, logs, and goes
on exactly after a stop. `runner host run NAME.py` runs it.

\b
  runner new experiment try
"""

import click

from runner.terminal import Environment


@click.command(help=__doc__)
@click.argument("what", type=click.Choice(["experiment"]))
@click.argument("name")
@click.pass_obj
def command(env: Environment, what: str, name: str) -> int:
    from runner.checkout import INSTALLED
    from runner.experiment_file import write_experiment

    path = write_experiment(env.cwd, name, INSTALLED)
    env.write(str(path))
    env.say(f"written; to run it: runner host run {path.name}")
    return 0
