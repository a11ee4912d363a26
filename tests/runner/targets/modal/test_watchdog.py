"""The watchdogs for stalled runs and idle GPUs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from job.run_record import EndReason
from runner.runs.attempts import AttemptLog, CloudAttempt
from runner.targets.modal import watchdog
from runner.targets.modal.app import attempt_timeout
from runner.targets.modal.container import MountedVolumes
from runner.targets.modal.entrypoint import AttemptRunner
from runner.targets.modal.options import ResolvedOptions
from runner.targets.modal.watchdog import AttemptNotifier, IdleGpuWatchdog, StallWatchdog
from tests.runner.targets.modal.conftest import CloudFixture, cloud_with, use_light_attempts
from tests.runner.targets.modal.test_entrypoint import reasons


@pytest.fixture
def cloud(light_cloud: CloudFixture) -> CloudFixture:
    """Use trainings without a network."""
    return light_cloud


def grow(metrics: Path) -> None:
    with metrics.open("a") as file:
        file.write("a line\n")


def steady(metrics: Path, every: float, after: float | None) -> tuple[StallWatchdog, float]:
    """Return a watchdog that has seen ten metrics, and the time of the last."""
    guard, now = StallWatchdog(metrics, after), 0.0
    for _ in range(10):
        now += every
        grow(metrics)
        assert guard.check(now) == ""
    return guard, now


class TestStall:
    def test_ten_times_the_usual_interval_is_a_stall(self, tmp_path: Path) -> None:
        guard, now = steady(tmp_path / "metrics.jsonl", every=20.0, after=60.0)
        assert guard.check(now + 199.0) == ""
        assert "no step for 200 s; until then, there was one every 20.0 s" in guard.check(
            now + 200.0
        )

    def test_short_pause_is_not_a_stall(self, tmp_path: Path) -> None:
        guard, now = steady(tmp_path / "metrics.jsonl", every=0.1, after=600.0)
        assert guard.check(now + 599.0) == ""
        assert guard.check(now + 600.0) != ""

    def test_new_metric_restarts_the_wait(self, tmp_path: Path) -> None:
        guard, now = steady(tmp_path / "metrics.jsonl", every=1.0, after=60.0)
        grow(tmp_path / "metrics.jsonl")
        assert guard.check(now + 59.0) == ""
        assert guard.check(now + 100.0) == ""

    def test_no_report_before_the_first_step(self, tmp_path: Path) -> None:
        guard = StallWatchdog(tmp_path / "metrics.jsonl", 1.0)
        assert [guard.check(now) for now in (0.0, 1000.0, 5000.0)] == [""] * 3

    def test_stall_after_the_first_metric(self, tmp_path: Path) -> None:
        guard = StallWatchdog(tmp_path / "metrics.jsonl", 60.0)
        assert guard.check(1.0) == ""
        grow(tmp_path / "metrics.jsonl")
        assert guard.check(500.0) == ""
        assert guard.check(559.0) == ""
        assert guard.check(560.0) != ""

    def test_resumed_attempt_starts_without_an_interval(self, tmp_path: Path) -> None:
        grow(tmp_path / "metrics.jsonl")  # of an earlier attempt
        guard = StallWatchdog(tmp_path / "metrics.jsonl", 60.0)
        for now in (0.0, 50.0, 51.0, 52.0):
            assert guard.check(now) == ""
            grow(tmp_path / "metrics.jsonl")
        assert list(guard.intervals) == [1.0, 1.0]

    def test_watchdog_can_be_disabled(self, tmp_path: Path) -> None:
        guard, now = steady(tmp_path / "metrics.jsonl", every=1.0, after=None)
        assert guard.check(now + 1e6) == ""


class TestIdle:
    def test_idle_gpu_of_two_is_named(self) -> None:
        guard = IdleGpuWatchdog(after_s=900.0)
        for now in range(0, 900, 30):
            assert guard.check([97, 0], float(now)) == ""
        assert "GPU 1 was idle for 900 s" in guard.check([97, 2], 900.0)

    def test_occasional_work_is_not_idle(self) -> None:
        guard = IdleGpuWatchdog(after_s=100.0)
        assert all(
            guard.check([50 if now % 90 == 0 else 0], float(now)) == ""
            for now in range(0, 1000, 10)
        )

    def test_utilization_from_nvidia_smi(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert watchdog.gpu_utilization() == []
        fake_smi(tmp_path, "93\n0\n")
        assert watchdog.gpu_utilization() == [93, 0]
        fake_smi(tmp_path, "[N/A]\n")
        assert watchdog.gpu_utilization() == []


def fake_smi(folder: Path, utilization: str) -> None:
    """Write a fake nvidia-smi that prints a GPU's name and ``utilization``."""
    script = folder / "nvidia-smi"
    script.write_text(
        "#!/bin/sh\n"
        f"case \"$1\" in *name*) echo 'NVIDIA L4';; *) printf '%s' '{utilization}';; esac\n"
    )
    script.chmod(0o755)


def test_stalled_run_ends_with_its_reason(cloud: CloudFixture) -> None:
    cloud.hook_steps("if step == 40: signal.pause()")
    words = ("--device", "cpu", "max_steps=60", "resources.stop_stalled_after=8s")
    _, err = cloud.train(*words, status=101)
    assert "no step for" in err
    assert reasons(cloud) == ["stalled"]
    state = json.loads(cloud.run("status", "tiny", "--json")[0])
    assert state["status"] == "unfinished"
    assert "it stalled: no step for" in state["reason"]
    assert (cloud.run_folder() / "latest").read_text().strip() == "step_00000040"


def test_idle_gpu_ends_the_run(tmp_path: Path) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    fake_smi(fake, "0\n")
    with cloud_with(
        tmp_path, PATH=f"{fake}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    ) as cloud:
        use_light_attempts(cloud).slow_down(0.02)
        words = ("--device", "cpu", "max_steps=5000", "stop_idle_gpu_after=10s")
        _, err = cloud.train(*words, status=101)
        assert "GPU 0 was idle for" in err
        assert reasons(cloud) == ["idle-gpu"]
        assert cloud.ledger()["attempts"][0]["detail"].startswith("GPU 0")


DAY_S = 86400.0


@pytest.mark.parametrize(
    ("limits", "reason", "stop", "kill"),
    [
        ((0.0, DAY_S, 3 * DAY_S, 0.0, None, 0.0, 1.0), "attempt-timeout", 86100.0, DAY_S),
        # The run's limits count earlier attempts.
        ((1000.0, DAY_S, 7200.0, 3600.0, None, 0.0, 1.0), "run-timeout", 4300.0, 4600.0),
        ((0.0, DAY_S, DAY_S, 0.0, 25.0, 5.0, 10.0), "budget", 6900.0, 7200.0),
        ((0.0, DAY_S, DAY_S, 0.0, 25.0, 26.0, 10.0), "budget", 0.0, 0.0),  # spent
    ],
)
def test_the_earliest_limit_is_the_deadline(
    limits: tuple[float, ...], reason: str, stop: float, kill: float
) -> None:
    found = watchdog.next_deadline(*limits)  # type: ignore[arg-type]
    assert (found.reason, found.stop, found.kill) == (reason, stop, kill)


@pytest.mark.parametrize(
    ("hours", "seconds", "margin"),
    [
        (5.0, 2.0, 8.0),  # a small network stops seconds before the end, instead of 5 minutes
        (5.0, 80.0, 242.0),
        (5.0, 900.0, 300.0),  # longer writes would be lost: Modal's grace period is shorter
        (0.01, 0.9, 3.6),  # 36 seconds: a tenth
        (0.01, 3.0, 9.0),  # more than a tenth if stopping takes longer
    ],
)
def test_margin_follows_the_measured_stopping_time(
    hours: float, seconds: float, margin: float
) -> None:
    first = watchdog.Deadline(0.0, 1000.0 + hours * 3600, "budget")
    found = watchdog.with_measured_margin(first, 1000.0, seconds)
    assert found.kill - found.stop == pytest.approx(margin)
    assert (found.kill, found.reason) == (first.kill, "budget")


def test_run_deadline_precedes_modals_limit() -> None:
    for used in (0.0, 100.0, 80000.0):
        each = attempt_timeout(ResolvedOptions(timeout_s=DAY_S), used, {}, {})
        found = watchdog.next_deadline(0.0, each, DAY_S, used, None, 0.0, 1.0)
        assert found.stop < found.kill <= each
        assert found.reason == "run-timeout"  # no further attempt for the last minutes


def test_the_cap_is_announced_once_when_most_of_it_is_spent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(AttemptNotifier, "send", lambda self, text: sent.append(text))
    notifier = AttemptNotifier.__new__(AttemptNotifier)
    log = AttemptLog([CloudAttempt("fc-1", "ta-1", 0.0, 3600.0, 10.0, ended=3600.0)])
    for cap in (None, 13.0, 12.0, 12.0):
        notifier.warn_of_cap(log, cap)
    assert sent == ["has spent $10.00 of its $12.00 limit"]


@pytest.mark.parametrize("reason", ["node-lost", "attempt-timeout"])
def test_the_end_of_the_last_attempt_that_modal_starts_is_reported(
    monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(AttemptNotifier, "send", lambda self, text: sent.append(text))
    runner = AttemptRunner.__new__(AttemptRunner)
    runner.call, runner.rank, runner.keeps_record, runner.log = "fc-1", 1, False, AttemptLog()
    runner.notifier = AttemptNotifier.__new__(AttemptNotifier)
    runner.volumes = MountedVolumes({})
    ends = ["preempted", reason] * 10 + [reason]  # Modal does not count preemptions
    for call, end in [("fc-0", reason), *(("fc-1", end) for end in ends)]:
        runner.log.begin(CloudAttempt(call, "ta-1", 0.0, 10.0, 1.0), "ap-1")
        assert sent == []
        ended = runner._end(EndReason(end), None)
    assert ended == (reason, 101)
    assert (runner.log.status, runner.log.reason) == (101, reason)
    assert sent == [f"stopped: {reason}: all 11 attempts are used up"]


@pytest.mark.parametrize("reason", ["preempted", "killed", "node-lost", "attempt-timeout"])
def test_every_reason_after_which_an_attempt_follows_is_reported(
    monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(AttemptNotifier, "send", lambda self, text: sent.append(text))
    notifier, log = AttemptNotifier.__new__(AttemptNotifier), AttemptLog()
    for call in ("fc-1", "fc-1", "fc-2"):  # the third is a launch by the user
        log.begin(CloudAttempt(call, "ta-1", 0.0, 10.0, 1.0), "ap-1")
        notifier.resumed(log)
        if reason != "killed":
            log.end_attempt(EndReason(reason), None, 10.0)
            assert notifier.ended(log) is None
    assert sent == [f"resumes as attempt 2: {reason}"]
