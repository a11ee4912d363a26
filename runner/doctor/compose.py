"""Whether compose is there and reads our files."""

from collections.abc import Iterator

from runner.doctor.base import CheckContext, Finding
from runner.errors import RunnerError
from runner.project import COMPOSE_FILE, GPU_COMPOSE_FILE
from runner.targets.compose_project import ComposeProject

ORDER = 20

# The oldest release whose reading of the files is tested.
OLDEST = (1, 29)


def check(scene: CheckContext) -> Iterator[Finding]:
    """Files, program, release, and what the program makes of the files."""
    missing = [
        name for name in (COMPOSE_FILE, GPU_COMPOSE_FILE) if not (scene.checkout / name).is_file()
    ]
    for name in missing:
        yield Finding("error", f"{name} is missing", f"git checkout -- {name}", file=name)
    if scene.machine.program("docker") is None:
        return
    if scene.machine.compose is None:
        yield Finding(
            "error",
            "docker is here and compose is not",
            "install the package docker-compose-plugin: https://docs.docker.com/compose/install",
        )
        return
    version = scene.machine.compose_version
    if _numbers(version) < OLDEST:
        yield Finding("warning", f"compose {version} is older than 1.29", "install a newer release")
    else:
        yield Finding("ok", f"compose {version} ({' '.join(scene.machine.compose)})")
    if not missing:
        yield from _reads(scene)


def _reads(scene: CheckContext) -> Iterator[Finding]:
    try:
        services = ComposeProject(scene.machine, scene.checkout).services
    except RunnerError as error:
        message = error.message.partition(";")[0]
        yield Finding("error", message, "docker compose config", file=COMPOSE_FILE)
        return
    yield Finding("ok", f"compose reads its files; services: {', '.join(services)}")


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("-")[0].split("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdigit())
