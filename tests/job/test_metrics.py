"""metrics.jsonl after kills and at any length, and trackers that fail."""

from __future__ import annotations

import errno
import json
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest

from job.metrics import Metrics, drop_lines_after, read_metrics, sample_metrics


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


class BrokenTracker:
    """A tracker that raises at each call."""

    def __init__(self, *given: object) -> None:
        raise RuntimeError("no network")


def test_a_tracker_that_fails_is_turned_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    metrics = Metrics(tmp_path, 0, None, said.append)
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(metrics.trackers[0], "log", lambda *given: (_ for _ in ()).throw(full))
    for step in (1, 2):
        metrics.log("train", step, loss=float("nan"))
    metrics.flush(durable=True)
    metrics.close()
    assert [each["step"] for each in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert len(said) == 1
    assert "the training continues" in said[0]
    monkeypatch.setattr("job.metrics._TensorBoard", BrokenTracker)
    Metrics(tmp_path, 0, None, said.append).close()
    assert "no network" in said[1]


@pytest.mark.parametrize("failure", [RuntimeError("timed out after 90 s"), SystemExit(1)])
def test_wandb_never_ends_or_delays_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    may_fail = threading.Event()

    def init(**given: object) -> None:
        may_fail.wait(30)
        raise failure

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))  # type: ignore[misc]
    monkeypatch.setenv("WANDB_API_KEY", "x")
    said: list[str] = []
    started = time.monotonic()
    metrics = Metrics(tmp_path, 0, "project", said.append)
    metrics.log("train", 1, loss=1.0)
    assert time.monotonic() - started < 20
    assert said == []
    may_fail.set()
    metrics.close()
    assert len(said) == 1
    assert "Weights & Biases failed; the training continues" in said[0]


def test_wandb_offline_needs_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[object] = []
    run = SimpleNamespace(log=lambda *a, **k: logged.append(a), finish=lambda: logged.append("end"))
    module = SimpleNamespace(init=lambda **given: run)
    monkeypatch.setitem(sys.modules, "wandb", module)  # type: ignore[misc]
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    said: list[str] = []
    Metrics(tmp_path, 0, "project", said.append).close()
    assert "WANDB_API_KEY is not" in said[0]
    monkeypatch.setenv("WANDB_MODE", "offline")
    metrics = Metrics(tmp_path, 0, "project", said.append)
    metrics.log("train", 1, loss=1.0)
    metrics.close()
    assert logged == [({"train/loss": 1.0},), "end"]
