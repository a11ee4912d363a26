"""Publish the image of the jobs, for machines that should not build it: `runner image push`.

\b
  runner image push ghcr.io/me/gpt-runner:v1
  export GPT_RUNNER_IMAGE=ghcr.io/me/gpt-runner:v1
  runner local | remote BOX | cloud        use it in place of a build

For a private image on Modal, GPT_RUNNER_IMAGE_SECRET names the secret on Modal with
REGISTRY_USERNAME and REGISTRY_PASSWORD. On `local` and `remote`, the run's
record has the image's digest.
"""

import click

from runner.cli_options import Choice
from runner.console import CliContext


@click.command(help=__doc__)
@click.argument("action", type=Choice(["push"]))
@click.argument("name", metavar="REGISTRY/NAME")
@click.pass_obj
def command(cli: CliContext, action: str, name: str) -> int:
    from runner.errors import RunnerError, usage
    from runner.planning.packaging import list_files
    from runner.project import find_checkout
    from runner.system import System
    from runner.targets.compose_project import ComposeProject
    from runner.targets.docker import build_context, image_digest, transfer_image
    from runner.targets.process import follow_process

    if "/" not in name or name.startswith("-"):
        raise usage(f"'{name}' has no registry; write REGISTRY/NAME, such as ghcr.io/me/gpt")
    checkout, system = find_checkout(cli.cwd), System(cli.environ)
    if system.engine.problem:
        raise RunnerError(f"{system.engine.problem}; run `runner doctor` for details")
    build = ComposeProject(system, checkout).command("build", "train")
    if follow_process(cli.environ, build, checkout):
        raise RunnerError("building the image failed; fix the error above and try again")
    own = ComposeProject(system, checkout).image("train") or "gpt-runner"
    # The code is in it too, for engines that can't mount it; other targets mount theirs over it.
    files = {path: checkout / path for path in list_files(checkout, checkout).sizes}
    context = build_context(files, f"FROM {own}\nCOPY . /workspace\n")
    if system.run_visibly(["docker", "build", "--tag", name, "-"], context):
        raise RunnerError("adding the code to the image failed; fix the error above and try again")
    if problem := transfer_image(system, "push", name):
        raise RunnerError(f"could not push {name}; {problem}")
    cli.write(image_digest(system, name))
    cli.info(f"use it in place of a build: export GPT_RUNNER_IMAGE={name}")
    return 0
