"""Transfers that are killed, cut and refused: what is there afterwards is whole, and the next one goes on."""

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

from runner.errors import ModalUnavailable
from runner.targets.modal.client import RetryPolicy
from runner.transfer.checkpoints import Mismatch
from runner.transfer.workers import GIVE_UP_AFTER, Task, Workers
from tests.runner.transfer.conftest import (
    MIB,
    ROOT,
    Cloud,
    heed_ctrl_c,
    noise,
    tree,
    write_checkpoint,
    write_run,
)

Type = Callable[[str], Result]

Start = Callable[[str], "subprocess.Popen[str]"]

BLOCKS = 6

BIG = noise(BLOCKS * 8 * MIB)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three attempts with no time between them."""
    patience = RetryPolicy(attempts=3, first=0.0)
    monkeypatch.setattr("runner.targets.modal.volume.RetryPolicy", lambda: patience)


def kill_when(
    cloud: Cloud, process: subprocess.Popen[str], condition: Callable[[], object]
) -> None:
    cloud.standin.wait_until(lambda: condition() or process.poll() is not None, timeout=60)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_pull_that_was_killed_goes_on_in_the_middle_of_a_file(
    start: Start, type_: Type, cloud: Cloud, here: Path
) -> None:
    cloud.put("data", "done.bin", noise(1000))
    assert type_("runner pull data").exit_code == 0
    cloud.put("data", "big.bin", BIG)
    (here / "data/big.bin").write_bytes(b"the one before")
    cloud.standin.inject("BlockGet", "503", times=None, after=3)
    marks = here / "data/.big.bin.part.blocks"
    killed = start("runner pull data")
    kill_when(cloud, killed, lambda: marks.exists() and marks.read_text().count("\n") == 4)
    assert (here / "data/big.bin").read_bytes() == b"the one before"
    cloud.standin.clear_faults()
    cloud.forget()
    assert "continued" in type_("runner pull data --dry-run").stdout
    assert type_("runner pull data").exit_code == 0
    assert tree(here / "data") == {"done.bin": noise(1000), "big.bin": BIG}
    assert cloud.transfers() == ["BlockGet"] * (BLOCKS - 3)


def test_what_is_partial_of_another_state_of_the_file_is_not_continued(
    start: Start, type_: Type, cloud: Cloud, here: Path
) -> None:
    cloud.put("data", "big.bin", BIG)
    cloud.standin.inject("BlockGet", "503", times=None, after=3)
    marks = here / "data/.big.bin.part.blocks"
    kill_when(
        cloud,
        start("runner pull data"),
        lambda: marks.exists() and marks.read_text().count("\n") == 4,
    )
    cloud.standin.clear_faults()
    other = noise(len(BIG), 9)
    cloud.put("data", "big.bin", other, age=500)  # the same size, another time
    cloud.forget()
    assert type_("runner pull data").exit_code == 0
    assert tree(here / "data") == {"big.bin": other}
    assert cloud.transfers() == ["BlockGet"] * BLOCKS


def test_a_block_that_was_marked_and_is_not_there_is_fetched_again(
    start: Start, type_: Type, cloud: Cloud, here: Path
) -> None:
    cloud.put("data", "big.bin", BIG)
    cloud.standin.inject("BlockGet", "503", times=None, after=3)
    part, marks = here / "data/.big.bin.part", here / "data/.big.bin.part.blocks"
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
    assert type_("runner pull data").exit_code == 0
    assert tree(here / "data") == {"big.bin": BIG}
    assert cloud.transfers() == ["BlockGet"] * (BLOCKS - 2)


def test_a_killed_pull_leaves_latest_at_the_checkpoint_before(
    start: Start, type_: Type, cloud: Cloud, here: Path
) -> None:
    run = write_run(cloud.folder("checkpoints") / "warm", [10])
    cloud.age("checkpoints")
    assert type_("runner pull checkpoints warm").exit_code == 0
    write_checkpoint(run, 20, size=100_000)
    cloud.age("checkpoints", 500)
    cloud.standin.inject("VolumeGetFile2", "UNAVAILABLE", times=None, match="20/optimizer")
    partial = here / "checkpoints/warm/.partial_step_00000020/model.safetensors"
    kill_when(cloud, start("runner pull checkpoints warm"), partial.exists)
    assert (here / "checkpoints/warm/latest").read_text() == "step_00000010\n"
    assert not (here / "checkpoints/warm/step_00000020").exists()
    cloud.standin.clear_faults()
    before = cloud.standin.recorded()[-1].number
    assert type_("runner pull checkpoints warm").exit_code == 0
    assert tree(here / "checkpoints/warm/step_00000020") == tree(run / "step_00000020")
    assert (here / "checkpoints/warm/latest").read_text() == "step_00000020\n"
    asked = [r.message.path for r in cloud.standin.recorded("VolumeGetFile2", after=before)]
    assert "warm/step_00000020/model.safetensors" not in asked
    assert not list((here / "checkpoints/warm").glob(".partial_*"))


def test_a_killed_push_sends_no_block_twice_and_shows_nothing_half(
    start: Start, type_: Type, cloud: Cloud, here: Path
) -> None:
    (here / "data/big.bin").write_bytes(BIG)
    cloud.put("data", "big.bin", b"the one before")
    cloud.standin.inject("BlockPut", "503", times=None, after=3)
    killed = start("runner push data big.bin")
    kill_when(cloud, killed, lambda: cloud.transfers().count("BlockPut") > BLOCKS)
    assert tree(cloud.folder("data")) == {"big.bin": b"the one before"}
    cloud.standin.clear_faults()
    cloud.forget()
    assert type_("runner push data big.bin").exit_code == 0
    assert tree(cloud.folder("data")) == {"big.bin": BIG}
    assert cloud.transfers() == ["BlockPut"] * (BLOCKS - 3)


def test_addresses_that_expire_are_asked_for_again_and_no_block_is_sent_twice(
    type_: Type, cloud: Cloud, here: Path, impatient: None
) -> None:
    (here / "data/big.bin").write_bytes(BIG)
    cloud.standin.volume_rules(puts_per_answer=2, needs_receipts=True)
    before = cloud.standin.recorded()[-1].number
    result = type_("runner push data big.bin")
    assert result.exit_code == 0, result.stderr
    assert tree(cloud.folder("data")) == {"big.bin": BIG}
    asked = [
        r.message.files[0].blocks for r in cloud.standin.recorded("VolumePutFiles2", after=before)
    ]
    assert [sum(bool(block.put_response) for block in blocks) for blocks in asked] == [0, 2, 4, 6]


def test_addresses_of_which_none_serves_are_not_asked_for_without_end(
    type_: Type, cloud: Cloud, here: Path, impatient: None
) -> None:
    (here / "data/big.bin").write_bytes(BIG)
    cloud.standin.volume_rules(puts_per_answer=0, needs_receipts=True)
    result = type_("runner push data big.bin")
    assert result.exit_code == 1
    assert "HTTP 403 Forbidden: this URL has expired" in result.stderr
    assert tree(cloud.folder("data")) == {}


def test_a_file_that_is_in_its_place_needs_no_receipt_for_what_it_has(
    type_: Type, cloud: Cloud, here: Path
) -> None:
    cloud.put("data", "big.bin", BIG)
    (here / "data/big.bin").write_bytes(BIG + b"more")
    cloud.standin.volume_rules(needs_receipts=True)
    cloud.forget()
    assert type_("runner push data big.bin").exit_code == 0
    assert tree(cloud.folder("data")) == {"big.bin": BIG + b"more"}
    assert cloud.transfers() == ["BlockPut"]


def test_ctrl_c_ends_with_130_at_once(start: Start, cloud: Cloud, here: Path) -> None:
    cloud.put("data", "big.bin", BIG)
    cloud.standin.inject("BlockGet", "503", times=None, after=1)
    process = start("runner pull data")
    cloud.standin.wait_until((here / "data/.big.bin.part.blocks").exists)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors


def test_ctrl_c_does_not_wait_for_a_connection_that_says_nothing() -> None:
    program = """
import time
from runner.transfer.workers import Task, Workers
with Workers() as workers:
    workers.each([Task("a", lambda: print("began", flush=True) or time.sleep(600))])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=heed_ctrl_c,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")


def test_when_modal_stays_away_it_says_what_is_missing_and_ends_1(
    type_: Type, cloud: Cloud, here: Path, impatient: None
) -> None:
    for n in range(40):
        cloud.put("data", f"{n:02d}.txt", b"text")
    (here / "data/07.txt").write_bytes(b"old")
    cloud.standin.inject("BlockGet", "503", times=None)
    result = type_("runner pull data")
    assert result.exit_code == 1
    assert "missing: 07.txt: " in result.stderr or "and 30 more" in result.stderr
    assert "40 of 40 files missing; `runner pull data` goes on from here" in result.stderr
    assert tree(here / "data") == {"07.txt": b"old"} | {
        n: c for n, c in tree(here / "data").items() if n.endswith(".part")
    }
    cloud.standin.clear_faults()
    assert type_("runner pull data").exit_code == 0
    assert len(tree(here / "data")) == 40


def test_a_file_that_changes_while_its_blocks_come_from_two_answers_is_fetched_anew(
    cloud: Cloud, type_: Type, here: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    from runner.targets.modal.volume import ModalVolumeFiles

    cloud.put("data", "big.bin", BIG)
    other = noise(len(BIG), 5)
    real = ModalVolumeFiles.block
    seen: list[int] = []

    def block(self: ModalVolumeFiles, block: object) -> bytes:
        seen.append(1)
        if len(seen) == 3:
            cloud.put("data", "big.bin", other, age=100)
            raise ModalUnavailable("the address is too old")
        return real(self, block)  # type: ignore[arg-type]

    monkeypatch.setattr(ModalVolumeFiles, "block", block)
    monkeypatch.setattr("runner.transfer.workers.BLOCKS_AT_ONCE", 1)
    assert type_("runner pull data").exit_code == 0
    assert tree(here / "data") == {"big.bin": other}


def test_a_full_disk_ends_the_rest(tmp_path: Path) -> None:
    ran: list[str] = []

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Workers(files_at_once=1) as workers:
        missing = workers.each([Task("a", full), Task("b", lambda: ran.append("b"))])
    assert [item.path for item in missing] == ["a", "b"]
    assert "No space left" in missing[1].why
    assert ran == []


def test_no_room_is_said_before_anything_moves(
    type_: Type, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    cloud.put("data", "a.bin", b"12345")
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3))
    result = type_("runner pull data")
    assert result.exit_code == 1
    assert "5 bytes are to come" in result.stderr
    assert cloud.transfers() == []


def test_one_bad_file_does_not_stop_the_others_and_many_in_a_row_do() -> None:
    def fail() -> None:
        raise ModalUnavailable("503")

    def damaged() -> None:
        raise Mismatch("other bytes")

    ran: list[str] = []
    with Workers(files_at_once=1) as workers:
        missing = workers.each([Task("a", damaged), Task("b", lambda: ran.append("b"))])
    assert [item.path for item in missing] == ["a"]
    with Workers(files_at_once=1) as workers:
        tasks = [Task(str(n), fail) for n in range(GIVE_UP_AFTER)]
        missing = workers.each([*tasks, Task("last", lambda: ran.append("last"))])
    assert ran == ["b"]
    assert missing[-1].why == "given up: Modal does not answer"
