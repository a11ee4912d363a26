"""Trackers of a run on the stand-in that is preempted twice, and notifications of its endings."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from job.trackers import TRACKERS, read_state
from tests.runner.targets.modal.conftest import CloudFixture
from tests.tracker_stores import WORDS, check_stores


@pytest.mark.slow
def test_two_preemptions_leave_one_run_with_every_step_once(cloud: CloudFixture) -> None:
    for name in (*TRACKERS, "transformers"):
        pytest.importorskip(name)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(cloud.checkout)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "Start"]):
        subprocess.run([*git, *words], check=True)
    cloud.hold_at(15, 35)
    process = cloud.start("cloud", "tiny", "-y", "--device", "cpu", *WORDS)
    for attempt, (held_at, sent) in enumerate(((15, 4), (35, 16)), 1):
        step = f'"step": {held_at - 5},'
        cloud.modal.wait_until(lambda: step in cloud.metrics(), 240)  # noqa: B023
        folder = cloud.run_folder()
        cloud.modal.wait_until(lambda: min(_sent(folder)) >= sent, 240)  # noqa: B023
        cloud.modal.preempt()
        cloud.modal.wait_until(lambda: len(cloud.ledger()["attempts"]) > attempt, 120)  # noqa: B023
    cloud.finish(process)
    ended = [each["reason"] for each in cloud.ledger()["attempts"]]
    # A busy machine may not end within Modal's grace period.
    assert set(ended[:2]) <= {"preempted", "killed"}
    assert ended[2:] == ["finished"]
    check_stores(cloud.run_folder(), "cloud")


def _sent(folder: Path) -> list[int]:
    return [read_state(folder, name).step for name in TRACKERS]
