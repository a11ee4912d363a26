"""A dataset is verified against its text, shards and tokenizer; a complete one is only read."""

from __future__ import annotations

import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from corpus import DataError, Monitor, build, verify
from corpus.build import prepare
from corpus.dataset import (
    META,
    STAGING,
    TokenStream,
    dataset_meta,
    dataset_mismatch,
    prepare_command,
)
from corpus.shards import SPLITS, ShardWriter, read_content
from corpus.tokenizers import read_tokenizer, same_tokens, save_tokenizer
from corpus.verify import (
    Checks,
    ChecksumCache,
    dataset_identity,
    is_prepared,
    require_dataset_of_run,
    tokenizer_of_run,
)
from job.recipe import DataConfig


def config(source: Path, **settings: object) -> DataConfig:
    base = {
        "dataset": "d",
        "source": str(source),
        "tokenizer": "bytes",
        "split": "tail",
        "shard_tokens": 1024,
    }
    return DataConfig.model_validate({**base, **settings})


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "t.txt"
    path.write_text("the quick brown fox\n" * 500)
    return path


@pytest.fixture
def folder(tmp_path: Path, text: Path) -> Path:
    prepare(config(text), tmp_path / "data" / "d")
    return tmp_path / "data" / "d"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the shards that are read whole."""
    names: list[str] = []

    def record_read(path: Path) -> object:
        names.append(path.name)
        return read_content(path)

    monkeypatch.setattr(verify, "read_content", record_read)
    return names


def edit_text(path: Path) -> None:
    path.write_text("the quick brown dog\n" * 500)  # as long as before


class TestText:
    def test_an_edited_text_is_refused(self, folder: Path, text: Path) -> None:
        edit_text(text)
        with pytest.raises(DataError, match=r"t\.txt has changed since .*--force.*NEW_NAME"):
            prepare(config(text), folder)
        assert prepare(config(text), folder, force=True).source_sha256

    def test_a_touched_text_is_read_again_and_accepted(self, folder: Path, text: Path) -> None:
        os.utime(text, (1, 1))
        assert is_prepared(config(text), folder)

    def test_an_edit_with_the_old_time_is_found_by_prepare(self, folder: Path, text: Path) -> None:
        status = text.stat()
        edit_text(text)
        os.utime(text, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert is_prepared(config(text), folder)
        with pytest.raises(DataError, match="has changed"):
            is_prepared(config(text), folder, Checks(thorough=True))

    def test_a_copy_under_another_name_is_the_same_text(self, folder: Path, text: Path) -> None:
        copy = text.rename(text.with_name("copy.txt"))
        assert is_prepared(config(copy), folder)

    @pytest.mark.parametrize("any_source", [False, True])
    def test_different_text_is_refused(self, folder: Path, text: Path, any_source: bool) -> None:
        other = text.with_name("other.txt")
        other.write_text("another text\n" * 500)
        with pytest.raises(DataError, match=r"source was .*t\.txt, now .*other\.txt"):
            prepare(config(other), folder, Checks(any_source=any_source))

    def test_missing_text_is_accepted_with_a_warning(self, folder: Path, text: Path) -> None:
        messages: list[str] = []
        text.unlink()
        gone = config(text.with_name("gone.txt"))
        assert is_prepared(config(text), folder)
        monitor = Monitor(lambda event: messages.append(str(event)))
        assert is_prepared(gone, folder, Checks(any_source=True), monitor)
        assert any("instead of" in line for line in messages)

    def test_a_file_that_is_added_to_a_folder_changes_it(self, tmp_path: Path) -> None:
        source = tmp_path / "in"
        source.mkdir()
        (source / "a.txt").write_text("a\n" * 5000)
        prepare(config(source), tmp_path / "d")
        assert is_prepared(config(source), tmp_path / "d")
        (source / "b.txt").write_text("b\n")
        with pytest.raises(DataError, match="has changed"):
            is_prepared(config(source), tmp_path / "d")

    def test_a_resumed_run_keeps_its_dataset_with_a_warning(self, folder: Path, text: Path) -> None:
        edit_text(text)
        messages: list[str] = []
        monitor = Monitor(lambda event: messages.append(str(event)))
        prepare(config(text), folder, Checks(changed_text=True), monitor)
        assert any("has changed" in line for line in messages)

    def test_text_in_the_folder_of_the_dataset_is_unchanged(
        self, tmp_path: Path, text: Path
    ) -> None:
        own = tmp_path / "own"
        own.mkdir()
        (own / "a.txt").write_bytes(text.read_bytes())
        first = prepare(config(own), own)
        assert prepare(config(own), own) == first
        assert prepare(config(own), own, force=True) == first

    def test_a_text_that_changes_while_it_is_prepared_is_refused(
        self, tmp_path: Path, text: Path
    ) -> None:
        def edit(event: object) -> None:
            if "tokenizing" in str(event):
                edit_text(text)

        with pytest.raises(DataError, match="changed while it was prepared; run the command again"):
            prepare(config(text), tmp_path / "d", monitor=Monitor(edit))
        assert not (tmp_path / "d" / META).exists()

    def test_an_unchanged_text_is_not_read_again(
        self, folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(verify, "content_sha256")
        assert is_prepared(config(text), folder)


class TestShards:
    def test_an_unchanged_dataset_is_not_read_again(
        self, folder: Path, text: Path, reads: list[str]
    ) -> None:
        prepare(config(text), folder)
        assert reads == []
        prepare(config(text), folder, Checks(thorough=True))
        assert len(reads) == len(dataset_meta(folder).names) > 5

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_a_flipped_bit_is_found(self, folder: Path, text: Path, split: str) -> None:
        path = next(folder.glob(f"*{split}*.bin"))
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)
        with pytest.raises(DataError, match=rf"{path.name}: damaged or replaced: its SHA-256"):
            prepare(config(text), folder)

    def test_a_foreign_shard_is_refused(self, folder: Path, text: Path) -> None:
        (folder / "x_train_000099.bin").write_bytes(next(folder.glob("*train*.bin")).read_bytes())
        with pytest.raises(DataError, match=r"x_train_000099\.bin: not among the shards that"):
            prepare(config(text), folder)
        stream = TokenStream(folder, "train")
        assert len(stream) == dataset_meta(folder).train_tokens

    def test_a_copied_dataset_is_read_once(
        self, folder: Path, text: Path, reads: list[str], tmp_path: Path
    ) -> None:
        moved = folder.rename(tmp_path / "moved")
        prepare(config(text), moved)
        count = len(reads)
        assert count > 5
        prepare(config(text), moved)
        assert len(reads) == count

    def test_tokens_beyond_the_vocabulary_are_refused(self, tmp_path: Path) -> None:
        for split in SPLITS:
            writer = ShardWriter(tmp_path, "x", split, 5000)
            writer.write(np.full(3000, 60_000, np.uint16))
            writer.finish_shard()
        with pytest.raises(DataError, match="has token 60000, and tokenizer gpt2 has 50257"):
            is_prepared(DataConfig(dataset="x"), tmp_path)

    def test_shards_of_another_program_are_used_with_a_warning(
        self, folder: Path, text: Path
    ) -> None:
        (folder / META).unlink()
        messages: list[str] = []
        monitor = Monitor(lambda event: messages.append(str(event)))
        assert is_prepared(config(text, tokenizer="gpt2"), folder, monitor=monitor)
        assert f"{folder} has shards of a different program, used instead of {text}" in messages[-1]

    @pytest.mark.parametrize("content", ["null", "[]", '{"shards": 5}', "{", '{"tokenizer": {}}'])
    def test_a_damaged_meta_is_named(self, folder: Path, text: Path, content: str) -> None:
        (folder / META).write_text(content)
        with pytest.raises(
            DataError, match=r"meta\.json: damaged; rebuild .*`runner host prepare RECIPE --force`"
        ):
            prepare(config(text), folder)

    def test_a_meta_without_a_split_is_damaged(self, folder: Path) -> None:
        meta = json.loads((folder / META).read_text())
        del meta["shards"]["val"]
        (folder / META).write_text(json.dumps(meta))
        with pytest.raises(DataError, match="damaged"):
            dataset_meta(folder)

    def test_a_meta_that_names_files_elsewhere_is_refused(self, folder: Path, text: Path) -> None:
        damaged = (folder / META).read_text().replace("d_train_000001.bin", "../d_train_000001.bin")
        (folder / META).write_text(damaged)
        with pytest.raises(DataError, match="damaged"):
            dataset_meta(folder)


class TestReadOnly:
    def test_a_finished_dataset_is_read_without_a_lock_or_a_write(
        self, folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: object, **kwargs: object) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(build, "wait_for_lock", refuse)
        monkeypatch.setattr(verify, "write_atomically", refuse)
        monkeypatch.setattr(Path, "mkdir", refuse)
        monkeypatch.setattr(Path, "unlink", refuse)
        os.utime(text, (1, 1))
        assert prepare(config(text), folder).train_tokens == 9001


class TestRebuild:
    @pytest.mark.parametrize("broken", ["tokenizer", "text"])
    def test_a_failed_rebuild_leaves_the_old_dataset(
        self, folder: Path, text: Path, broken: str
    ) -> None:
        before = files(folder)
        if broken == "text":
            text.write_text("")
        else:
            text.write_bytes(b"words\n" * 5000 + b"\xff\n")
        with pytest.raises(DataError):
            prepare(config(text, tokenizer="chars"), folder, force=True)
        assert files(folder) == before
        assert not (folder / STAGING).exists()

    def test_an_interrupted_exchange_is_finished(
        self, folder: Path, text: Path, tmp_path: Path
    ) -> None:
        edit_text(text)
        prepare(config(text), tmp_path / "new")
        expected = files(tmp_path / "new")
        (tmp_path / "new").rename(folder / STAGING)
        (folder / META).unlink()
        with pytest.raises(DataError, match="no complete dataset"):
            dataset_meta(folder)
        prepare(config(text), folder)
        assert files(folder) == expected


class TestRun:
    def test_the_fingerprint_covers_both_splits_and_the_tokenizer(
        self, folder: Path, text: Path
    ) -> None:
        meta = dataset_meta(folder)
        recorded = dataset_identity(folder, meta)
        assert require_dataset_of_run("a", recorded, folder).train_tokens == 9001
        other = dataset_identity(folder, replace(meta, tokenizer={"name": "gpt2"}))
        assert other["fingerprint"] != recorded["fingerprint"]
        for changed in (
            b"The quick brown fox\n",
            b"the quick brown foX\n",
        ):  # a token of training, a token of validation
            lines = [b"the quick brown fox\n"] * 500
            lines[0 if changed[0] == b"T"[0] else -1] = changed
            text.write_bytes(b"".join(lines))
            prepare(config(text), folder, force=True)
            with pytest.raises(DataError, match="run 'a' was trained on a different dataset"):
                require_dataset_of_run("a", recorded, folder)

    @pytest.mark.parametrize("recorded", [{}, None, "x", {"source": "t"}, {"fingerprint": None}])
    def test_a_lost_record_is_refused(self, folder: Path, recorded: object) -> None:
        now = dataset_identity(folder, dataset_meta(folder))
        assert "does not say which dataset" in dataset_mismatch("a", recorded, now)

    def test_lost_tokenizer_comes_only_from_the_dataset_of_the_run(
        self, folder: Path, text: Path, tmp_path: Path
    ) -> None:
        recorded = dataset_identity(folder, dataset_meta(folder))
        assert tokenizer_of_run(tmp_path, recorded, folder).name == "bytes"
        edit_text(text)
        prepare(config(text), folder, force=True)
        with pytest.raises(DataError, match="was trained on a different dataset"):
            tokenizer_of_run(tmp_path, recorded, folder)

    def test_another_runs_tokenizer_is_refused(self, folder: Path, tmp_path: Path) -> None:
        recorded = dataset_identity(folder, dataset_meta(folder))
        save_tokenizer(tmp_path, {"name": "chars", "characters": "abc"})
        with pytest.raises(DataError, match="not the tokenizer of run"):
            tokenizer_of_run(tmp_path, recorded, folder)

    @pytest.mark.parametrize(
        "content", ["null", "[]", "{", '{"name": "chars"}', '{"name": 5}', "[" * 5000]
    )
    def test_a_damaged_tokenizer_is_named(self, folder: Path, tmp_path: Path, content: str) -> None:
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(DataError, match=r"tokenizer\.json: damaged"):
            tokenizer_of_run(tmp_path, {}, folder)

    def test_tokenizers_are_compared_by_their_characters(self) -> None:
        chars = {"name": "chars", "characters": "abc"}
        assert same_tokens(chars, {"name": "chars", "characters": "cba"})
        assert not same_tokens(chars, {"name": "chars", "characters": "abd"})
        assert not same_tokens({"name": "bytes"}, {"name": "gpt2"})
        assert read_tokenizer(Path("/nonexistent")) is None


def test_more_shards_than_open_files_are_read(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "d", "train", 1024)
    writer.write(np.arange(200 * 1024, dtype=np.uint32).astype(np.uint16))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 64, hard))
    try:
        stream = TokenStream(tmp_path, "train")
        assert (stream.slice(0, len(stream)) == np.arange(200 * 1024).astype(np.uint16)).all()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_shard_that_is_replaced_while_it_is_in_use_is_named(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "d", "train", 1024)
    writer.write(np.zeros(2048, np.uint16))
    stream = TokenStream(tmp_path, "train")
    os.utime(tmp_path / "d_train_000002.bin", (1, 1))
    assert len(stream.slice(0, 1024)) == 1024
    with pytest.raises(DataError, match=r"d_train_000002\.bin: replaced while it was in use"):
        stream.slice(0, 2048)


def test_a_damaged_checksum_cache_is_ignored(folder: Path) -> None:
    cache, shard = ChecksumCache(folder), folder / "d_train_000001.bin"
    assert cache.get(shard) is not None
    for content in (
        "null",
        "[1]",
        "{",
        '{"d_train_000001.bin": "x"}',
        '{"d_train_000001.bin": [1]}',
    ):
        cache._path.write_text(content)
        assert ChecksumCache(folder).get(shard) is None


def test_too_few_tokens_for_the_context_are_counted(folder: Path) -> None:
    tokens = dataset_meta(folder).val_tokens
    message = f"its val set has {tokens} tokens, but the context needs more than {tokens}"
    with pytest.raises(DataError, match=message):
        TokenStream(folder, "val", more_than=tokens)
    assert len(TokenStream(folder, "val", more_than=tokens - 1)) == tokens


def test_command_that_prepares_a_dataset_names_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_LAUNCH", '{"target": "remote:lab"}')
    assert prepare_command("--force") == "`runner remote lab prepare RECIPE --force`"
