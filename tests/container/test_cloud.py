"""The image that Modal is asked to build is the one that Compose builds.

The stand-in for Modal (tests/modal_standin) runs its containers with Docker.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from job.step_folders import step_folder
from model.checkpoint import read
from tests.container.checkout import Checkout
from tests.modal_standin import DockerExecutor, build_image
from tests.modal_standin.docker_executor import image_tag
from tests.runner.targets.modal.conftest import (
    CloudFixture,
    add_tiny,
    make_checkout,
    open_cloud,
    train_here,
)
from tests.runner.targets.modal.test_cross_target import STEPS, move_to_modal_and_back

pytestmark = pytest.mark.slow


@pytest.fixture
def cloud_in_docker(image: str, tmp_path: Path) -> Iterator[CloudFixture]:
    """Build the image of `runner cloud` with Docker, and run the function's body in it."""
    built: list[str] = []

    def build(image_id: str) -> str:
        if image_tag(image_id) not in built:
            built.append(build_image(cloud.modal, image_id))
        return built[-1]

    with open_cloud(
        make_checkout(tmp_path / "checkout"), tmp_path, executor=DockerExecutor(build)
    ) as cloud:
        yield cloud
    for tag in built:
        subprocess.run(["docker", "image", "rm", tag], capture_output=True, check=True)


def content(image: str) -> list[str]:
    """Return an image's layers, variables and working directory. A rebuilt layer is different."""
    parts = "{{json .RootFS.Layers}} {{json .Config.Env}} {{json .Config.WorkingDir}}"
    command = ["docker", "image", "inspect", "--format", parts, image]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11),
    reason="the image has Python 3.11 and uses this interpreter's modal",
)
def test_body_runs_in_the_image_of_compose_and_survives_a_preemption(
    cloud_in_docker: CloudFixture, image: str
) -> None:
    cloud = cloud_in_docker
    train_here(cloud.checkout)
    cloud.slow_down(0.05)
    process = cloud.start("cloud", "tiny", "-y", "--device", "cpu")
    cloud.modal.wait_until(lambda: '"step": 10,' in cloud.metrics(), 300)
    cloud.modal.preempt()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err + cloud.modal.log()

    image_id = cloud.modal.builds[-1].image_id
    assert content(image_tag(image_id)) == content(image)
    assert [attempt["reason"] for attempt in cloud.ledger()["attempts"]] == [
        "preempted",
        "finished",
    ]
    record = json.loads((cloud.run_folder() / "run.json").read_text())
    python = ["docker", "run", "--rm", image, "python", "-V"]
    inside = subprocess.run(python, capture_output=True, text=True, check=True).stdout
    assert f"Python {record['versions']['python']}\n" == inside
    unbroken = cloud.checkout / "volumes" / "checkpoints" / "tiny"
    assert losses(cloud.run_folder()) == pytest.approx(losses(unbroken), abs=1e-3)


def test_run_starts_on_the_host_resumes_on_modal_and_finishes_in_the_container(
    checkout: Checkout, tmp_path: Path
) -> None:
    add_tiny(checkout.folder)
    # One thread, as on the other targets: several threads add in a different order.
    checkout.override("train", {"environment": {"OMP_NUM_THREADS": "1"}})
    unbroken = tmp_path / "unbroken"
    shutil.copytree(checkout.folder, unbroken)
    train_here(unbroken, *STEPS)
    moved, unbroken_run = (
        folder / "volumes" / "checkpoints" / "tiny" for folder in (checkout.folder, unbroken)
    )
    with open_cloud(checkout.folder, tmp_path) as cloud:
        cloud.environ |= {
            name: checkout.environ[name] for name in ("COMPOSE_PROJECT_NAME", "DOCKER_CONFIG")
        }
        move_to_modal_and_back(cloud)
        cloud.run("resume", "tiny", "--target", "local", "--device", "cpu")
        assert "finished" in cloud.run("status", "tiny")[0]

    record = json.loads((moved / "run.json").read_text())
    targets = [attempt["launch"].get("target") for attempt in record["attempts"]]
    assert targets == ["host", "cloud", "local"]
    rows = [json.loads(line) for line in (moved / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 151))
    assert losses(moved) == pytest.approx(losses(unbroken_run), abs=1e-3)
    moved_weights, unbroken_weights = (
        read(step_folder(folder, 150)).model for folder in (moved, unbroken_run)
    )
    same_torch = record["versions"]["torch"] == torch.__version__
    for name, tensor in unbroken_weights.items():
        # A different build of torch may add in a different order.
        assert (
            torch.equal(moved_weights[name], tensor)
            if same_torch
            else torch.allclose(moved_weights[name], tensor, atol=1e-3)
        )


def losses(run: Path) -> dict[int, float]:
    """Return the training loss of each step."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}
