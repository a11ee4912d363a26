"""What a command adds to the image: its --setup lines and the folder's requirements.txt, as a layer of its own."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath

from runner.requests.command import Command

REQUIREMENTS = "requirements.txt"
INSTALL = f"pip install -r {REQUIREMENTS}"
WORD = re.compile(r"[\w./+-]+")  # what may be a file's name: in `-rdev.txt` too, once the option is off
INSIDE = "/opt/gpt-runner/setup"  # where the lines run, with the files that they name


def setup_lines(command: Command) -> tuple[str, ...]:
    """The shell lines that extend the image, in their order."""
    own = command.requirements and (command.folder / REQUIREMENTS).is_file()
    named = any(REQUIREMENTS in line for line in command.setup)
    return ((INSTALL,) if own and not named else ()) + command.setup


def setup_files(folder: Path, lines: tuple[str, ...]) -> tuple[str, ...]:
    """The folder's files that the lines name: `-r dev.txt`, `bash setup.sh`. They are there when the lines run."""
    words = [word for line in lines for word in WORD.findall(line)]
    named = [name for word in words for name in (word, re.sub(r"^-[rc]", "", word))]
    return tuple(
        dict.fromkeys(
            name
            for name in named
            if ".." not in PurePosixPath(name).parts
            and not PurePosixPath(name).is_absolute()
            and (folder / name).is_file()
        )
    )


def digest(folder: Path, lines: tuple[str, ...], base: str = "") -> str:
    """Tells one layer from another: the lines, the content of their files, and what is below."""
    found = hashlib.sha256(base.encode())
    for line in lines:
        found.update(b"\0" + line.encode())
    for name in setup_files(folder, lines):
        found.update(b"\1" + name.encode() + b"\0" + (folder / name).read_bytes())
    return found.hexdigest()[:16]
