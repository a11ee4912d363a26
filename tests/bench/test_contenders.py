"""The bench's own measurements: real trainers on a tiny recipe, and a script that prints as nanoGPT does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import loss
from bench.__main__ import main
from bench.contenders import Task
from bench.measured import Measured, Step
from bench.process import Failed, guarded, watch
from bench.results import Results
from bench.setup import Setup
from bench.speed import best_micro_batch, summary, train_if_it_fits
from job.exit_status import ExitStatus
from job.paths import CONFIGS, VolumePaths
from job.recipe import load
from tests.model.conftest import Lab

# Prints an evaluation and iterations as nanoGPT's train.py does; its steps take 2 ms more for each sequence.
TRAIN = """
import sys
given = dict(word[2:].split("=") for word in sys.argv[1:] if "=" in word)
assert open("data/bench/train.bin", "rb").read(2)
print("step 0: train loss 4.2000, val loss 4.1000")
for i in range(int(given.get("max_iters", 3)) + 1):
    print(f"iter {i}: loss {4 - i / 100:.4f}, time {900.0 if i == 0 else 2.0 * int(given.get('batch_size', 1)):.2f}ms, mfu 1.00%")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "nanoGPT"
    (folder / "config").mkdir(parents=True)
    (folder / "train.py").write_text(TRAIN)
    return folder


def results_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_contenders_take_turns_and_each_result_is_kept(
    lab: Lab, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = lab.folder / "results.jsonl"
    words = [
        str(lab.recipe),
        "--text",
        str(lab.folder / "text.txt"),
        "--steps",
        "6",
        "--device",
        "cpu",
        "--json",
    ]
    peers = ["--peer", f"nanogpt={checkout}", "--peer", f"nanochat={checkout}"]
    assert main(["speed", *words, *peers, "--repeats", "2", "--out", str(out)]) == ExitStatus.DONE
    results = results_of(out)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == results
    turns = [(r["contender"], r["turn"]) for r in results if r["what"] == "turn"]
    assert turns == [("ours", 1), ("nanogpt", 1), ("ours", 2), ("nanogpt", 2)]
    # The folder that is no nanochat fails by itself, with the reason.
    failures = [r for r in results if r["what"] == "failed"]
    assert [f["contender"] for f in failures] == ["nanochat", "nanochat"]
    assert "no checkout of nanochat" in failures[0]["why"]
    ours, nanogpt = (
        next(r for r in results if r["what"] == "speed" and r["contender"] == c)
        for c in ("ours", "nanogpt")
    )
    assert 0 < ours["mfu_roofline"] < 1.5
    assert ours["stalls"][0] > 0
    assert ours["peak_memory_gb"] > 0.1
    assert (nanogpt["ms_median"], nanogpt["steps"], nanogpt["micro_batch"]) == (16.0, 6, 8)
    assert nanogpt["tokens_per_second"] == 256 / 0.016
    pairs = [
        16 / r["ms_median"] for r in results if r["what"] == "turn" and r["contender"] == "ours"
    ]
    assert nanogpt["pairs"] == pytest.approx(pairs, rel=1e-3)
    assert nanogpt["ours_is_faster"] == pytest.approx(sum(pairs) / 2, rel=1e-3)


def test_a_larger_micro_batch_is_tried_until_it_does_not_pay_or_fit(tmp_path: Path) -> None:
    class Peer:
        """Its speed peaks at 64 sequences."""

        def __init__(self, most: int) -> None:
            self.tried, self.most = [], most

        def train(self, setup: Setup, task: Task) -> Measured:
            assert task.micro_batch is not None
            self.tried.append(task.micro_batch)
            if task.micro_batch > self.most:
                raise Failed("ended with 1", "torch.OutOfMemoryError: CUDA out of memory")
            seconds = {16: 4.0, 32: 2.0, 64: 1.0, 128: 1.1, 256: 1.2}[task.micro_batch]
            return Measured([Step(i, seconds, 1.0) for i in range(9)], 1024, 9.0, task.micro_batch)

    recipe = load(CONFIGS / "shakespeare_char.yaml", ["global_batch_tokens=65536"])
    setup = Setup(("x",), recipe, "cuda", tmp_path, VolumePaths.under(tmp_path), {}, Results())
    slower, full = Peer(256), Peer(32)
    size, trial = best_micro_batch(setup, "peer", slower)
    assert (size, trial is not None and trial.median) == (64, 1.0)
    assert slower.tried == [32, 64, 128]
    assert best_micro_batch(setup, "peer", full)[0] == 32
    assert full.tried == [32, 64]
    with pytest.raises(Failed):
        best_micro_batch(setup, "peer", Peer(4))
    halved = Peer(16)
    assert train_if_it_fits(setup, halved, Task("peer", 9, 64)).micro_batch == 16
    assert halved.tried == [64, 32, 16]


def test_the_first_steps_are_compilation_and_not_speed() -> None:
    steps = [Step(1, 30.0, 9.0), Step(2, 0.5, 8.0), *(Step(n, 0.1, 7.0) for n in range(3, 41))]
    found = Measured(steps, 1000, 40.0, 8)
    assert found.median == 0.1
    assert found.compile_seconds == pytest.approx(30.3)
    assert found.facts()["tokens_per_second"] == 10000
    twice = Measured([Step(n, 0.2, 7.0) for n in range(1, 41)], 1000, 8.0, 8)
    assert summary("peer", [twice, twice], [found, found])["ours_is_faster"] == 2.0


def test_a_process_that_hangs_or_fails_is_ended_and_told(tmp_path: Path) -> None:
    log = tmp_path / "peer.log"
    with pytest.raises(Failed, match="not done after"):
        watch(
            [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)"],
            tmp_path,
            {},
            log,
            1.0,
        )
    results = Results(tmp_path / "out.jsonl")
    with guarded(results, contender="peer"):
        watch([sys.executable, "-c", "raise SystemExit('out of memory')"], tmp_path, {}, log, 60.0)
    (failed,) = results_of(tmp_path / "out.jsonl")
    assert (failed["what"], failed["contender"]) == ("failed", "peer")
    assert "ended with 1" in failed["why"]
    assert "out of memory" in failed["why"]


def test_an_unknown_contender_is_refused(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["speed", str(lab.recipe), "--text", str(lab.folder / "text.txt"), "--device", "cpu"]
    assert main([*words, "--peer", "llmc=/x"]) == ExitStatus.ERROR
    assert (
        "there is no contender llmc; there are ours, nanogpt, nanochat, hf"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_time_to_a_loss_stops_at_the_first_evaluation_under_it(
    lab: Lab, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "TARGET", 4.2)  # the script's first evaluation says 4.1
    out = lab.folder / "results.jsonl"
    words = [
        "loss",
        "shakespeare",
        str(lab.recipe),
        "--text",
        str(lab.folder / "text.txt"),
        "--device",
        "cpu",
    ]
    assert (
        main([*words, "max_steps=100000", "--peer", f"nanogpt={checkout}", "--out", str(out)])
        == ExitStatus.DONE
    )
    ours, nanogpt = results_of(out)
    assert (ours["contender"], ours["reached"], ours["step"]) == ("ours", True, 20)  # of 100,000
    assert (nanogpt["reached"], nanogpt["step"], nanogpt["val_loss"]) == (True, 0, 4.1)


@pytest.mark.slow
def test_a_second_call_goes_on_with_the_rates_that_are_left_until_a_peers_loss(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "PARTS", (2,))
    out = lab.folder / "results.jsonl"
    words = [
        "loss",
        "novels",
        str(lab.recipe),
        "--text",
        str(lab.folder / "text.txt"),
        "--device",
        "cpu",
    ]
    words += ["global_batch_tokens=256", "warmup_steps=2", "--steps", "4", "--val-tokens", "512"]
    words += ["--out", str(out)]
    assert main([*words, "--rates", "1"]) == ExitStatus.DONE
    first = results_of(out)
    assert [r["what"] for r in first] == [
        "loss run",
        "loss",
    ]  # no peer, no loss of its to be reached
    # What a peer gave in a call before: a loss that any run has, and one that none has.
    seconds = {
        "wall_seconds": 1000.0,
        "training_seconds": 900.0,
        "training_seconds_without_compiling": 8.0,
    }
    for peer, loss_of in (("nanogpt", 9.0), ("hf", 0.0)):
        run = {
            "what": "loss run",
            "contender": peer,
            "lr": 1e-3,
            "steps": 4,
            "val_loss": loss_of,
            **seconds,
        }
        out.write_text(out.read_text() + json.dumps(run) + "\n")
    # One whose loss was reached in a call before is not waited for again.
    reached = {"what": "time to a loss", "peer": "nanochat", "target": 9.0}
    end = {
        "what": "loss run",
        "contender": "nanochat",
        "lr": 1.0,
        "steps": 4,
        "val_loss": 9.0,
        **seconds,
    }
    out.write_text(out.read_text() + json.dumps(end) + "\n" + json.dumps(reached) + "\n")
    assert main([*words, "--rates", "1,2"]) == ExitStatus.DONE
    results = results_of(out)
    assert [
        r["lr"] for r in results if r.get("contender") == "ours" and r["what"] == "loss run"
    ] == [
        0.003,
        0.006,
    ]
    best = results[-1]
    assert (best["what"], best["rates_tried"]) == ("loss", 2)
    assert best["val_loss"] == min(r["val_loss"] for r in results if r.get("contender") == "ours")
    (there,) = [r for r in results if r["what"] == "time to a loss" and r != reached]
    assert (there["peer"], there["target"], there["of_its_tokens"]) == ("nanogpt", 9.0, 0.5)
    assert there["of_its_wall"] == pytest.approx(there["wall_seconds"] / 1000, abs=1e-3)
    assert 0 < there["of_its_training_without_compiling"] < 10
    assert [r["part"] for r in results if r["what"] == "short run"] == [2]


@pytest.mark.slow
def test_runs_with_and_without_checkpoints_make_a_pair(lab: Lab) -> None:
    out = lab.folder / "results.jsonl"
    words = [
        "checkpoint",
        "--recipe",
        str(lab.recipe),
        "--text",
        str(lab.folder / "text.txt"),
        "--device",
        "cpu",
    ]
    words += ["--every", "20", "--checkpoints", "2", "--repeats", "1", "--out", str(out)]
    assert main(words) == ExitStatus.DONE
    pair, result = results_of(out)
    assert len(pair["stalls_ms"]) == 2
    assert pair["seconds_without"] > 0
    assert result["share"] == pair["share"] > -1
