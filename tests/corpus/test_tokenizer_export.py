"""Exported tokenizers give the same tokens in transformers' AutoTokenizer, and the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from corpus.tokenizer_export import byte_letters, merges, write_tokenizer
from corpus.tokenizers import ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer

AWKWARD = (
    "def f(x):\n    return 'ä – 你好 🙂👩‍👩‍👧'  # x\n"
    "\n\n\tend   \r\n\x85 \x1c\u00a0\u3000 \u2028\ufeff\x00it's 'S we'll don't . , ! ?"
    "a  b   c\n \n  \n1234 ½ x² e\u0301 \U0010fffd <unk> <s> [UNK]   "
)


@pytest.fixture
def text(shared_data: Path) -> str:
    """Return real text, and text that tokenizers have encoded wrongly."""
    real = (shared_data / "tinyshakespeare.txt").read_text()[:20_000]
    return f"{AWKWARD}{real}{AWKWARD}"


@pytest.fixture(params=["bytes", "chars", "gpt2"])
def tokenizer(request: pytest.FixtureRequest, text: str) -> Tokenizer:
    if request.param == "gpt2":
        return request.getfixturevalue("gpt2")
    return ByteTokenizer() if request.param == "bytes" else CharTokenizer(text)


def read_again(tokenizer: Tokenizer, folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    write_tokenizer(tokenizer, folder, 32, tokenizer.padded_vocab_size)
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_tokens_are_equal_and_text_round_trips(
    tokenizer: Tokenizer, text: str, tmp_path: Path
) -> None:
    exported = read_again(tokenizer, tmp_path)
    tokens = exported(text)
    assert tokens["input_ids"] == tokenizer.encode(text).tolist()
    assert exported.decode(tokens["input_ids"]) == text
    # transformers' GPT-2 adds the embeddings of token_type_ids to those of the text.
    assert set(tokens) == {"input_ids", "attention_mask"}


def test_end_of_text_and_context_length_are_exported(tokenizer: Tokenizer, tmp_path: Path) -> None:
    exported = read_again(tokenizer, tmp_path)
    assert (len(exported), exported.eos_token_id, exported.bos_token_id) == (
        tokenizer.vocab_size,
        tokenizer.eot,
        tokenizer.eot,
    )
    assert exported.model_max_length == 32
    if tokenizer.eot is not None:
        assert exported.decode([tokenizer.eot], skip_special_tokens=True) == ""
    assert exported.decode([tokenizer.vocab_size]) == ""  # a row that pads the vocabulary


def test_it_survives_saving_by_transformers(
    tokenizer: Tokenizer, text: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    read_again(tokenizer, tmp_path / "a").save_pretrained(tmp_path / "b")
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    assert exported(text)["input_ids"] == tokenizer.encode(text).tolist()


def test_an_unknown_character_is_an_error_in_transformers_too(tmp_path: Path) -> None:
    exported = read_again(CharTokenizer("abc"), tmp_path)
    assert exported("cab")["input_ids"] == [2, 0, 1]
    with pytest.raises(Exception, match="Missing"):
        exported("xab")


def test_every_character_is_split_as_tiktoken_splits_it(
    gpt2: GPT2Tokenizer, tmp_path: Path
) -> None:
    """The two regular expression libraries may differ in letters, numbers and spaces."""
    exported = read_again(gpt2, tmp_path).backend_tokenizer
    codes = [*range(0x3000), *range(0x3000, 0xD800, 7), *range(0xE000, 0x30000, 7)]
    texts = [f"a{c} {c}{c}\n {c}1" for c in map(chr, codes)]
    differ = [text[1] for text in texts if exported.encode(text).ids != gpt2.encode(text).tolist()]
    assert differ == []


def test_the_merges_are_the_published_ones(gpt2: GPT2Tokenizer, shared_data: Path) -> None:
    files = [path.read_text() for path in (shared_data / "tiktoken").iterdir()]
    published = next(text for text in files if text.startswith("#version")).splitlines()[1:]
    letters = byte_letters()
    found = merges(gpt2.token_bytes())
    assert [
        " ".join("".join(letters[b] for b in part) for part in pair) for pair in found
    ] == published
