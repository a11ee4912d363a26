"""runner pull: what comes, what is skipped, what is refused, and in which order."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from tests.runner.transfer.conftest import MIB, Cloud, noise, tree, write_checkpoint, write_run

Type = Callable[[str], Result]

RECORDS = {
    "run.json",
    "recipe.yaml",
    "log.txt",
    "metrics.jsonl",
    "tensorboard/events.out.tfevents.1",
    "samples/step_00000010.txt",
    "latest",
}

CHECKPOINT = {"manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"}


def test_a_folder_arrives_whole_with_times_and_nothing_besides(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    contents = {
        "a/1.bin": noise(9 * MIB),
        "a/b/2.txt": b"two",
        "a/empty": b"",
        "3.txt": b"\0" * 70_000,
    }
    for path, content in contents.items():
        cloud.put("data", path, content)
    result = type_("runner pull data")
    assert result.exit_code == 0, result.output
    assert tree(here / "data") == contents
    assert (here / "data/a/b/2.txt").stat().st_mtime == int(
        (cloud.folder("data") / "a/b/2.txt").stat().st_mtime
    )
    assert "pulled 4 files" in result.stderr
    assert result.stdout == ""


def test_a_pull_of_unchanged_files_transfers_no_files_data(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    for n in range(20):
        cloud.put("data", f"shards/{n}.bin", noise(1000, n))
    write_run(cloud.folder("checkpoints") / "warm", [10, 20])
    cloud.age("checkpoints")
    assert type_("runner pull data").exit_code == 0
    assert type_("runner pull checkpoints warm").exit_code == 0
    cloud.forget()
    again = [type_("runner pull data"), type_("runner pull checkpoints warm")]
    assert [result.exit_code for result in again] == [0, 0]
    assert "20 files were the same" in again[0].stderr
    assert cloud.transfers() == []


def test_changed_content_of_the_same_size_is_noticed_on_either_side(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    cloud.put("data", "there.txt", b"before")
    cloud.put("data", "here.txt", b"before")
    cloud.put("data", "same.txt", b"before")
    type_("runner pull data")
    cloud.put("data", "there.txt", b"behind", age=500)
    (here / "data/here.txt").write_bytes(b"edited")
    cloud.forget()
    assert type_("runner pull data").exit_code == 0
    assert tree(here / "data") == {
        "there.txt": b"behind",
        "here.txt": b"before",
        "same.txt": b"before",
    }
    assert cloud.transfers() == ["BlockGet", "BlockGet"]


def test_a_file_so_young_that_its_time_says_nothing_is_fetched_again(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    file = cloud.put("data", "young.txt", b"before", age=0)
    time = file.stat().st_mtime
    type_("runner pull data")
    file.write_bytes(b"behind")
    os.utime(file, (time, time))  # within the same second
    type_("runner pull data")
    assert tree(here / "data") == {"young.txt": b"behind"}


def test_a_run_gives_its_records_and_its_newest_complete_checkpoint(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    run = write_run(cloud.folder("checkpoints") / "warm", [10, 20, 30])
    (run / "step_00000030" / "optimizer.safetensors").write_bytes(b"cut")  # half of it is committed
    (run / ".partial_step_00000040").mkdir()
    (run / ".partial_step_00000040" / "model.safetensors").write_bytes(b"half")
    result = type_("runner pull checkpoints warm")
    assert result.exit_code == 0, result.output
    expected = RECORDS | {f"step_00000020/{name}" for name in CHECKPOINT}
    assert set(tree(here / "checkpoints/warm")) == expected
    assert (here / "checkpoints/warm/latest").read_text() == "step_00000020\n"
    assert "warm/step_00000030 is passed over: it is not complete" in result.stderr


def test_without_a_run_every_run_comes_and_with_all_every_step(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    write_run(cloud.folder("checkpoints") / "one", [10, 20])
    write_run(cloud.folder("checkpoints") / "two", [5])
    assert type_("runner pull checkpoints").exit_code == 0
    assert {p.name for p in (here / "checkpoints").glob("*/step_*")} == {
        "step_00000020",
        "step_00000005",
    }
    assert type_("runner pull checkpoints --all").exit_code == 0
    assert len(list((here / "checkpoints").glob("*/step_*/model.safetensors"))) == 3
    assert (here / "checkpoints/one/profile.bin").exists()
    assert not list((here / "checkpoints").rglob("lock"))


def test_a_dry_run_lists_and_changes_nothing(type_: Type, cloud: Cloud, here: Path) -> None:
    cloud.put("data", "a.txt", b"12345")
    result = type_("runner pull data --dry-run --json")
    assert json.loads(result.stdout)["files"] == [{"path": "a.txt", "bytes": 5, "why": "new"}]
    assert "a.txt" in type_("runner pull data --dry-run").stdout
    assert tree(here / "data") == {}
    assert cloud.transfers() == []


def test_a_checkpoint_that_is_damaged_in_the_cloud_never_gets_its_name_here(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    run = write_run(cloud.folder("checkpoints") / "warm", [10])
    cloud.age("checkpoints")
    assert type_("runner pull checkpoints warm").exit_code == 0
    write_checkpoint(run, 20)
    model = run / "step_00000020" / "model.safetensors"
    model.write_bytes(bytes([model.read_bytes()[0] ^ 1]) + model.read_bytes()[1:])
    result = type_("runner pull checkpoints warm")
    assert result.exit_code == 1
    assert (
        "missing: warm/step_00000020/model.safetensors: its SHA-256 is not the one" in result.stderr
    )
    assert not (here / "checkpoints/warm/step_00000020").exists()
    assert (here / "checkpoints/warm/latest").read_text() == "step_00000010\n"


def test_a_wrong_byte_on_the_way_is_found_by_the_manifest_and_fetched_again(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    write_run(cloud.folder("checkpoints") / "warm", [10])
    for fault in ("corrupt", "truncate"):
        cloud.standin.inject("BlockGet", fault, times=1, after=9)  # the first nine are the records
    result = type_("runner pull checkpoints warm")
    assert result.exit_code == 0, result.output
    source, copy = (
        cloud.folder("checkpoints") / "warm/step_00000010",
        here / "checkpoints/warm/step_00000010",
    )
    assert tree(copy) == tree(source)


def test_a_damaged_checkpoint_here_is_replaced_by_what_it_lacks_alone(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    write_run(cloud.folder("checkpoints") / "warm", [10])
    cloud.age("checkpoints")
    type_("runner pull checkpoints warm")
    (here / "checkpoints/warm/step_00000010/model.safetensors").write_bytes(b"damaged")
    cloud.forget()
    assert type_("runner pull checkpoints warm").exit_code == 0
    source, copy = (
        cloud.folder("checkpoints") / "warm/step_00000010",
        here / "checkpoints/warm/step_00000010",
    )
    assert tree(copy) == tree(source)
    assert cloud.transfers() == ["BlockGet"]
    assert {path.name for path in (here / "checkpoints/warm").glob(".*")} == set()


def test_a_checkpoint_that_is_here_unknown_to_the_journal_is_checked_and_not_fetched(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    write_run(cloud.folder("checkpoints") / "warm", [10], size=100_000)
    cloud.age("checkpoints")
    type_("runner pull checkpoints warm")
    for file in (here / "cache/.sync").glob("*.jsonl"):
        file.unlink()
    cloud.forget()
    assert type_("runner pull checkpoints warm/step_00000010").exit_code == 0
    assert cloud.transfers() == ["BlockGet"]  # the manifest


def test_a_run_that_is_further_here_is_not_pulled_over_without_asking(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    write_run(cloud.folder("checkpoints") / "warm", [10])
    write_run(here / "checkpoints/warm", [10, 20])
    (here / "checkpoints/warm/log.txt").write_text("newer")
    result = type_("runner pull checkpoints warm")
    assert result.exit_code == 2
    assert "run warm (step 20 here, 10 in the cloud)" in result.stderr
    assert "`runner pull checkpoints warm -y`" in result.stderr
    assert (here / "checkpoints/warm/log.txt").read_text() == "newer"


def test_a_log_that_grew_is_added_to_and_one_that_began_anew_is_fetched_whole(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    lines = b"".join(b'{"step": %d, "loss": 3.14}\n' % n for n in range(200_000))
    cloud.put("checkpoints", "warm/metrics.jsonl", lines)
    type_("runner pull checkpoints warm")
    cloud.put("checkpoints", "warm/metrics.jsonl", lines + b"more\n", age=500)
    before = cloud.standin.recorded("VolumeGetFile2")[-1].number
    type_("runner pull checkpoints warm")
    assert (here / "checkpoints/warm/metrics.jsonl").read_bytes() == lines + b"more\n"
    asked = [
        request.message.start for request in cloud.standin.recorded("VolumeGetFile2", after=before)
    ]
    assert asked == [len(lines) - 64 * 1024]
    anew = lines.replace(b"3.14", b"2.71") + b"more\nand more\n"
    cloud.put("checkpoints", "warm/metrics.jsonl", anew, age=400)
    type_("runner pull checkpoints warm")
    assert (here / "checkpoints/warm/metrics.jsonl").read_bytes() == anew


def test_meta_json_comes_after_the_shards_that_it_speaks_for(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    cloud.put("data", "letters/letters_train_000001.bin", noise(1000))
    cloud.put("data", "letters/meta.json", b"{}")
    cloud.standin.inject("VolumeGetFile2", "NOT_FOUND", times=None, match="train_000001")
    result = type_("runner pull data")
    assert result.exit_code == 1
    assert "missing: letters/letters_train_000001.bin" in result.stderr
    assert "missing: letters/meta.json: it waits for the rest of its folder" in result.stderr
    assert tree(here / "data") == {}
    cloud.standin.clear_faults()
    assert type_("runner pull data").exit_code == 0
    assert set(tree(here / "data/letters")) == {"letters_train_000001.bin", "meta.json"}


def test_what_is_not_there_is_102_with_a_guess(type_: Type, cloud: Cloud) -> None:
    write_run(cloud.folder("checkpoints") / "warm", [10])
    result = type_("runner pull checkpoints wram")
    assert result.exit_code == 102
    assert "did you mean 'warm'?" in result.stderr
    assert type_("runner pull chekpoints").exit_code == 2


def test_into_another_folder_and_one_file_alone(type_: Type, cloud: Cloud, tmp_path: Path) -> None:
    cloud.put("data", "deep/one.txt", b"one")
    cloud.put("data", "deep/two.txt", b"two")
    assert type_(f"runner pull data deep/one.txt --into {tmp_path}/elsewhere").exit_code == 0
    assert tree(tmp_path / "elsewhere") == {"deep/one.txt": b"one"}
