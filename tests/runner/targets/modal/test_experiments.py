"""Experiments and sweeps on Modal: results, preemption, one budget for all trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runner.targets.modal.conftest import CloudFixture

# In a separate folder, next to a module with the name of one of the project's packages.
MODEL = "def loss(w, x):\n    return (w - x) ** 2\n"

EXPERIMENT = """\
import time
import model
import torch
from experiment import load_checkpoint, save_checkpoint, should_stop

def train(output_dir=".", lr: float = 0.1, steps: int = 20, pause: float = 0.0):
    torch.manual_seed(1)
    w = torch.nn.Parameter(torch.zeros(()))
    network = torch.nn.ParameterDict({"w": w})
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    config = {"lr": lr, "steps": steps}
    found = load_checkpoint(output_dir, config=config, model=network, optimizer=optimizer)
    for step in range(found.step + 1 if found else 1, steps + 1):
        optimizer.zero_grad()
        model.loss(w, torch.rand(())).backward()
        optimizer.step()
        print("step", step, flush=True)
        time.sleep(pause)
        if should_stop() or step == steps:
            save_checkpoint(output_dir, step, config=config, model=network, optimizer=optimizer)
            if step < steps:
                return {}
    return {"w": w.item(), "first_step": found.step if found else 0}
"""

# Without torch, whose import would take each trial 2 s of CPU.
COUNTING_EXPERIMENT = """\
import pathlib, time
from experiment import should_stop

def train(output_dir=".", lr: float = 0.1, steps: int = 20):
    done = pathlib.Path(output_dir) / "done"
    for step in range(int(done.read_text()) + 1 if done.exists() else 1, steps + 1):
        time.sleep(0.1)
        done.write_text(str(step))
        if should_stop():
            return {}
    return {"w": lr}
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "model.py").write_text(MODEL)
    (folder / "mine.py").write_text(EXPERIMENT)
    return folder / "mine.py"


def result(cloud: CloudFixture, name: str) -> dict[str, Any]:
    return dict(json.loads(cloud.run("status", name, "--json")[0])["result"])


def test_preempted_experiment_has_the_result_of_the_host(cloud: CloudFixture, mine: Path) -> None:
    arguments = ("run", str(mine), "lr=0.2", "steps=60", "pause=0.05")
    cloud.run("host", *arguments, "--name", "on_host", OMP_NUM_THREADS="1")
    words = ("cloud", *arguments, "--device", "cpu", "-y")
    process = cloud.start(*words, "--name", "on_modal")
    log = lambda: _text(cloud, "on_modal")  # noqa: E731
    cloud.modal.wait_until(lambda: "step 5\n" in log(), 60)
    cloud.modal.preempt()
    cloud.finish(process)
    host, modal = result(cloud, "on_host"), result(cloud, "on_modal")
    assert host["w"] == modal["w"]
    assert host["first_step"] == 0
    assert modal["first_step"] >= 5
    assert [attempt["reason"] for attempt in cloud.ledger("on_modal")["attempts"]] == [
        "preempted",
        "finished",
    ]
    # A finished or invalid experiment starts no job.
    calls = len(cloud.modal.calls())
    assert "run 'on_modal' already finished" in cloud.run(*words, "--name", "on_modal")[1]
    assert "lr: 0.2 → 0.3" in cloud.run(*words, "lr=0.3", "--name", "on_modal", status=2)[1]
    assert "did you mean 'lr'?" in cloud.run(*words, "lrr=0.3", "--name", "new", status=2)[1]
    assert len(cloud.modal.calls()) == calls


def test_exception_is_exit_status_100_without_a_retry(cloud: CloudFixture, mine: Path) -> None:
    mine.write_text("def train(output_dir='.'):\n    raise ValueError('as asked')\n")
    out, err = cloud.run("cloud", "run", str(mine), "--device", "cpu", "-y", status=100)
    assert "ValueError: as asked" in out + err
    assert len(cloud.ledger("mine")["attempts"]) == 1
    assert "raise ValueError('as asked')" in cloud.run("logs", "mine")[0]


@pytest.mark.slow
def test_sweep_keeps_its_budget_and_resumes_with_more(cloud: CloudFixture, tmp_path: Path) -> None:
    (tmp_path / "counts").mkdir()
    (tmp_path / "counts" / "mine.py").write_text(COUNTING_EXPERIMENT)
    sweep = tmp_path / "counts" / "s.yaml"
    sweep.write_text(
        "experiment: mine.py\nmetric: w\ngoal: max\n"
        "space: {random: {lr: {uniform: [0.1, 0.5]}}, trials: 8}\n"
    )
    words = ("sweep", str(sweep), "--target", "cloud", "--device", "cpu")
    words += ("--no-smoke", "-y", "--json")
    # A dollar per second: 4 cores at 900 dollars per hour.
    (cloud.checkout / "prices.yaml").write_text("CPU: 900\nMEMORY: 0\n")
    out, err = cloud.run(*words, "--max-parallel", "1", "--budget", "12", status=104)
    first = json.loads(out)
    # At a dollar per second, the time that a container takes to stop is visible.
    assert first["spent"] <= 12 + 3, err
    assert sum(
        cloud.ledger(t["run"])["cost"] for t in first["trials"] if t["cost"]
    ) == pytest.approx(first["spent"], rel=0.02)
    done = [trial["run"] for trial in first["trials"] if trial["status"] == "finished"]
    assert len(done) < 8
    assert "of the budget is left" in err
    assert "to continue, run the same command with a higher --budget" in err

    out, err = cloud.run(*words, "--max-parallel", "3", "--budget", "500")
    second = json.loads(out)
    assert [trial["status"] for trial in second["trials"]] == ["finished"] * 8, err
    assert second["spent"] <= 500
    for run in done:
        assert len(cloud.ledger(run)["attempts"]) == 1
    caps = [call for call in second["trials"] if call["cap"]]
    assert caps == []  # no reserved money is left


def test_recipe_sweep_shows_estimates_and_trains(light_cloud: CloudFixture) -> None:
    cloud = light_cloud
    (cloud.checkout / "configs" / "sweep_tiny.yaml").write_text(
        "recipe: tiny\nmetric: val_loss\nfixed: {max_steps: 20, eval_every: 10}\n"
        "space: {grid: {lr: [1e-3, 3e-3]}}\n"
    )
    words = ("sweep", "sweep_tiny", "--target", "cloud", "--gpu", "T4", "--budget", "5")
    plan = json.loads(cloud.run(*words, "--dry-run", "--json")[0])
    assert [trial["values"] for trial in plan["trials"]] == [{"lr": 0.001}, {"lr": 0.003}]
    assert 0.01 < plan["estimated_dollars"] < 0.2
    assert plan["estimated_seconds"] > 200
    _, err = cloud.run(*words, status=2)
    assert "The sweep will cost about $0.0" in err
    assert ", at most $5.00. This is not a terminal; pass -y to confirm" in err
    out, err = cloud.run(*words, "-y", "--max-parallel", "2", "--json")
    trials = json.loads(out)["trials"]
    assert [trial["status"] for trial in trials] == ["finished"] * 2, err
    assert all(0 < trial["metric"] < 6 for trial in trials)
    assert cloud.ledger("sweep_tiny-smoke")["status"] == 0


def _text(cloud: CloudFixture, run: str) -> str:
    try:
        return (cloud.run_folder(run) / "log.txt").read_text()
    except Exception:  # the volume or the file does not exist yet
        return ""
