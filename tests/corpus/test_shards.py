"""Shards: tokens round-trip across shard bounds, and damage is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from corpus import DataError
from corpus.dataset import TokenStream
from corpus.shards import SPLITS, ShardWriter, open_tokens, read_header

TOKENS = np.arange(10_000, dtype=np.uint16) * 7


def write(
    folder: Path, tokens: np.ndarray, shard_tokens: int = 3000, step: int = 777
) -> ShardWriter:
    writer = ShardWriter(folder, "d", "train", shard_tokens)
    for start in range(0, len(tokens), step):
        writer.write(tokens[start : start + step])
    writer.finish_shard()
    return writer


def test_tokens_round_trip(tmp_path: Path) -> None:
    writer = write(tmp_path, TOKENS)
    assert [shard.tokens for shard in writer.shards] == [3000, 3000, 3000, 1000]
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        f"d_train_{i:06d}.bin" for i in (1, 2, 3, 4)
    ]
    stream = TokenStream(tmp_path, "train")
    assert len(stream) == 10_000
    assert (stream.slice(0, 10_000) == TOKENS).all()


def test_the_header_is_the_speedruns(tmp_path: Path) -> None:
    write(tmp_path, TOKENS)
    raw = (tmp_path / "d_train_000004.bin").read_bytes()
    header = np.frombuffer(raw[:1024], "<i4")
    assert header[:3].tolist() == [20240520, 1, 1000]
    assert not header[3:].any()
    assert (np.frombuffer(raw[1024:], "<u2") == TOKENS[9000:]).all()


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 0), (2999, 3001), (2500, 9500), (3000, 6000), (9999, 10_000)]
)
def test_a_slice_crosses_the_bounds_of_shards(tmp_path: Path, start: int, stop: int) -> None:
    write(tmp_path, TOKENS)
    assert (TokenStream(tmp_path, "train").slice(start, stop) == TOKENS[start:stop]).all()


def test_windows_are_rows(tmp_path: Path) -> None:
    write(tmp_path, TOKENS)
    rows = TokenStream(tmp_path, "train").windows(np.array([2995, 0, 9990]), 10)
    assert rows.dtype == np.uint16
    assert (rows == np.stack([TOKENS[2995:3005], TOKENS[:10], TOKENS[9990:]])).all()


def test_a_slice_outside_is_refused(tmp_path: Path) -> None:
    write(tmp_path, TOKENS)
    with pytest.raises(IndexError):
        TokenStream(tmp_path, "train").slice(9999, 10_001)


def test_a_folder_without_shards_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="runner host prepare"):
        TokenStream(tmp_path, "val")


def test_names_with_both_words_belong_to_the_later_one(tmp_path: Path) -> None:
    for split in SPLITS:
        writer = ShardWriter(tmp_path, "trainval", split, 5000)
        writer.write(TOKENS[:10] if split == "val" else TOKENS[:20])
        writer.finish_shard()
    assert len(TokenStream(tmp_path, "val")) == 10
    assert len(TokenStream(tmp_path, "train")) == 20


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: b"\0" * 4 + raw[4:], "begins with 0, not 20240520"),
        (lambda raw: raw[:4] + b"\2" + raw[5:], "version 2"),
        (lambda raw: raw[:-1], "promises 1000 tokens, 3024 bytes; it has 3023"),
        (lambda raw: raw + b"\0\0", "damaged"),
        (lambda raw: b"", "not a token shard"),
    ],
)
def test_a_damaged_shard_is_refused(tmp_path: Path, damage: object, words: str) -> None:
    path = tmp_path / "d_train_000001.bin"
    write(tmp_path, TOKENS[:1000])
    assert read_header(path) == 1000
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=words):
        open_tokens(path)


def test_a_writer_resumes_from_its_state(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    write(whole, TOKENS)
    writer = ShardWriter(broken, "d", "train", 3000)
    writer.write(TOKENS[:4000])
    state = writer.state()
    writer.write(TOKENS[4000:8000] + 1)  # lost: two more shards were named, none is in the state
    writer.close()
    writer = ShardWriter(broken, "d", "train", 3000, state)
    assert writer.total == 4000
    writer.write(TOKENS[4000:])
    writer.finish_shard()
    for path in whole.iterdir():
        assert path.read_bytes() == (broken / path.name).read_bytes()


def test_a_writer_refuses_a_state_without_its_files(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "d", "train", 3000)
    writer.write(TOKENS[:2000])
    state = writer.state()
    writer.close()
    for path in tmp_path.glob(".*"):
        path.unlink()
    with pytest.raises(DataError, match="shorter than the journal says"):
        ShardWriter(tmp_path, "d", "train", 3000, state)
