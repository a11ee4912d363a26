"""The image on a box: built there from the Dockerfile, or sent from this machine's engine."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from runner.console import CliContext
from runner.errors import RunnerError
from runner.system import System
from runner.targets.docker import IMAGE_VARIABLE, build_context, transfer_image
from runner.targets.modal.image import fingerprint
from runner.targets.remote.connection import BoxSystem, explain

REPOSITORY = "gpt-runner"
ID = ("image", "inspect", "--format", "{{.Id}}")


def image_name(checkout: Path, environ: Mapping[str, str]) -> str:
    """Return GPT_RUNNER_IMAGE, else a name with the digest of the Dockerfile and its files."""
    if name := environ.get(IMAGE_VARIABLE):
        return name
    text = json.dumps(sorted(fingerprint(checkout).items()))
    return f"{REPOSITORY}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def find_image(system: BoxSystem, name: str) -> str | None:
    """Return ``name`` if the box has it, else another of our images there, to read volumes with."""
    if system.call(["docker", *ID, name]).code == 0:
        return name
    answer = system.call(["docker", "images", "-q", REPOSITORY])
    if answer.code:
        raise RunnerError(explain(system.box, answer.last_line))
    return next(iter(answer.out.split()), None)


def ensure_image(cli: CliContext, system: BoxSystem, checkout: Path, name: str) -> None:
    """Pull or build the image on the box; send this machine's if the box is offline."""
    if system.call(["docker", *ID, name]).code == 0:
        return
    is_given = cli.environ.get(IMAGE_VARIABLE) == name
    if is_given:
        cli.info(f"pulling {name} on {system.box}")
        remedy = transfer_image(system, "pull", name, system.box)
        if not remedy:
            return
        remedy = f"{remedy}, or pull it on this machine: `docker pull {name}`"
    else:
        cli.info(f"building the image on {system.box}; this takes some minutes, once")
        remedy = "fix the error above, or build it on this machine: `docker compose build`"
        context = build_context({n: checkout / n for n in ("Dockerfile", "requirements.lock")})
        if system.run_visibly(["docker", "build", "--tag", name, "-"], context) == 0:
            return
    local, own = System(cli.environ), name if is_given else REPOSITORY
    if local.call(["docker", *ID, own]).code:
        verb = "pull" if is_given else "build"
        raise RunnerError(
            f"{system.box} could not {verb} the image, and this machine has none to send; {remedy}"
        )
    cli.info(f"sending this machine's image {own} to {system.box}")
    with (
        subprocess.Popen(["docker", "save", own], stdout=subprocess.PIPE) as save,
        system.popen(["docker", "load"], stdin=save.stdout) as load,
    ):
        assert save.stdout is not None
        save.stdout.close()  # so that save ends with load
        problem = load.communicate()[1].decode(errors="replace")
    if save.returncode or load.returncode:
        raise RunnerError(f"sending the image failed: {explain(system.box, problem)}")
    system.call(["docker", "tag", own, name])
