"""Whether a Docker engine answers."""

from collections.abc import Iterator

from runner.doctor.base import CheckContext, Finding

ORDER = 10

# The oldest whose builds and GPU reservations are tested.
OLDEST = 20


def check(scene: CheckContext) -> Iterator[Finding]:
    """No engine is an error only where the host can't train either."""
    engine = scene.machine.engine
    if engine.problem:
        yield Finding(
            "warning" if scene.torch_here else "error",
            engine.problem,
            "install or start Docker: https://docs.docker.com/engine/install"
            + ("; meanwhile `runner host` trains without it" if scene.torch_here else ""),
        )
    else:
        yield Finding("ok", f"Docker engine {engine.version} answers")
        if _major(engine.version) < OLDEST:
            yield Finding(
                "warning",
                f"Docker engine {engine.version} is older than {OLDEST}",
                "install a newer release: https://docs.docker.com/engine/install",
            )


def _major(version: str) -> int:
    first = version.partition(".")[0]
    return int(first) if first.isdigit() else OLDEST
