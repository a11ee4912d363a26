"""runner pull: selection, order, verification and refusals."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

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

RECORDS = {
    *("run.json", "recipe.yaml", "log.txt", "metrics.jsonl", "latest"),
    *("tensorboard/events.out.tfevents.1", "samples/step_00000010.txt"),
}

CHECKPOINT = {"manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"}


def test_folder_arrives_complete_with_its_times(invoke: Invoke, cloud: Cloud, local: Path) -> None:
    contents = {"a/1.bin": random_bytes(9 * MIB), "a/b/2.txt": b"two", "a/empty": b""}
    contents["3.txt"] = b"\0" * 70_000
    for path, content in contents.items():
        cloud.put("data", path, content)
    result = invoke("runner pull data")
    assert result.exit_code == 0, result.output
    assert tree(local / "data") == contents
    assert (local / "data/a/b/2.txt").stat().st_mtime == int(
        (cloud.folder("data") / "a/b/2.txt").stat().st_mtime
    )
    assert "pulled 4 files" in result.stderr
    assert result.stdout == ""


def test_unchanged_files_are_not_transferred(invoke: Invoke, cloud: Cloud, local: Path) -> None:
    for n in range(20):
        cloud.put("data", f"shards/{n}.bin", random_bytes(1000, n))
    write_run(cloud.folder("checkpoints") / "warm", [10, 20])
    cloud.age("checkpoints")
    assert invoke("runner pull data").exit_code == 0
    assert invoke("runner pull checkpoints warm").exit_code == 0
    cloud.forget()
    again = [invoke("runner pull data"), invoke("runner pull checkpoints warm")]
    assert [result.exit_code for result in again] == [0, 0]
    assert "20 files unchanged" in again[0].stderr
    assert cloud.transfers() == []


def test_changed_content_of_the_same_size_is_detected_on_both_sides(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    for name in ("there.txt", "here.txt", "same.txt"):
        cloud.put("data", name, b"before")
    invoke("runner pull data")
    cloud.put("data", "there.txt", b"behind", age=500)
    (local / "data/here.txt").write_bytes(b"edited")
    cloud.forget()
    assert invoke("runner pull data").exit_code == 0
    pulled = {"there.txt": b"behind", "here.txt": b"before", "same.txt": b"before"}
    assert tree(local / "data") == pulled
    assert cloud.transfers() == ["BlockGet", "BlockGet"]


def test_file_listed_within_a_second_of_its_change_is_pulled_again(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    file = cloud.put("data", "young.txt", b"before", age=0)
    time = file.stat().st_mtime
    invoke("runner pull data")
    file.write_bytes(b"behind")
    os.utime(file, (time, time))  # within the same second
    invoke("runner pull data")
    assert tree(local / "data") == {"young.txt": b"behind"}


def test_run_is_pulled_with_records_and_newest_complete_checkpoint(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    run = write_run(cloud.folder("checkpoints") / "warm", [10, 20, 30])
    (run / "step_00000030" / "optimizer.safetensors").write_bytes(b"cut")  # half of it is committed
    (run / ".partial_step_00000040").mkdir()
    (run / ".partial_step_00000040" / "model.safetensors").write_bytes(b"half")
    result = invoke("runner pull checkpoints warm")
    assert result.exit_code == 0, result.output
    expected = RECORDS | {f"step_00000020/{name}" for name in CHECKPOINT}
    assert set(tree(local / "checkpoints/warm")) == expected
    assert (local / "checkpoints/warm/latest").read_text() == "step_00000020\n"
    assert "skipping warm/step_00000030, which is not complete" in result.stderr


def test_pull_without_a_run_gets_every_run_and_with_all_every_step(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    write_run(cloud.folder("checkpoints") / "one", [10, 20])
    write_run(cloud.folder("checkpoints") / "two", [5])
    assert invoke("runner pull checkpoints").exit_code == 0
    steps = {path.name for path in (local / "checkpoints").glob("*/step_*")}
    assert steps == {"step_00000020", "step_00000005"}
    assert invoke("runner pull checkpoints --all").exit_code == 0
    assert len(list((local / "checkpoints").glob("*/step_*/model.safetensors"))) == 3
    assert (local / "checkpoints/one/profile.bin").exists()
    assert not list((local / "checkpoints").rglob("lock"))


def test_dry_run_lists_files_and_changes_nothing(invoke: Invoke, cloud: Cloud, local: Path) -> None:
    cloud.put("data", "a.txt", b"12345")
    result = invoke("runner pull data --dry-run --json")
    assert json.loads(result.stdout)["files"] == [{"path": "a.txt", "bytes": 5, "reason": "new"}]
    assert "a.txt" in invoke("runner pull data --dry-run").stdout
    assert tree(local / "data") == {}
    assert cloud.transfers() == []


def test_checkpoint_damaged_on_modal_is_not_published_locally(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    run = write_run(cloud.folder("checkpoints") / "warm", [10])
    cloud.age("checkpoints")
    assert invoke("runner pull checkpoints warm").exit_code == 0
    write_checkpoint(run, 20)
    flip_a_bit(run / "step_00000020/model.safetensors")
    result = invoke("runner pull checkpoints warm")
    assert result.exit_code == 1
    message = "missing: warm/step_00000020/model.safetensors: its SHA-256 differs from"
    assert message in result.stderr
    assert not (local / "checkpoints/warm/step_00000020").exists()
    assert (local / "checkpoints/warm/latest").read_text() == "step_00000010\n"


def test_corrupted_block_is_detected_and_downloaded_again(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    write_run(cloud.folder("checkpoints") / "warm", [10])
    for fault in ("corrupt", "truncate"):
        cloud.standin.inject("BlockGet", fault, times=1, after=9)  # the first nine are the records
    result = invoke("runner pull checkpoints warm")
    assert result.exit_code == 0, result.output
    source = cloud.folder("checkpoints") / "warm/step_00000010"
    assert tree(local / "checkpoints/warm/step_00000010") == tree(source)


def test_damaged_local_checkpoint_downloads_only_its_damaged_file(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    write_run(cloud.folder("checkpoints") / "warm", [10])
    cloud.age("checkpoints")
    invoke("runner pull checkpoints warm")
    (local / "checkpoints/warm/step_00000010/model.safetensors").write_bytes(b"damaged")
    cloud.forget()
    assert invoke("runner pull checkpoints warm").exit_code == 0
    source = cloud.folder("checkpoints") / "warm/step_00000010"
    assert tree(local / "checkpoints/warm/step_00000010") == tree(source)
    assert cloud.transfers() == ["BlockGet"]
    assert {path.name for path in (local / "checkpoints/warm").glob(".*")} == set()


def test_checkpoint_unknown_to_the_journal_is_verified_and_not_downloaded(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    write_run(cloud.folder("checkpoints") / "warm", [10], size=100_000)
    cloud.age("checkpoints")
    invoke("runner pull checkpoints warm")
    for file in (local / "cache/.sync").glob("*.jsonl"):
        file.unlink()
    cloud.forget()
    assert invoke("runner pull checkpoints warm/step_00000010").exit_code == 0
    assert cloud.transfers() == ["BlockGet"]  # the manifest


def test_run_that_is_further_locally_is_not_replaced_without_asking(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    write_run(cloud.folder("checkpoints") / "warm", [10])
    write_run(local / "checkpoints/warm", [10, 20])
    (local / "checkpoints/warm/log.txt").write_text("newer")
    result = invoke("runner pull checkpoints warm")
    assert result.exit_code == 2
    assert "run 'warm' is at step 20 on this machine and is at step 10 on Modal" in result.stderr
    assert "`runner pull checkpoints warm -y`" in result.stderr
    assert (local / "checkpoints/warm/log.txt").read_text() == "newer"


def test_run_that_is_active_on_this_machine_is_not_replaced_without_asking(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    write_run(cloud.folder("checkpoints") / "warm", [10])
    run = write_run(local / "checkpoints/warm", [], status="running")
    (run / "log.txt").write_text("mine\n")
    with (run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for line in ("warm", "", "warm/log.txt"):
            result = invoke(f"runner pull checkpoints {line}")
            assert result.exit_code == 2
            assert "run 'warm' is active on this machine" in result.stderr
        assert (run / "log.txt").read_text() == "mine\n"
    assert invoke("runner pull checkpoints warm").exit_code == 0


def test_grown_log_is_appended_and_restarted_log_is_downloaded_again(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    lines = b"".join(b'{"step": %d, "loss": 3.14}\n' % n for n in range(200_000))
    cloud.put("checkpoints", "warm/metrics.jsonl", lines)
    invoke("runner pull checkpoints warm")
    cloud.put("checkpoints", "warm/metrics.jsonl", lines + b"more\n", age=500)
    before = cloud.standin.recorded("VolumeGetFile2")[-1].number
    invoke("runner pull checkpoints warm")
    assert (local / "checkpoints/warm/metrics.jsonl").read_bytes() == lines + b"more\n"
    requests = cloud.standin.recorded("VolumeGetFile2", after=before)
    assert [request.message.start for request in requests] == [len(lines) - 64 * 1024]
    restarted = lines.replace(b"3.14", b"2.71") + b"more\nand more\n"
    cloud.put("checkpoints", "warm/metrics.jsonl", restarted, age=400)
    invoke("runner pull checkpoints warm")
    assert (local / "checkpoints/warm/metrics.jsonl").read_bytes() == restarted


def test_meta_json_arrives_after_all_shards(invoke: Invoke, cloud: Cloud, local: Path) -> None:
    cloud.put("data", "letters/letters_train_000001.bin", random_bytes(1000))
    cloud.put("data", "letters/meta.json", b"{}")
    cloud.standin.inject("VolumeGetFile2", "NOT_FOUND", times=None, match="train_000001")
    result = invoke("runner pull data")
    assert result.exit_code == 1
    assert "missing: letters/letters_train_000001.bin" in result.stderr
    assert "missing: letters/meta.json: its folder is incomplete" in result.stderr
    assert tree(local / "data") == {}
    cloud.standin.clear_faults()
    assert invoke("runner pull data").exit_code == 0
    assert set(tree(local / "data/letters")) == {"letters_train_000001.bin", "meta.json"}


def test_unknown_path_exits_with_102_and_suggests_a_name(invoke: Invoke, cloud: Cloud) -> None:
    write_run(cloud.folder("checkpoints") / "warm", [10])
    result = invoke("runner pull checkpoints wram")
    assert result.exit_code == 102
    assert "did you mean 'warm'?" in result.stderr
    assert invoke("runner pull chekpoints").exit_code == 2


def test_pull_one_file_into_a_different_folder(
    invoke: Invoke, cloud: Cloud, tmp_path: Path
) -> None:
    cloud.put("data", "deep/one.txt", b"one")
    cloud.put("data", "deep/two.txt", b"two")
    assert invoke(f"runner pull data deep/one.txt --dest {tmp_path}/elsewhere").exit_code == 0
    assert tree(tmp_path / "elsewhere") == {"deep/one.txt": b"one"}
