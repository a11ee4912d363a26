"""Modal volumes, used with the real client and the stand-in."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator

import modal
import pytest
from modal._utils import blob_utils

from runner.errors import ModalUnavailable, RunnerError
from runner.targets.blocks import RetryPolicy
from runner.targets.modal import volume_rpc
from runner.targets.modal.inspect import diagnose
from runner.targets.modal.volume import ModalVolumeFiles, modal_name, open_volume
from runner.transfer import download
from tests.modal_standin import ModalStandin, StandinError
from tests.runner.transfer.conftest import random_bytes

BLOCK = 8 * 1024 * 1024


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModalStandin]:
    with ModalStandin(tmp_path_factory.mktemp("modal") / "state") as running, running.active():
        yield running
        assert running.errors() == []


@pytest.fixture
def files(standin: ModalStandin) -> Iterator[ModalVolumeFiles]:
    opened = ModalVolumeFiles("data")
    opened.create()
    opened.retry = RetryPolicy(attempts=4, sleep=lambda seconds: None)
    yield opened
    standin.clear_faults()
    standin.volume_rules()


def put(files: ModalVolumeFiles, path: str, content: bytes) -> None:
    with files.volume.batch_upload(force=True) as batch:
        batch.put_file(io.BytesIO(content), path)


def test_names_on_modal(standin: ModalStandin) -> None:
    assert modal_name("data", {}) == "gpt-runner-data"
    assert modal_name("cache", {"GPT_RUNNER_VOLUMES": "mine-"}) == "mine-cache"
    with pytest.raises(RunnerError, match="did you mean 'checkpoints'") as refused:
        modal_name("checkpoint", {})
    assert refused.value.exit_code == 2
    assert open_volume("data").object_id == open_volume("data").object_id  # created once


def test_reading_creates_no_volume_and_writing_does(standin: ModalStandin) -> None:
    environ = {**os.environ, "GPT_RUNNER_VOLUMES": "not-yet-"}
    looked = ModalVolumeFiles("data", environ)
    late = ModalVolumeFiles("data", environ)
    assert (looked.id, looked.exists, looked.size("a.txt")) == ("", False, None)
    for files in (looked, late):
        with pytest.raises(FileNotFoundError):
            list(files.entries())
        with pytest.raises(FileNotFoundError):
            files.read("a.txt")
    with pytest.raises(StandinError, match="no volume"):
        standin.volume_path("not-yet-data")
    late.write("a.txt", "text")
    assert late.read("a.txt") == looked.read("a.txt") == b"text"
    assert looked.exists


def test_reads_whole_files_and_ranges_across_blocks(files: ModalVolumeFiles) -> None:
    content = bytes(range(256)) * (2 * BLOCK // 256) + b"\0" * 1000
    put(files, "big.bin", content)
    assert files.size("big.bin") == len(content)
    assert files.read("big.bin") == content
    assert files.read("big.bin", BLOCK - 5, 10) == content[BLOCK - 5 : BLOCK + 5]
    assert files.read("big.bin", len(content) - 3) == b"\0\0\0"
    assert files.read("big.bin", len(content)) == b""
    assert files.read("big.bin", 0, 0) == b""


def test_range_may_exceed_the_file(files: ModalVolumeFiles) -> None:
    content = random_bytes(BLOCK + 1000)
    put(files, "log.txt", content)
    assert files.read("log.txt", 0, 4 * BLOCK) == content
    assert files.read("log.txt", 10, 4 * BLOCK) == content[10:]
    assert files.read("log.txt", BLOCK + 990, BLOCK) == content[-10:]
    assert (
        files.read("log.txt", len(content), BLOCK) == files.read("log.txt", 2 * BLOCK, BLOCK) == b""
    )


def test_digest_may_omit_trailing_zeros(files: ModalVolumeFiles, standin: ModalStandin) -> None:
    content = random_bytes(BLOCK - 1000) + b"\0" * 1000 + random_bytes(1000, 2) + b"\0" * 10
    put(files, "big.bin", content)
    standin.volume_rules(sends_digests=True)
    assert files.read("big.bin") == content
    assert files.read("big.bin", 100, BLOCK) == content[100 : BLOCK + 100]
    standin.inject("BlockGet", "corrupt", times=2)
    assert files.read("big.bin") == content  # a block with a wrong digest is fetched again
    standin.inject("BlockGet", "truncate", times=2)
    assert files.read("big.bin", 5) == content[5:]


def test_block_size_matches_the_client() -> None:
    assert volume_rpc.BLOCK_SIZE == download.BLOCK_SIZE == blob_utils.BLOCK_SIZE


def test_invalid_digest_is_none() -> None:
    digest = bytes(range(32))
    text = base64.b64encode(digest).decode()
    read = volume_rpc._parse_digest
    assert read(f"sha-256=:{text}:") == read(f"md5=:YWJj:, sha-256=:{text}:;q=1") == digest
    for header in (
        "",
        "md5=:YWJj:",
        "sha-256=:YWJj:",
        "sha-256=:YWJ:",
        "sha-256",
        f"x-sha-256=:{text}:",
    ):
        assert read(header) is None


def test_missing_paths_raise_file_not_found(files: ModalVolumeFiles) -> None:
    put(files, "folder/file.txt", b"text")
    assert files.size("nothing") is None
    assert files.size("folder") is None
    with pytest.raises(FileNotFoundError):
        files.read("nothing")
    with pytest.raises(FileNotFoundError):
        list(files.entries("nothing"))
    with pytest.raises(FileNotFoundError):
        files.remove("nothing")
    with pytest.raises(RunnerError, match="leads out of the volume"):
        files.read("../other")


def test_entries_of_a_folder(files: ModalVolumeFiles) -> None:
    put(files, "listed/b.txt", b"bb")
    put(files, "listed/deep/c.txt", b"ccc")
    assert [(e.path, e.size, e.is_folder) for e in files.entries("listed")] == [
        ("listed/b.txt", 2, False),
        ("listed/deep", 0, True),
    ]
    assert "listed" in {entry.path for entry in files.entries()}


@pytest.mark.parametrize("fault", ["503", "cut", "truncate"])
def test_incomplete_block_is_fetched_again(
    files: ModalVolumeFiles, standin: ModalStandin, fault: str
) -> None:
    put(files, "f.bin", b"weights" * 1000)
    standin.inject("BlockGet", fault, times=2)
    assert files.read("f.bin") == b"weights" * 1000


def test_last_attempt_raises_unavailable(files: ModalVolumeFiles, standin: ModalStandin) -> None:
    put(files, "f.bin", b"weights")
    standin.inject("BlockGet", "503", times=None)
    with pytest.raises(ModalUnavailable, match="unavailable"):
        files.read("f.bin")


def test_volume_of_version_1_is_refused_with_a_remedy(standin: ModalStandin) -> None:
    modal.Volume.from_name("old-data", create_if_missing=True, version=1).hydrate()
    with pytest.raises(RunnerError) as refused:
        open_volume("data", {"GPT_RUNNER_VOLUMES": "old-"})
    assert "volume old-data is of Modal's version 1" in refused.value.message
    assert "`modal volume rename old-data old-data-v1`" in refused.value.message


def test_missing_token_names_the_command(
    standin: ModalStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    with standin.active():
        monkeypatch.delenv("MODAL_TOKEN_ID")
        monkeypatch.delenv("MODAL_TOKEN_SECRET")
        with pytest.raises(RunnerError, match="modal token new`"):
            open_volume("data")


def test_offline_fails_immediately(standin: ModalStandin, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODAL_SERVER_URL", "https://nowhere.invalid")
    with pytest.raises(RunnerError, match=r"can't be reached: nowhere\.invalid \(Name or service"):
        ModalVolumeFiles("data").create()


def test_missing_environment_is_refused(
    standin: ModalStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODAL_ENVIRONMENT", "nope")
    for request in (ModalVolumeFiles("data").create, lambda: open_volume("data")):
        with pytest.raises(RunnerError, match="Modal has no environment 'nope'"):
            request()
    assert "no environment 'nope'" in str(diagnose()["problem"])
