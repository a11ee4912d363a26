"""Run a job as a process of this machine.

\b
JOB is train (default), prepare, sample, evaluate, export or roofline; or
run FILE, an experiment (docs/experiments.md); or pipeline FILE.
RECIPE is a path or a name from configs/ (default quickstart); key=value
overrides a setting of it. In any order:
  runner host lr=1e-3 max_steps=100 --name try
  runner host sample prompt="def " temperature=0.5
  runner host run my_gpt.py lr=3e-4
  runner host pipeline configs/nanogpt_shakespeare.yaml

\b
Or any command in any folder, as a run like the others (docs/commands.md):
  runner host --dir ../nanoGPT -- python train.py --max_iters=100
"""

import click

from runner.cli_options import LaunchCommand, launch_arguments
from runner.console import CliContext
from runner.request import LaunchArguments


@click.command(cls=LaunchCommand, help=__doc__)
@launch_arguments
def command(cli: CliContext, line: LaunchArguments) -> int:
    from runner.launch.execute import launch

    return launch(cli, "host", line)
