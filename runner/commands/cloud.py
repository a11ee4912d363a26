"""Run a job on Modal: the same image and the same command, with GPUs billed by the second.

\b
  runner cloud --gpu H100:8 gpt2_124m --max-cost 25
  runner cloud --gpu H100,A100-80GB lr=1e-3 --name try --detach
  runner cloud prepare shakespeare_char
  runner cloud sample --name try prompt="def "
  runner cloud run my_gpt.py --gpu L4      train() of a file
  runner cloud pipeline configs/nanogpt_shakespeare.yaml
  runner cloud --gpu H100 --dir ../nanoGPT --persist out=checkpoints -- python train.py

The runner shows the price and asks before it starts; -y answers yes. Ctrl-C asks
whether to stop the run or to leave it running. Without a terminal, SIGINT stops the
run and SIGTERM leaves it running.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from runner import completion
from runner.cli_options import ENV, MAX_COST, REGION, TIMEOUT, GpuSpec, Integer, Number
from runner.commands._jobs import target_group

if TYPE_CHECKING:
    from runner.targets.modal.options import ModalOptions

GPU = click.option(
    "--gpu",
    "gpus",
    type=GpuSpec(),
    metavar="NAME[:N]",
    shell_complete=completion.gpus,
    help="H100, H100:8, or alternatives in order of preference: H100:8,A100-80GB:8. "
    "Default: train: the recipe's or H100; a command: none; other jobs: L4,T4.",
)
NODES = click.option(
    "--nodes", type=Integer(1, 32), metavar="N", help="Number of machines with 8 GPUs each."
)
CORES = click.option("--cores", type=Number(0.125), metavar="N", help="Physical CPU cores.")
MEMORY = click.option(
    "--memory", "memory_gib", type=Number(0.125), metavar="GIB", help="Memory in GiB."
)
SECRET = click.option(
    "--secret", multiple=True, metavar="NAME", help="Pass a secret stored on Modal. Repeatable."
)


def read_options(values: Mapping[str, Any]) -> ModalOptions:
    """Return the options of `cloud`, typed."""
    from runner.targets.modal.options import parse_options

    gpus = values["gpus"]
    return parse_options(
        gpu=str(gpus) if gpus else None,
        nodes=values.get("nodes"),
        timeout=values["timeout"],
        max_cost=values["max_cost"],
        region=values["region"],
        cores=values.get("cores"),
        memory_gib=values.get("memory_gib"),
        variables=values["env"],
        secrets=values["secret"],
    )


command = target_group(
    __doc__,
    "cloud",
    options=(TIMEOUT, MAX_COST, ENV, SECRET, REGION, CORES, MEMORY),
    gpu=GPU,
    node_options=(NODES,),
    read_options=read_options,
)
