"""metrics.jsonl after kills and at any length, and trackers that fail."""

from __future__ import annotations

import errno
import json
import time
import tracemalloc
from pathlib import Path

import pytest

from job.metrics import Metrics, drop_lines_after, gpu_values, read_metrics, sample_metrics
from tests.waiting import wait_for


def test_damaged_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        'null\n3\n{"loss": 1}\n{"kind": "val", "step": 2, "loss": 1.5}\n\n{"kind": "train", "st'
    )
    assert read_metrics(path) == [{"kind": "val", "step": 2, "loss": 1.5}]
    assert read_metrics(tmp_path / "none") == []


def line(step: int, kind: str = "train") -> bytes:
    return json.dumps({"kind": kind, "step": step, "loss": 1.0}).encode() + b"\n"


@pytest.mark.parametrize("tail", [b"", b'{"kind": "tr', b"\0" * 200, b"\xff\xfe\n", b"5\n"])
@pytest.mark.parametrize(("step", "kept"), [(-1, 0), (0, 0), (5, 5), (9, 9), (10, 10), (99, 10)])
def test_a_resume_cuts_the_file_after_its_step(
    tmp_path: Path, tail: bytes, step: int, kept: int
) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [line(number) for number in range(1, 11)]
    path.write_bytes(b"".join(lines) + tail)
    drop_lines_after(path, step)
    assert path.read_bytes() == b"".join(lines[:kept])


def test_a_plot_reads_some_steps_and_every_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert sample_metrics(path, 10) == []
    path.write_bytes(
        b"".join(line(n) + (line(n, "val") if n % 500 == 0 else b"") for n in range(5000))
    )
    found = sample_metrics(path, 10)
    assert [each["step"] for each in found if each["kind"] == "val"] == list(range(0, 5000, 500))
    assert 8 <= sum(each["kind"] == "train" for each in found) <= 10
    assert [each["step"] for each in found] == sorted(each["step"] for each in found)


def test_a_million_lines_resume_in_bounded_memory(tmp_path: Path) -> None:
    """Reading all of them took 16 s and 2.4 GB."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(line(number) for number in range(1_000_000)))
    tracemalloc.start()
    started = time.process_time()
    drop_lines_after(path, 999_900)
    sample_metrics(path, 400)
    assert time.process_time() - started < 2
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    assert path.read_bytes().endswith(line(999_900))


def test_a_failing_tensorboard_is_turned_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    metrics = Metrics(tmp_path, 0, messages.append)
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(
        metrics.tensorboard.records, "write", lambda *given: (_ for _ in ()).throw(full)
    )
    for step in (1, 2):
        metrics.log("train", step, loss=float("nan"))
    metrics.flush(durable=True)
    metrics.close()
    assert [each["step"] for each in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert len(messages) == 1
    assert "the training continues" in messages[0]

    def broken(*given: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr("job.trackers.tensorboard.TensorBoard._open", broken)
    Metrics(tmp_path, 0, messages.append).close()
    assert "no network" in messages[1]


NVIDIA_SMI = """#!/bin/sh
case "$*" in *utilization.gpu,memory.used,clocks.sm*)
printf '97, 1000, 1980\\n99, 2000, 990\\n[N/A], 0, 0\\n';; esac
"""


def test_each_gpu_is_in_the_metrics_of_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    expected = {
        **{"gpu_use_0": 0.97, "gpu_memory_0": 1000 * 2.0**20, "gpu_clock_0": 1.98e9},
        **{"gpu_use_1": 0.99, "gpu_memory_1": 2000 * 2.0**20, "gpu_clock_1": 0.99e9},
    }
    assert gpu_values() == expected
    metrics = Metrics(tmp_path, -1, print)
    assert metrics.gpus is not None
    wait_for(lambda: bool(metrics.gpus and metrics.gpus.values))
    metrics.log("train", 1, loss=2.0)
    metrics.log("val", 1, loss=2.0)
    metrics.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [
        {"kind": "train", "step": 1, "loss": 2.0, **expected},
        {"kind": "val", "step": 1, "loss": 2.0},
    ]
