"""A volume on Modal that is opened when it is first read: a plan that needs no look at it asks nothing.

Reading makes no volume. One that is missing holds nothing, and is made by what is put into it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from functools import cached_property

from runner.cloud.modal_errors import in_our_words
from runner.cloud.volumes import VolumeFiles, open_files, open_volume
from runner.targets.protocol import Entry


class NoFiles:
    """``Files`` where nothing can be looked at."""

    def size(self, path: str) -> int | None:
        """None."""
        return None

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Raises FileNotFoundError."""
        raise FileNotFoundError(path)

    def entries(self, path: str = "") -> Iterator[Entry]:
        """Raises FileNotFoundError."""
        raise FileNotFoundError(path)


class LateFiles:
    """``Files`` over the volume ``name``."""

    def __init__(self, name: str, environ: Mapping[str, str]) -> None:
        self.name = name
        self.environ = environ

    @cached_property
    def opened(self) -> VolumeFiles:
        """The volume. Raises RunnerError offline, without a token, and for one of version 1."""
        return open_files(self.name, self.environ)

    def size(self, path: str) -> int | None:
        """Bytes in the file; None where it isn't there."""
        return self.opened.size(path)

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """At most ``length`` bytes from ``start``. Raises FileNotFoundError."""
        return self.opened.read(path, start, length)

    def entries(self, path: str = "") -> Iterator[Entry]:
        """What the folder holds, by name. Raises FileNotFoundError."""
        return self.opened.entries(path)

    def put(self, path: str, text: str) -> None:
        """Write a small file, over what was there. Raises OSError where Modal can't be reached."""

        if not self.opened.is_there:
            self.opened = VolumeFiles(open_volume(self.name, self.environ))

        def write() -> None:
            with in_our_words(), self.opened.volume.batch_upload(force=True) as batch:
                batch.put_file(io.BytesIO(text.encode()), f"/{path}")

        self.opened.patience.ask(write)

    def text(self, path: str) -> bytes | None:
        """A small file as a whole; None where it isn't there."""
        try:
            return self.opened.read(path)
        except FileNotFoundError:
            return None
