"""Whether every recipe in configs/ is one."""

import re
from collections.abc import Iterator

from runner.doctor.base import CheckContext, Finding
from runner.project import recipes

ORDER = 70


def check(scene: CheckContext) -> Iterator[Finding]:
    """Each is read as a job would read it."""
    from job.recipe import RecipeError, load

    good = []
    for name, path in recipes(scene.checkout).items():
        try:
            load(path)
            good.append(name)
        except RecipeError as error:
            for line in str(error).splitlines():
                yield _finding(line.replace(f"{scene.checkout}/", ""))
    if good:
        yield Finding("ok", f"recipes: {', '.join(good)}")
    elif not recipes(scene.checkout):
        yield Finding("error", "configs/ holds no recipe", "git checkout -- configs", "configs")


def _finding(message: str) -> Finding:
    where = re.match(r"([^:]+\.ya?ml)(?::(\d+))?: ", message)
    if where is None:
        return Finding("error", message)
    number = int(where[2]) if where[2] else None
    return Finding("error", message[where.end() :], f"correct {where[1]}", where[1], number)
