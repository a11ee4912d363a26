"""Publish the image, and write job files for other systems that use it."""

from __future__ import annotations

from dataclasses import replace

import click

from runner import completion
from runner.cli_options import TIMEOUT, Choice
from runner.console import CliContext
from runner.emit import ENGINES, EmittedJob
from runner.errors import RunnerError, usage
from runner.jobs import LaunchArguments
from runner.project import find_checkout


@click.command()
@click.argument("action", type=Choice(["push"]))
@click.argument("name", metavar="REGISTRY/NAME")
@click.pass_obj
def image_command(cli: CliContext, action: str, name: str) -> None:
    """Publish the image of the jobs: `runner image push`.

    \b
      runner image push ghcr.io/me/gpt-runner:v1
      export GPT_RUNNER_IMAGE=ghcr.io/me/gpt-runner:v1
      runner local | remote BOX | cloud        use it in place of a build

    For a private image on Modal, GPT_RUNNER_IMAGE_SECRET names the secret on Modal with
    REGISTRY_USERNAME and REGISTRY_PASSWORD. On `local` and `remote`, the run's
    record has the image's digest.
    """
    from runner.planning.packaging import list_files
    from runner.system import System
    from runner.targets.docker import ComposeProject, build_context, image_digest, transfer_image
    from runner.targets.process import follow_process

    if "/" not in name or name.startswith("-"):
        raise usage(f"'{name}' has no registry; write REGISTRY/NAME, such as ghcr.io/me/gpt")
    checkout, system = find_checkout(cli.cwd), System(cli.environ)
    if system.engine.problem:
        raise RunnerError(f"{system.engine.problem}; run `runner doctor` for details")
    build = ComposeProject(system, checkout).command("build", "train")
    if follow_process(cli.environ, build, checkout):
        raise RunnerError("building the image failed; fix the error above and try again")
    image = ComposeProject(system, checkout).image("train") or "gpt-runner"
    # The code is in it too, for engines that can't mount it; other targets mount theirs over it.
    files = {path: checkout / path for path in list_files(checkout, checkout).sizes}
    context = build_context(files, f"FROM {image}\nCOPY . /workspace\n")
    if system.run_visibly(["docker", "build", "--tag", name, "-"], context):
        raise RunnerError("adding the code to the image failed; fix the error above and try again")
    if problem := transfer_image(system, "push", name):
        raise RunnerError(f"could not push {name}; {problem}")
    cli.write(image_digest(system, name))
    cli.info(f"use it in place of a build: export GPT_RUNNER_IMAGE={name}")


@click.command()
@click.argument("system", type=Choice([*ENGINES]))
@click.argument(
    "args", nargs=-1, metavar="[RECIPE] [key=value ...]", shell_complete=completion.recipes
)
@click.option("--name", metavar="RUN", help="Name of the run.")
@click.option("--gpu", metavar="N|NAME[:N]", help="GPUs: 8, or H100:8.")
@TIMEOUT
@click.pass_obj
def emit_command(
    cli: CliContext,
    system: str,
    args: tuple[str, ...],
    name: str | None,
    gpu: str | None,
    timeout: float | None,
) -> None:
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
    from job.format import parse_duration
    from runner.launch.parse import load_recipe, read_request
    from runner.plan import JobEnvironment, TargetState, Volume
    from runner.planning.plan import make_plan
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
    gpu_type, count = _parse_gpus(gpu or resources.gpu or "1")
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
        gpu=gpu_type,
        count=count,
        timeout_s=int(timeout or parse_duration(resources.timeout, "resources.timeout")),
    )
    cli.write(ENGINES[system](job), newline=False)


def _parse_gpus(text: str) -> tuple[str | None, int]:
    """Return the GPU type, None for any, and the count in ``8`` or ``H100:8``."""
    from runner.planning.gpus import parse_gpus

    if text.isdecimal():
        if int(text) < 1:
            raise usage(f"--gpu {text}: expected 8 for any GPU, or H100:8")
        return None, int(text)
    request = parse_gpus(text)
    return request.names[0], request.count
