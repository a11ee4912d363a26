"""Which text is training and which is validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from corpus import DataError
from corpus.shards import Split
from corpus.sources import Segment, SourceFile


class Part(NamedTuple):
    """A stretch of one document that is all training or all validation."""

    text: bytes
    first: bool  # begins the document
    file: int
    offset: int
    split: Split


class Splitter(Protocol):
    passed: int  # characters behind which it stands, where it counts them

    def __call__(self, segment: Segment) -> Iterator[Part]: ...


class ByDocument:
    """Whole documents, each by a hash of itself: of a file's name, of a row's text."""

    passed = 0

    def __init__(self, files: Sequence[SourceFile], val_fraction: float) -> None:
        """DataError where the source is one single document."""
        if len(files) == 1 and files[0].kind == "text":
            raise DataError(
                f"{files[0].path}: is a single document, which can't be both training and validation; take its "
                "last part for validation: data.split=tail"
            )
        ranks = [_rank(file.name.encode()) for file in files]
        # Of few files, all can lie above the fraction: the lowest is validation in any case.
        self._bound, lowest = val_fraction, min(ranks)
        self._val = [rank < val_fraction or rank == lowest for rank in ranks]
        self._rows = [file.kind != "text" for file in files]

    def __call__(self, segment: Segment) -> Iterator[Part]:
        rows = self._rows[segment.file]
        val = _rank(segment.text) < self._bound if rows else self._val[segment.file]
        yield Part(*segment[:4], "val" if val else "train")


class ByTail:
    """The last characters of the whole text are validation (nanoGPT's split)."""

    def __init__(self, length: int, val_fraction: float, passed: int = 0) -> None:
        self.passed, self._bound = passed, int(length * (1 - val_fraction))

    def __call__(self, segment: Segment) -> Iterator[Part]:
        text, first, file, offset = segment[:4]
        count, train = count_characters(text), max(0, self._bound - self.passed)
        self.passed += count
        cut = int(np.flatnonzero(_leads(text))[train]) if train < count else len(text)
        if cut:
            yield Part(text[:cut], first, file, offset, "train")
        if cut < len(text):
            yield Part(text[cut:], first and not cut, file, offset + cut, "val")


def count_characters(text: bytes) -> int:
    """Characters of UTF-8 ``text``."""
    return int(np.count_nonzero(_leads(text)))


def _leads(text: bytes) -> npt.NDArray[np.bool_]:
    return np.frombuffer(text, np.int8) >= -64  # not 0x80 … 0xBF, which continue a character


def _rank(data: bytes) -> float:
    """A number in [0, 1) that is always the same for the same bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest(), "big") / 2**48
