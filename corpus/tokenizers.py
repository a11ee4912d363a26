"""Tokenizers: bytes, characters, and GPT-2's byte-pair encoding. Tokens are uint16.

A run keeps its tokenizer in its folder, so that it can sample without its dataset.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from corpus import DataError
from corpus.shards import Tokens
from job.files import write_atomically
from job.paths import VolumePaths
from job.recipe import Recipe
from job.typed_json import read_object

TOKENIZER = "tokenizer.json"  # in a run's folder
# In a message: the last ones by code point, letters rather than punctuation.
MAX_SHOWN_CHARACTERS = 60


class Tokenizer(ABC):
    """Convert text to tokens and back."""

    name: str
    vocab_size: int
    eot: int | None = None  # end of text: precedes each document

    @property
    def padded_vocab_size(self) -> int:
        """The vocabulary rounded up to a multiple of 64, faster on GPUs: 50257 → 50304."""
        return -(-self.vocab_size // 64) * 64

    @abstractmethod
    def encode(self, text: str | bytes) -> Tokens:
        """Return (tokens,) uint16; raise UnicodeDecodeError for bytes that are not UTF-8."""

    @abstractmethod
    def token_bytes(self) -> list[bytes]:
        """Return the UTF-8 text of each token, possibly part of a character; b"" for eot."""

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """Return the text bytes of each token, (vocab_size,), to compute bits per byte."""
        return np.array([len(text) for text in self.token_bytes()], dtype=np.int64)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the text of ``ids`` as UTF-8; eot and the vocabulary's padding have none."""
        table = self.__dict__.setdefault("_table", self.token_bytes())
        return b"".join(table[i] for i in ids if i < self.vocab_size)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def to_meta(self) -> dict[str, Any]:
        """Return the description from which ``from_meta`` makes this tokenizer."""
        return {"name": self.name}


class ByteTokenizer(Tokenizer):
    """The 256 bytes, and 256 for end of text. Encodes any bytes, UTF-8 or not."""

    name, vocab_size, eot = "bytes", 257, 256

    def encode(self, text: str | bytes) -> Tokens:
        data = text.encode() if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.uint16)

    def token_bytes(self) -> list[bytes]:
        return [*(bytes([byte]) for byte in range(256)), b""]


class CharTokenizer(Tokenizer):
    """The characters of one text in the order of their code points (nanoGPT's shakespeare_char)."""

    name = "chars"

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = sorted(set(characters))
        self.vocab_size = len(self.characters)
        if self.vocab_size > 65536:
            problem = f"{self.vocab_size} distinct characters do not fit in 16 bits"
            raise DataError(f"{problem}; use data.tokenizer=gpt2")
        self._ids = np.full(0x110000, -1, dtype=np.int32)  # code point → token
        self._ids[[ord(character) for character in self.characters]] = np.arange(self.vocab_size)

    def encode(self, text: str | bytes) -> Tokens:
        """Return the tokens; raise DataError for a character outside this vocabulary."""
        text = text.decode() if isinstance(text, bytes) else text
        ids = self._ids[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")]
        if (ids < 0).any():
            unknown = text[int(np.argmax(ids < 0))]
            known = "".join(self.characters[-MAX_SHOWN_CHARACTERS:])
            raise DataError(
                f"the character {unknown!r} (U+{ord(unknown):04X}) is not among the "
                f"{self.vocab_size} of the text that this model learned: "
                f"{known!r}{' and others' * (self.vocab_size > MAX_SHOWN_CHARACTERS)}"
            )
        tokens: Tokens = ids.astype(np.uint16)
        return tokens

    def token_bytes(self) -> list[bytes]:
        return [character.encode() for character in self.characters]

    def to_meta(self) -> dict[str, Any]:
        return {"name": self.name, "characters": "".join(self.characters)}


class GPT2Tokenizer(Tokenizer):
    """GPT-2's 50,257 tokens, downloaded once. Raises DataError if that fails."""

    name, vocab_size, eot = "gpt2", 50257, 50256

    def __init__(self) -> None:
        import tiktoken

        VolumePaths.current().set_defaults()
        try:
            self._encoding = tiktoken.get_encoding("gpt2")
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            raise DataError(
                f"GPT-2's vocabulary is not in {os.environ['TIKTOKEN_CACHE_DIR']} and can't be "
                f"downloaded ({type(error).__name__}); fill that folder on a machine with a "
                'network: TIKTOKEN_CACHE_DIR=FOLDER python -c "import tiktoken; '
                "tiktoken.get_encoding('gpt2')\", or use data.tokenizer=bytes"
            ) from None

    def encode(self, text: str | bytes) -> Tokens:
        text = text.decode() if isinstance(text, bytes) else text
        return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16)

    def token_bytes(self) -> list[bytes]:
        return [*self._encoding.decode_tokens_bytes(range(self.eot)), b""]


def from_meta(meta: object) -> Tokenizer:
    """Make the tokenizer that ``to_meta`` described; DataError if the description is damaged."""
    match meta:
        case {"name": "bytes"}:
            return ByteTokenizer()
        case {"name": "chars", "characters": str(characters)} if characters:
            with suppress(UnicodeEncodeError):  # half a surrogate pair, which no text has
                characters.encode()
                return CharTokenizer(characters)
        case {"name": "gpt2"}:
            return GPT2Tokenizer()
        case {"name": str(name)} if name != "chars":
            raise DataError(f"unknown tokenizer {name!r}; the tokenizers are bytes, chars and gpt2")
    raise DataError("damaged description of a tokenizer")


def same_tokens(first: object, second: object) -> bool:
    """Return True if two descriptions of ``to_meta`` give the same number to the same text."""
    return _key(first) == _key(second)


def tokenizer_fingerprint(meta: object) -> str:
    """Return a hash that is equal for the same tokens."""
    return hashlib.sha256(json.dumps(_key(meta)).encode()).hexdigest()


def _key(meta: object) -> tuple[object, ...]:
    match meta:
        case {"name": "chars", "characters": str(characters)}:
            return "chars", "".join(sorted(set(characters)))
        case {"name": name}:
            return (name,)
        case _:
            return ()


def save_tokenizer(folder: Path, tokenizer: dict[str, Any]) -> None:
    """Write the tokenizer's description, as the dataset's meta has it, into a run's folder."""
    write_atomically(folder / TOKENIZER, json.dumps(tokenizer) + "\n")


def read_tokenizer(folder: Path) -> dict[str, Any] | None:
    """Return the tokenizer's description in a run's folder, None without; DataError if damaged."""
    try:
        tree = read_object((folder / TOKENIZER).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        tree = {}
    name = tree.get("name")
    if not isinstance(name, str) or tree == {"name": "chars"}:
        remedy = "if this machine has the run's dataset, remove this file and run the command again"
        raise DataError(f"{folder / TOKENIZER}: damaged; {remedy}")
    return tree


def vocabulary(recipe: Recipe, tokenizer: Tokenizer) -> int:
    """Return the rows of the network's vocabulary: the recipe's, else the tokenizer's, padded."""
    rows = recipe.model.vocab_size
    if rows is None:
        return tokenizer.padded_vocab_size
    if rows < tokenizer.vocab_size:
        least = f"{tokenizer.vocab_size} ({tokenizer.name})"
        problem = f"vocab_size ({rows}) is below the tokenizer's {least}"
        raise recipe.mistake("model.vocab_size", problem)
    return rows
