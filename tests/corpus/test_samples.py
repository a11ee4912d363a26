"""Samples: tokens of a prompt, and text of tokens as they arrive."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from corpus.samples import TextStream, prompt_tokens
from corpus.tokenizers import ByteTokenizer, CharTokenizer, GPT2Tokenizer
from job.exit_status import RecipeError
from job.paths import CONFIGS
from job.recipe import load
from tests.corpus.test_tokenizers import TEXT, tokenizers


def test_streamed_text_never_shows_half_a_character(gpt2: GPT2Tokenizer) -> None:
    for tokenizer in tokenizers(gpt2):
        decoder = TextStream(tokenizer)
        pieces = [decoder.push(int(token)) for token in tokenizer.encode(TEXT)]
        assert "".join(pieces) == TEXT
    decoder = TextStream(ByteTokenizer())
    assert [decoder.push(0xC3), decoder.push(0xA4)] == ["", "ä"]


def test_an_empty_prompt_is_the_end_of_text_or_a_line_feed_or_the_first_character() -> None:
    recipe = load(CONFIGS / "quickstart.yaml")
    tokenizers = (ByteTokenizer(), CharTokenizer("\tA\n"), CharTokenizer("ACGT"))
    assert [prompt_tokens("", tokenizer, recipe) for tokenizer in tokenizers] == [[256], [1], [0]]


def test_a_prompt_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    recipe = load(CONFIGS / "quickstart.yaml")
    os.mkfifo(tmp_path / "fifo")  # opening it would wait for ever
    for name, problem in (("fifo", "a FIFO, not a regular file"), ("gone", "no such file")):
        with pytest.raises(RecipeError, match=f"can't read {tmp_path}/{name}: {problem}"):
            prompt_tokens(f"@{tmp_path}/{name}", ByteTokenizer(), recipe)
