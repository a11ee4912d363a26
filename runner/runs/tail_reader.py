"""A file that grows, read a piece at a time: each look reads what was added since the last one."""

from __future__ import annotations

from dataclasses import dataclass

from runner.target import VolumeFiles

# The last bytes that were read are read again with the next piece. A run that goes on from a checkpoint
# rewrites its metrics without the lines behind it, so that the file may be another one of any length.
OVERLAP = 256

PIECE = (
    4 * 1024 * 1024
)  # at most that much in one look: a screen must not stand still for a long file


@dataclass(frozen=True)
class Piece:
    """What a look brought: whole lines; ``anew`` where the file was rewritten and these are its first."""

    lines: tuple[bytes, ...] = ()
    anew: bool = False
    is_all: bool = True  # nothing more was there


class GrowingFile:
    """Reads ``path`` of ``files``, from its start or, with ``most``, at most that many bytes of its end."""

    def __init__(self, files: VolumeFiles, path: str, most: int | None = None) -> None:
        self.files = files
        self.path = path
        self.most = most
        self._forget()

    def _forget(self) -> None:
        self._offset: int | None = None if self.most is not None else 0
        self._seen = b""  # the OVERLAP bytes before the offset
        self._rest = b""  # the beginning of a line whose end is not there yet

    def look(self) -> Piece:
        """The whole lines added since the last look. Raises OSError where the place does not answer; then
        nothing is lost, and the next look brings them."""
        anew = False
        text = self._read()
        if not text.startswith(self._seen):
            self._forget()
            anew = True
            text = self._read()
        new = text[len(self._seen) :]
        if not new:
            return Piece(anew=anew)
        is_all = len(text) < len(self._seen) + PIECE
        self._offset = (self._offset or 0) + len(new)
        self._seen = (self._seen + new)[-OVERLAP:]
        *lines, self._rest = (self._rest + new).split(b"\n")
        return Piece(tuple(lines), anew, is_all)

    def _read(self) -> bytes:
        """What was seen last and at most PIECE bytes behind it."""
        try:
            if self._offset is None:
                self._offset = max(0, (self.files.size(self.path) or 0) - (self.most or 0))
            return self.files.read(
                self.path, self._offset - len(self._seen), len(self._seen) + PIECE
            )
        except FileNotFoundError:
            return b""
