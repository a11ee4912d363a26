"""`bench speed` with a real trainer on a tiny recipe and a fake nanoGPT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.results import Measurement, Results, RunFailed, Step
from bench.setup import Setup, Task
from bench.speed import best_micro_batch, summarize, train_if_it_fits
from job.exit_status import ExitStatus
from job.paths import CONFIGS, VolumePaths
from tests.bench.conftest import read_results
from tests.model.conftest import Lab


def test_trainers_take_turns_and_each_result_is_kept(
    lab: Lab, bench_args: list[str], nanogpt_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = lab.folder / "results.jsonl"
    args = ["speed", *bench_args, "--steps", "6", "--json", "--repeats", "2", "--out", str(out)]
    args += ["--baseline", f"nanogpt={nanogpt_folder}", "--baseline", f"nanochat={nanogpt_folder}"]
    assert main(args) == ExitStatus.DONE
    results = read_results(out)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == results
    turns = [(r["trainer"], r["turn"]) for r in results if r["what"] == "turn"]
    assert turns == [("ours", 1), ("nanogpt", 1), ("ours", 2), ("nanogpt", 2)]
    # The folder that is not a nanochat checkout fails separately, with the reason.
    failures = [r for r in results if r["what"] == "failed"]
    assert [f["trainer"] for f in failures] == ["nanochat", "nanochat"]
    assert "not a nanochat checkout" in failures[0]["why"]
    ours, nanogpt = (
        next(r for r in results if r["what"] == "speed" and r["trainer"] == name)
        for name in ("ours", "nanogpt")
    )
    assert 0 < ours["mfu_roofline"] < 1.5
    assert ours["stalls"][0] > 0
    assert ours["peak_memory_gb"] > 0.1
    assert (nanogpt["ms_median"], nanogpt["steps"], nanogpt["micro_batch"]) == (16.0, 6, 8)
    assert nanogpt["tokens_per_second"] == 256 / 0.016
    own_turns = [r for r in results if r["what"] == "turn" and r["trainer"] == "ours"]
    pairs = [16 / r["ms_median"] for r in own_turns]
    assert nanogpt["pairs"] == pytest.approx(pairs, rel=1e-3)
    assert nanogpt["ours_speedup"] == pytest.approx(sum(pairs) / 2, rel=1e-3)


class FakeBaseline:
    """A baseline that is fastest at 64 sequences and has memory for ``most`` of them."""

    def __init__(self, most: int) -> None:
        self.tried: list[int] = []
        self.most = most

    def train(self, setup: Setup, task: Task) -> Measurement:
        assert task.micro_batch is not None
        self.tried.append(task.micro_batch)
        if task.micro_batch > self.most:
            raise RunFailed("exit status 1", "torch.OutOfMemoryError: CUDA out of memory")
        seconds = {16: 4.0, 32: 2.0, 64: 1.0, 128: 1.1, 256: 1.2}[task.micro_batch]
        return Measurement([Step(i, seconds, 1.0) for i in range(9)], 1024, 9.0, task.micro_batch)


def test_larger_micro_batches_are_tried_until_slower_or_out_of_memory(tmp_path: Path) -> None:
    args = (str(CONFIGS / "shakespeare_char.yaml"), "global_batch_tokens=65536")
    setup = Setup(args, "cuda", tmp_path, VolumePaths.under(tmp_path), {}, Results())
    slower, medium, small = FakeBaseline(256), FakeBaseline(64), FakeBaseline(32)
    size, trial = best_micro_batch(setup, "baseline", slower.train)
    assert (size, trial is not None and trial.median_seconds) == (64, 1.0)
    assert slower.tried == [64, 128]
    assert best_micro_batch(setup, "baseline", medium.train)[0] == 64
    assert medium.tried == [64, 128]
    # Without memory for the first size, half of it is tried next, and no larger size.
    assert best_micro_batch(setup, "baseline", small.train)[0] == 32
    assert small.tried == [64, 32]
    with pytest.raises(RunFailed):
        best_micro_batch(setup, "baseline", FakeBaseline(4).train)
    halved = FakeBaseline(16)
    task = Task("baseline", 9, 64)
    assert train_if_it_fits(setup, halved.train, task).micro_batch == 16
    assert halved.tried == [64, 32, 16]


def test_compilation_in_the_first_steps_is_not_part_of_the_speed() -> None:
    steps = [Step(1, 30.0, 9.0), Step(2, 0.5, 8.0), *(Step(n, 0.1, 7.0) for n in range(3, 41))]
    run = Measurement(steps, 1000, 40.0, 8)
    assert run.median_seconds == 0.1
    assert run.compile_seconds == pytest.approx(30.3)
    assert run.to_json()["tokens_per_second"] == 10000
    slower = Measurement([Step(n, 0.2, 7.0) for n in range(1, 41)], 1000, 8.0, 8)
    assert summarize("baseline", [slower, slower], [run, run])["ours_speedup"] == 2.0


def test_an_unknown_trainer_is_refused(
    bench_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["speed", *bench_args, "--baseline", "llmc=/x"]) == ExitStatus.ERROR
    message = "unknown trainer 'llmc'; expected one of ours, nanogpt, nanochat, hf"
    assert message in capsys.readouterr().err
