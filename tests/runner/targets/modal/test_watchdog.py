"""A run that only costs is ended, and says why."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from runner.targets.modal import watchdog
from runner.targets.modal.watchdog import IdleGpuWatchdog, StallWatchdog
from tests.runner.targets.modal.conftest import Lab, lab_with
from tests.runner.targets.modal.test_entrypoint import reasons


def grow(metrics: Path) -> None:
    with metrics.open("a") as file:
        file.write("a line\n")


def steady(metrics: Path, every: float, after: float | None) -> tuple[StallWatchdog, float]:
    """A guard that has seen ten signs, and the time of the last."""
    guard, now = StallWatchdog(metrics, after), 0.0
    for _ in range(10):
        now += every
        grow(metrics)
        assert guard.look(now) == ""
    return guard, now


class TestStall:
    def test_ten_times_the_usual_is_a_standstill(self, tmp_path: Path) -> None:
        guard, now = steady(tmp_path / "metrics.jsonl", every=20.0, after=60.0)
        assert guard.look(now + 199.0) == ""
        assert "no step for 200 s, where a sign every 20.0 s was usual" in guard.look(now + 200.0)

    def test_a_short_wait_is_forgiven_however_fast_the_steps_are(self, tmp_path: Path) -> None:
        guard, now = steady(tmp_path / "metrics.jsonl", every=0.1, after=600.0)
        assert guard.look(now + 599.0) == ""
        assert guard.look(now + 600.0) != ""

    def test_a_sign_begins_the_wait_anew(self, tmp_path: Path) -> None:
        guard, now = steady(tmp_path / "metrics.jsonl", every=1.0, after=60.0)
        grow(tmp_path / "metrics.jsonl")
        assert guard.look(now + 59.0) == ""
        assert guard.look(now + 100.0) == ""

    def test_before_the_first_steps_it_is_silent(self, tmp_path: Path) -> None:
        guard = StallWatchdog(tmp_path / "metrics.jsonl", 1.0)
        assert [guard.look(now) for now in (0.0, 1000.0, 5000.0)] == [""] * 3

    def test_a_run_that_hangs_right_after_its_first_sign_is_found(self, tmp_path: Path) -> None:
        guard = StallWatchdog(tmp_path / "metrics.jsonl", 60.0)
        assert guard.look(1.0) == ""
        grow(tmp_path / "metrics.jsonl")
        assert guard.look(500.0) == ""
        assert guard.look(559.0) == ""
        assert guard.look(560.0) != ""

    def test_the_start_of_an_attempt_that_goes_on_is_no_sign_of_the_usual(
        self, tmp_path: Path
    ) -> None:
        grow(tmp_path / "metrics.jsonl")  # the attempt before
        guard = StallWatchdog(tmp_path / "metrics.jsonl", 60.0)
        for now in (0.0, 50.0, 51.0, 52.0):
            assert guard.look(now) == ""
            grow(tmp_path / "metrics.jsonl")
        assert list(guard.between) == [1.0, 1.0]

    def test_it_can_be_switched_off(self, tmp_path: Path) -> None:
        guard, now = steady(tmp_path / "metrics.jsonl", every=1.0, after=None)
        assert guard.look(now + 1e6) == ""


class TestIdle:
    def test_one_gpu_of_two_that_rests_is_named(self) -> None:
        guard = IdleGpuWatchdog(after=900.0)
        for now in range(0, 900, 30):
            assert guard.look([97, 0], float(now)) == ""
        assert "GPU 1 has done nothing for 900 s" in guard.look([97, 2], 900.0)

    def test_work_now_and_then_is_work(self) -> None:
        guard = IdleGpuWatchdog(after=100.0)
        assert all(
            guard.look([50 if now % 90 == 0 else 0], float(now)) == "" for now in range(0, 1000, 10)
        )

    def test_nvidia_smi_is_asked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert watchdog.utilisation() == []
        fake_smi(tmp_path, "93\n0\n")
        assert watchdog.utilisation() == [93, 0]
        fake_smi(tmp_path, "[N/A]\n")
        assert watchdog.utilisation() == []


def fake_smi(folder: Path, utilisation: str) -> None:
    """An nvidia-smi that knows one GPU's name and says ``utilisation``."""
    script = folder / "nvidia-smi"
    script.write_text(
        f"#!/bin/sh\ncase \"$1\" in *name*) echo 'NVIDIA L4';; *) printf '%s' '{utilisation}';; esac\n"
    )
    script.chmod(0o755)


def test_a_run_that_hangs_is_ended_with_its_reason(lab: Lab) -> None:
    lab.hook_steps("if step == 40: signal.pause()")
    words = ("--device", "cpu", "max_steps=60", "resources.stop_stalled_after=8s")
    _, err = lab.train(*words, status=101)
    assert "no step for" in err
    assert reasons(lab) == ["stalled"]
    state = json.loads(lab.run("status", "tiny", "--json")[0])
    assert state["status"] == "unfinished"
    assert "it stood still: no step for" in state["reason"]
    assert (lab.run_folder() / "latest").read_text().strip() == "step_00000040"


def test_a_gpu_that_idles_ends_the_run(tmp_path: Path) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    fake_smi(fake, "0\n")
    with lab_with(
        tmp_path, PATH=f"{fake}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    ) as lab:
        lab.slow_down(0.02)
        words = ("--device", "cpu", "max_steps=5000", "stop_idle_gpu_after=10s")
        _, err = lab.train(*words, status=101)
        assert "GPU 0 has done nothing for" in err
        assert reasons(lab) == ["idle-gpu"]
        assert lab.ledger()["attempts"][0]["detail"].startswith("GPU 0")
