"""What to type for the packages of an extra (pyproject.toml): for this very Python, whichever `pip` the shell finds.

The packages are named themselves. `pip install '.[report]'` would need the checkout as the folder, and would put a
frozen copy of the runner in the place of an editable installation.
"""

from __future__ import annotations

import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec

PROJECT = "gpt-runner"
EXTRA = re.compile(r"""\s*(?:and\s+)?extra\s*==\s*["']([\w-]+)["']""")


def install_line(extra: str) -> str:
    """``/path/to/python -m pip install 'Jinja2>=3.1' 'matplotlib>=3.9'`` for the extra ``report``."""
    return pip_install(*requirements(extra))


def pip_install(*words: str) -> str:
    """The line that installs packages, with their versions or pip's options, into this very Python."""
    pip = [sys.executable, "-m", "pip", "install"]
    if find_spec("pip") is None:  # an environment that uv made
        pip = ["uv", "pip", "install", "--python", sys.executable]
    return shlex.join([*pip, *words])


def own_requirement(package: str) -> str:
    """The package in the versions that the runner works with; just the name where the runner is not installed."""
    try:
        known = requires(PROJECT) or []
    except PackageNotFoundError:
        return package
    return next((line for line in known if re.match(rf"{package}\b(?!.*extra)", line)), package)


def requirements(extra: str) -> list[str]:
    """The extra's packages with their versions; the whole extra where the runner is not installed."""
    try:
        known = requires(PROJECT) or []
    except PackageNotFoundError:
        return [f".[{extra}]"]
    found = [line for line in known if (which := EXTRA.search(line)) and which[1] == extra]
    return [EXTRA.sub("", line).strip().rstrip(";") for line in found]
