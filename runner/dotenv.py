"""The checkout's ``.env``: which compose files, whose files, and the user's keys. Values are never shown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

LINE = re.compile(r"^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*$")
QUOTED = re.compile(r"""(['"])(.*?)\1(?:\s+#.*|\s*)$""")  # perhaps with a comment behind it
AS_IT_IS = "surrogateescape"  # a letter that is no UTF-8, in a comment, is written again as it was read

# Keys that jobs can use where the recipe asks for it.
KNOWN_SECRETS = ("WANDB_API_KEY", "HF_TOKEN")


def read_dotenv(checkout: Path) -> dict[str, str]:
    """The variables of ``.env``; empty where there is none."""
    try:
        text = (checkout / ".env").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found = (LINE.match(line) for line in text.splitlines())
    return {match[1]: _unquoted(match[2]) for match in found if match}


def update_dotenv(checkout: Path, values: Mapping[str, str]) -> bool:
    """Set ``values`` and keep every other line as it is. True where the file changed.

    The new file is whole or not there at all, and nobody but the user may read it where it is new: keys
    are kept in it.
    """
    path = (checkout / ".env").resolve()
    before = path.read_text(encoding="utf-8", errors=AS_IT_IS) if path.exists() else ""
    left = dict(values)
    lines = []
    for line in before.splitlines():
        match = LINE.match(line)
        if match and match[1] in values:
            if match[1] in left:
                lines.append(f"{match[1]}={left.pop(match[1])}")
        else:
            lines.append(line)
    lines += [f"{name}={value}" for name, value in left.items()]
    after = "\n".join(lines) + "\n"
    if after == before:
        return False
    _replace(path, after)
    return True


def secret_names(environ: Mapping[str, str], checkout: Path) -> tuple[str, ...]:
    """Which of the known keys are at hand, in the environment or in ``.env``."""
    kept = read_dotenv(checkout)
    return tuple(name for name in KNOWN_SECRETS if environ.get(name) or kept.get(name))


def secret_values(names: Iterable[str], environ: Mapping[str, str], checkout: Path) -> dict[str, str]:
    """The values, for the job's environment and nothing else; the environment goes before ``.env``."""
    kept = read_dotenv(checkout)
    return {name: environ.get(name) or kept.get(name, "") for name in names}


def _unquoted(value: str) -> str:
    quoted = QUOTED.match(value)
    if quoted:
        return quoted[2]
    return value.split(" #")[0].rstrip()


def _replace(path: Path, text: str) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    temporary = path.with_name(f".env.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors=AS_IT_IS) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
