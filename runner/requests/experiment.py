"""An experiment of the user's: the file, what was given to its ``train``, and all that it will be called with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.signature import Value


@dataclass(frozen=True)
class Experiment:
    """``file`` is absolute; ``words`` are key=value as typed; ``arguments`` all values, defaults too."""

    file: Path
    words: tuple[str, ...] = ()
    arguments: tuple[tuple[str, Value], ...] = ()

    def in_words(self) -> str:
        """``train(lr=0.001, steps=100) of sweep_me.py``."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments)
        return f"train({given}) of {self.file.name}"

    def as_record(self) -> dict[str, Any]:
        """For the run's record; ``from_record`` reads it again."""
        return {"file": str(self.file), "words": list(self.words)}


def from_record(tree: Mapping[str, Any]) -> tuple[Path, tuple[str, ...]] | None:
    """The file and the words of a run's last launch; None where it was no experiment's."""
    try:
        found = tree["experiment"]
        return Path(found["file"]), tuple(str(word) for word in found["words"])
    except (LookupError, TypeError):
        return None
