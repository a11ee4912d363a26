"""Run a job on Modal: the same image, the same command, GPUs by the second.

\b
JOB is train (default), prepare, sample, evaluate, export or roofline; or
run FILE, an experiment (docs/experiments.md); or pipeline FILE.
RECIPE is a path or a name from configs/ (default quickstart); key=value
overrides a setting of it. In any order:
  runner cloud --gpu H100:8 gpt2_124m --max-cost 25
  runner cloud prepare shakespeare_char
  runner cloud --gpu H100,A100-80GB lr=1e-3 --name try --detach
  runner cloud sample --name try prompt="def "
  runner cloud run my_gpt.py --gpu L4
  runner cloud pipeline configs/nanogpt_shakespeare.yaml

\b
Or any command in any folder, as a run like the others (docs/commands.md):
  runner cloud --gpu H100 --dir ../nanoGPT --keep out=checkpoints -- python train.py

It shows what it will cost and asks; -y answers. Ctrl-C asks whether to stop
the run or only to leave it. Off a terminal SIGINT stops it, SIGTERM leaves it.
"""

import click

from runner import completion
from runner.cli_options import LaunchCommand, launch_arguments
from runner.console import CliContext
from runner.request import LaunchArguments

GPU = click.option(
    "--gpu",
    "gpu_names",
    metavar="NAME[:N]",
    shell_complete=completion.gpus,
    help="H100, H100:8, or H100:8,A100-80GB:8 in order of preference.",
)
NODES = click.option(
    "--nodes", type=click.IntRange(1, 32), metavar="N", help="Machines of 8 GPUs each."
)
TIMEOUT = click.option(
    "--timeout", metavar="TIME", help="Longest time over all attempts: 90m, 12h, 3d."
)
MAX_COST = click.option(
    "--max-cost",
    metavar="USD",
    help="Over all attempts; then it writes a checkpoint and ends with 104.",
)
ENV = click.option(
    "--env",
    "variables",
    multiple=True,
    metavar="K=V",
    help="A variable for the job; K alone is a secret from here or .env.",
)
SECRET = click.option("--secret", multiple=True, metavar="NAME", help="A secret that Modal keeps.")
REGION = click.option(
    "--region", metavar="R", help="Where it may run: us, eu, us-east ...; costs more."
)


def _launch(
    cli: CliContext,
    line: LaunchArguments,
    gpu_names: str | None,
    nodes: int | None,
    timeout: str | None,
    max_cost: str | None,
    region: str | None,
    variables: tuple[str, ...],
    secret: tuple[str, ...],
) -> int:
    from runner.launch.execute import launch
    from runner.targets.modal.options import parse_options

    options = parse_options(
        gpu=gpu_names,
        nodes=nodes,
        timeout=timeout,
        max_cost=max_cost,
        region=region,
        variables=variables,
        secrets=secret,
    )
    return launch(cli, "cloud", line, options)


command = click.command(cls=LaunchCommand, help=__doc__)(
    NODES(TIMEOUT(MAX_COST(ENV(SECRET(REGION(launch_arguments(_launch, GPU)))))))
)
