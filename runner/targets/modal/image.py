"""The image, which Modal builds from the checkout's Dockerfile; the code is mounted into it.

Modal caches all that follows FROM as one layer: a change of any line or of any copied file rebuilds
all of it. ``changed_input`` names the change since the last successful build from this machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.files import write_atomically
from job.paths import WORKSPACE
from job.typed_json import convert, read_object
from runner.errors import RunnerError
from runner.plan import Plan
from runner.planning.packaging import list_files, make_omitted_test
from runner.targets.docker import IMAGE_VARIABLE
from runner.targets.modal.client import account_id

if TYPE_CHECKING:
    import modal

    from runner.targets.modal.app import JobFolder

STATE_FILE = "modal_image.json"  # in the cache volume on this machine
MAX_TIME_S = 1e11  # time.localtime fails for larger ones
REGISTRY_SECRET = "GPT_RUNNER_IMAGE_SECRET"  # names Modal's secret for a private registry
BUILDER_VERSION = "2026.10"  # the newest image builder that the client knows (1.6.4)

SHUTDOWN_MESSAGE = "external shut-down"  # in the error of a build that Modal itself ended
BUILD_ATTEMPTS = 3  # for such a build

MAX_SHOWN_CHARACTERS = 60  # of an instruction


def build_now(image: modal.Image, info: Callable[[str], None]) -> None:
    """Have Modal build the image now, retrying a build that Modal itself ended.

    Raises modal's RemoteError if a command of the Dockerfile fails.
    """
    from modal import exception

    for attempts_left in reversed(range(BUILD_ATTEMPTS)):
        try:
            image.build()
            return
        except exception.RemoteError as error:
            if SHUTDOWN_MESSAGE not in str(error) or not attempts_left:
                raise
            info("Modal interrupted the build; retrying")


def define_image(
    checkout: Path,
    folder: JobFolder | None = None,
    files: Sequence[tuple[str, str]] = (),
    packages: Sequence[str] = (),
) -> modal.Image:
    """Return the image with ``packages``, and the code and the user's folder mounted.

    Sends nothing to Modal.
    """
    import modal

    # A workspace may be set to an older builder; up to 2024.10 it overwrites locked packages.
    os.environ.setdefault("MODAL_IMAGE_BUILDER_VERSION", BUILDER_VERSION)
    if published := os.environ.get(IMAGE_VARIABLE):
        name = os.environ.get(REGISTRY_SECRET)
        secret = modal.Secret.from_name(name) if name else None
        image = modal.Image.from_registry(published, secret=secret)
    else:
        image = modal.Image.from_dockerfile(checkout / "Dockerfile", context_dir=checkout)
    if packages:
        image = image.run_commands(f"pip install {shlex.join(packages)}")
    if folder is not None:
        image = folder.add_setup(image)
    # Mounts, which must come last: an edit of the code does not change the image.
    image = image.add_local_dir(checkout, WORKSPACE, copy=False, ignore=code_filter(checkout))
    for host_path, container_path in files:
        image = image.add_local_file(host_path, container_path)
    return folder.mount(image) if folder is not None else image


# Folders of this package that the container imports. Modal would mount all of it, and checks 64
# files in a request.
CONTAINER_FOLDERS = (".", "runs", "targets", "targets/modal")


def add_runner(image: modal.Image) -> modal.Image:
    """Mount the modules of this package that the function imports."""

    def is_omitted(path: str) -> bool:
        folder, _, name = path.rpartition("/")
        return name.endswith(".pyc") or (folder or ".") not in CONTAINER_FOLDERS

    return image.add_local_python_source("runner", ignore=path_filter(is_omitted))


def fingerprint(checkout: Path) -> dict[str, str]:
    """Return the image's inputs: the Dockerfile's instructions, and the SHA-256 of copied files.

    Raises RunnerError for a Dockerfile that Modal can't build.
    """
    if published := os.environ.get(IMAGE_VARIABLE):
        return {IMAGE_VARIABLE: published}
    inputs = {}
    for number, instruction in read_dockerfile(checkout):
        inputs[f"Dockerfile:{number}"] = instruction
        for path in copied_files(checkout, instruction):
            name = path.relative_to(checkout).as_posix()
            try:
                inputs[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                raise RunnerError(
                    f"Dockerfile:{number}: cannot read {path}: {error.strerror}"
                ) from error
    return inputs


def changed_input(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Return which input changed and so rebuilds the image; None if none did."""
    old = [text for name, text in before.items() if name.startswith("Dockerfile:")]
    for name, text in now.items():
        if name.startswith("Dockerfile:"):
            if not old or old.pop(0) != text:
                return f"{name} changed: {_short(text)}"
        elif before.get(name) != text:
            return f"{name} {'changed' if name in before else 'is new'}"
    if old:
        return f"the end of the Dockerfile changed: {_short(old[0])} was removed"
    removed = [name for name in before if name not in now and not name.startswith("Dockerfile:")]
    return f"{removed[0]} was removed" if removed else None


@dataclass(frozen=True)
class Build:
    """The last successful build of an account: the inputs, the time, and the added layers."""

    fingerprint: dict[str, str]
    built: float  # seconds since the epoch
    setups: list[str] = field(default_factory=list)  # digests of setups, and lists of packages


@dataclass(frozen=True)
class ImageBuilds:
    """The builds on Modal from this machine, in a file of the folder ``cache``, by account.

    Modal itself does not tell whether it has an image.
    """

    checkout: Path
    cache: Path
    environ: Mapping[str, str]

    def describe(self) -> tuple[bool, str]:
        """Return whether Modal has the image, and the plan's row about it."""
        now = fingerprint(self.checkout)
        last = self._last()
        if last is None:
            return False, "first build from this machine"
        change = changed_input(last.fingerprint, now)
        if change is not None:
            return False, f"rebuild: {change}"
        return True, f"cached, built {time.strftime('%Y-%m-%d', time.localtime(last.built))}"

    def has_layer(self, digest: str) -> bool:
        """Return True if the layer of a setup or of packages was built on the last image."""
        last = self._last()
        return last is not None and digest in last.setups

    def is_built(self, plan: Plan, announce: Callable[[str], None]) -> bool:
        """Return True if Modal has the image of ``plan``, announcing a build."""
        if not self.describe()[0]:
            announce("building the image on Modal, which takes some minutes the first time")
        elif plan.image is not None and not plan.image.is_built:
            announce(f"adding {' '.join(plan.image.packages)} to the image on Modal")
        elif plan.folder is not None and not plan.folder.is_setup_built:
            announce("adding the setup to the image on Modal")
        else:
            return True
        return False

    def remember(self, *layers: str) -> None:
        """Record that the current image was built, with ``layers``: digests or '' for none."""
        builds, account, now = self._read(), account_id(self.environ), fingerprint(self.checkout)
        last = builds.get(account)
        build = last if last is not None and last.fingerprint == now else Build(now, time.time())
        setups = [*dict.fromkeys((*build.setups, *filter(None, layers)))]
        builds[account] = replace(build, setups=setups)
        if builds[account] == last:
            return
        text = json.dumps({name: asdict(build) for name, build in builds.items()}, indent=2)
        with suppress(OSError):  # only the next plan's text depends on it
            write_atomically(self.cache / STATE_FILE, text + "\n")

    def is_empty(self) -> bool:
        """Return True if this machine never started a job on Modal."""
        return not self._read()

    def _last(self) -> Build | None:
        return self._read().get(account_id(self.environ))

    def _read(self) -> dict[str, Build]:
        """Return the recorded builds by account, without invalid entries."""
        builds = {}
        with suppress(OSError, ValueError):
            for name, tree in read_object((self.cache / STATE_FILE).read_bytes()).items():
                with suppress(ValueError):
                    build: Build = convert(tree, Build)
                    if 0 <= build.built < MAX_TIME_S:
                        builds[name] = build
        return builds


def _short(text: str) -> str:
    limit = MAX_SHOWN_CHARACTERS
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


# Instructions that Modal's builder ignores or refuses, and the replacement. From modal 1.6.4.
UNSUPPORTED = (
    (r"^COPY\s+(--\S+\s+)*\[", "Modal does not parse a list in brackets; write COPY SOURCE TARGET"),
    (r"^COPY\s+(?!.*--from=).*\$", "Modal does not expand variables in COPY; write the path out"),
    (
        r"^COPY\s+.*--(parents|exclude)",
        "Modal does not support --parents and --exclude; name the files",
    ),
    (r"^COPY\s+.*<<", "Modal does not support a heredoc in COPY; put it into a file"),
    (r"^COPY\s+(--\S+\s+)*\./\s", "Modal copies nothing for ./ ; write COPY . TARGET"),
    (r"^ADD\s+(?!.*://)", "Modal does not upload local files of ADD; write COPY"),
    (
        r"^RUN\s+.*--mount=type=bind(?!\S*from=)",
        "Modal does not upload the files of a bind mount; write COPY",
    ),
    (
        r"^ENTRYPOINT\s+(?!.*\$@)",
        'on Modal an ENTRYPOINT must end in exec "$@"; move it to docker-compose.yml',
    ),
)


def read_dockerfile(checkout: Path) -> list[tuple[int, str]]:
    """Return the line and text of each instruction in the checkout's Dockerfile.

    Raises RunnerError, with the line, for an instruction that Modal can't build.
    """
    path = checkout / "Dockerfile"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunnerError(f"cannot read {path}, which defines the image: {reason}") from error
    instructions = parse_dockerfile(text)
    for number, problem, remedy in dockerfile_problems(checkout, instructions):
        raise RunnerError(f"Dockerfile:{number}: {problem}; {remedy}")
    return instructions


def dockerfile_problems(
    checkout: Path, instructions: list[tuple[int, str]]
) -> Iterator[tuple[int, str, str]]:
    """Yield line, problem and remedy of each instruction that Modal can't build."""
    for number, instruction in instructions:
        for pattern, message in UNSUPPORTED:
            if re.search(pattern, instruction, re.IGNORECASE):
                problem, _, remedy = message.partition("; ")
                yield number, problem, remedy
        for source in _copy_sources(instruction):
            if not any(checkout.glob(source)):
                yield (
                    number,
                    f"COPY {source}: not found in {checkout}",
                    "create it, or correct the name",
                )


def parse_dockerfile(text: str) -> list[tuple[int, str]]:
    """Return line and text of each instruction, without comments, continued lines joined."""
    instructions: list[tuple[int, str]] = []
    parts: list[str] = []
    first = 0
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        first = first if parts else number
        parts.append(stripped.rstrip("\\").strip())
        if not stripped.endswith("\\"):
            instructions.append((first, " ".join(parts)))
            parts = []
    return instructions


def copied_files(checkout: Path, instruction: str) -> list[Path]:
    """Return the files that a COPY instruction takes from the checkout."""
    files: list[Path] = []
    for source in _copy_sources(instruction):
        for path in sorted(checkout.glob(source)):
            files += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return files


def _copy_sources(instruction: str) -> list[str]:
    word, _, rest = instruction.partition(" ")
    if word.upper() != "COPY" or "--from=" in rest:
        return []
    return [part.strip("/") or "." for part in rest.split() if not part.startswith("--")][:-1]


VOLUME_FOLDERS = ("volumes",)  # in the checkout; mounted as volumes, not as code


def code_filter(checkout: Path) -> Callable[[Path], bool]:
    """Return a test that is True for a path of the checkout that is not mounted.

    The .gitignore files decide. .dockerignore does not: it selects the files for building the
    image, here `requirements.lock` alone.
    """
    listing = list_files(checkout, checkout)
    listing.check()
    return path_filter(make_omitted_test(listing, VOLUME_FOLDERS))


def path_filter(is_omitted: Callable[[str], bool]) -> Any:
    """Return ``is_omitted`` as Modal's client takes it.

    The client skips an ignored folder as a whole only for its own class of matcher.
    """
    from modal import FilePatternMatcher

    class Matcher(FilePatternMatcher):
        def __call__(self, path: Path) -> bool:
            return is_omitted(path.as_posix())

        def can_prune_directories(self) -> bool:
            return True

    return Matcher()
