"""Tokenizers: bytes, characters, and GPT-2's byte-pair encoding through tiktoken. Tokens are uint16."""

from __future__ import annotations

import codecs
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from corpus import DataError
from corpus.shards import Tokens
from job.paths import VolumePaths

SHOWN = 60  # characters, the last ones in the order of their code points: letters rather than signs


class Tokenizer(ABC):
    """Text to tokens and back."""

    name: str
    vocab_size: int
    eot: int | None = None  # end of text: stands before each document

    @property
    def padded_vocab_size(self) -> int:
        """Rounded up to a multiple of 64, which is faster on GPUs: 50257 → 50304 (nanoGPT)."""
        return -(-self.vocab_size // 64) * 64

    @abstractmethod
    def encode(self, text: str | bytes) -> Tokens:
        """(tokens,) uint16 of ``text``; UnicodeDecodeError for bytes that are no UTF-8."""

    @abstractmethod
    def token_bytes(self) -> list[bytes]:
        """The text of each token as UTF-8, which may be a part of a character; b"" for eot."""

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """Bytes of text that each token stands for, (vocab_size,): the measure for bits per byte."""
        return np.array([len(text) for text in self.token_bytes()], dtype=np.int64)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The text of ``ids`` as UTF-8; eot and the padding of the vocabulary have none."""
        table = self.__dict__.setdefault("_table", self.token_bytes())
        return b"".join(table[i] for i in ids if i < self.vocab_size)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; what is no UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def to_meta(self) -> dict[str, Any]:
        """What ``from_meta`` makes this tokenizer of."""
        return {"name": self.name}


class ByteTokenizer(Tokenizer):
    """The 256 bytes, and 256 for end of text. Takes any bytes, UTF-8 or not."""

    name, vocab_size, eot = "bytes", 257, 256

    def encode(self, text: str | bytes) -> Tokens:
        return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8).astype(
            np.uint16
        )

    def token_bytes(self) -> list[bytes]:
        return [*(bytes([byte]) for byte in range(256)), b""]


class CharTokenizer(Tokenizer):
    """The characters of one text in the order of their code points (nanoGPT's shakespeare_char)."""

    name = "chars"

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = sorted(set(characters))
        self.vocab_size = len(self.characters)
        if self.vocab_size > 65536:
            raise DataError(
                f"{self.vocab_size} distinct characters are too many; take data.tokenizer=gpt2"
            )
        self._ids = np.full(0x110000, -1, dtype=np.int32)  # code point → token
        self._ids[[ord(character) for character in self.characters]] = np.arange(self.vocab_size)

    def encode(self, text: str | bytes) -> Tokens:
        """DataError where the text has a character that this tokenizer doesn't know."""
        text = text.decode() if isinstance(text, bytes) else text
        ids: npt.NDArray[np.int32] = self._ids[
            np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        ]
        if (ids < 0).any():
            unknown = text[int(np.argmax(ids < 0))]
            known = "".join(self.characters[-SHOWN:])
            raise DataError(
                f"the character {unknown!r} (U+{ord(unknown):04X}) is not among the {self.vocab_size} of the text that "
                f"this model learns: {known!r}{' and others' * (self.vocab_size > SHOWN)}"
            )
        return ids.astype(np.uint16)

    def token_bytes(self) -> list[bytes]:
        return [character.encode() for character in self.characters]

    def to_meta(self) -> dict[str, Any]:
        return {"name": self.name, "characters": "".join(self.characters)}


class GPT2Tokenizer(Tokenizer):
    """GPT-2's 50,257 tokens. DataError where its files are neither in tiktoken's cache nor to be had."""

    name, vocab_size, eot = "gpt2", 50257, 50256

    def __init__(self) -> None:
        import requests
        import tiktoken

        VolumePaths.current().set_defaults()
        try:
            self._encoding = tiktoken.get_encoding("gpt2")
        except (requests.RequestException, ValueError) as error:
            raise DataError(
                f"GPT-2's vocabulary is not in {os.environ['TIKTOKEN_CACHE_DIR']} and can't be downloaded "
                f"({type(error).__name__}); fill that folder where there is a network: TIKTOKEN_CACHE_DIR=FOLDER "
                "python -c \"import tiktoken; tiktoken.get_encoding('gpt2')\", or take data.tokenizer=bytes"
            ) from None

    def encode(self, text: str | bytes) -> Tokens:
        text = text.decode() if isinstance(text, bytes) else text
        return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16)

    def token_bytes(self) -> list[bytes]:
        return [*self._encoding.decode_tokens_bytes(range(self.eot)), b""]


def from_meta(meta: dict[str, Any]) -> Tokenizer:
    """The tokenizer that ``to_meta`` described."""
    match meta.get("name"):
        case "bytes":
            return ByteTokenizer()
        case "chars":
            return CharTokenizer(meta["characters"])
        case "gpt2":
            return GPT2Tokenizer()
        case name:
            raise DataError(f"unknown tokenizer {name!r}; there are bytes, chars and gpt2")


class StreamDecoder:
    """Decodes tokens as they come, and keeps back the bytes of a character that isn't whole yet."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, *ids: int) -> str:
        """The text that ``ids`` complete."""
        return self._decoder.decode(self._tokenizer.decode_bytes(ids))
