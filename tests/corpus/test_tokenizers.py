"""Tokenizers: text round-trips; text that cannot be encoded is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from corpus import DataError, segments, sources
from corpus.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    Tokenizer,
    from_meta,
)

TEXT = "def f(x):\n    return 'ä – 你好 🙂'  # x\n\n\n\tend  "


def tokenizers(gpt2: GPT2Tokenizer) -> list[Tokenizer]:
    return [ByteTokenizer(), CharTokenizer(TEXT), gpt2]


def test_text_round_trips(gpt2: GPT2Tokenizer) -> None:
    for tokenizer in tokenizers(gpt2):
        ids = tokenizer.encode(TEXT)
        assert ids.dtype == np.uint16
        assert ids.max() < tokenizer.vocab_size
        assert tokenizer.decode(ids) == TEXT
        assert tokenizer.encode(TEXT.encode()).tolist() == ids.tolist()


def test_meta_recreates_the_same_tokenizer(gpt2: GPT2Tokenizer) -> None:
    for tokenizer in tokenizers(gpt2):
        assert (
            from_meta(tokenizer.to_meta()).encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
        )


def test_sizes(gpt2: GPT2Tokenizer) -> None:
    assert [t.vocab_size for t in tokenizers(gpt2)] == [257, len(set(TEXT)), 50257]
    assert [t.padded_vocab_size for t in tokenizers(gpt2)] == [320, 64, 50304]
    assert [t.eot for t in tokenizers(gpt2)] == [256, None, 50256]


def test_byte_lengths_add_up_to_the_text(gpt2: GPT2Tokenizer) -> None:
    for tokenizer in tokenizers(gpt2):
        lengths = tokenizer.byte_lengths()
        assert lengths.shape == (tokenizer.vocab_size,)
        assert lengths[tokenizer.encode(TEXT)].sum() == len(TEXT.encode())


def test_end_of_text_and_the_padding_decode_to_nothing(gpt2: GPT2Tokenizer) -> None:
    assert gpt2.decode([50256, 31373, 50300]) == "hello"
    assert ByteTokenizer().decode([256, 104, 300]) == "h"


def test_special_tokens_in_a_text_are_text(gpt2: GPT2Tokenizer) -> None:
    assert gpt2.eot not in gpt2.encode("<|endoftext|>").tolist()


def test_an_unknown_character_is_named() -> None:
    with pytest.raises(DataError, match=r"'é' \(U\+00E9\)"):
        CharTokenizer("abc").encode("abé")


def test_gpt2_without_cache_and_network_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests
    import tiktoken

    def offline(*args: object, **kwargs: object) -> None:
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setattr(requests, "get", offline)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(
        DataError, match=rf"{tmp_path}/cache and can't be downloaded.*data\.tokenizer=bytes"
    ):
        GPT2Tokenizer()


AWKWARD = (
    "a \n b\n\n  c\t\n\u00a0\nd\u3000\ne\u2003\n\u1680\n'll'\n's 'S\n 1\n23\u0085\n x!\n\n\n\n"
    "x \u00a0 \u00a0 \u00a0 \u00a0 y\n        deep\n\n\n  !"
    "it's\r\n\r\nhe'll\x1c\nж\nй \n中文。好，\nß\u202f\n\u205f\nq"
)


def test_cut_text_has_the_tokens_of_the_whole(gpt2: GPT2Tokenizer) -> None:
    text = (AWKWARD * 30).encode()
    whole = gpt2.encode(text).tolist()
    ends = range(1, len(text))
    cuts = {
        match.end() for end in ends for cut in segments._CUTS if (match := cut.match(text[:end]))
    }
    assert len(cuts) > 400
    for cut in cuts:
        assert gpt2.encode(text[:cut]).tolist() + gpt2.encode(text[cut:]).tolist() == whole


@pytest.mark.parametrize("separator", [b"\n", b" ", b"", b"\r\n", b"\n\n   "])
def test_real_text_in_pieces_has_the_tokens_of_the_whole(
    gpt2: GPT2Tokenizer,
    novels: bytes,
    separator: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segments, "PIECE_BYTES", 2000)
    text = novels[:400_000].decode(errors="ignore").encode()
    text = b"".join(text.split()) if not separator else separator.join(text.splitlines())
    (tmp_path / "text.txt").write_bytes(text)
    files = sources.find_files(str(tmp_path / "text.txt"), tmp_path)
    pieces = [segment.text for segment in segments.read(files, "text")]
    assert len(pieces) > 100
    assert b"".join(pieces) == text
    assert (
        np.concatenate([gpt2.encode(piece) for piece in pieces]).tolist()
        == gpt2.encode(text).tolist()
    )
