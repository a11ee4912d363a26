"""The volumes ``data``, ``checkpoints`` and ``cache`` on Modal, named ``gpt-runner-<volume>``."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from job.paths import VOLUMES
from runner.errors import ModalUnavailable, RunnerError, did_you_mean, usage
from runner.runs.volume import listing
from runner.target import VolumeEntry, VolumeFiles
from runner.targets.blocks import (
    Block,
    BlockFiles,
    MissingBlock,
    NewFile,
    OpenFile,
    RemoteEntry,
    RetryPolicy,
    checked_path,
)
from runner.targets.modal.client import (
    check_reachable,
    is_configured,
    translate_modal_errors,
    unreachable_message,
)

if TYPE_CHECKING:
    import modal


PREFIX = "gpt-runner-"
PREFIX_VARIABLE = "GPT_RUNNER_VOLUMES"  # another prefix, for a second project in the workspace

T = TypeVar("T")


def modal_name(volume: str, environ: Mapping[str, str]) -> str:
    """Return the volume's name on Modal. Raises RunnerError, exit status 2, if it is unknown."""
    if volume not in VOLUMES:
        guess = did_you_mean(volume, VOLUMES) or f"; the volumes are {', '.join(VOLUMES)}"
        raise usage(f"unknown volume '{volume}'{guess}")
    return f"{environ.get(PREFIX_VARIABLE) or PREFIX}{volume}"


def open_volume(
    volume: str, environ: Mapping[str, str] = os.environ, create: bool = True
) -> modal.Volume:
    """Return the volume of version 2, created if it is missing.

    Without ``create``, meant for the first request, it fails at once offline, and a missing volume
    stays unhydrated. Raises RunnerError without a token, offline, and for a volume of version 1.
    """
    name = modal_name(volume, environ)
    import modal
    from modal import exception
    from modal.config import config

    if not create:  # the client would retry for a minute, which is right only later
        check_reachable(environ, str(config.get("server_url")))
    opened = modal.Volume.from_name(name, create_if_missing=create, version=2)

    def hydrate() -> modal.Volume:
        try:
            with translate_modal_errors():
                return opened.hydrate()
        except FileNotFoundError as error:
            check_environment(error)
            return opened
        except ModalUnavailable as error:
            if isinstance(error.__cause__, exception.ConnectionError):  # retried for a minute
                raise RunnerError(unreachable_message(str(error))) from error
            raise

    try:
        return RetryPolicy().call(hydrate)
    except ModalUnavailable as error:
        raise RunnerError(unreachable_message(str(error))) from error
    except RunnerError as error:
        if is_old_version(error):
            raise RunnerError(_old_version_message(name, volume)) from error.__cause__
        raise


def check_environment(missing: FileNotFoundError) -> None:
    """Raise RunnerError if an object is ``missing`` because its environment does not exist."""
    import modal
    from modal.config import config

    name = config.get("environment")
    if not name:
        return
    exists = not re.match(r"environment\b.*not found", str(missing), re.IGNORECASE)
    if exists:
        try:
            with translate_modal_errors():
                modal.Environment.from_name(name).hydrate()
        except FileNotFoundError:
            exists = False
    if not exists:
        raise RunnerError(
            f"Modal has no environment '{name}', which MODAL_ENVIRONMENT or the profile names; "
            f"`modal environment list` shows them, `modal environment create {name}` creates it"
        ) from missing


def is_old_version(error: RunnerError) -> bool:
    """Return True if Modal refused a volume because it is of version 1."""
    from modal import exception

    cause = error.__cause__
    return isinstance(cause, exception.InvalidError) and "version" in str(cause)


def _old_version_message(name: str, volume: str) -> str:
    return (
        f"volume {name} is of Modal's version 1, limited to 500,000 files and 5 writers; the "
        f"runner uses version 2. Rename it: `modal volume rename {name} {name}-v1`, try again, "
        f"and copy its files: `modal volume get {name}-v1 / ./{volume}` and "
        f"`runner push {volume} ./{volume}`. Or choose other names: {PREFIX_VARIABLE}=my-prefix-"
    )


class ModalVolumeFiles(BlockFiles):
    """The files of a volume on Modal, which is opened at the first request.

    A volume that does not exist is empty. Without an account every volume is, so that a plan can be
    made all the same. Every request is repeated by ``retry``, and raises the last ModalUnavailable.
    """

    def __init__(self, name: str, environ: Mapping[str, str] = os.environ) -> None:
        self.name, self.environ = name, environ
        self._volume: modal.Volume | None = None
        self._lock = threading.Lock()  # that of cached_property is one for all volumes

    @property
    def volume(self) -> modal.Volume:
        """Open the volume. Raises RunnerError offline, without a token, or for version 1."""
        with self._lock:
            if self._volume is None:
                self._volume = open_volume(self.name, self.environ, create=False)
            return self._volume

    def create(self) -> modal.Volume:
        """Return the volume, created if it is missing. Raises RunnerError."""
        if not self.exists:
            self._volume = open_volume(self.name, self.environ)
        return self.volume

    @property
    def id(self) -> str:
        """Return Modal's id, which a new volume of the same name does not have; '' if missing."""
        return str(getattr(self.volume, "object_id", ""))

    @property
    def exists(self) -> bool:
        """Return True if the volume existed at the last request."""
        return bool(self.id)

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Return at most ``length`` bytes from ``start``. Raises FileNotFoundError."""
        if length == 0:
            return b""
        try:
            opened = self.open(path, start, length)
        except RunnerError:  # Modal refuses a start beyond the end
            if start and start >= (self.size(path) or 0):
                return b""
            raise
        return b"".join(self.block(block) for block in opened.blocks)

    def listing(self, path: str = "", recursive: bool = True) -> list[RemoteEntry]:
        """Return the entries of a folder, or of the file itself. Raises FileNotFoundError.

        The paths are those of the volume, not checked.
        """
        checked = checked_path(path) or "/"
        listed = self._request(lambda: self.volume.listdir(checked, recursive=recursive))
        return [
            RemoteEntry(e.path.lstrip("/"), e.size, int(e.mtime), e.type.name.lower())
            for e in listed
        ]

    def open(self, path: str, start: int = 0, length: int | None = None) -> OpenFile:
        """Return the addresses of the file's blocks, as it is now. Raises FileNotFoundError."""
        from runner.targets.modal.volume_rpc import open_file

        checked = checked_path(path)
        opened: OpenFile = self._request(
            lambda: open_file(self.volume, checked, start, length or 0)
        )
        return opened

    def block(self, block: Block) -> bytes:
        """Return the bytes of a block.

        Raises ModalUnavailable for one that is too short, unless a digest shows that zeros were
        omitted: the client pads with zeros what a cut connection did not bring.
        """
        from runner.targets.modal.volume_rpc import fetch_block

        def fetch() -> bytes:
            body, is_verified = fetch_block(block)
            if len(body) < block.length and not is_verified:
                raise ModalUnavailable(f"received {len(body)} of a block's {block.length} bytes")
            return bytes(body.ljust(block.length, b"\0"))

        return self._request(fetch)

    def put(self, files: Sequence[NewFile], receipts: Mapping[bytes, bytes]) -> list[MissingBlock]:
        """Create or replace all files at once, or none and return the blocks that Modal lacks.

        Raises RunnerError if a folder has a file's path.
        """
        from runner.targets.modal.volume_rpc import put_files

        missing: list[MissingBlock] = self._request(lambda: put_files(self.volume, files, receipts))
        return missing

    def send(self, block: MissingBlock, content: bytes) -> bytes:
        """Send a block without its trailing zeros; return the receipt for ``put``."""
        from runner.targets.modal.volume_rpc import send_block

        receipt: bytes = self._request(lambda: send_block(block.url, content))
        return receipt

    def _remove(self, path: str, recursive: bool) -> None:
        self._request(lambda: self.volume.remove_file(path, recursive=recursive))

    def write(self, path: str, text: str) -> None:
        """Create or replace a small file. Raises OSError if Modal can't be reached."""
        volume = self.create()

        def upload() -> None:
            with translate_modal_errors(), volume.batch_upload(force=True) as batch:
                batch.put_file(io.BytesIO(text.encode()), f"/{path}")

        self.retry.call(upload)

    def _request(self, request: Callable[[], T]) -> T:
        if self._volume is None and not is_configured(self.environ):
            raise FileNotFoundError(f"the volume {self.name}: there is no Modal token")
        volume = self.volume  # opening it has retries of its own

        def attempt() -> T:
            with translate_modal_errors():
                if not self.exists:
                    volume.hydrate()
                return request()

        return self.retry.call(attempt)


class ListedFolder:
    """A folder of a volume, listed once: a file that it lacks costs no request."""

    def __init__(self, files: VolumeFiles, path: str) -> None:
        self.files = files
        self._sizes = {entry.path: entry.size for entry in listing(files, path)}

    def size(self, path: str) -> int | None:
        """Return the file's size in bytes; None if it does not exist."""
        return self._sizes.get(path)

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Return at most ``length`` bytes from ``start``. Raises FileNotFoundError."""
        if path not in self._sizes:
            raise FileNotFoundError(path)
        return self.files.read(path, start, length)

    def entries(self, path: str = "") -> Iterator[VolumeEntry]:
        """Return a folder's entries by name. Raises FileNotFoundError."""
        return self.files.entries(path)
