"""Writes requirements.lock: every package of the image but torch and the CUDA parts that torch pins itself.

    make lock                   add what pyproject.toml now asks for, keep the other pins
    make lock ARGS=--upgrade    take the newest release of everything

pyproject.toml is the only list. Left out of it: what the runner alone needs, which never starts in a container.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
LOCK = CHECKOUT / "requirements.lock"

RUNNER_ONLY = {"click", "modal", "pathspec"}
EXTRAS = ("train", "wandb")
# From the extra `dev`, so that `docker compose run test` can run the trainer's tests.
FROM_DEV = {"pytest", "pytest-timeout"}

# The Dockerfile installs torch first, as a layer of its own; torch pins these to exact versions, and
# which of them there are depends on the build that pip found (CPU or CUDA).
TORCH_LAYER = re.compile(r"^(torch|triton|nvidia-(?!ml-py).*|cuda-.*)$")

HEADER = """\
# What the image holds besides torch: exact versions, with the hashes of every file of each release.
# Made from pyproject.toml by uv; remake it with
#     make lock
"""


def name_of(requirement: str) -> str:
    """``Jinja2[i18n]>=3.1`` → ``jinja2``."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    if match is None:
        raise ValueError(f"not a requirement: {requirement!r}")
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def image_requirements(pyproject: Path = CHECKOUT / "pyproject.toml") -> list[str]:
    """What the image must hold, as pyproject.toml states it, torch included."""
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project["optional-dependencies"]
    return [
        *(r for r in project["dependencies"] if name_of(r) not in RUNNER_ONLY),
        *(r for extra in EXTRAS for r in extras[extra]),
        *(r for r in extras["dev"] if name_of(r) in FROM_DEV),
    ]


def uv_compile(*options: str) -> str:
    """Run ``uv pip compile`` for the image's platform; returns what it prints."""
    command = [
        *(
            "uv",
            "pip",
            "compile",
            "-",
            "--quiet",
            "--no-header",
            "--no-annotate",
            "--no-emit-index-url",
        ),
        *("--python-version", "3.11", "--python-platform", "linux", *options),
    ]
    requirements = "\n".join(image_requirements())
    return subprocess.run(
        command, input=requirements, check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def main(options: list[str]) -> None:
    pinned = map(name_of, uv_compile(*options).splitlines())
    left_out = [f"--no-emit-package={name}" for name in pinned if TORCH_LAYER.match(name)]
    if not LOCK.exists():
        LOCK.touch()
    # Given as --output-file, the lock that is there is also where uv finds the pins to keep.
    uv_compile("--generate-hashes", "--output-file", str(LOCK), *left_out, *options)
    LOCK.write_text(HEADER + LOCK.read_text())


if __name__ == "__main__":
    main(sys.argv[1:])
