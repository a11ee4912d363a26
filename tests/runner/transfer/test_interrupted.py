"""Transfers that are killed, cut off or refused leave intact files, and the next one resumes.

Also the workers that give up, and the progress that they show.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from runner.console import CliContext
from runner.errors import ModalUnavailable, TargetUnavailable
from runner.targets.blocks import RetryPolicy
from runner.targets.modal.volume import ModalVolumeFiles
from runner.transfer.plan import ContentMismatch
from runner.transfer.workers import MAX_CONSECUTIVE_FAILURES, Progress, Task, Workers
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


def kill_after_three_blocks(start: Start, cloud: Cloud, local: Path) -> Path:
    """Kill a pull of BIG_FILE; return the hashes of the blocks that arrived."""
    cloud.put("data", "big.bin", BIG_FILE)
    cloud.standin.inject("BlockGet", "503", times=None, after=3)
    hashes = local / "data/.big.bin.part.blocks"
    killed = start("runner pull data")
    kill_when(cloud, killed, lambda: hashes.exists() and hashes.read_text().count("\n") == 4)
    cloud.standin.clear_faults()
    cloud.forget()
    return hashes


def test_killed_pull_resumes_inside_a_file(
    start: Start, invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    cloud.put("data", "done.bin", random_bytes(1000))
    assert invoke("runner pull data").exit_code == 0
    (local / "data/big.bin").write_bytes(b"old content")
    kill_after_three_blocks(start, cloud, local)
    assert (local / "data/big.bin").read_bytes() == b"old content"
    assert "continued" in invoke("runner pull data --dry-run").stdout
    assert invoke("runner pull data").exit_code == 0
    assert tree(local / "data") == {"done.bin": random_bytes(1000), "big.bin": BIG_FILE}
    assert cloud.transfers() == ["BlockGet"] * (BLOCKS - 3)


def test_partial_file_of_a_different_version_is_not_resumed(
    start: Start, invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    kill_after_three_blocks(start, cloud, local)
    other = random_bytes(len(BIG_FILE), 9)
    cloud.put("data", "big.bin", other, age=500)  # the same size, a different time
    assert invoke("runner pull data").exit_code == 0
    assert tree(local / "data") == {"big.bin": other}
    assert cloud.transfers() == ["BlockGet"] * BLOCKS


def test_lost_block_of_a_partial_file_is_downloaded_again(
    start: Start, invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    hashes = kill_after_three_blocks(start, cloud, local)
    first = int(hashes.read_text().splitlines()[1].split()[0])
    with (local / "data/.big.bin.part").open("r+b") as file:  # as after a power cut
        file.seek(first * 8 * MIB)
        file.write(b"\0" * 4096)
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
    requests = cloud.standin.recorded("VolumePutFiles2", after=before)
    requested = [request.message.files[0].blocks for request in requests]
    sent = [sum(bool(block.put_response) for block in blocks) for blocks in requested]
    assert sent == [0, 2, 4, 6]


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
    workers.run_tasks([Task(("a",), lambda: print("started", flush=True) or time.sleep(600))])
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
    files = {name: c for name, c in tree(local / "data").items() if not name.endswith(".part")}
    assert files == {"07.txt": b"old"}
    cloud.standin.clear_faults()
    assert invoke("runner pull data").exit_code == 0
    assert len(tree(local / "data")) == 40


def test_file_that_changes_between_two_answers_is_downloaded_again(
    cloud: Cloud, invoke: Invoke, local: Path, monkeypatch: pytest.MonkeyPatch, fast_retries: None
) -> None:
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


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.transfer.workers.PARALLEL_FILES", 1)


def test_full_disk_skips_the_remaining_files(one_at_a_time: None) -> None:
    ran: list[str] = []

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Workers() as workers:
        missing = workers.run_tasks([Task(("a",), full), Task(("b",), lambda: ran.append("b"))])
    assert [item.path for item in missing] == ["a", "b"]
    assert "No space left" in missing[1].reason
    assert ran == []


def test_too_little_disk_space_is_reported_before_the_transfer(
    invoke: Invoke, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.put("data", "a.bin", b"12345")
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3))
    result = invoke("runner pull data")
    assert result.exit_code == 1
    assert "the pull needs 5 bytes" in result.stderr
    assert cloud.transfers() == []


def test_one_failure_does_not_stop_the_others_but_many_in_a_row_do(one_at_a_time: None) -> None:
    def fail() -> None:
        raise ModalUnavailable("503")

    def damaged() -> None:
        raise ContentMismatch("other bytes")

    ran: list[str] = []
    with Workers() as workers:
        missing = workers.run_tasks([Task(("a",), damaged), Task(("b",), lambda: ran.append("b"))])
    assert [item.path for item in missing] == ["a"]
    with Workers() as workers:
        tasks = [Task((str(n),), fail) for n in range(MAX_CONSECUTIVE_FAILURES)]
        missing = workers.run_tasks([*tasks, Task(("last",), lambda: ran.append("last"))])
    assert ran == ["b"]
    assert missing[-1].reason.startswith("gave up: Modal does not answer: 503")


def test_without_a_terminal_a_line_is_printed_every_ten_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    time = [0.0]
    progress = Progress(CliContext(terminal=False), "pulling", 2000, 10**9, now=lambda: time[0])
    with progress:
        for second in range(25):
            time[0] = float(second)
            progress.advance(10**7)
            progress.file_done()
    assert capsys.readouterr().err.splitlines() == [
        "pulling 10 of 2,000 files, 110.0 MB of 1.0 GB, 11.0 MB/s",
        "pulling 20 of 2,000 files, 210.0 MB of 1.0 GB, 10.5 MB/s",
    ]


def test_terminal_shows_a_bar_on_stderr(cli: CliContext, invoke: Invoke, cloud: Cloud) -> None:
    cli.terminal = True
    cloud.put("data", "a.bin", random_bytes(100_000))
    result = invoke("runner pull data")
    assert result.exit_code == 0
    assert "pulling" in result.stderr
    assert result.stdout == ""
