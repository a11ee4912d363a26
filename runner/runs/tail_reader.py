"""Read a file that grows: each poll returns the lines added since the last one."""

from __future__ import annotations

from dataclasses import dataclass

from runner.target import VolumeFiles

# A resumed run rewrites its metrics without the lines after its checkpoint, and the new file may
# have any length. So the last bytes of each poll are read again and compared.
OVERLAP_BYTES = 256

MAX_POLL_BYTES = 4 * 1024 * 1024  # per poll, so that a long file does not freeze the screen


@dataclass(frozen=True)
class NewLines:
    """Whole lines of one poll."""

    lines: tuple[bytes, ...] = ()
    restarted: bool = False  # the file was rewritten, and these are its first lines
    is_complete: bool = True  # the end of the file was reached


class TailReader:
    """Read ``path`` from its start, or only its last ``max_bytes``."""

    def __init__(self, files: VolumeFiles, path: str, max_bytes: int | None = None) -> None:
        self.files = files
        self.path = path
        self.max_bytes = max_bytes
        self._reset()

    def _reset(self) -> None:
        self._offset: int | None = None if self.max_bytes is not None else 0
        self._overlap = b""  # the bytes before the offset
        self._partial_line = b""

    def poll(self) -> NewLines:
        """Return the whole lines added since the last poll.

        Raises OSError if the volume does not answer; the next poll then returns them.
        """
        restarted = False
        text = self._read()
        if not text.startswith(self._overlap):
            self._reset()
            restarted = True
            text = self._read()
        new = text[len(self._overlap) :]
        if not new:
            return NewLines(restarted=restarted)
        is_complete = len(text) < len(self._overlap) + MAX_POLL_BYTES
        self._offset = (self._offset or 0) + len(new)
        self._overlap = (self._overlap + new)[-OVERLAP_BYTES:]
        *lines, self._partial_line = (self._partial_line + new).split(b"\n")
        return NewLines(tuple(lines), restarted, is_complete)

    def _read(self) -> bytes:
        """Return the overlap and at most MAX_POLL_BYTES after it."""
        try:
            if self._offset is None:
                size = self.files.size(self.path) or 0
                self._offset = max(0, size - (self.max_bytes or 0))
            start = self._offset - len(self._overlap)
            return self.files.read(self.path, start, len(self._overlap) + MAX_POLL_BYTES)
        except FileNotFoundError:
            return b""
