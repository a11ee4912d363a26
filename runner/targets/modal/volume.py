"""The volumes on Modal: ``data``, ``checkpoints`` and ``cache`` under the names ``gpt-runner-<volume>``."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from job.paths import VOLUMES
from runner.errors import ModalUnavailable, RunnerError, did_you_mean, usage
from runner.target import VolumeEntry
from runner.targets.modal.client import (
    RetryPolicy,
    check_known,
    check_reachable,
    translate_modal_errors,
    unreachable,
)

if TYPE_CHECKING:
    import modal

    from runner.targets.modal.volume_rpc import Block, MissingBlock, NewFile, OpenFile

PREFIX = "gpt-runner-"

PREFIX_VARIABLE = "GPT_RUNNER_VOLUMES"  # another prefix: two projects in one workspace, or a test


def modal_name(volume: str, environ: Mapping[str, str] = os.environ) -> str:
    """The name on Modal of the volume ``data``, ``checkpoints`` or ``cache``.

    Raises RunnerError (exit code 2) for any other.
    """
    if volume not in VOLUMES:
        guess = did_you_mean(volume, VOLUMES) or f"; there are {', '.join(VOLUMES)}"
        raise usage(f"there is no volume '{volume}'{guess}")
    return f"{environ.get(PREFIX_VARIABLE) or PREFIX}{volume}"


def open_volume(volume: str, environ: Mapping[str, str] = os.environ) -> modal.Volume:
    """The volume on Modal, made where it is missing, known to be there and of version 2.

    Raises RunnerError without a token, offline, and for one of version 1.
    """
    return _look_up(volume, environ, create=True)


def open_files(
    volume: str, environ: Mapping[str, str] = os.environ, create: bool = False
) -> ModalVolumeFiles:
    """The volume as files. One that is missing is made with ``create``, else it holds nothing: who only reads
    must not make it. Raises what ``open_volume`` raises."""
    return ModalVolumeFiles(_look_up(volume, environ, create, begins=True))


def _look_up(
    volume: str, environ: Mapping[str, str], create: bool, begins: bool = False
) -> modal.Volume:
    """The volume; one that is missing and that is not to be made stays unhydrated. ``begins``: it is the first that
    a command asks of Modal."""
    name = modal_name(volume, environ)
    import modal
    from modal import exception
    from modal.config import config

    urls = str(config.get("server_url"))
    check_known(urls)
    if begins:  # the client would try for a minute, which is right where something is under way
        check_reachable(environ, urls)
    found = modal.Volume.from_name(name, create_if_missing=create, version=2)

    def hydrate() -> modal.Volume:
        try:
            with translate_modal_errors():
                return found.hydrate()
        except FileNotFoundError:
            return found
        except ModalUnavailable as error:
            if isinstance(
                error.__cause__, exception.ConnectionError
            ):  # the client has tried for a minute
                raise RunnerError(unreachable(str(error))) from error
            raise

    try:
        return RetryPolicy().ask(hydrate)
    except ModalUnavailable as error:
        raise RunnerError(unreachable(str(error))) from error
    except RunnerError as error:
        cause = error.__cause__
        if isinstance(cause, exception.InvalidError) and "version" in str(cause):
            raise RunnerError(_old_version(name, volume)) from cause
        raise


def _old_version(name: str, volume: str) -> str:
    return (
        f"the volume {name} is of Modal's version 1, which holds 500,000 files and 5 writers at most; the "
        f"runner uses version 2. Keep it under another name with `modal volume rename {name} {name}-v1`, type "
        f"the same again, and bring its files over: `modal volume get {name}-v1 / ./{volume}` and "
        f"`runner push {volume} ./{volume}`. Or let the runner use other names: {PREFIX_VARIABLE}=my-prefix-"
    )


@dataclass(frozen=True)
class RemoteEntry:
    """What a volume's listing says of one thing; ``modified`` is in whole seconds since the epoch."""

    path: str
    size: int
    modified: int
    kind: str  # file, directory, symlink, or another word of Modal's FileEntryType


class ModalVolumeFiles:
    """``Files`` over a volume on Modal, and what a transfer needs besides. Of a volume that does not exist every
    file is missing, until it does.

    Every request is made again as ``patience`` says; Unavailable is raised after the last.
    """

    def __init__(self, volume: modal.Volume, patience: RetryPolicy | None = None) -> None:
        self.volume = volume
        self.patience = patience or RetryPolicy()

    @property
    def id(self) -> str:
        """Modal's own name of the volume, which a new volume of the same name does not have; '' of none."""
        return str(getattr(self.volume, "object_id", ""))

    @property
    def is_there(self) -> bool:
        """Whether the volume existed when it was last asked for anything."""
        return bool(self.id)

    def size(self, path: str) -> int | None:
        """Bytes in the file; None where it isn't there."""
        entry = self.entry(path)
        return entry.size if entry is not None else None

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """At most ``length`` bytes from ``start``. Raises FileNotFoundError."""
        if length == 0:
            return b""
        try:
            opened = self.open(path, start, length)
        except RunnerError:  # a start behind the end is refused
            if start and start >= (self.size(path) or 0):
                return b""
            raise
        return b"".join(self.block(block) for block in opened.blocks)

    def entries(self, path: str = "") -> Iterator[VolumeEntry]:
        """What the folder holds, by name. Raises FileNotFoundError."""
        found = sorted(self.listing(path, recursive=False), key=lambda entry: entry.path)
        for entry in found:
            yield VolumeEntry(
                entry.path, entry.size, float(entry.modified), entry.kind == "directory"
            )

    def entry(self, path: str) -> RemoteEntry | None:
        """What the listing says of the file ``path``; None where there is no such file."""
        try:
            found = self.listing(path, recursive=False)
        except FileNotFoundError:
            return None
        return next((e for e in found if e.path == path.strip("/") and e.kind == "file"), None)

    def listing(self, path: str = "", recursive: bool = True) -> list[RemoteEntry]:
        """What is in the folder, or the file itself. Paths are as the volume gives them, and not to be
        trusted. Raises FileNotFoundError."""
        where = _inside(path) or "/"
        found: list[Any] = self._ask(lambda: self.volume.listdir(where, recursive=recursive))
        return [
            RemoteEntry(e.path.lstrip("/"), e.size, int(e.mtime), e.type.name.lower())
            for e in found
        ]

    def open(self, path: str, start: int = 0, length: int | None = None) -> OpenFile:
        """The file as it is now: where its blocks are. Raises FileNotFoundError."""
        from runner.targets.modal.volume_rpc import open_file

        where = _inside(path)
        opened: OpenFile = self._ask(lambda: open_file(self.volume, where, start, length or 0))
        return opened

    def block(self, block: Block) -> bytes:
        """The bytes of a block. Raises Unavailable for one that comes short without a digest that says that
        zeros were left out: the client fills up with zeros what a cut connection did not bring."""
        from runner.targets.modal.volume_rpc import fetch_block

        def fetch() -> bytes:
            body, is_verified = fetch_block(block)
            if len(body) < block.length and not is_verified:
                raise ModalUnavailable(f"{len(body)} bytes came of a block of {block.length}")
            return bytes(body.ljust(block.length, b"\0"))

        return bytes(self._ask(fetch))

    def put(self, files: Sequence[NewFile], receipts: Mapping[bytes, bytes]) -> list[MissingBlock]:
        """Put files into their places, all at once, replacing what is there; or nothing, and the blocks that
        Modal has not got yet. Raises RunnerError where a folder is in a file's place."""
        from runner.targets.modal.volume_rpc import put_files

        missing: list[MissingBlock] = self._ask(lambda: put_files(self.volume, files, receipts))
        return missing

    def send(self, block: MissingBlock, content: bytes) -> bytes:
        """Send a block, without its trailing zeros; the receipt for ``put``."""
        from runner.targets.modal.volume_rpc import send_block

        receipt: bytes = self._ask(lambda: send_block(block.url, content))
        return receipt

    def upload(self, files: Mapping[str, Path]) -> None:
        """Put a few small local files at their paths in the volume, all at once; ``runner.transfer.upload`` is
        for many and large ones."""
        checked = {_inside(path): local for path, local in files.items()}

        def put() -> None:
            with self.volume.batch_upload(force=True) as batch:
                for path, local in checked.items():
                    batch.put_file(local, f"/{path}")

        self._ask(put)

    def remove(self, path: str, recursive: bool = False) -> None:
        """Delete a file, or with ``recursive`` a folder. Raises FileNotFoundError."""
        where = _inside(path)
        if not where:
            raise usage("that is the whole volume; name a file or folder in it")
        self._ask(lambda: self.volume.remove_file(where, recursive=recursive))

    def _ask(self, request: Any) -> Any:
        def in_words() -> Any:
            with translate_modal_errors():
                if not self.is_there:
                    self.volume.hydrate()
                return request()

        return self.patience.ask(in_words)


def _inside(path: str) -> str:
    parts = PurePosixPath(path.strip("/")).parts
    if ".." in parts:
        raise usage(f"{path} leaves the volume; give a path inside it")
    return "/".join(parts)


class NoFiles:
    """``Files`` where nothing can be looked at."""

    def size(self, path: str) -> int | None:
        """None."""
        return None

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Raises FileNotFoundError."""
        raise FileNotFoundError(path)

    def entries(self, path: str = "") -> Iterator[VolumeEntry]:
        """Raises FileNotFoundError."""
        raise FileNotFoundError(path)


class LateFiles:
    """``Files`` over the volume ``name``."""

    def __init__(self, name: str, environ: Mapping[str, str]) -> None:
        self.name = name
        self.environ = environ

    @cached_property
    def opened(self) -> ModalVolumeFiles:
        """The volume. Raises RunnerError offline, without a token, and for one of version 1."""
        return open_files(self.name, self.environ)

    def size(self, path: str) -> int | None:
        """Bytes in the file; None where it isn't there."""
        return self.opened.size(path)

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """At most ``length`` bytes from ``start``. Raises FileNotFoundError."""
        return self.opened.read(path, start, length)

    def entries(self, path: str = "") -> Iterator[VolumeEntry]:
        """What the folder holds, by name. Raises FileNotFoundError."""
        return self.opened.entries(path)

    def put(self, path: str, text: str) -> None:
        """Write a small file, over what was there. Raises OSError where Modal can't be reached."""

        if not self.opened.is_there:
            self.opened = ModalVolumeFiles(open_volume(self.name, self.environ))

        def write() -> None:
            with translate_modal_errors(), self.opened.volume.batch_upload(force=True) as batch:
                batch.put_file(io.BytesIO(text.encode()), f"/{path}")

        self.opened.patience.ask(write)

    def text(self, path: str) -> bytes | None:
        """A small file as a whole; None where it isn't there."""
        try:
            return self.opened.read(path)
        except FileNotFoundError:
            return None
