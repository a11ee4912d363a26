"""Transfers that are killed, cut off or refused leave intact files, and the next one resumes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from runner.errors import ModalUnavailable, TargetUnavailable
from runner.targets.modal.client import RetryPolicy
from runner.transfer.plan import ContentMismatch
from runner.transfer.workers import MAX_CONSECUTIVE_FAILURES, Task, Workers
from tests.runner.transfer.conftest import (
    MIB,
    ROOT,
    Cloud,
    enable_ctrl_c,
    random_bytes,
    tree,
    write_checkpoint,
    write_run,
)

Invoke = Callable[[str], Result]

Start = Callable[[str], "subprocess.Popen[str]"]

BLOCKS = 6

BIG_FILE = random_bytes(BLOCKS * 8 * MIB)


@pytest.fixture
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry three times without delay."""
    retry = RetryPolicy(attempts=3, first_delay_s=0.0)
    monkeypatch.setattr("runner.targets.modal.volume.RetryPolicy", lambda: retry)


def kill_when(
    cloud: Cloud, process: subprocess.Popen[str], condition: Callable[[], object]
) -> None:
    cloud.standin.wait_until(lambda: condition() or process.poll() is not None, timeout=60)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_killed_pull_resumes_inside_a_file(
    start: Start, invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    cloud.put("data", "done.bin", random_bytes(1000))
    assert invoke("runner pull data").exit_code == 0
    cloud.put("data", "big.bin", BIG_FILE)
    (local / "data/big.bin").write_bytes(b"old content")
    cloud.standin.inject("BlockGet", "503", times=None, after=3)
    marks = local / "data/.big.bin.part.blocks"
    killed = start("runner pull data")
    kill_when(cloud, killed, lambda: marks.exists() and marks.read_text().count("\n") == 4)
    assert (local / "data/big.bin").read_bytes() == b"old content"
    cloud.standin.clear_faults()
    cloud.forget()
    assert "continued" in invoke("runner pull data --dry-run").stdout
    assert invoke("runner pull data").exit_code == 0
    assert tree(local / "data") == {"done.bin": random_bytes(1000), "big.bin": BIG_FILE}
    assert cloud.transfers() == ["BlockGet"] * (BLOCKS - 3)


def test_partial_file_of_a_different_version_is_not_resumed(
    start: Start, invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    cloud.put("data", "big.bin", BIG_FILE)
    cloud.standin.inject("BlockGet", "503", times=None, after=3)
    marks = local / "data/.big.bin.part.blocks"
    kill_when(
        cloud,
        start("runner pull data"),
        lambda: marks.exists() and marks.read_text().count("\n") == 4,
    )
    cloud.standin.clear_faults()
    other = random_bytes(len(BIG_FILE), 9)
    cloud.put("data", "big.bin", other, age=500)  # the same size, a different time
    cloud.forget()
    assert invoke("runner pull data").exit_code == 0
    assert tree(local / "data") == {"big.bin": other}
    assert cloud.transfers() == ["BlockGet"] * BLOCKS


def test_lost_block_of_a_partial_file_is_downloaded_again(
    start: Start, invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    cloud.put("data", "big.bin", BIG_FILE)
    cloud.standin.inject("BlockGet", "503", times=None, after=3)
    part, marks = local / "data/.big.bin.part", local / "data/.big.bin.part.blocks"
    kill_when(
        cloud,
        start("runner pull data"),
        lambda: marks.exists() and marks.read_text().count("\n") == 4,
    )
    cloud.standin.clear_faults()
    first = int(marks.read_text().splitlines()[1].split()[0])
    with part.open("r+b") as file:  # as after a power cut
        file.seek(first * 8 * MIB)
        file.write(b"\0" * 4096)
    cloud.forget()
    assert invoke("runner pull data").exit_code == 0
    assert tree(local / "data") == {"big.bin": BIG_FILE}
    assert cloud.transfers() == ["BlockGet"] * (BLOCKS - 2)


def test_killed_pull_leaves_latest_at_the_previous_checkpoint(
    start: Start, invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    run = write_run(cloud.folder("checkpoints") / "warm", [10])
    cloud.age("checkpoints")
    assert invoke("runner pull checkpoints warm").exit_code == 0
    write_checkpoint(run, 20, size=100_000)
    cloud.age("checkpoints", 500)
    cloud.standin.inject("VolumeGetFile2", "UNAVAILABLE", times=None, match="20/optimizer")
    partial = local / "checkpoints/warm/.partial_step_00000020/model.safetensors"
    kill_when(cloud, start("runner pull checkpoints warm"), partial.exists)
    assert (local / "checkpoints/warm/latest").read_text() == "step_00000010\n"
    assert not (local / "checkpoints/warm/step_00000020").exists()
    cloud.standin.clear_faults()
    before = cloud.standin.recorded()[-1].number
    assert invoke("runner pull checkpoints warm").exit_code == 0
    assert tree(local / "checkpoints/warm/step_00000020") == tree(run / "step_00000020")
    assert (local / "checkpoints/warm/latest").read_text() == "step_00000020\n"
    requested = [r.message.path for r in cloud.standin.recorded("VolumeGetFile2", after=before)]
    assert "warm/step_00000020/model.safetensors" not in requested
    assert not list((local / "checkpoints/warm").glob(".partial_*"))


def test_killed_push_publishes_nothing_and_sends_no_block_twice(
    start: Start, invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    (local / "data/big.bin").write_bytes(BIG_FILE)
    cloud.put("data", "big.bin", b"old content")
    cloud.standin.inject("BlockPut", "503", times=None, after=3)
    killed = start("runner push data big.bin")
    kill_when(cloud, killed, lambda: cloud.transfers().count("BlockPut") > BLOCKS)
    assert tree(cloud.folder("data")) == {"big.bin": b"old content"}
    cloud.standin.clear_faults()
    cloud.forget()
    assert invoke("runner push data big.bin").exit_code == 0
    assert tree(cloud.folder("data")) == {"big.bin": BIG_FILE}
    assert cloud.transfers() == ["BlockPut"] * (BLOCKS - 3)


def test_expired_urls_are_renewed_and_no_block_is_sent_twice(
    invoke: Invoke, cloud: Cloud, local: Path, fast_retries: None
) -> None:
    (local / "data/big.bin").write_bytes(BIG_FILE)
    cloud.standin.volume_rules(puts_per_answer=2, needs_receipts=True)
    before = cloud.standin.recorded()[-1].number
    result = invoke("runner push data big.bin")
    assert result.exit_code == 0, result.stderr
    assert tree(cloud.folder("data")) == {"big.bin": BIG_FILE}
    requested = [
        r.message.files[0].blocks for r in cloud.standin.recorded("VolumePutFiles2", after=before)
    ]
    assert [sum(bool(block.put_response) for block in blocks) for blocks in requested] == [
        0,
        2,
        4,
        6,
    ]


def test_push_fails_if_every_url_is_refused(
    invoke: Invoke, cloud: Cloud, local: Path, fast_retries: None
) -> None:
    (local / "data/big.bin").write_bytes(BIG_FILE)
    cloud.standin.volume_rules(puts_per_answer=0, needs_receipts=True)
    result = invoke("runner push data big.bin")
    assert result.exit_code == 1
    assert "HTTP 403 Forbidden: this URL has expired" in result.stderr
    assert tree(cloud.folder("data")) == {}


def test_push_of_a_longer_file_sends_only_new_blocks(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    cloud.put("data", "big.bin", BIG_FILE)
    (local / "data/big.bin").write_bytes(BIG_FILE + b"more")
    cloud.standin.volume_rules(needs_receipts=True)
    cloud.forget()
    assert invoke("runner push data big.bin").exit_code == 0
    assert tree(cloud.folder("data")) == {"big.bin": BIG_FILE + b"more"}
    assert cloud.transfers() == ["BlockPut"]


def test_ctrl_c_exits_with_130_at_once(start: Start, cloud: Cloud, local: Path) -> None:
    cloud.put("data", "big.bin", BIG_FILE)
    cloud.standin.inject("BlockGet", "503", times=None, after=1)
    process = start("runner pull data")
    cloud.standin.wait_until((local / "data/.big.bin.part.blocks").exists)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors


def test_ctrl_c_does_not_wait_for_a_silent_connection() -> None:
    program = """
import time
from runner.transfer.workers import Task, Workers
with Workers() as workers:
    workers.run_tasks([Task("a", lambda: print("started", flush=True) or time.sleep(600))])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=enable_ctrl_c,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")


def test_unreachable_modal_names_missing_files_and_exits_with_1(
    invoke: Invoke, cloud: Cloud, local: Path, fast_retries: None
) -> None:
    for n in range(40):
        cloud.put("data", f"{n:02d}.txt", b"text")
    (local / "data/07.txt").write_bytes(b"old")
    cloud.standin.inject("BlockGet", "503", times=None)
    result = invoke("runner pull data")
    assert result.exit_code == 1
    assert "missing: 07.txt: " in result.stderr or "and 30 more" in result.stderr
    assert "40 of 40 files missing; run `runner pull data` again" in result.stderr
    assert tree(local / "data") == {"07.txt": b"old"} | {
        n: c for n, c in tree(local / "data").items() if n.endswith(".part")
    }
    cloud.standin.clear_faults()
    assert invoke("runner pull data").exit_code == 0
    assert len(tree(local / "data")) == 40


def test_file_that_changes_between_two_answers_is_downloaded_again(
    cloud: Cloud, invoke: Invoke, local: Path, monkeypatch: pytest.MonkeyPatch, fast_retries: None
) -> None:
    from runner.targets.modal.volume import ModalVolumeFiles

    cloud.put("data", "big.bin", BIG_FILE)
    other = random_bytes(len(BIG_FILE), 5)
    real = ModalVolumeFiles.block
    blocks_read: list[int] = []

    def block(self: ModalVolumeFiles, block: object) -> bytes:
        blocks_read.append(1)
        if len(blocks_read) == 3:
            cloud.put("data", "big.bin", other, age=100)
            raise TargetUnavailable("the URL has expired")
        return real(self, block)  # type: ignore[arg-type]

    monkeypatch.setattr(ModalVolumeFiles, "block", block)
    monkeypatch.setattr("runner.transfer.workers.PARALLEL_BLOCKS", 1)
    assert invoke("runner pull data").exit_code == 0
    assert tree(local / "data") == {"big.bin": other}


def test_full_disk_skips_the_remaining_files(tmp_path: Path) -> None:
    ran: list[str] = []

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Workers(parallel_files=1) as workers:
        missing = workers.run_tasks([Task("a", full), Task("b", lambda: ran.append("b"))])
    assert [item.path for item in missing] == ["a", "b"]
    assert "No space left" in missing[1].reason
    assert ran == []


def test_too_little_disk_space_is_reported_before_the_transfer(
    invoke: Invoke, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    cloud.put("data", "a.bin", b"12345")
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3))
    result = invoke("runner pull data")
    assert result.exit_code == 1
    assert "the pull needs 5 bytes" in result.stderr
    assert cloud.transfers() == []


def test_one_failure_does_not_stop_the_others_but_many_in_a_row_do() -> None:
    def fail() -> None:
        raise ModalUnavailable("503")

    def damaged() -> None:
        raise ContentMismatch("other bytes")

    ran: list[str] = []
    with Workers(parallel_files=1) as workers:
        missing = workers.run_tasks([Task("a", damaged), Task("b", lambda: ran.append("b"))])
    assert [item.path for item in missing] == ["a"]
    with Workers(parallel_files=1) as workers:
        tasks = [Task(str(n), fail) for n in range(MAX_CONSECUTIVE_FAILURES)]
        missing = workers.run_tasks([*tasks, Task("last", lambda: ran.append("last"))])
    assert ran == ["b"]
    assert missing[-1].reason.startswith("gave up: Modal does not answer: 503")
