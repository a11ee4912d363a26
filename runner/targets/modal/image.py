"""The image: built by Modal from the checkout's Dockerfile, the code mounted after it.

Modal caches what follows FROM as one layer, so a change of any line or of any copied file builds all of it
again. ``what_changed`` says which, from the fingerprint of the last build that succeeded from here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.files import write_atomically
from runner.errors import RunnerError
from runner.planning.packaging import is_left_out, list_files

if TYPE_CHECKING:
    import modal

    from runner.targets.modal.app import GivenFolder

STATE = "modal_image.json"  # in the cache volume of this machine

WORKSPACE = "/workspace"

BUILDER_VERSION = "2026.10"  # of Modal's image builder; the newest that its client knows (1.6.4)

BROKEN_OFF = "external shut-down"  # in the error of a build that Modal itself ended

TRIES = 3  # of such a build


def make(image: modal.Image, say: Callable[[str], None]) -> None:
    """Have Modal build it now. What Modal itself ends is built again, from the layers that are there; RemoteError for a
    command of the Dockerfile that fails."""
    from modal import exception

    for left in reversed(range(TRIES)):
        try:
            image.build()
            return
        except exception.RemoteError as error:
            if BROKEN_OFF not in str(error) or not left:
                raise
            say("Modal broke the build off; it is begun again")


def build(checkout: Path, given: GivenFolder | None = None) -> modal.Image:
    """The image with the code mounted, and with the folder of a command. Nothing is sent before an app uses it."""
    import modal

    # A workspace may stand at an older version, and up to 2024.10 that puts packages of its own over the locked ones.
    os.environ.setdefault("MODAL_IMAGE_BUILDER_VERSION", BUILDER_VERSION)
    image = modal.Image.from_dockerfile(checkout / "Dockerfile", context_dir=checkout)
    if given is not None and given.setup:
        image = given.extend(image)
    # Last, and a mount: an edit of the code is no edit of the image.
    image = image.add_local_dir(checkout, WORKSPACE, copy=False, ignore=ignored(checkout))
    return given.mount(image) if given is not None else image


def fingerprint(checkout: Path) -> dict[str, str]:
    """What the image depends on: each instruction of the Dockerfile by its line, each copied file by SHA-256.

    Raises RunnerError for a Dockerfile that Modal can't build.
    """
    found = {}
    for number, instruction in read_dockerfile(checkout):
        found[f"Dockerfile:{number}"] = instruction
        for path in copied(checkout, instruction):
            name = path.relative_to(checkout).as_posix()
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def what_changed(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Why the image is built again, in words; None where nothing changed."""
    old = [text for name, text in before.items() if name.startswith("Dockerfile:")]
    for name, text in now.items():
        if name.startswith("Dockerfile:"):
            if not old or old.pop(0) != text:
                return f"{name} changed: {_short(text)}"
        elif before.get(name) != text:
            return f"{name} {'changed' if name in before else 'is new'}"
    if old:
        return f"the end of the Dockerfile changed: {_short(old[0])} is gone"
    gone = [name for name in before if name not in now and not name.startswith("Dockerfile:")]
    return f"{gone[0]} is gone" if gone else None


def has_setup(cache: Path, account: str, digest: str) -> bool:
    """Whether the layer of a command's setup was built on the image that was built last."""
    return digest in _read(cache).get(account, {}).get("setups", ())


def describe(checkout: Path, cache: Path, account: str) -> tuple[bool, str]:
    """Whether the image will be there already, and the row of the plan. ``account`` tells workspaces apart."""
    now = fingerprint(checkout)
    state = _read(cache).get(account)
    if state is None:
        return False, "built first: none was built from here yet"
    why = what_changed(state["fingerprint"], now)
    if why is not None:
        return False, f"built again: {why}"
    return True, f"cached, built {time.strftime('%Y-%m-%d', time.localtime(state['built']))}"


def remember(checkout: Path, cache: Path, account: str, setup: str = "") -> None:
    """Note that the image as it is now was built, with the layer of a ``setup`` (its digest)."""
    known = _read(cache)
    now = fingerprint(checkout)
    state = known.get(account, {})
    if state.get("fingerprint") != now:
        state = {"fingerprint": now, "built": time.time()}
    elif not setup or setup in state.get("setups", ()):
        return
    if setup:
        state["setups"] = [*state.get("setups", ()), setup]
    known[account] = state
    write_atomically(cache / STATE, json.dumps(known, indent=2) + "\n")


def was_built_here(cache: Path) -> bool:
    """Whether anything was ever started in the cloud from this machine."""
    return bool(_read(cache))


def _read(cache: Path) -> dict[str, dict[str, Any]]:
    try:
        tree = json.loads((cache / STATE).read_text())
        return tree if isinstance(tree, dict) else {}
    except (OSError, ValueError):
        return {}


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


# What an instruction must not have, and what to write instead. Read from modal 1.6.4.
NOT_ON_MODAL = (
    (r"^COPY\s+(--\S+\s+)*\[", "Modal does not read a list in brackets; write COPY SOURCE TARGET"),
    (r"^COPY\s+(?!.*--from=).*\$", "Modal does not fill in variables there; write the path out"),
    (
        r"^COPY\s+.*--(parents|exclude)",
        "Modal does not know --parents and --exclude; name the files",
    ),
    (r"^COPY\s+.*<<", "Modal does not take a heredoc there; put it into a file"),
    (r"^COPY\s+(--\S+\s+)*\./\s", "Modal collects nothing for ./ ; write COPY . TARGET"),
    (r"^ADD\s+(?!.*://)", "Modal does not collect what ADD takes from here; write COPY"),
    (
        r"^RUN\s+.*--mount=type=bind(?!\S*from=)",
        "Modal does not collect what a bind mount reads; write COPY",
    ),
    (
        r"^ENTRYPOINT\s+(?!.*\$@)",
        'on Modal an ENTRYPOINT must end in exec "$@"; leave it to docker-compose.yml',
    ),
)


def read_dockerfile(checkout: Path) -> list[tuple[int, str]]:
    """``instructions`` of the checkout's Dockerfile. Raises RunnerError, with the line, for one that Modal
    can't build."""
    path = checkout / "Dockerfile"
    if not path.is_file():
        raise RunnerError(f"there is no Dockerfile in {checkout}, which the image is built from")
    found = instructions(path.read_text(encoding="utf-8"))
    for number, what, remedy in faults(checkout, found):
        raise RunnerError(f"Dockerfile:{number}: {what}; {remedy}")
    return found


def faults(checkout: Path, found: list[tuple[int, str]]) -> Iterator[tuple[int, str, str]]:
    """(line, what is wrong, what to do) of every instruction that Modal can't build."""
    for number, instruction in found:
        for pattern, words in NOT_ON_MODAL:
            if re.search(pattern, instruction, re.IGNORECASE):
                what, _, remedy = words.partition("; ")
                yield number, what, remedy
        for source in _sources(instruction):
            if not any(checkout.glob(source)):
                yield (
                    number,
                    f"COPY takes {source}, which is not in {checkout}",
                    "make it, or name another",
                )


def instructions(text: str) -> list[tuple[int, str]]:
    """(line, instruction) without comments; a backslash joins lines."""
    found: list[tuple[int, str]] = []
    parts: list[str] = []
    first = 0
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        first = first if parts else number
        parts.append(stripped.rstrip("\\").strip())
        if not stripped.endswith("\\"):
            found.append((first, " ".join(parts)))
            parts = []
    return found


def copied(checkout: Path, instruction: str) -> list[Path]:
    """The files that a COPY takes from the checkout."""
    found: list[Path] = []
    for source in _sources(instruction):
        for path in sorted(checkout.glob(source)):
            found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return found


def _sources(instruction: str) -> list[str]:
    word, _, rest = instruction.partition(" ")
    if word.upper() != "COPY" or "--from=" in rest:
        return []
    return [part.strip("/") or "." for part in rest.split() if not part.startswith("--")][:-1]


MOUNTED_THEMSELVES = ("volumes",)


def ignored(checkout: Path) -> Callable[[Path], bool]:
    """A test for a path relative to the checkout: True where it is left out, as is whatever is not listed.

    The .gitignore files decide, and what is never shipped. .dockerignore does not: it says what the image is built
    from, and here that is one file of all (`*`, then `!requirements.lock`), while the code is mounted beside the image.
    """
    return matcher(is_left_out(list_files(checkout, checkout), MOUNTED_THEMSELVES))


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
