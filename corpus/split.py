"""Split the text into training and validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from corpus import DataError, printable
from corpus.formats import SourceFile
from corpus.segments import Segment
from corpus.shards import Split


class Part(NamedTuple):
    """A stretch of one document that is all training or all validation."""

    text: bytes
    first: bool  # begins the document
    file: int
    offset: int
    split: Split


class Splitter(Protocol):
    """Cut the segments of a source into parts, in order."""

    passed: int  # characters seen so far, if the splitter counts them

    def __call__(self, segment: Segment) -> Iterator[Part]: ...


class ByDocument:
    """Assign whole documents by a hash: of a file's name, of a row's text."""

    passed = 0

    def __init__(self, files: Sequence[SourceFile], val_fraction: float) -> None:
        """Raise DataError if the source is a single document."""
        texts = [file for file in files if file.kind == "text" and not file.is_blank]
        if len(texts) == 1 and all(file.kind == "text" for file in files):
            raise DataError(
                f"{printable(texts[0].path)}: the source is a single document, which cannot be "
                "both training and validation; use its last part for validation: data.split=tail"
            )
        ranks = [_rank(file.name.encode(errors="surrogateescape")) for file in files]
        # All of a few files can lie above the fraction: the lowest with text is always validation.
        lowest = min(
            (r for r, file in zip(ranks, files, strict=True) if not file.is_blank), default=-1.0
        )
        self._bound = val_fraction
        self._val = [rank < val_fraction or rank == lowest for rank in ranks]
        self._rows = [file.kind != "text" for file in files]

    def __call__(self, segment: Segment) -> Iterator[Part]:
        """Yield the whole segment as one part."""
        rows = self._rows[segment.file]
        val = _rank(segment.text) < self._bound if rows else self._val[segment.file]
        yield Part(*segment[:4], "val" if val else "train")


class ByTail:
    """Assign the last characters of the whole text to validation (nanoGPT's split)."""

    def __init__(self, length: int, val_fraction: float, passed: int = 0) -> None:
        self.passed, self._bound = passed, int(length * (1 - val_fraction))

    def __call__(self, segment: Segment) -> Iterator[Part]:
        """Yield the segment as one part, or as two where the validation text begins."""
        text, first, file, offset = segment[:4]
        count, train = count_characters(text), max(0, self._bound - self.passed)
        self.passed += count
        cut = int(np.flatnonzero(_leads(text))[train]) if train < count else len(text)
        if cut:
            yield Part(text[:cut], first, file, offset, "train")
        if cut < len(text):
            yield Part(text[cut:], first and not cut, file, offset + cut, "val")


def count_characters(text: bytes) -> int:
    """Count the characters of UTF-8 ``text``."""
    return int(np.count_nonzero(_leads(text)))


def _leads(text: bytes) -> npt.NDArray[np.bool_]:
    return np.frombuffer(text, np.int8) >= -64  # not 0x80 … 0xBF, which continue a character


def _rank(data: bytes) -> float:
    """Return a number in [0, 1) that is always the same for the same bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest(), "big") / 2**48
