"""Complete sweeps on the host, with real processes that are killed, stopped and resumed."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.files import exclusive_lock
from job.machine import available_cpus
from tests.waiting import wait_for

Spawn = Callable[..., "subprocess.Popen[str]"]

# Logs each start, fails if y is 3, stops on request and resumes.
MINE = """\
import os, pathlib, time
from experiment import should_stop

def train(output_dir=".", x: int = 0, y: int = 0, steps: int = 3, pause: float = 0.01) -> dict:
    folder = pathlib.Path(output_dir)
    with open(os.environ["STARTS"], "a") as file:
        file.write(folder.name + "\\n")
    if y == 3:
        raise ValueError("y is 3")
    done = folder / "done"
    first = int(done.read_text()) if done.exists() else 0
    for step in range(first + 1, steps + 1):
        time.sleep(pause)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "val", "step": %d, "score": %d}\\n' % (step, x))
        done.write_text(str(step))
        if should_stop():
            return {}
    return {"score": (x - 2) ** 2 + y}
"""


@pytest.fixture
def starts(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Counter[str]]:
    """Return how often each run was started so far."""
    path = checkout.parent / "starts"
    path.touch()
    monkeypatch.setenv("STARTS", str(path))
    # A separate folder: next to folders named like the project's packages, each trial would import
    # the whole library and torch, which takes 2 s (experiment/run.py).
    (checkout / "mine").mkdir()
    (checkout / "mine" / "mine.py").write_text(MINE)
    return lambda: Counter(path.read_text().split())


def write_sweep(checkout: Path, space: str, lines: str = "") -> None:
    (checkout / "mine" / "s.yaml").write_text(
        f"experiment: mine.py\nspace: {space}\nmetric: score\n{lines}"
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    """Wait for the process, check its exit status and return what it printed."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    return out, err


def sweep_json(checkout: Path) -> dict[str, Any]:
    path = checkout / "volumes" / "checkpoints" / "s" / "sweep.json"
    return dict(json.loads(path.read_text())) if path.exists() else {"trials": []}


@pytest.mark.slow
def test_a_killed_sweep_resumes_and_repeats_no_trial(
    checkout: Path, spawn: Spawn, starts: Callable[[], Counter[str]]
) -> None:
    rows = ", ".join(f"{{x: {n}, y: {3 if n in (2, 9) else 1}}}" for n in range(1, 13))
    write_sweep(checkout, f"{{list: [{rows}]}}")
    first = spawn("sweep", "mine/s.yaml", "--max-parallel", "2")
    wait_for(lambda: len(starts()) >= 6, 60)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert len(starts()) < 13
    out, _ = finish(spawn("sweep", "mine/s.yaml", "--max-parallel", "2", "--json"))
    result = json.loads(out)
    assert Counter(t["status"] for t in result["trials"]) == {"finished": 10, "failed": 2}
    # Best first: x=1 and x=3 are next to x=2, whose trial fails.
    assert [t["values"]["x"] for t in result["trials"]][:4] == [1, 3, 4, 5]
    assert result["best"] == "s-001"
    assert set(starts().values()) == {1}
    assert len(starts()) == 13  # including the smoke run
    assert Path(result["plot"]).stat().st_size > 5000
    out, _ = finish(spawn("sweep", "mine/s.yaml"))
    assert out.splitlines()[1].split()[:4] == ["s-001", "1", "1", "2"]
    assert set(starts().values()) == {1}


def test_ctrl_c_stops_the_trials_and_the_same_command_resumes_them(
    checkout: Path, spawn: Spawn, starts: Callable[[], Counter[str]]
) -> None:
    write_sweep(checkout, "{grid: {x: [1, 2]}}", "fixed: {steps: 400}\n")
    first = spawn("sweep", "mine/s.yaml", "--max-parallel", "2", "--no-smoke")
    done = [checkout / "volumes" / "checkpoints" / run / "done" for run in ("s-001", "s-002")]
    wait_for(lambda: all(path.exists() and int(path.read_text() or 0) > 5 for path in done), 60)
    first.send_signal(signal.SIGINT)
    finish(first, 101)
    assert [t["status"] for t in sweep_json(checkout)["trials"]] == ["unfinished"] * 2
    assert all(int(path.read_text()) < 400 for path in done)
    finish(spawn("sweep", "mine/s.yaml", "--max-parallel", "2"))
    assert [t["status"] for t in sweep_json(checkout)["trials"]] == ["finished"] * 2
    for path in done:
        rows = map(json.loads, (path.parent / "metrics.jsonl").read_text().splitlines())
        assert [row["step"] for row in rows] == list(range(1, 401))


def test_the_median_rule_stops_a_bad_trial(
    checkout: Path, spawn: Spawn, starts: Callable[[], Counter[str]]
) -> None:
    rows = "{x: 1}, {x: 2}, {x: 3}, {x: 9, steps: 30000}"  # 300 s, unless it is stopped
    write_sweep(
        checkout, f"{{list: [{rows}]}}", "fixed: {steps: 40}\nearly_stop: median\ngrace_steps: 5\n"
    )
    out, _ = finish(spawn("sweep", "mine/s.yaml", "--no-smoke", "--json"))
    trials = {t["values"]["x"]: t for t in json.loads(out)["trials"]}
    assert [trials[x]["status"] for x in (1, 2, 3, 9)] == ["finished"] * 3 + ["stopped"]
    assert "median rule at step" in trials[9]["reason"]
    assert trials[9]["step"] < 30000
    assert json.loads(out)["trials"][-1]["run"] == "s-004"


def test_a_failed_smoke_run_starts_no_trial(
    checkout: Path, spawn: Spawn, starts: Callable[[], Counter[str]]
) -> None:
    write_sweep(checkout, "{grid: {y: [3, 1]}}")
    _, err = finish(spawn("sweep", "mine/s.yaml"), 100)
    assert "the smoke run ended as failed (ValueError: y is 3); no trial was started" in err
    assert starts() == {"s-smoke": 1}
    finish(spawn("sweep", "mine/s.yaml", "--no-smoke"))
    assert [t["status"] for t in sweep_json(checkout)["trials"]] == ["failed", "finished"]


def test_the_smoke_run_reveals_a_missing_metric(
    checkout: Path, spawn: Spawn, starts: Callable[[], Counter[str]]
) -> None:
    write_sweep(checkout, "{grid: {x: [3, 1]}}")
    file = checkout / "mine" / "s.yaml"
    file.write_text(file.read_text().replace("metric: score", "metric: scores"))
    _, err = finish(spawn("sweep", "mine/s.yaml"), 100)
    assert (
        "the result has no number 'scores'; the result has score; no trial was started: "
        "correct `metric` in the sweep's file" in err
    )
    assert starts() == {"s-smoke": 1}


def test_a_sweep_runs_in_one_process_at_a_time(
    checkout: Path, spawn: Spawn, starts: Callable[[], Counter[str]]
) -> None:
    write_sweep(checkout, "{grid: {x: [1]}}", "fixed: {steps: 3000}\n")
    first = spawn("sweep", "mine/s.yaml", "--no-smoke")
    wait_for(lambda: starts()["s-001"] == 1, 60)
    _, err = finish(spawn("sweep", "mine/s.yaml"), 1)
    assert "another process is running sweep 's'" in err
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 101
    assert starts()["s-001"] == 1


def test_rm_deletes_a_sweep_with_its_runs_but_not_a_running_one(
    checkout: Path, spawn: Spawn, starts: Callable[[], Counter[str]]
) -> None:
    write_sweep(checkout, "{grid: {x: [1, 2]}}")
    runs = checkout / "volumes" / "checkpoints"
    (runs / "s-other").mkdir(parents=True)  # not a run of the sweep
    spawn("sweep", "mine/s.yaml").communicate(timeout=60)
    assert {"s", "s-001", "s-002", "s-smoke"} <= {path.name for path in runs.iterdir()}
    with exclusive_lock(runs / "s"):
        refused = spawn("rm", "s", "-y")
        assert "another process is running sweep 's'" in refused.communicate(timeout=60)[1]
    assert (runs / "s-001" / "done").exists()
    asked = spawn("rm", "s").communicate(timeout=60)[1]
    assert "sweep 's', with its runs; run 's-00" in asked
    _, err = finish(spawn("rm", "s", "-y"))
    assert "deleted sweep 's'" in err
    assert [path.name for path in runs.iterdir()] == ["s-other"]


def test_parallel_trials_share_the_cores(
    checkout: Path, spawn: Spawn, starts: Callable[[], Counter[str]]
) -> None:
    (checkout / "mine" / "mine.py").write_text(
        "import os\ndef train(output_dir='.', x: int = 0) -> dict:\n"
        "    return {'score': int(os.environ.get('OMP_NUM_THREADS', 0))}\n"
    )
    write_sweep(checkout, "{grid: {x: [1, 2]}}")
    out, _ = finish(
        spawn("sweep", "mine/s.yaml", "--max-parallel", "2", "--json", OMP_NUM_THREADS="")
    )
    metrics = {trial["metric"] for trial in json.loads(out)["trials"]}
    assert metrics == {float(max(1, available_cpus() // 2))}


def test_the_best_mean_over_seeds_decides(
    checkout: Path, spawn: Spawn, starts: Callable[[], Counter[str]]
) -> None:
    (checkout / "mine" / "mine.py").write_text(
        "def train(output_dir='.', x: int = 0, seed: int = 0) -> dict:\n"
        "    return {'score': x * [1, 5, 0][seed]}\n"
    )
    write_sweep(checkout, "{grid: {x: [1, -1], seed: [0, 1, 2]}}", "goal: max\n")
    out, err = finish(spawn("sweep", "mine/s.yaml", "--max-parallel", "2", "--no-smoke"))
    assert "best mean over seeds: x=1: score 2, standard deviation 2.6, n=3; the best" in err
    means = out.split("\n\n")[1].splitlines()
    assert [line.split() for line in means[1:3]] == [
        ["1", "2", "2.6", "3"],
        ["-1", "-2", "2.6", "3"],
    ]
    out, _ = spawn("sweep", "mine/s.yaml", "--json").communicate(timeout=60)
    tree = json.loads(out)
    assert (tree["best"], tree["settings"][0]["mean"]) == ("s-002", 2.0)
    assert tree["settings"][0]["values"] == {"x": 1}


def test_unrelated_run_is_not_used_as_a_trial(
    checkout: Path, spawn: Spawn, starts: Callable[[], Counter[str]]
) -> None:
    write_sweep(checkout, "{grid: {x: [1, 2]}}")
    spawn("host", "run", "mine/mine.py", "x=7", "--name", "s-001").communicate(timeout=60)
    out, _ = finish(spawn("sweep", "mine/s.yaml", "--no-smoke", "--json"))
    trials = {t["run"]: t for t in json.loads(out)["trials"]}
    assert trials["s-001"]["status"] == "failed"
    assert "a run with this name has other settings" in trials["s-001"]["reason"]
    assert trials["s-002"]["status"] == "finished"
    assert starts() == {"s-001": 1, "s-002": 1}


def test_a_sweep_without_its_record_finds_its_runs(
    checkout: Path, spawn: Spawn, starts: Callable[[], Counter[str]]
) -> None:
    write_sweep(checkout, "{grid: {x: [1, 2]}}")
    spawn("sweep", "mine/s.yaml", "--no-smoke").communicate(timeout=60)
    (checkout / "volumes" / "checkpoints" / "s" / "sweep.json").unlink()
    finish(spawn("sweep", "mine/s.yaml", "--no-smoke"))
    assert starts() == {"s-001": 1, "s-002": 1}
    assert [t["status"] for t in sweep_json(checkout)["trials"]] == ["finished"] * 2


def test_edited_defaults_are_refused_and_edited_code_is_reported(
    checkout: Path, spawn: Spawn, starts: Callable[[], Counter[str]]
) -> None:
    write_sweep(checkout, "{grid: {x: [1, 2]}}")
    spawn("sweep", "mine/s.yaml", "--no-smoke").communicate(timeout=60)
    file = checkout / "mine" / "mine.py"
    file.write_text(MINE.replace("y: int = 0", "y: int = 5"))
    _, err = finish(spawn("sweep", "mine/s.yaml", "--no-smoke"), 2)
    assert "y: 0 → 5" in err
    file.write_text(MINE.replace("(x - 2) ** 2", "(x - 3) ** 2"))
    _, err = finish(spawn("sweep", "mine/s.yaml", "--no-smoke"))
    assert "mine.py has changed since sweep 's' started" in err
    assert starts() == {"s-001": 1, "s-002": 1}


TRAIN = """\
import sys, time
lr, steps = (float(word.partition("=")[2]) for word in sys.argv[1:])
for step in range(int(steps)):
    print(f"iter {step}: loss {lr + 1 / (step + 1):.4f}, time {{dt}}", flush=True)
    print(f"step {step}: train loss 0.5, val loss {lr:.4f}", flush=True)
if lr > 5 and steps > 2:
    time.sleep(600)  # until the sweep stops it

# as nanoGPT: iter {iter_num}: loss
"""


def test_command_of_a_different_repository_is_swept_by_its_printed_loss(
    checkout: Path, spawn: Spawn
) -> None:
    folder = checkout / "theirs"
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN)
    text = (
        "command: python train.py --lr={lr} --steps={steps}\nfixed: {steps: 60}\n"
        "space: {grid: {lr: [2, 1, 3, 9]}}\nmetric: val_loss\nsmoke: {steps: 2}\n"
        "early_stop: median\ngrace_steps: 5\n"
    )
    (folder / "s.yaml").write_text(text.replace("{lr}", "{rate}"))
    _, err = spawn("sweep", "theirs/s.yaml", "--dry-run").communicate(timeout=60)
    assert "the command has no {lr}" in err
    (folder / "s.yaml").write_text(text)
    out, err = finish(spawn("sweep", "theirs/s.yaml", "--json"))
    trials = {t["values"]["lr"]: t for t in json.loads(out)["trials"]}
    assert json.loads(out)["best"] == "s-002"
    assert [trials[lr]["status"] for lr in (2, 1, 3, 9)] == ["finished"] * 3 + ["stopped"]
    assert "median rule at step" in trials[9]["reason"]
    assert (trials[1]["metric"], trials[1]["step"]) == (1.0, 59)
    out, _ = spawn("runs", "--json").communicate(timeout=60)
    assert {run["run"]: run["loss"] for run in json.loads(out)}["s-001"] == 2.0
    record = sweep_json(checkout)
    assert record["smoke"] == "passed"
    (folder / "s.yaml").write_text(text.replace("2, 1, 3, 9", "2, 1, 3, 9, 4"))
    out, err = spawn("sweep", "theirs/s.yaml", "--json").communicate(timeout=200)
    assert len(json.loads(out)["trials"]) == 5
    assert json.loads(out)["best"] == "s-002"
    (folder / "s.yaml").write_text(text.replace("train.py --lr", "train.py -v --lr"))
    _, err = spawn("sweep", "theirs/s.yaml", "--dry-run").communicate(timeout=60)
    assert "trials of: " in err
    assert err.count("python train.py -v --lr={lr}") == 1  # in the line that shows the difference
