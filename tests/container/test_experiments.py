"""An experiment in the real container: the same result as on the host, and a sweep."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.container.checkout import Checkout

# An experiment in a folder next to the checkout, with a module that it imports.
SETTINGS = "STEPS = 30\n"
EXPERIMENT = """\
import settings
import torch
from experiment import TBLogger, load_checkpoint, save_checkpoint

def train(output_dir=".", lr: float = 0.1, x: int = 1):
    torch.manual_seed(x)
    network = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    log = TBLogger(output_dir, "train")
    for step in range(1, settings.STEPS + 1):
        loss = network(torch.rand(16, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log.log(step, loss=loss)
    save_checkpoint(output_dir, step, config={"lr": lr}, model=network, optimizer=optimizer)
    return {"loss": loss.item(), "steps": step}
"""


def runner(checkout: Checkout, *words: str) -> str:
    program = "from runner.cli import main; main()"
    return checkout.command(
        sys.executable, "-c", program, *words, environ={"PYTHONPATH": str(checkout.folder)}
    ).stdout


def result(checkout: Checkout, run: str) -> dict[str, Any]:
    path = checkout.folder / "volumes" / "checkpoints" / run / "run.json"
    return dict(json.loads(path.read_text())["result"])


def test_experiment_has_the_result_of_the_host_and_a_sweep_runs_under_compose(
    checkout: Checkout,
) -> None:
    folder = Path(checkout.folder.parent) / "elsewhere"
    folder.mkdir()
    (folder / "settings.py").write_text(SETTINGS)
    (folder / "mine.py").write_text(EXPERIMENT)
    (folder / "s.yaml").write_text(
        "experiment: mine.py\nspace: {grid: {x: [1, 2]}}\nmetric: loss\n"
    )
    runner(
        checkout, "host", "run", str(folder / "mine.py"), "--param", "lr=0.2", "--name", "on_host"
    )
    runner(
        checkout,
        "local",
        "run",
        str(folder / "mine.py"),
        "--param",
        "lr=0.2",
        "--name",
        "in_container",
    )
    host, container = result(checkout, "on_host"), result(checkout, "in_container")
    assert abs(host["loss"] - container["loss"]) < 1e-5
    assert host["steps"] == container["steps"] == 30
    latest = checkout.folder / "volumes" / "checkpoints" / "in_container" / "latest"
    assert latest.read_text() == "step_00000030\n"

    out = runner(
        checkout, "sweep", str(folder / "s.yaml"), "--target", "local", "--no-smoke", "--json"
    )
    trials = json.loads(out)["trials"]
    assert [trial["status"] for trial in trials] == ["finished"] * 2
    assert trials[0]["metric"] <= trials[1]["metric"]
