"""Preparation: the same bytes for any number of workers and kills, and clear errors."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus import DataError, Monitor, segments
from corpus import build as preparation
from corpus.build import prepare
from corpus.dataset import TokenStream, dataset_meta
from corpus.tokenizers import GPT2Tokenizer
from corpus.verify import Checks, is_prepared
from job.exit_status import Interrupted
from job.files import exclusive_lock
from job.recipe import DataConfig

CHECKOUT = Path(__file__).resolve().parents[2]
STOPPED = Monitor(should_stop=lambda: True)


def config(source: object, **settings: object) -> DataConfig:
    return DataConfig.model_validate(
        {"dataset": "d", "source": str(source), "tokenizer": "bytes", **settings}
    )


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "d"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    root.mkdir()
    for i in range(40):
        (root / f"{i}.txt").write_text(f"text {i} – ü\n" * (i + 1))
    return root


def test_tinyshakespeare_equals_that_of_nanogpt(shared_data: Path, folder: Path) -> None:
    source = shared_data / "tinyshakespeare.txt"
    meta = prepare(config(source, tokenizer="chars", split="tail"), folder)
    assert (meta.train_tokens, meta.val_tokens, meta.vocab_size) == (1_003_854, 111_540, 65)
    assert (meta.train_bytes, meta.val_bytes) == (1_003_854, 111_540)
    text = source.read_text()
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    expected = np.array([numbers[character] for character in text], dtype=np.uint16)
    train, val = TokenStream(folder, "train"), TokenStream(folder, "val")
    assert (np.concatenate([train.slice(0, len(train)), val.slice(0, len(val))]) == expected).all()


@pytest.mark.parametrize("piece", [64, 1 << 20])
def test_tail_is_counted_in_characters(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(segments, "PIECE_BYTES", piece)
    monkeypatch.setattr(preparation, "BATCH_BYTES", 100)
    text = "".join(f"zeile {i}: äöü 🙂\n" for i in range(200))
    (tmp_path / "f.txt").write_text(text)
    prepare(config(tmp_path / "f.txt", split="tail", val_fraction=0.25), folder)
    val = TokenStream(folder, "val")
    assert bytes(val.slice(0, len(val)).tolist()).decode() == text[int(len(text) * 0.75) :]


def test_documents_are_split_by_name_and_begin_with_end_of_text(texts: Path, folder: Path) -> None:
    meta = prepare(config(texts), folder)
    stream = TokenStream(folder, "val")
    val = stream.slice(0, len(stream)).tolist()
    assert val[0] == 256
    held_out = [
        bytes(d)
        for d in np.split(val, np.flatnonzero(np.array(val) == 256))[1:]
        for d in [d[1:].tolist()]
    ]
    assert 0 < len(held_out) < 15
    assert set(held_out) <= {path.read_bytes() for path in texts.iterdir()}
    assert meta.val_tokens == len(held_out) + sum(map(len, held_out))
    assert meta.train_tokens + meta.val_tokens == 40 + sum(
        path.stat().st_size for path in texts.iterdir()
    )
    assert (meta.train_bytes or 0) + (meta.val_bytes or 0) == sum(
        path.stat().st_size for path in texts.iterdir()
    )
    (texts / "new.txt").write_text("one more")  # does not move the others
    more = prepare(config(texts, val_fraction=0.1), folder, force=True)
    assert abs(more.val_tokens - meta.val_tokens) in (0, 9)


def test_two_documents_give_one_to_each_split(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("a" * 10)
    (tmp_path / "in" / "b").write_text("b" * 10)
    meta = prepare(config(tmp_path / "in", val_fraction=0.001), folder)
    assert (meta.train_tokens, meta.val_tokens) == (11, 11)


def test_each_of_many_files_is_inspected_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quadratic work would take minutes with 100,000 files."""
    looks: list[int] = []

    class File(NamedTuple):
        name: str
        kind: str = "text"
        is_blank: bool = False

        @property
        def size(self) -> int:
            looks.append(1)
            return 10

    files: list[Any] = [File(f"{i}.txt") for i in range(100)]
    lowest: list[int] = []

    def counted_min(ranks: Any, **options: Any) -> Any:
        lowest.append(1)
        return min(ranks, **options)

    monkeypatch.setattr(segments, "min", counted_min, raising=False)
    segments.ByDocument(files, 0.1)
    assert len(lowest) == 1
    work = preparation._Preparation(config("x"), folder, files, 1, Monitor())
    assert [work._done((i, 3)) for i in range(100)] == [10 * i + 3 for i in range(100)]
    assert work._done((100, 0)) == 1000
    assert len(looks) == 100


def test_rows_are_split_by_their_text(tmp_path: Path, folder: Path) -> None:
    rows = [f"row {i} " * 5 for i in range(500)]
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": rows[::-1]}), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    found = []
    for name in ("a.parquet", "b.parquet", "c.jsonl"):
        prepare(config(tmp_path / name), folder / name)
        stream = TokenStream(folder / name, "val")
        found.append(sorted(bytes(stream.slice(0, len(stream)).astype(np.uint8)).split(b"\0")))
    assert found[0] == found[1] == found[2]
    assert 25 < len(found[0]) < 90


def test_gpt2_tokens_are_those_of_the_whole_text(
    gpt2: GPT2Tokenizer,
    novels: bytes,
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segments, "PIECE_BYTES", 10_000)
    monkeypatch.setattr(preparation, "BATCH_BYTES", 10_000)
    text = novels[:1_000_000]
    (tmp_path / "f.txt").write_bytes(text)
    prepare(config(tmp_path / "f.txt", tokenizer="gpt2", split="tail", shard_tokens=50_000), folder)
    stream = TokenStream(folder, "train")
    bound = int(len(text.decode()) * 0.9)
    expected = [50256, *gpt2.encode(text.decode()[:bound]).tolist()]
    assert stream.slice(0, len(stream)).tolist() == expected


@pytest.mark.parametrize("tokenizer", ["bytes", "chars", "gpt2"])
@pytest.mark.parametrize("split", ["documents", "tail"])
def test_workers_do_not_change_the_bytes(
    gpt2: GPT2Tokenizer,
    texts: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: str,
    split: str,
) -> None:
    monkeypatch.setattr(preparation, "BATCH_BYTES", 300)
    settings = config(texts, tokenizer=tokenizer, split=split, shard_tokens=2000)
    for workers in (1, 2, 5):
        prepare(settings, folder / str(workers), workers=workers)
    assert content(folder / "1") == content(folder / "2") == content(folder / "5")
    assert len(content(folder / "1")) > 4


# Send SIGKILL to itself just before the n-th call that changes the disk.
KILLED = """
import os, signal, sys
from pathlib import Path
from corpus import Monitor, build as preparation, segments
from job.recipe import DataConfig

source, folder, die_at = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
preparation.BATCH_BYTES = segments.PIECE_BYTES = 20_000
preparation.JOURNAL_INTERVAL_S = 0.0
calls = 0

def deadly(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

for name in ("replace", "unlink", "rename"):
    setattr(Path, name, deadly(getattr(Path, name)))
preparation.ShardWriter.write = deadly(preparation.ShardWriter.write)
config = DataConfig(
    dataset="d", source=source, tokenizer="chars", split="tail", shard_tokens=150_000
)
preparation.prepare(config, folder, monitor=Monitor(print))
"""


def test_resuming_after_any_kill_gives_the_same_bytes(shared_data: Path, folder: Path) -> None:
    source = str(shared_data / "tinyshakespeare.txt")

    def run(into: Path, die_at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, source, str(into), str(die_at)]
        return subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT)

    assert run(folder / "whole", -1).returncode == 0
    whole = content(folder / "whole")
    assert len(whole) == 7 + 1 + 1
    went_on = 0
    for die_at in (1, 2, 3, 25, 16, 17, 18, 19, 5, 4):
        outcome = run(folder / "broken", die_at)
        assert outcome.returncode == -signal.SIGKILL
        went_on += "resuming from" in outcome.stdout
        assert not (folder / "broken" / "meta.json").exists()
    last = run(folder / "broken", -1)
    assert (last.returncode, last.stderr) == (0, "")
    assert "resuming from" in last.stdout
    assert went_on >= 6
    assert content(folder / "broken") == whole


def test_kills_near_the_end_of_a_shard(shared_data: Path, folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "small.txt"
    source.write_bytes((shared_data / "tinyshakespeare.txt").read_bytes()[:200_000])
    command = [sys.executable, "-c", KILLED, str(source)]
    assert (
        subprocess.run(
            [*command, folder / "whole", "-1"], cwd=CHECKOUT, capture_output=True
        ).returncode
        == 0
    )
    whole = content(folder / "whole")
    killed, die_at = 0, 20
    while True:
        into = folder / str(die_at)
        if (
            subprocess.run(
                [*command, into, str(die_at)], cwd=CHECKOUT, capture_output=True
            ).returncode
            == 0
        ):
            break
        killed += 1
        prepare(
            config(source, tokenizer="chars", split="tail", shard_tokens=150_000),
            into,
        )
        assert content(into) == whole
        die_at += 1
    assert killed > 5


def test_a_stopped_preparation_resumes(
    texts: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "BATCH_BYTES", 300)
    prepare(config(texts), folder / "whole")
    messages: list[str] = []
    answers = itertools.cycle([False, False, False, True])
    monitor = Monitor(lambda event: messages.append(str(event)), lambda: next(answers))
    for _ in range(3):
        with pytest.raises(Interrupted):
            prepare(config(texts), folder / "d", monitor=monitor)
        assert not is_prepared(config(texts), folder / "d")
    prepare(config(texts), folder / "d")
    assert content(folder / "d") == content(folder / "whole")
    assert len([event for event in messages if event.startswith("resuming from")]) == 2


def test_a_changed_source_restarts_an_interrupted_preparation(
    texts: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "BATCH_BYTES", 300)
    with pytest.raises(Interrupted):
        prepare(config(texts, shard_tokens=1024), folder / "d", monitor=STOPPED)
    (texts / "0.txt").write_text("changed")
    messages: list[object] = []
    prepare(config(texts, shard_tokens=1024), folder / "d", monitor=Monitor(messages.append))
    assert any("starting over" in str(event) for event in messages)
    prepare(config(texts, shard_tokens=1024), folder / "whole")
    assert content(folder / "d") == content(folder / "whole")


def test_a_prepared_dataset_is_unchanged(texts: Path, folder: Path) -> None:
    meta = prepare(config(texts), folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    messages: list[object] = []
    assert (
        prepare(config(texts), folder, monitor=Monitor(messages.append))
        == meta
        == dataset_meta(folder)
    )
    assert messages == [f"{folder} is already prepared, from {texts}"]
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_other_settings_are_refused_with_the_difference(texts: Path, folder: Path) -> None:
    prepare(config(texts), folder)
    before = content(folder)
    words = r"val_fraction was 0\.1, now 0\.2\. .*data\.dataset=NEW_NAME.*--force"
    with pytest.raises(DataError, match=words):
        prepare(config(texts, val_fraction=0.2), folder)
    with pytest.raises(DataError, match=r"source was .*texts, now other"):
        prepare(config("other"), folder)
    assert prepare(config("other"), folder, Checks(any_source=True)).source == str(texts)
    with pytest.raises(DataError, match="no text file found"):
        prepare(config("other"), folder, force=True)
    assert content(folder) == before
    assert prepare(config(texts, tokenizer="chars"), folder, force=True).vocab_size == len(
        set("text –ü\n0123456789")
    )
    assert sorted(content(folder)) == sorted(before)


def test_a_damaged_dataset_is_refused(texts: Path, folder: Path) -> None:
    prepare(config(texts), folder)
    shard = folder / "d_train_000001.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match="damaged: its header"):
        prepare(config(texts), folder)
    shard.unlink()
    with pytest.raises(DataError, match=r"d_train_000001\.bin"):
        is_prepared(config(texts), folder)


def test_shards_without_meta_are_kept(texts: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "mine_train_000001.bin").write_bytes(b"precious")
    with pytest.raises(DataError, match="--force"):
        prepare(config(texts), folder)
    assert content(folder) == {"mine_train_000001.bin": b"precious"}


def test_text_that_is_not_utf8_is_located(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "PIECE_BYTES", 64)
    (tmp_path / "f.txt").write_bytes(b"good line\n" * 100 + b"caf\xe9\n" + b"good line\n" * 100)
    with pytest.raises(
        DataError, match=r"f\.txt: not UTF-8 text at byte 1003; .*iconv.*data\.tokenizer=bytes"
    ):
        prepare(config(tmp_path / "f.txt", tokenizer="chars", split="tail"), folder)
    assert prepare(config(tmp_path / "f.txt", split="tail"), folder).train_bytes == 1804


@pytest.mark.parametrize(
    ("text", "split", "words"),
    [
        ("words", "documents", r"f\.txt: the source is a single document.*data\.split=tail"),
        ("", "tail", r"f\.txt is empty"),
        (
            "x",
            "tail",
            "it gives 0 training and 2 validation tokens; use more text, "
            "or a different data.val_frac",
        ),
    ],
)
def test_a_source_that_cannot_be_split_is_refused(
    tmp_path: Path, folder: Path, text: str, split: str, words: str
) -> None:
    (tmp_path / "f.txt").write_text(text)
    with pytest.raises(DataError, match=words):
        prepare(config(tmp_path / "f.txt", split=split), folder)


def test_without_source_and_shards_the_error_names_the_setting(folder: Path) -> None:
    with pytest.raises(DataError, match=r"set data\.source=FILE"):
        prepare(DataConfig(dataset="d"), folder)


def test_a_second_process_waits_for_the_first(texts: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    messages: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        with exclusive_lock(folder) as alone:
            assert alone
            monitor = Monitor(lambda event: messages.append(str(event)))
            second = pool.submit(prepare, config(texts), folder, monitor=monitor)
            while not messages:
                time.sleep(0.01)
            assert messages == [f"{folder}: another process is preparing it; waiting for it"]
            assert not second.done()
        assert second.result(timeout=30) == dataset_meta(folder)


def test_waiting_can_be_interrupted(texts: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    with exclusive_lock(folder), pytest.raises(Interrupted):
        prepare(config(texts), folder, monitor=STOPPED)
