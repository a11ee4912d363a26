"""Which files of the checkout are mounted at /workspace: what git would keep, and nothing of the volumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.plans.shipped import keeps_out, list_files

MOUNTED_THEMSELVES = ("volumes",)


def ignored(checkout: Path) -> Callable[[Path], bool]:
    """A test for a path relative to the checkout: True where it is left out, as is whatever is not listed.

    The .gitignore files decide, and what is never shipped. .dockerignore does not: it says what the image is built
    from, and here that is one file of all (`*`, then `!requirements.lock`), while the code is mounted beside the image.
    """
    return matcher(keeps_out(list_files(checkout, checkout), MOUNTED_THEMSELVES))


def matcher(out: Callable[[str], bool]) -> Any:
    """What Modal's client asks of every path. It asks of a folder first, and leaves it out as a whole, only
    where the matcher is one of its own kind and says that it may."""
    from modal import FilePatternMatcher

    class Matcher(FilePatternMatcher):
        def __call__(self, path: Path) -> bool:
            return out(path.as_posix())

        def can_prune_directories(self) -> bool:
            return True

    return Matcher()
