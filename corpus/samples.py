"""Samples: the tokens of a prompt, and the text of generated tokens while they arrive."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from corpus.tokenizers import Tokenizer
from job.files import read_utf8
from job.format import sanitize
from job.recipe import Recipe

SEPARATOR = "\n--------------------------------\n"


def prompt_tokens(prompt: str, tokenizer: Tokenizer, recipe: Recipe) -> list[int]:
    """Return the tokens of ``sample.prompt``, which may name a file."""
    if prompt == "-":
        prompt = sys.stdin.read()
    elif prompt.startswith("@"):
        try:
            prompt = read_utf8(path := Path(prompt[1:]))
        except ValueError as error:
            raise recipe.mistake("sample.prompt", f"can't read {path}: {error}") from None
    try:
        return encode_prompt(prompt, tokenizer)
    except ValueError as error:
        text = f"{error}; give a different prompt: prompt=TEXT"
        raise recipe.mistake("sample.prompt", text) from None


def encode_prompt(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """Return the prompt's tokens. Raises ValueError for a character outside the vocabulary.

    An empty prompt is the end-of-text token; without one, a line feed if the text has any, else
    the first character.
    """
    start = [] if tokenizer.eot is None else [tokenizer.eot]
    if prompt or start:
        return [*start, *tokenizer.encode(prompt).tolist()]
    texts = tokenizer.token_bytes()
    return [texts.index(b"\n") if b"\n" in texts else 0]


class TextStream:
    """Decode tokens as they arrive.

    Holds back the bytes of an incomplete character, and the possible beginning of a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = [text for text in stop if text]
        self._held = ""
        self.is_stopped = False

    def push(self, token: int) -> str:
        """Return the text that ``token`` completes; after a stop string, none."""
        self._held += self._decoder.decode(self._tokenizer.decode_bytes([token]))
        ends = [at for text in self._stop if (at := self._held.find(text)) >= 0]
        if ends:
            self.is_stopped = True
            return self._release(min(ends))
        return self._release(len(self._held) - self._partial_stop())

    def close(self) -> str:
        """Return the text that is still held back."""
        return "" if self.is_stopped else self._release(len(self._held))

    def _release(self, end: int) -> str:
        text, self._held = self._held[:end], self._held[end:]
        return text

    def _partial_stop(self) -> int:
        """Return the length of the longest end of the text that begins a stop string."""
        lengths = [
            size
            for text in self._stop
            for size in range(1, len(text))
            if self._held.endswith(text[:size])
        ]
        return max(lengths, default=0)


def write_texts(
    rows: Iterable[list[int | None]],
    tokenizer: Tokenizer,
    prompt: list[int],
    count: int,
    out: TextIO | None,
) -> str:
    """Return ``count`` texts that continue ``prompt`` with the tokens in ``rows``, by SEPARATOR.

    A row has one token for each text, None after its end. The first text is written to ``out``
    while its tokens arrive, the others when all are complete.
    """
    visible = prompt[1:] if tokenizer.eot is not None and prompt[0] == tokenizer.eot else prompt
    texts = [tokenizer.decode(visible)] * count
    streams = [TextStream(tokenizer) for _ in texts]
    out = out or io.StringIO()
    # A network of bytes can generate escape sequences, which would control the terminal.
    shown = sanitize if out.isatty() else str
    out.write(shown(texts[0]))
    for row in rows:
        for i, token in enumerate(row):
            if token is not None:
                piece = streams[i].push(token)
                texts[i] += piece
                if i == 0:
                    out.write(shown(piece))
                    out.flush()
    out.write("".join(SEPARATOR + shown(text) for text in texts[1:]) + "\n")
    out.flush()
    return SEPARATOR.join(texts)
