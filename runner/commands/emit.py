"""Write a job file for another system: Slurm, Kubernetes, SkyPilot or dstack.

\b
  runner image push ghcr.io/me/gpt-runner:v1
  export GPT_RUNNER_IMAGE=ghcr.io/me/gpt-runner:v1
  runner emit slurm gpt2_124m --gpu 8 --timeout 12h > job.sbatch && sbatch job.sbatch
  runner emit k8s gpt2_124m --gpu H100:8 > job.yaml && kubectl apply -f job.yaml
  runner emit skypilot gpt2_124m --gpu H100:8 > job.sky.yaml && sky jobs launch job.sky.yaml
  runner emit dstack gpt2_124m --gpu H100:8 > job.dstack.yml && dstack apply -f job.dstack.yml

The file has the image, the command, the volumes, the resources, the time limit and a
restart after a preemption, which resumes from the newest checkpoint. GPUs and time
limit default to the recipe's. The runner does not start it.
"""

from __future__ import annotations

from dataclasses import replace

import click

from runner import completion
from runner.cli_options import TIMEOUT, Choice, GpuSpec
from runner.console import CliContext
from runner.emit import ENGINES


class _Gpus(GpuSpec):
    """``8`` for any GPU of the engine, or ``H100:8``."""

    def convert(self, value, param, ctx):  # type: ignore[no-untyped-def]
        """Return the name, None for any, and the count."""
        if isinstance(value, str) and value.isdecimal():
            return None, int(value)
        request = super().convert(value, param, ctx)
        return request.names[0], request.count


@click.command(help=__doc__)
@click.argument("system", type=Choice([*ENGINES]))
@click.argument(
    "args", nargs=-1, metavar="[RECIPE] [key=value ...]", shell_complete=completion.recipes
)
@click.option("--name", metavar="RUN", help="Name of the run.")
@click.option("--gpu", "gpus", type=_Gpus(), metavar="N|NAME[:N]", help="GPUs: 8, or H100:8.")
@TIMEOUT
@click.pass_obj
def command(
    cli: CliContext,
    system: str,
    args: tuple[str, ...],
    name: str | None,
    gpus: tuple[str | None, int] | None,
    timeout: float | None,
) -> int:
    from job.format import parse_duration
    from runner.emit import EmittedJob
    from runner.errors import usage
    from runner.jobs import LaunchArguments
    from runner.launch.parse import load_recipe, read_request
    from runner.plan import JobEnvironment, TargetState, Volume
    from runner.planning.plan import make_plan
    from runner.project import find_checkout
    from runner.request import TrainRequest

    checkout = find_checkout(cli.cwd)
    image = cli.environ.get("GPT_RUNNER_IMAGE")
    if not image:
        raise usage(
            "a job file needs a published image: run `runner image push REGISTRY/NAME`, then "
            "`export GPT_RUNNER_IMAGE=REGISTRY/NAME`"
        )
    load_recipe(args, checkout, cli.cwd)  # its errors do not mention jobs
    request = read_request(LaunchArguments(args=args, name=name), checkout, cli.cwd, None)
    assert isinstance(request, TrainRequest)
    resources = request.settings.resources
    if gpus is None and resources.gpu is not None:
        gpus = _Gpus().convert(resources.gpu, None, None)  # type: ignore[no-untyped-call]
    gpu, count = gpus or (None, 1)
    request = replace(request, gpus=count)
    volumes = tuple(Volume(n, "", f"/vol/{n}") for n in ("data", "checkpoints", "cache"))
    environment = JobEnvironment("/workspace", volumes, can_mount=False)
    plan = make_plan(request, TargetState(system, str(checkout), environment))
    if mounted := [volume.host_path for volume in plan.volumes if volume.name == "mount"]:
        raise usage(
            f"{mounted[0]} is not in the image; put it into {checkout}/configs and push again"
        )
    job = EmittedJob(
        run=plan.run,
        image=image,
        command=plan.process.command,
        gpu=gpu,
        count=count,
        timeout_s=int(timeout or parse_duration(resources.timeout, "resources.timeout")),
    )
    cli.write(ENGINES[system](job), newline=False)
    return 0
