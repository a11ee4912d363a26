"""A machine is taken away at any moment: while the job imports, in a step, while a checkpoint is written."""

from __future__ import annotations

import json
import os
import random
import time
from subprocess import Popen
from typing import Any

import pytest

from tests.modal_standin import StandinError
from tests.runner.targets.modal.conftest import Lab, train_here

STEPS = ("max_steps=100", "checkpoint_every=10", "eval_every=50")

STEP_SECONDS = 0.05  # so slow that five attempts can't come to the end: in three of a second they make 60 at most

FILE_SECONDS = 0.15  # a checkpoint has three files: about half of the training one is being written

TRAINING_SECONDS = 1.0  # from the trainer's first line, in which it is taken away

BEGINS = ("run tiny begins", "run tiny goes on")


@pytest.mark.slow
def test_five_preemptions_at_random_moments_end_with_the_weights_of_an_unbroken_run(
    strict_lab: Lab,
) -> None:
    lab = strict_lab
    seed = int(os.environ.get("GPT_RUNNER_TEST_SEED") or time.time_ns())
    print(f"to repeat it: GPT_RUNNER_TEST_SEED={seed}")
    began = time.time()
    train_here(lab.checkout, *STEPS)
    unbroken = lab.checkout / "volumes" / "checkpoints" / "tiny"
    importing = json.loads((unbroken / "run.json").read_text())["attempts"][0]["started"] - began
    slow_down_training(lab)

    words = ("cloud", "tiny", "-y", "--device", "cpu", *STEPS)
    (lab.checkout / "prices.yaml").write_text("CPU: 900\nMEMORY: 0\n")  # about a dollar a second
    process = lab.start(*words)
    cut = preempt_at_random(lab, process, random.Random(seed), importing)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err + lab.modal.log()
    assert len(cut) == 5

    assert (lab.run_folder() / "latest").read_text() == "step_00000100\n"
    assert lab.weights() == (unbroken / "step_00000100" / "model.safetensors").read_bytes()
    assert lab.steps() == list(range(1, 101))
    check_the_record(lab, cut)


def preempt_at_random(
    lab: Lab, process: Popen[str], rng: random.Random, importing: float
) -> dict[str, float]:
    """Take five machines away, in an order of the generator's: two in the first ``importing`` seconds of their
    work, three after the trainer's first line. Container → seconds from its first work to the end of it."""
    cut: dict[str, float] = {}
    for in_training in rng.sample([False, False, True, True, True], 5):
        moment = rng.uniform(0, TRAINING_SECONDS if in_training else importing)

        def next_one() -> Any:
            return process.poll() is not None or next(
                (t for t in lab.modal.tasks() if t["inputs"] and t["alive"] and t["id"] not in cut),
                None,
            )

        task = lab.modal.wait_until(next_one, 60)
        assert process.poll() is None, process.communicate()
        began, id = time.monotonic(), task["id"]
        if in_training:
            lab.modal.wait_until(
                lambda id=id: any(line in lab.modal.log(id) for line in BEGINS), 60
            )
        time.sleep(moment)  # there is nothing to wait for: that is the point of it
        log = lab.modal.log(id)
        cut[id] = time.monotonic() - began
        try:
            lab.modal.preempt(id)
        except StandinError:
            raise AssertionError(f"it came to its end before {moment:.2f} s were over") from None
        where = "while it imports" if not any(line in log for line in BEGINS) else "while it trains"
        if log.count("writes a file") > 3 * log.count("has written"):
            where = "while a checkpoint is written"
        print(f"{id} after {cut[id]:.2f} s, {where}")
    return cut


def check_the_record(lab: Lab, cut: dict[str, float]) -> None:
    """Six attempts, and what each cost; five where the last was so near its end that it came to it."""
    ledger = lab.ledger()
    attempts = ledger["attempts"]
    # One that is cut before its body begins can note nothing.
    unborn = cut.keys() - {attempt["container"] for attempt in attempts}
    assert all(cut[container] < 0.5 for container in unborn), cut
    preempted = len(cut) - len(unborn) - (attempts[-1]["container"] in cut)
    assert [attempt["reason"] for attempt in attempts] == ["preempted"] * preempted + ["finished"]
    assert lab.modal.calls()[0]["retries"] == [0]
    lifetimes = {t["id"]: t["ended_at"] - t["started_at"] for t in lab.modal.tasks()}
    for attempt in attempts:
        paid = attempt["seconds"] * attempt["usd_per_hour"] / 3600
        assert attempt["cost"] == pytest.approx(paid, abs=0.1)  # its seconds are rounded to a tenth
        assert 0 < attempt["seconds"] < lifetimes[attempt["container"]] + 0.5
    total = sum(attempt["cost"] for attempt in attempts)
    assert ledger["cost"] == pytest.approx(total, abs=1e-3)
    state = json.loads(lab.run("status", "tiny", "--json")[0])
    assert state["attempts"] == len(attempts)
    assert state["cost"] == pytest.approx(total, abs=1e-3)
    assert (
        f"{len(attempts)}: {len(attempts) - 1} x preempted, finished"
        in lab.run("status", "tiny")[0]
    )


def slow_down_training(lab: Lab) -> None:
    """Slow down steps and checkpoint files, and print when a checkpoint is being written."""
    lab.hook_steps(f"time.sleep({STEP_SECONDS})", SLOW_CHECKPOINTS)


SLOW_CHECKPOINTS = f"""
from model import checkpoint

fsync_file, write = checkpoint.fsync_file, checkpoint.write


def slow_fsync(path):
    print("writes a file")
    time.sleep({FILE_SECONDS})
    fsync_file(path)


def announced_write(*arguments):
    folder = write(*arguments)
    print("has written")
    return folder


checkpoint.fsync_file, checkpoint.write = slow_fsync, announced_write
"""
