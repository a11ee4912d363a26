"""Samples: tokens of a prompt, and text of tokens as they arrive."""

from __future__ import annotations

from corpus.samples import StreamDecoder, prompt_tokens
from corpus.tokenizers import ByteTokenizer, CharTokenizer, GPT2Tokenizer
from job.paths import CONFIGS
from job.recipe import load
from tests.corpus.test_tokenizers import TEXT, tokenizers


def test_streamed_text_never_shows_half_a_character(gpt2: GPT2Tokenizer) -> None:
    for tokenizer in tokenizers(gpt2):
        decoder = StreamDecoder(tokenizer)
        pieces = [decoder.push(int(token)) for token in tokenizer.encode(TEXT)]
        assert "".join(pieces) == TEXT
    decoder = StreamDecoder(ByteTokenizer())
    assert [decoder.push(0xC3), decoder.push(0xA4)] == ["", "ä"]


def test_an_empty_prompt_is_the_end_of_text_or_a_line_feed_or_the_first_character() -> None:
    recipe = load(CONFIGS / "quickstart.yaml")
    tokenizers = (ByteTokenizer(), CharTokenizer("\tA\n"), CharTokenizer("ACGT"))
    assert [prompt_tokens("", tokenizer, recipe) for tokenizer in tokenizers] == [[256], [1], [0]]
