"""runner push: what is sent, what is skipped, and in which order it appears."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.runner.transfer.conftest import MIB, Cloud, noise, tree, write_checkpoint, write_run

Type = Callable[[str], Result]


@pytest.fixture
def corpus(checkout: Path) -> Path:
    folder = checkout / "my_corpus"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_bytes(noise(1000))
    (folder / "deep" / "big.bin").write_bytes(noise(9 * MIB, 1) + b"\0" * 5000)
    (folder / "empty").touch()
    return folder


def test_a_folder_arrives_under_its_name_and_again_sends_nothing(
    type_: Type, cloud: Cloud, corpus: Path
) -> None:
    result = type_("runner push data ./my_corpus")
    assert result.exit_code == 0, result.output
    assert tree(cloud.folder("data")) == {
        f"my_corpus/{name}": c for name, c in tree(corpus).items()
    }
    cloud.forget()
    before = cloud.standin.recorded()[-1].number
    again = type_("runner push data ./my_corpus")
    assert "3 files were the same" in again.stderr
    assert cloud.transfers() == []
    assert cloud.standin.recorded("VolumePutFiles2", after=before) == []


def test_without_the_journal_content_is_known_by_its_blocks(
    type_: Type, cloud: Cloud, corpus: Path, here: Path
) -> None:
    type_("runner push data ./my_corpus")
    for file in (here / "cache/.sync").glob("*.jsonl"):
        file.unlink()
    cloud.forget()
    assert type_("runner push data ./my_corpus").exit_code == 0
    assert cloud.transfers() == []


def test_of_a_changed_file_the_changed_block_alone_is_sent(
    type_: Type, cloud: Cloud, corpus: Path
) -> None:
    type_("runner push data ./my_corpus --to texts")
    with (corpus / "deep/big.bin").open("r+b") as file:
        file.seek(9 * MIB - 1)
        file.write(b"x")
    cloud.forget()
    assert type_("runner push data ./my_corpus --to texts").exit_code == 0
    assert cloud.transfers() == ["BlockPut"]
    assert (cloud.folder("data") / "texts/deep/big.bin").read_bytes() == (
        corpus / "deep/big.bin"
    ).read_bytes()


def test_what_was_changed_in_the_cloud_is_sent_again(
    type_: Type, cloud: Cloud, corpus: Path
) -> None:
    type_("runner push data ./my_corpus")
    cloud.put("data", "my_corpus/a.txt", noise(1000, 7), age=500)
    assert type_("runner push data ./my_corpus").exit_code == 0
    assert (cloud.folder("data") / "my_corpus/a.txt").read_bytes() == noise(1000)


def test_a_pushed_file_is_known_by_pull(
    type_: Type, cloud: Cloud, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "runner.transfer.journal.SETTLED_SECONDS", -60.0
    )  # as if a minute had passed
    (here / "data/letters").mkdir()
    (here / "data/letters/train.bin").write_bytes(noise(1000))
    type_("runner push data letters")
    cloud.forget()
    assert type_("runner pull data letters").exit_code == 0
    assert cloud.transfers() == []


def test_one_file_and_where_it_goes(type_: Type, cloud: Cloud, corpus: Path) -> None:
    for line in ("", "--to renamed.txt", "--to texts/", "--to /"):
        assert type_(f"runner push data my_corpus/a.txt {line}").exit_code == 0
    assert set(tree(cloud.folder("data"))) == {"a.txt", "renamed.txt", "texts/a.txt"}
    assert type_("runner push data my_corpus/a.txt --to ../../etc/x").exit_code == 2
    assert type_("runner push data nothing").exit_code == 102


def test_a_run_goes_with_its_newest_checkpoint_in_one_piece_and_latest_last(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    write_run(here / "checkpoints/warm", [10, 20])
    before = cloud.standin.recorded()[-1].number
    result = type_("runner push checkpoints warm")
    assert result.exit_code == 0, result.output
    there = cloud.folder("checkpoints") / "warm"
    assert tree(there / "step_00000020") == tree(here / "checkpoints/warm/step_00000020")
    assert not (there / "step_00000010").exists()
    assert (there / "latest").read_text() == "step_00000020\n"
    assert not (there / "heartbeat").exists()
    assert not (there / "lock").exists()
    puts = [r.message for r in cloud.standin.recorded("VolumePutFiles2", after=before)]
    paths = [[file.path for file in put.files] for put in puts]
    assert paths[-1] == ["/warm/latest"]
    of_the_step = [
        names
        for names in paths
        if any("/step_" in name and "/samples/" not in name for name in names)
    ]
    assert all(len(names) == 4 for names in of_the_step)  # its four files in one request


def test_while_a_checkpoint_could_not_be_sent_latest_stays(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    run = write_run(here / "checkpoints/warm", [10])
    type_("runner push checkpoints warm")
    write_checkpoint(run, 20)
    cloud.standin.inject("VolumePutFiles2", "PERMISSION_DENIED", times=None, match="step_00000020")
    result = type_("runner push checkpoints warm")
    assert result.exit_code == 1
    assert "missing: warm/step_00000020/model.safetensors: Modal refuses" in result.stderr
    assert "`runner push checkpoints warm` goes on from here" in result.stderr
    assert (cloud.folder("checkpoints") / "warm/latest").read_text() == "step_00000010\n"


def test_a_damaged_checkpoint_is_not_sent(type_: Type, cloud: Cloud, here: Path) -> None:
    run = write_run(here / "checkpoints/warm", [10])
    model = run / "step_00000010/model.safetensors"
    model.write_bytes(bytes([model.read_bytes()[0] ^ 1]) + model.read_bytes()[1:])
    result = type_("runner push checkpoints warm")
    assert result.exit_code == 1
    assert "the checkpoint here is damaged: model.safetensors" in result.stderr
    assert not (cloud.folder("checkpoints") / "warm/step_00000010").exists()
    assert not (cloud.folder("checkpoints") / "warm/latest").exists()


def test_a_run_at_work_or_further_in_the_cloud_is_asked_about(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    there = write_run(cloud.folder("checkpoints") / "warm", [30], status="running")
    write_run(here / "checkpoints/warm", [10])
    result = type_("runner push checkpoints warm")
    assert result.exit_code == 2
    assert "run warm is further in the cloud (step 30, here 10)" in result.stderr
    assert "run warm is at work in the cloud" in result.stderr
    assert "`runner push checkpoints warm -y`" in result.stderr
    assert not (there / "step_00000010").exists()


def test_the_launch_that_was_last_in_the_cloud_stays_there(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    launch = {"run": "warm", "job": "train", "id": "1", "started": 5.0}
    there = write_run(cloud.folder("checkpoints") / "warm", [10]) / "launch.json"
    there.write_text(json.dumps({**launch, "target": "cloud", "device": "cpu"}))
    ours = write_run(here / "checkpoints/warm", [30]) / "launch.json"
    ours.write_text(json.dumps({**launch, "target": "host"}))
    assert type_("runner push checkpoints warm").exit_code == 0
    assert json.loads(there.read_text())["device"] == "cpu"
    ours.write_text(
        json.dumps({**launch, "target": "cloud", "device": "cuda"})
    )  # a copy that was pulled once
    assert type_("runner push checkpoints warm").exit_code == 0
    assert json.loads(there.read_text())["device"] == "cuda"


def test_a_dry_run_sends_nothing(type_: Type, cloud: Cloud, corpus: Path) -> None:
    result = type_("runner push data ./my_corpus --dry-run --json")
    assert [row["path"] for row in json.loads(result.stdout)["files"]] == [
        "my_corpus/a.txt",
        "my_corpus/deep/big.bin",
        "my_corpus/empty",
    ]
    assert tree(cloud.folder("data")) == {}
    assert cloud.transfers() == []


def test_links_to_files_count_as_files_and_links_to_folders_are_named(
    type_: Type, cloud: Cloud, corpus: Path
) -> None:
    os.symlink(corpus / "a.txt", corpus / "link.txt")
    os.symlink(corpus, corpus / "circle")
    result = type_("runner push data ./my_corpus")
    assert result.exit_code == 0
    assert "circle is left out" in result.stderr
    assert (cloud.folder("data") / "my_corpus/link.txt").read_bytes() == noise(1000)


def test_ls_and_rm(type_: Type, cloud: Cloud) -> None:
    cloud.put("data", "letters/a.txt", b"12345")
    cloud.put("data", "letters/b.txt", b"")
    assert "letters/" in type_("runner ls data").stdout
    assert [e["size"] for e in json.loads(type_("runner ls data letters --json").stdout)] == [5, 0]
    assert type_("runner ls data nothing").exit_code == 102
    assert type_("runner rm data letters").exit_code == 2  # a folder
    refused = type_("runner rm data letters -r")
    assert refused.exit_code == 2
    assert "`runner rm data letters -r -y`" in refused.stderr
    assert "2 files, 5 bytes" in refused.stderr
    assert type_("runner rm data letters/a.txt -y").exit_code == 0
    assert type_("runner rm data letters -r -y").exit_code == 0
    assert tree(cloud.folder("data")) == {}
    assert type_("runner rm data / -r -y").exit_code == 2


def test_rm_of_a_run_at_work_says_so(type_: Type, cloud: Cloud) -> None:
    cloud.put("checkpoints", "warm/heartbeat", b"", age=1)
    assert "run warm is at work" in type_("runner rm checkpoints warm -r").stderr


def test_an_unchanged_run_sends_and_asks_for_nothing(type_: Type, cloud: Cloud, here: Path) -> None:
    write_run(here / "checkpoints/warm", [10])
    assert type_("runner push checkpoints warm").exit_code == 0
    cloud.forget()
    assert type_("runner push checkpoints warm").exit_code == 0
    assert cloud.transfers() == []


def test_an_older_checkpoint_sent_later_does_not_take_latest_back(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    write_run(here / "checkpoints/warm", [10, 20])
    type_("runner push checkpoints warm")
    assert type_("runner push checkpoints warm/step_00000010").exit_code == 2  # asked about
    assert type_("runner push checkpoints warm/step_00000010 -y").exit_code == 0
    there = cloud.folder("checkpoints") / "warm"
    assert (there / "step_00000010/manifest.json").exists()
    assert (there / "latest").read_text() == "step_00000020\n"


def test_a_file_that_changes_while_it_is_sent_is_sent_as_it_is_then_and_never_mixed(
    type_: Type, cloud: Cloud, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.targets.modal.volume import ModalVolumeFiles

    old, new = noise(20 * MIB, 1), noise(20 * MIB, 2)
    (here / "data/big.bin").write_bytes(old)
    seen: list[bytes] = []
    real = ModalVolumeFiles.send

    def send(self: ModalVolumeFiles, *given: Any) -> bytes:
        if not seen:
            with (here / "data/big.bin").open("r+b") as file:  # in place, in the middle of it
                file.write(new)
        seen.append(given[1])
        return real(self, *given)

    monkeypatch.setattr(ModalVolumeFiles, "send", send)
    assert type_("runner push data big.bin").exit_code == 0
    assert (cloud.folder("data") / "big.bin").read_bytes() == new


def test_a_log_that_grows_all_the_time_is_sent_as_long_as_it_was(
    type_: Type, cloud: Cloud, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.targets.modal.volume import ModalVolumeFiles

    run = write_run(here / "checkpoints/warm", [10])
    real = ModalVolumeFiles.put

    def put(self: ModalVolumeFiles, *given: Any) -> list[Any]:
        with (run / "log.txt").open("a") as file:
            file.write("another line\n")
        return real(self, *given)

    monkeypatch.setattr(ModalVolumeFiles, "put", put)
    assert type_("runner push checkpoints warm").exit_code == 0
    sent = (cloud.folder("checkpoints") / "warm/log.txt").read_text()
    assert sent
    assert (run / "log.txt").read_text().startswith(sent)


def test_a_dataset_does_not_wait_for_another_whose_name_begins_with_its_own(
    type_: Type, cloud: Cloud, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.transfer.push.batches", lambda files: [[file] for file in files])
    for name in ("letters", "letters2"):
        folder = here / "data" / name
        folder.mkdir(parents=True)
        (folder / "train.bin").write_bytes(noise(1000))
        (folder / "meta.json").write_text("{}")
    cloud.standin.inject("VolumePutFiles2", "PERMISSION_DENIED", times=None, match="letters2/train")
    result = type_(f"runner push data {here / 'data'}")
    assert result.exit_code == 1
    assert "missing: letters2/meta.json: it waits" in result.stderr
    assert set(tree(cloud.folder("data"))) == {"letters/train.bin", "letters/meta.json"}
