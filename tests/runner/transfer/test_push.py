"""runner push: selection, order, verification and refusals; runner ls and rm."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from runner.targets.modal.volume import ModalVolumeFiles
from runner.transfer import upload
from tests.runner.transfer.conftest import (
    MIB,
    Cloud,
    flip_a_bit,
    random_bytes,
    tree,
    write_checkpoint,
    write_run,
)

Invoke = Callable[[str], Result]


@pytest.fixture
def corpus(checkout: Path) -> Path:
    folder = checkout / "my_corpus"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_bytes(random_bytes(1000))
    (folder / "deep" / "big.bin").write_bytes(random_bytes(9 * MIB, 1) + b"\0" * 5000)
    (folder / "empty").touch()
    return folder


def test_folder_arrives_under_its_name_and_a_second_push_sends_nothing(
    invoke: Invoke, cloud: Cloud, corpus: Path
) -> None:
    result = invoke("runner push data ./my_corpus")
    assert result.exit_code == 0, result.output
    expected = {f"my_corpus/{name}": content for name, content in tree(corpus).items()}
    assert tree(cloud.folder("data")) == expected
    cloud.forget()
    before = cloud.standin.recorded()[-1].number
    again = invoke("runner push data ./my_corpus")
    assert "3 files unchanged" in again.stderr
    assert cloud.transfers() == []
    assert cloud.standin.recorded("VolumePutFiles2", after=before) == []


def test_push_without_the_journal_compares_blocks(
    invoke: Invoke, cloud: Cloud, corpus: Path, local: Path
) -> None:
    invoke("runner push data ./my_corpus")
    for file in (local / "cache/.sync").glob("*.jsonl"):
        file.unlink()
    cloud.forget()
    assert invoke("runner push data ./my_corpus").exit_code == 0
    assert cloud.transfers() == []


def test_each_small_file_is_read_once(
    invoke: Invoke, cloud: Cloud, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkout / "many"
    folder.mkdir()
    for number in range(70):  # two requests
        (folder / f"{number}.txt").write_bytes(random_bytes(1000, number))
    reads: list[str] = []
    read_block = upload._read_block

    def counted(descriptor: int, file: upload.LocalFile, index: int) -> bytes:
        reads.append(file.path)
        return read_block(descriptor, file, index)

    monkeypatch.setattr(upload, "_read_block", counted)
    assert invoke("runner push data ./many").exit_code == 0
    assert sorted(reads) == sorted(f"many/{number}.txt" for number in range(70))
    assert tree(cloud.folder("data")) == {f"many/{name}": c for name, c in tree(folder).items()}


def test_only_the_changed_block_of_a_file_is_sent(
    invoke: Invoke, cloud: Cloud, corpus: Path
) -> None:
    invoke("runner push data ./my_corpus --dest texts")
    with (corpus / "deep/big.bin").open("r+b") as file:
        file.seek(9 * MIB - 1)
        file.write(b"x")
    cloud.forget()
    assert invoke("runner push data ./my_corpus --dest texts").exit_code == 0
    assert cloud.transfers() == ["BlockPut"]
    sent = cloud.folder("data") / "texts/deep/big.bin"
    assert sent.read_bytes() == (corpus / "deep/big.bin").read_bytes()


def test_file_changed_on_modal_is_sent_again(invoke: Invoke, cloud: Cloud, corpus: Path) -> None:
    invoke("runner push data ./my_corpus")
    cloud.put("data", "my_corpus/a.txt", random_bytes(1000, 7), age=500)
    assert invoke("runner push data ./my_corpus").exit_code == 0
    assert (cloud.folder("data") / "my_corpus/a.txt").read_bytes() == random_bytes(1000)


def test_pull_does_not_download_a_pushed_file(
    invoke: Invoke, cloud: Cloud, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.transfer.mapping.SETTLE_TIME_S", -60.0)  # as if a minute ago
    (local / "data/letters").mkdir()
    (local / "data/letters/train.bin").write_bytes(random_bytes(1000))
    invoke("runner push data letters")
    cloud.forget()
    assert invoke("runner pull data letters").exit_code == 0
    assert cloud.transfers() == []


def test_destination_of_a_single_file(invoke: Invoke, cloud: Cloud, corpus: Path) -> None:
    for line in ("", "--dest renamed.txt", "--dest texts/", "--dest /", "--dest ./.hidden/x"):
        assert invoke(f"runner push data my_corpus/a.txt {line}").exit_code == 0
    names = {"a.txt", "renamed.txt", "texts/a.txt", ".hidden/x"}
    assert set(tree(cloud.folder("data"))) == names
    assert invoke("runner push data my_corpus/a.txt --dest ../../etc/x").exit_code == 2
    assert invoke("runner push data nothing").exit_code == 102


def test_checkpoint_is_sent_in_one_request_and_latest_last(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    write_run(local / "checkpoints/warm", [10, 20])
    before = cloud.standin.recorded()[-1].number
    result = invoke("runner push checkpoints warm")
    assert result.exit_code == 0, result.output
    remote = cloud.folder("checkpoints") / "warm"
    assert tree(remote / "step_00000020") == tree(local / "checkpoints/warm/step_00000020")
    assert not (remote / "step_00000010").exists()
    assert (remote / "latest").read_text() == "step_00000020\n"
    assert not {"heartbeat", "lock"} & {path.name for path in remote.iterdir()}
    puts = [r.message for r in cloud.standin.recorded("VolumePutFiles2", after=before)]
    paths = [[file.path for file in put.files] for put in puts]
    assert paths[-1] == ["/warm/latest"]
    of_the_step = [names for names in paths if any("/step_00000020/" in name for name in names)]
    assert {len(names) for names in of_the_step} == {4}  # its four files in one request
    cloud.forget()
    assert invoke("runner push checkpoints warm").exit_code == 0
    assert cloud.transfers() == []


def test_latest_does_not_move_when_the_checkpoint_failed(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    run = write_run(local / "checkpoints/warm", [10])
    invoke("runner push checkpoints warm")
    write_checkpoint(run, 20)
    cloud.standin.inject("VolumePutFiles2", "PERMISSION_DENIED", times=None, match="step_00000020")
    result = invoke("runner push checkpoints warm")
    assert result.exit_code == 1
    assert "missing: warm/step_00000020/model.safetensors: Modal denies" in result.stderr
    assert "run `runner push checkpoints warm` again" in result.stderr
    assert (cloud.folder("checkpoints") / "warm/latest").read_text() == "step_00000010\n"


def test_damaged_checkpoint_is_not_sent(invoke: Invoke, cloud: Cloud, local: Path) -> None:
    run = write_run(local / "checkpoints/warm", [10])
    flip_a_bit(run / "step_00000010/model.safetensors")
    result = invoke("runner push checkpoints warm")
    assert result.exit_code == 1
    assert "the local checkpoint is damaged: model.safetensors" in result.stderr
    assert not (cloud.folder("checkpoints") / "warm/step_00000010").exists()
    assert not (cloud.folder("checkpoints") / "warm/latest").exists()


def test_run_that_is_further_on_modal_is_not_replaced_without_asking(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    remote = write_run(cloud.folder("checkpoints") / "warm", [30], status="running")
    write_run(local / "checkpoints/warm", [10])
    result = invoke("runner push checkpoints warm")
    assert result.exit_code == 2
    assert "run 'warm' is at step 30 on Modal and at 10 on this machine" in result.stderr
    assert "`runner push checkpoints warm -y`" in result.stderr
    assert not (remote / "step_00000010").exists()


def test_local_launch_record_does_not_replace_the_one_on_modal(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    launch = {"run": "warm", "job": "train", "id": "1", "started": 5.0}
    remote = write_run(cloud.folder("checkpoints") / "warm", [10]) / "launch.json"
    remote.write_text(json.dumps({**launch, "target": "cloud", "device": "cpu"}))
    local_launch = write_run(local / "checkpoints/warm", [30]) / "launch.json"
    local_launch.write_text(json.dumps({**launch, "target": "host"}))
    assert invoke("runner push checkpoints warm").exit_code == 0
    assert json.loads(remote.read_text())["device"] == "cpu"
    pulled = {**launch, "target": "cloud", "device": "cuda"}
    local_launch.write_text(json.dumps(pulled))
    assert invoke("runner push checkpoints warm").exit_code == 0
    assert json.loads(remote.read_text())["device"] == "cuda"


def test_dry_run_sends_nothing(invoke: Invoke, cloud: Cloud, corpus: Path) -> None:
    result = invoke("runner push data ./my_corpus --dry-run --json")
    paths = [row["path"] for row in json.loads(result.stdout)["files"]]
    assert paths == ["my_corpus/a.txt", "my_corpus/deep/big.bin", "my_corpus/empty"]
    assert tree(cloud.folder("data")) == {}
    assert cloud.transfers() == []


def test_link_to_a_file_of_the_folder_counts_as_a_file(
    invoke: Invoke, cloud: Cloud, corpus: Path
) -> None:
    os.symlink(corpus / "a.txt", corpus / "link.txt")
    assert invoke("runner push data ./my_corpus").exit_code == 0
    assert (cloud.folder("data") / "my_corpus/link.txt").read_bytes() == random_bytes(1000)


UNSENDABLE = {
    "link to nothing": lambda corpus: (corpus / "bad").symlink_to("nowhere"),
    "link to itself": lambda corpus: (corpus / "bad").symlink_to("bad"),
    "link to a folder": lambda corpus: (corpus / "bad").symlink_to("deep"),
    "link to the folder above": lambda corpus: (corpus / "bad").symlink_to("."),
    "link to a file outside": lambda corpus: (corpus / "bad").symlink_to("/etc/passwd"),
    "link to a folder outside": lambda corpus: (corpus / "bad").symlink_to("/etc"),
    "FIFO": lambda corpus: os.mkfifo(corpus / "bad"),
    "name that is not UTF-8": lambda corpus: (Path(f"{corpus}/bad\udcff")).write_bytes(b"x"),
}


@pytest.mark.parametrize("kind", UNSENDABLE)
def test_file_that_cannot_be_sent_is_missing_and_the_marker_is_not_sent(
    invoke: Invoke, cloud: Cloud, corpus: Path, kind: str
) -> None:
    (corpus / "meta.json").write_text("{}")
    UNSENDABLE[kind](corpus)
    result = invoke("runner push data ./my_corpus")
    assert result.exit_code == 1
    assert "missing: my_corpus/bad" in result.stderr
    assert "missing: my_corpus/meta.json: its folder is incomplete" in result.stderr
    remote = tree(cloud.folder("data"))
    assert set(remote) == {"my_corpus/a.txt", "my_corpus/deep/big.bin", "my_corpus/empty"}
    assert json.loads(invoke("runner push data ./my_corpus --json").stdout)["complete"] is False
    assert invoke("runner push data ./my_corpus --dry-run").exit_code == 1


def test_unreadable_file_and_folder_are_missing(
    invoke: Invoke, cloud: Cloud, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulate it, since root can read everything."""
    (corpus / "meta.json").write_text("{}")
    (corpus / "private.txt").write_text("private")
    (corpus / "private").mkdir()
    access, scandir = os.access, os.scandir

    def scan(path: Any) -> Any:
        if Path(path).name == "private":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path).name != "private.txt" and access(path, mode)
    )
    result = invoke("runner push data ./my_corpus")
    assert result.exit_code == 1
    assert "missing: my_corpus/private.txt: cannot read the file: Permission" in result.stderr
    assert "missing: my_corpus/private: cannot read the folder: Permission" in result.stderr
    assert "missing: my_corpus/meta.json: its folder is incomplete" in result.stderr


def test_file_that_becomes_unreadable_does_not_stop_its_batch(
    invoke: Invoke, cloud: Cloud, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = upload._read_block

    def read_block(descriptor: int, file: upload.LocalFile, index: int) -> bytes:
        if file.path == "my_corpus/a.txt":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, file, index)

    monkeypatch.setattr(upload, "_read_block", read_block)
    result = invoke("runner push data ./my_corpus")
    assert result.exit_code == 1
    assert "missing: my_corpus/a.txt: Input/output error" in result.stderr
    assert set(tree(cloud.folder("data"))) == {"my_corpus/deep/big.bin", "my_corpus/empty"}


def test_credentials_are_not_pushed_without_a_question(
    invoke: Invoke, cloud: Cloud, corpus: Path
) -> None:
    (corpus / ".ssh").mkdir()
    for name in (".ssh/id_ed25519", ".netrc", "hf_token", "server.key"):
        (corpus / name).write_text("mine")
    result = invoke("runner push data ./my_corpus")
    assert result.exit_code == 2
    assert "4 files may hold credentials: my_corpus/.netrc, " in result.stderr
    assert "and 1 more" in result.stderr
    assert invoke("runner push data ./my_corpus/.ssh").exit_code == 2
    assert invoke("runner push data ./my_corpus/.netrc --dest notes.txt").exit_code == 2
    assert tree(cloud.folder("data")) == {}
    assert invoke("runner push data ./my_corpus -y").exit_code == 0
    assert "my_corpus/hf_token" in tree(cloud.folder("data"))
    assert invoke("runner push data ./my_corpus").exit_code == 0  # everything was sent


def test_linked_folder_is_pushed_under_its_own_name(
    invoke: Invoke, cloud: Cloud, local: Path, tmp_path: Path
) -> None:
    (tmp_path / "disk/fineweb-2024-10B").mkdir(parents=True)
    (tmp_path / "disk/fineweb-2024-10B/x.bin").write_bytes(b"x")
    (local / "data/fineweb").symlink_to(tmp_path / "disk/fineweb-2024-10B")
    for line in ("fineweb", "volumes/data/fineweb", "./volumes/data/fineweb/"):
        assert invoke(f"runner push data {line}").exit_code == 0
        assert tree(cloud.folder("data")) == {"fineweb/x.bin": b"x"}


def test_ls_and_rm(invoke: Invoke, cloud: Cloud) -> None:
    cloud.put("data", "letters/a.txt", b"12345")
    cloud.put("data", "letters/b.txt", b"")
    cloud.put("data", "letters/raw/c.txt", b"1234567")
    assert invoke("runner ls data").stdout.split()[:4] == ["12", "bytes", "3", "files"]
    listed = invoke("runner ls data letters/")
    rows = {line.split()[-1]: line.split()[:2] for line in listed.stdout.splitlines()}
    assert rows == {
        "letters/a.txt": ["5", "bytes"],
        "letters/b.txt": ["0", "bytes"],
        "letters/raw/": ["7", "bytes"],
    }
    assert "12 bytes  3 files in total" in listed.stderr
    assert invoke("runner rm data letters/raw -r -y").exit_code == 0
    assert [e["size"] for e in json.loads(invoke("runner ls data letters --json").stdout)] == [5, 0]
    assert invoke("runner ls data nothing").exit_code == 102
    assert invoke("runner rm data letters").exit_code == 2  # a folder
    refused = invoke("runner rm data letters -r")
    assert refused.exit_code == 2
    assert "`runner rm data letters -r -y`" in refused.stderr
    assert "2 files, 5 bytes" in refused.stderr
    assert invoke("runner rm data letters/a.txt -y").exit_code == 0
    assert invoke("runner rm data letters -r -y").exit_code == 0
    assert tree(cloud.folder("data")) == {}
    assert invoke("runner rm data / -r -y").exit_code == 2


def test_refused_listing_is_not_an_empty_volume(invoke: Invoke, cloud: Cloud) -> None:
    cloud.standin.inject("VolumeListFiles2", "PERMISSION_DENIED")
    refused = invoke("runner ls data")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "Modal denies access" in refused.stderr


def test_older_checkpoint_does_not_move_latest_back(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    write_run(local / "checkpoints/warm", [10, 20])
    invoke("runner push checkpoints warm")
    assert invoke("runner push checkpoints warm/step_00000010").exit_code == 2  # refused without -y
    assert invoke("runner push checkpoints warm/step_00000010 -y").exit_code == 0
    remote = cloud.folder("checkpoints") / "warm"
    assert (remote / "step_00000010/manifest.json").exists()
    assert (remote / "latest").read_text() == "step_00000020\n"


def test_file_that_changes_during_the_upload_is_sent_in_one_version(
    invoke: Invoke, cloud: Cloud, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = random_bytes(20 * MIB, 1), random_bytes(20 * MIB, 2)
    (local / "data/big.bin").write_bytes(old)
    sent: list[bytes] = []
    real = ModalVolumeFiles.send

    def send(self: ModalVolumeFiles, *args: Any) -> bytes:
        if not sent:
            with (local / "data/big.bin").open("r+b") as file:  # overwritten in the middle
                file.write(new)
        sent.append(args[1])
        return real(self, *args)

    monkeypatch.setattr(ModalVolumeFiles, "send", send)
    assert invoke("runner push data big.bin").exit_code == 0
    assert (cloud.folder("data") / "big.bin").read_bytes() == new


def test_file_that_is_deleted_after_it_was_sent_does_not_fail_the_push(
    invoke: Invoke, cloud: Cloud, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ModalVolumeFiles.put

    def put(self: ModalVolumeFiles, *args: Any) -> list[Any]:
        missing = real(self, *args)
        if not missing:
            (corpus / "a.txt").unlink(missing_ok=True)
        return missing

    monkeypatch.setattr(ModalVolumeFiles, "put", put)
    result = invoke("runner push data ./my_corpus")
    assert result.exit_code == 0, result.stderr
    assert "my_corpus/a.txt" in tree(cloud.folder("data"))


def test_growing_log_is_sent_up_to_its_listed_size(
    invoke: Invoke, cloud: Cloud, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(local / "checkpoints/warm", [10])
    real = ModalVolumeFiles.put

    def put(self: ModalVolumeFiles, *args: Any) -> list[Any]:
        with (run / "log.txt").open("a") as file:
            file.write("another line\n")
        return real(self, *args)

    monkeypatch.setattr(ModalVolumeFiles, "put", put)
    assert invoke("runner push checkpoints warm").exit_code == 0
    sent = (cloud.folder("checkpoints") / "warm/log.txt").read_text()
    assert sent
    assert (run / "log.txt").read_text().startswith(sent)


def test_marker_does_not_wait_for_a_folder_with_the_same_prefix(
    invoke: Invoke, cloud: Cloud, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.transfer.push.batches", lambda files: [[file] for file in files])
    for name in ("letters", "letters2"):
        folder = local / "data" / name
        folder.mkdir(parents=True)
        (folder / "train.bin").write_bytes(random_bytes(1000))
        (folder / "meta.json").write_text("{}")
    cloud.standin.inject("VolumePutFiles2", "PERMISSION_DENIED", times=None, match="letters2/train")
    result = invoke(f"runner push data {local / 'data'}")
    assert result.exit_code == 1
    assert "missing: letters2/meta.json: its folder is incomplete" in result.stderr
    assert set(tree(cloud.folder("data"))) == {"letters/train.bin", "letters/meta.json"}
