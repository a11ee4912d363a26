"""The image: built by Modal from the checkout's Dockerfile, the code mounted after it.

Modal caches what follows FROM as one layer, so a change of any line or of any copied file builds all of it
again. ``what_changed`` says which, from the fingerprint of the last build that succeeded from here.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.files import write_atomically
from runner.cloud.dockerfile import copied, read_dockerfile
from runner.cloud.mount import ignored

if TYPE_CHECKING:
    import modal

    from runner.cloud.given_folder import GivenFolder

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
