"""The screen of `runner watch`, for any run and terminal size."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from runner.request import TargetOptions
from runner.runs.history import History, Sample
from runner.runs.metrics import Metrics
from runner.target import LaunchHandle, RunInfo
from runner.views.dashboard import Snapshot, format_line, screen
from tests.runner.fake_run import metrics

STATE = RunInfo(
    "warm", "train", "cloud", "running", alive=True, gpu="H100", step=100, max_steps=400,
    attempts=3,
    end_reasons=("preempted", "preempted"), started=1000.0, cost=1.25,
)  # fmt: skip


def history(steps: int = 100, **more: object) -> History:
    read = Metrics()
    read.read(metrics(steps).encode().split(b"\n"))
    launch = LaunchHandle(
        "warm", "cloud", "train", "fc", 1000.0, target_options=TargetOptions(max_cost=5.0)
    )
    return replace(History(STATE, launch=launch, metrics=read), **more)


def drawn(snapshot: Snapshot, width: int = 100, height: int = 30) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    with console.capture() as capture:
        console.print(screen(snapshot, 1090.0, width, height))
    return capture.get().splitlines()


def test_every_measured_value_is_shown() -> None:
    text = "\n".join(drawn(Snapshot(history(samples=(Sample("100", "def f():\n    pass"),)))))
    for expected in (
        *("warm  train on cloud · H100 · running · 1m30s", "attempts 3: 2 x preempted"),
        *("step 100/400  25%", "2m30s left"),  # 300 steps of 1,000 tokens at 2,000 a second
        *("tokens/s 2,000", "MFU 25.0%", "memory 3.2 GB", "cost $1.25 of $5.00 (25%)"),
        *("training loss", "validation loss", "sample of step 100", "def f():", "press q to quit"),
    ):
        assert expected in text, expected


def test_each_gpu_is_shown_and_the_slowest_is_named() -> None:
    gpus = {f"gpu_use_{n}": 0.98 for n in range(3)} | {f"gpu_memory_{n}": 8e9 for n in range(3)}
    clocks = {"gpu_clock_0": 1.98e9, "gpu_clock_1": 1.2e9, "gpu_clock_2": 1.98e9}
    read = Metrics()
    read.read([json.dumps({"kind": "train", "step": 1, "loss": 2.0, **gpus, **clocks}).encode()])
    text = "\n".join(drawn(Snapshot(History(STATE, metrics=read))))
    assert "GPUs 98% 98% 98% (slowest: 1)" in text
    assert "gpu_" not in text


def test_unmeasured_values_are_omitted() -> None:
    read = Metrics()
    read.read([b'{"kind": "train", "step": 1, "tokens": 10, "loss": 2.0}'])
    host = replace(STATE, target="host", cost=None, gpu=None)
    text = "\n".join(drawn(Snapshot(History(host, metrics=read))))
    assert "loss 2.0000" in text
    assert not [
        word
        for word in ("MFU", "memory", "tokens/s", "cost", "left", "GPU", "None")
        if word in text
    ]


def test_the_metrics_of_an_experiment_are_plotted() -> None:
    read = Metrics()
    read.read([b'{"kind": "train", "step": %d, "reward": %d}' % (i, i) for i in range(9)])
    text = "\n".join(drawn(Snapshot(History(STATE, metrics=read))))
    assert "━ reward" in text
    assert "reward 8" in text


def test_before_the_first_sample_the_log_is_shown() -> None:
    text = "\n".join(drawn(Snapshot(History(STATE, log=("preparing", "compiling")))))
    assert "preparing\ncompiling" in text


def test_an_unreachable_target_is_reported() -> None:
    last = drawn(Snapshot(history(), age=75.0, error="no route\nto host"))[-1]
    assert last.startswith("no answer for 1m15s, trying again: no route to host")


@pytest.mark.parametrize(
    "size", [(20, 4), (30, 8), (60, 12), (80, 24), (109, 30), (110, 30), (200, 60), (400, 20)]
)
@pytest.mark.parametrize("sample", ["", "x" * 5000, "語" * 5000, "\n" * 500, "\t\t\ta\n" * 50])
def test_it_fits_into_any_size(size: tuple[int, int], sample: str) -> None:
    width, height = size
    snapshot = Snapshot(history(samples=(Sample("100", sample),)), error="t" * 500, age=5.0)
    lines = drawn(snapshot, width, height)
    assert len(lines) <= max(height, 6)
    assert max(map(len, lines)) <= width


def test_escape_sequences_of_a_run_are_not_printed() -> None:
    escape = "\x1b]0;title\x07\x1b[31mred"
    state = replace(
        STATE, job=escape, gpu=escape, reason=escape, end_reasons=(escape, escape), alive=False
    )
    read = Metrics()
    read.read([json.dumps({"kind": escape, "step": 1, escape: 2.0}).encode()])
    snapshot = Snapshot(History(state, metrics=read), error=escape)
    for text in (*drawn(snapshot), format_line(snapshot)):
        assert "\x1b" not in text
        assert "\x07" not in text
