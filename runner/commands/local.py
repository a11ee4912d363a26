"""Run a job in the container on this machine, under compose.

\b
JOB is prepare, train (default), sample, evaluate or export; RECIPE a path or
a name from configs/ (default quickstart); key=value overrides a setting of it.
In any order:
\b
  runner local lr=1e-3 max_steps=100 --name try
  runner local shakespeare_char train --gpu 2 --detach

Or any command in any folder, as a run like the others (docs/commands.md):
  runner local --dir ../nanoGPT -- python train.py --max_iters=100
"""

import click

from runner.arguments import CommandLine, LaunchCommand, launch_arguments
from runner.terminal import Environment


@click.command(cls=LaunchCommand, help=__doc__)
@launch_arguments
def command(env: Environment, line: CommandLine) -> int:
    from runner.launch import launch

    return launch(env, "local", line)
