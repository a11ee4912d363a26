"""Whether the keys that recipes need are at hand. Their values are never shown."""

import re
from collections.abc import Iterator

from runner.doctor.base import CheckContext, Finding
from runner.project import dotenv_problems, recipes, secret_names

ORDER = 75

# A recipe's key that stands for a service → the variable that holds the user's key for it.
NEEDED = {"wandb_project": "WANDB_API_KEY"}


def check(scene: CheckContext) -> Iterator[Finding]:
    """A run without its key trains, and is silently absent where the user looks for it."""
    if dotenv_problems(scene.checkout):  # the check of settings reports them
        return
    there = secret_names(scene.environ, scene.checkout)
    for path in recipes(scene.checkout).values():
        name = path.relative_to(scene.checkout).as_posix()
        for number, line in enumerate(
            path.read_text(encoding="utf-8", errors="replace").splitlines(), 1
        ):
            match = re.match(r"\s*(\w+):\s*([^\s#]+)", line)
            if match is None or match[2] in ("null", "~", '""', "''"):
                continue
            key = NEEDED.get(match[1])
            if key is not None and key not in there:
                yield Finding(
                    "warning",
                    f"{match[1]} needs {key}, which is neither in the environment nor in .env",
                    f"write {key}=... into .env",
                    name,
                    number,
                )
