"""Preemptions at random moments: importing, training, writing a checkpoint."""

from __future__ import annotations

import json
import os
import random
import time
from subprocess import Popen
from typing import Any

import pytest

from tests.modal_standin import StandinError
from tests.runner.targets.modal.conftest import CloudFixture, train_here

STEPS = ("max_steps=100", "checkpoint_every=10", "eval_every=50")

# Too slow to finish in five attempts: three attempts of a second train at most 60 steps.
STEP_SECONDS = 0.05

# With three files per checkpoint, about half of the training is writing one.
FILE_SECONDS = 0.15

TRAINING_SECONDS = 1.0  # after the trainer's first line: the preemption

FIRST_LINES = ("starting run 'tiny'", "resuming run 'tiny'")


@pytest.mark.slow
def test_five_random_preemptions_give_the_same_weights(strict_cloud: CloudFixture) -> None:
    cloud = strict_cloud
    seed = int(os.environ.get("GPT_RUNNER_TEST_SEED") or time.time_ns())
    print(f"to repeat it: GPT_RUNNER_TEST_SEED={seed}")
    began = time.time()
    train_here(cloud.checkout, *STEPS)
    unbroken = cloud.checkout / "volumes" / "checkpoints" / "tiny"
    importing = json.loads((unbroken / "run.json").read_text())["attempts"][0]["started"] - began
    slow_down_training(cloud)

    words = ("cloud", "tiny", "-y", "--device", "cpu", *STEPS)
    (cloud.checkout / "prices.yaml").write_text("CPU: 900\nMEMORY: 0\n")  # about a dollar a second
    process = cloud.start(*words)
    cut = preempt_at_random(cloud, process, random.Random(seed), importing)
    cloud.finish(process)
    assert len(cut) == 5

    assert (cloud.run_folder() / "latest").read_text() == "step_00000100\n"
    assert cloud.weights() == (unbroken / "step_00000100" / "model.safetensors").read_bytes()
    assert cloud.steps() == list(range(1, 101))
    check_the_record(cloud, cut)


def preempt_at_random(
    cloud: CloudFixture, process: Popen[str], rng: random.Random, importing: float
) -> dict[str, float]:
    """Preempt five containers in random order: two while importing, three while training.

    Return the seconds that each container worked.
    """
    cut: dict[str, float] = {}
    for in_training in rng.sample([False, False, True, True, True], 5):
        moment = rng.uniform(0, TRAINING_SECONDS if in_training else importing)

        def next_one() -> Any:
            return process.poll() is not None or next(
                (
                    t
                    for t in cloud.modal.tasks()
                    if t["inputs"] and t["alive"] and t["id"] not in cut
                ),
                None,
            )

        task = cloud.modal.wait_until(next_one, 60)
        assert process.poll() is None, process.communicate()
        began, id = time.monotonic(), task["id"]
        if in_training:
            cloud.modal.wait_until(
                lambda id=id: any(line in cloud.modal.log(id) for line in FIRST_LINES), 60
            )
        time.sleep(moment)  # a random moment, with no condition to wait for
        log = cloud.modal.log(id)
        cut[id] = time.monotonic() - began
        try:
            cloud.modal.preempt(id)
        except StandinError:
            raise AssertionError(f"the attempt ended within {moment:.2f} s") from None
        where = (
            "while it imports"
            if not any(line in log for line in FIRST_LINES)
            else "while it trains"
        )
        if log.count("writes a file") > 3 * log.count("has written"):
            where = "while a checkpoint is written"
        print(f"{id} after {cut[id]:.2f} s, {where}")
    return cut


def check_the_record(cloud: CloudFixture, cut: dict[str, float]) -> None:
    """Check the attempts and their costs: six, or five if the last one finished first."""
    ledger = cloud.ledger()
    attempts = ledger["attempts"]
    # An attempt that ends before the function starts leaves no record.
    unborn = cut.keys() - {attempt["container"] for attempt in attempts}
    assert all(cut[container] < 0.5 for container in unborn), cut
    preempted = len(cut) - len(unborn) - (attempts[-1]["container"] in cut)
    assert [attempt["reason"] for attempt in attempts] == ["preempted"] * preempted + ["finished"]
    assert cloud.modal.calls()[0]["retries"] == [0]
    lifetimes = {t["id"]: t["ended_at"] - t["started_at"] for t in cloud.modal.tasks()}
    for attempt in attempts:
        paid = attempt["seconds"] * attempt["usd_per_hour"] / 3600
        assert attempt["cost"] == pytest.approx(paid, abs=0.1)  # the seconds are rounded to a tenth
        assert 0 < attempt["seconds"] < lifetimes[attempt["container"]] + 0.5
    total = sum(attempt["cost"] for attempt in attempts)
    assert ledger["cost"] == pytest.approx(total, abs=1e-3)
    state = json.loads(cloud.run("status", "tiny", "--json")[0])
    assert state["attempts"] == len(attempts)
    assert state["cost"] == pytest.approx(total, abs=1e-3)
    assert (
        f"{len(attempts)}: {len(attempts) - 1} x preempted, finished"
        in cloud.run("status", "tiny")[0]
    )


def slow_down_training(cloud: CloudFixture) -> None:
    """Slow down steps and checkpoint files, and print when a checkpoint is being written."""
    cloud.hook_steps(f"time.sleep({STEP_SECONDS})", SLOW_CHECKPOINTS)


SLOW_CHECKPOINTS = f"""
from job import step_folders
from model import checkpoint

fsync_file, write = step_folders.fsync_file, checkpoint.write


def slow_fsync(path):
    print("writes a file")
    time.sleep({FILE_SECONDS})
    fsync_file(path)


def announced_write(*arguments):
    folder = write(*arguments)
    print("has written")
    return folder


step_folders.fsync_file, checkpoint.write = slow_fsync, announced_write
"""
