"""Write requirements.lock: the image's packages, except torch and the packages that torch pins.

    make lock                   add new requirements of pyproject.toml, keep all other pins
    make lock ARGS=--upgrade    upgrade every package to its newest release

pyproject.toml is the only list. Packages that only the runner needs are omitted.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
LOCK = CHECKOUT / "requirements.lock"

RUNNER_ONLY = {"click", "modal", "pathspec", "python-dotenv"}
EXTRAS = ("serve", "train")
# Packages of the extra `dev` for the trainer's tests (`docker compose run test`).
FROM_DEV = {"pytest", "pytest-timeout"}

# The Dockerfile installs torch in a layer of its own. torch pins these packages exactly, and their
# set depends on its build (CPU or CUDA).
TORCH_LAYER = re.compile(r"^(torch|triton|nvidia-(?!ml-py).*|cuda-.*)$")

HEADER = """\
# Packages of the image other than torch, at exact versions with hashes.
# Generated from pyproject.toml by uv; to update it: make lock
"""


def name_of(requirement: str) -> str:
    """Return the normalized name: ``Jinja2[i18n]>=3.1`` → ``jinja2``."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    if match is None:
        raise ValueError(f"not a requirement: {requirement!r}")
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def image_requirements() -> list[str]:
    """Return the requirements of the image, including torch."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [
        *(r for r in project["dependencies"] if name_of(r) not in RUNNER_ONLY),
        *(r for extra in EXTRAS for r in extras[extra]),
        *(r for r in extras["dev"] if name_of(r) in FROM_DEV),
    ]


def uv_compile(*options: str) -> str:
    """Run ``uv pip compile`` for the image's platform and return its output."""
    command = ["uv", "pip", "compile", "-", "--quiet", "--no-header", "--no-annotate"]
    command += ["--no-emit-index-url", "--python-version", "3.11", "--python-platform", "linux"]
    return subprocess.run(
        [*command, *options],
        input="\n".join(image_requirements()),
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    ).stdout


def main(options: list[str]) -> None:
    pinned = map(name_of, uv_compile(*options).splitlines())
    omitted = [f"--no-emit-package={name}" for name in pinned if TORCH_LAYER.match(name)]
    LOCK.touch()
    # With --output-file, uv also reads the existing lock and keeps its pins.
    uv_compile("--generate-hashes", "--output-file", str(LOCK), *omitted, *options)
    LOCK.write_text(HEADER + LOCK.read_text())


if __name__ == "__main__":
    main(sys.argv[1:])
