"""Whether ``.env`` tells compose the right files and the right user."""

from collections.abc import Iterator

from runner.doctor.base import CheckContext, Finding, Severity
from runner.project import dotenv_problems
from runner.targets.compose_project import write_settings, wrong_settings

ORDER = 50


def check(scene: CheckContext) -> Iterator[Finding]:
    """Without it files in volumes/ would belong to someone else, and no GPU would be asked for."""
    if not (scene.checkout / ".env").is_file():
        severity: Severity = "note" if scene.machine.engine.problem else "warning"
        remedy = "`runner local` writes it, and so does runner doctor --fix"
        yield Finding(severity, ".env is missing", remedy, ".env")
        return
    problems = dotenv_problems(scene.checkout)
    for number, problem in problems:
        yield Finding("error", problem, "correct the line", ".env", number)
    if problems:
        return
    names = wrong_settings(scene.machine, scene.checkout)
    if names:
        yield Finding(
            "error",
            f".env does not fit this machine: {', '.join(names)}",
            "runner doctor --fix",
            ".env",
        )
    else:
        yield Finding("ok", ".env names the compose files and your user")


def fix(scene: CheckContext) -> Iterator[str]:
    """Write the variables; every other line, such as a key, stays."""
    yield from write_settings(scene.machine, scene.checkout)
