"""The trainer in the container: `docker compose up`, the host's loss curve, a stop mid-run."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from pathlib import Path

import pytest

from tests.container.checkout import ROOT, Checkout
from tests.tiny_recipe import write_recipe, write_text

pytestmark = pytest.mark.skipif(
    not (ROOT / "model" / "train.py").exists(), reason="model/train.py is not in this checkout"
)

# A network that trains in seconds on one core, with several checkpoints.
TINY = (
    *("model.n_layer=2", "model.n_head=2", "model.n_embd=64", "model.block_size=64"),
    *("global_batch_tokens=1024", "micro_batch=16", "warmup_steps=5", "compile=false"),
    *("eval_every=100", "eval_tokens=4096", "checkpoint_every=50", "log_every=10"),
)

# As on the host (tests/conftest.py): on a busy machine, two threads are ten times slower.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def run_folder(checkout: Checkout, run: str) -> Path:
    return checkout.folder / "volumes" / "checkpoints" / run


def record(checkout: Checkout, run: str) -> dict:
    return json.loads((run_folder(checkout, run) / "run.json").read_text())


def losses(checkout: Checkout, run: str) -> dict[int, float]:
    """Return the training loss of each step."""
    lines = (run_folder(checkout, run) / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines) if "loss" in line}


def weights(checkout: Checkout, run: str) -> tuple[str, str]:
    """Return the newest checkpoint's name and the SHA-256 of its weights."""
    newest = max(run_folder(checkout, run).glob("step_*"))
    return newest.name, hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()


def test_up_trains_in_a_fresh_clone_and_then_reports_a_finished_run(ordinary):
    """Only the recipe is shortened; the number of threads is the default."""
    recipe = ordinary.folder / "configs" / "quickstart.yaml"
    text = recipe.read_text()
    for key, number in (("max_steps", 25), ("eval_tokens", 8192), ("max_new_tokens", 40)):
        text, found = re.subn(rf"\b({key}): \d+", rf"\1: {number}", text)
        assert found == 1
    recipe.write_text(text)

    first = ordinary.compose("up", "train", timeout=600)
    assert ordinary.state("train")["ExitCode"] == 0, first.stdout
    assert record(ordinary, "quickstart")["status"] == "finished"
    # Colors are fine, and Compose 2 erases each line before it writes one.
    plain = re.sub(r"\x1b\[(\d*m|2K)", "", first.stdout)
    assert "\x1b[" not in plain, "the output moves the cursor"
    assert set(ordinary.owners().values()) == {ordinary.uid}

    before = weights(ordinary, "quickstart")
    ordinary.compose("up", "train", timeout=300)
    assert ordinary.state("train")["ExitCode"] == 0
    assert weights(ordinary, "quickstart") == before


def test_loss_curve_is_that_of_the_host(checkout):
    checkout.override("train", {"environment": ONE_THREAD})
    command = ["-m", "model.train", "quickstart", *TINY, "max_steps=60"]
    # The container prepares the dataset of both: the host may have a different standard library.
    checkout.run("train", "python", *command, "--name", "container", timeout=600)
    checkout.command(sys.executable, *command, "--name", "host", timeout=600)
    host, container = losses(checkout, "host"), losses(checkout, "container")
    assert len(host) == 60
    assert container == pytest.approx(host, abs=1e-3)


def test_doctor_compares_the_host_with_the_container(checkout):
    write_text(checkout.folder / "text.txt")
    write_recipe(checkout.folder / "configs" / "tiny.yaml", "./text.txt")
    checkout.override("train", {"environment": ONE_THREAD})
    environ = {
        "PYTHONPATH": str(ROOT),
        "HOST_UID": "",
        "HOST_GID": "",
        "HOME": str(checkout.folder),
    }
    words = ("doctor", "--parity", "tiny", "--json")
    report = json.loads(
        checkout.command(sys.executable, "-m", "runner", *words, environ=environ).stdout
    )
    targets = report["targets"]
    assert set(targets) == {"host", "local"}
    assert [len(found["losses"]) for found in targets.values()] == [10, 10]
    assert losses(checkout, targets["local"]["run"])[9] == targets["local"]["losses"]["9"]
    assert report["largest_difference"] <= report["tolerance"]
    assert (
        targets["host"]["versions"]["torch"].split("+")[0]
        == targets["local"]["versions"]["torch"].split("+")[0]
    )


def test_stop_and_resume_end_with_the_weights_of_an_unbroken_run(ordinary):
    one_thread = {"environment": ONE_THREAD}
    ordinary.override("train", one_thread)
    train = ["python", "-m", "model.train", "quickstart", *TINY, "max_steps=400"]
    ordinary.run("train", *train, "--name", "unbroken", timeout=600)

    ordinary.override("train", {**one_thread, "command": [*train, "--name", "stopped"]})
    ordinary.compose("up", "--detach", "train")
    container = ordinary.container("train")
    metrics = run_folder(ordinary, "stopped") / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 70:
        assert time.monotonic() < deadline, ordinary.compose("logs", "train").stdout
        time.sleep(0.05)
    ordinary.command("docker", "stop", "--time", "120", container)

    assert ordinary.state("train")["ExitCode"] == 101
    stopped = record(ordinary, "stopped")
    assert stopped["status"] == "unfinished"
    assert 70 <= stopped["step"] < 400

    ordinary.compose("up", "train", timeout=600)
    assert ordinary.state("train")["ExitCode"] == 0
    first, second = record(ordinary, "stopped")["attempts"]
    assert second["first_step"] == first["last_step"] == stopped["step"]
    assert weights(ordinary, "stopped") == weights(ordinary, "unbroken")
    assert losses(ordinary, "stopped") == losses(ordinary, "unbroken")
