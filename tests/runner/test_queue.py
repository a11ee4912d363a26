"""`--queue`, `--share` and `runner queue`, on a machine with one simulated GPU."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from job.gpu_queue import live_tickets
from runner.home import queue_folder
from runner.runs.store import read_launch
from runner.targets.host import HostTarget
from tests.runner.targets.docker_stand_in import GPU_CONFIG
from tests.waiting import wait_for

# Writes its name and GPU when it starts, and its name when it is stopped.
JOB = """
import os, sys, time
from pathlib import Path
name, checkpoints = sys.argv[sys.argv.index("--name") + 1], Path(os.environ["CHECKPOINTS_PATH"])
def note(text):
    with open(checkpoints.parent / "order", "a") as file:
        file.write(text + "\\n")
note(f"{name} on {os.environ['CUDA_VISIBLE_DEVICES']}")
while not (checkpoints / name / "end").exists():
    time.sleep(0.01)
note(f"{name} ends")
"""


class Machine:
    """A machine with one GPU, and the runs that need it."""

    def __init__(self, type_, checkout: Path, queue: Path) -> None:
        self.type, self.queue = type_, queue
        self.volumes = checkout / "volumes"

    def launch(self, run: str, *options: str) -> None:
        """Start a run, and wait until it has the GPU or its place in the queue."""
        result = self.type(f"runner host --name {run} --detach {' '.join(options)}")
        assert result.exit_code == 0, result.stderr
        wait_for(lambda: run in [ticket.run for ticket in live_tickets(self.queue)])

    @property
    def order(self) -> list[str]:
        path = self.volumes / "order"
        return path.read_text().splitlines() if path.exists() else []

    def states(self) -> dict[str, tuple[str, int | None]]:
        runs = json.loads(self.type("runner runs --json").stdout)
        return {run["run"]: (run["status"], run["queue_position"]) for run in runs}

    def end(self, run: str) -> None:
        (self.volumes / "checkpoints" / run / "end").touch()

    def kill(self, run: str) -> None:
        launch = read_launch(self.volumes / "checkpoints" / run)
        assert launch is not None
        os.killpg(int(launch.id), signal.SIGKILL)


@pytest.fixture
def machine(type_, cli, checkout: Path, tmp_path: Path, job) -> Iterator[Machine]:
    program = tmp_path / "gpu" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'NVIDIA L4'\n")
    program.chmod(0o755)
    cli.environ = {**cli.environ, "PATH": f"{program.parent}:{cli.environ['PATH']}"}
    cli.targets["host"] = HostTarget(cli, checkout, has_module=lambda _: True)
    job(JOB)
    found = Machine(type_, checkout, queue_folder(cli.environ))
    yield found
    for ticket in live_tickets(found.queue):
        found.kill(ticket.run)


def test_queued_runs_use_the_gpu_one_after_another(machine: Machine) -> None:
    for run in ("a", "b", "c"):
        machine.launch(run, "--queue")
    assert machine.states() == {"a": ("starting", None), "b": ("queued", 1), "c": ("queued", 2)}
    assert "status    queued, position 2" in machine.type("runner status c").stdout
    machine.kill("a")  # the kernel frees its GPU
    wait_for(lambda: "b on 0" in machine.order)
    assert machine.states()["c"] == ("queued", 1)
    machine.end("b")
    wait_for(lambda: "c on 0" in machine.order)
    machine.end("c")
    wait_for(lambda: not live_tickets(machine.queue))
    assert machine.order == ["a on 0", "b on 0", "b ends", "c on 0", "c ends"]


def test_queue_is_listed_and_reordered_and_runs_leave_it(machine: Machine) -> None:
    for run in ("a", "b", "c"):
        machine.launch(run, "--queue", "--tag", run)
    assert json.loads(machine.type("runner runs --tag b --json").stdout)[0]["status"] == "queued"
    assert machine.type("runner queue --first d").exit_code == 102
    listed = machine.type("runner queue --first c").stdout.split()
    assert [word for word in listed if word in "abc"] == ["a", "c", "b"]
    stopped = machine.type("runner stop b")
    assert (stopped.exit_code, "removed from the queue" in stopped.stderr) == (0, True)
    assert {*machine.states()} == {"a", "c"}
    checkpoint = machine.volumes / "checkpoints" / "d" / "step_00000001"
    checkpoint.mkdir(parents=True)
    machine.launch("d", "--queue")
    machine.type("runner stop d")
    assert checkpoint.exists()
    machine.end("a")
    wait_for(lambda: "c on 0" in machine.order)


def test_run_on_a_used_gpu_is_refused_unless_it_shares(machine: Machine) -> None:
    machine.launch("a")
    refused = machine.type("runner host --name b")
    assert refused.exit_code == 1
    assert (
        "run 'a' uses GPU 0; --queue waits for it, --share uses the same GPUs at the same time"
        in refused.stderr
    )
    assert machine.type("runner host --name b --device cpu --dry-run").exit_code == 0
    machine.launch("b", "--share")
    wait_for(lambda: {"a on 0", "b on 0"} <= {*machine.order})


def test_ctrl_c_leaves_the_queue(machine: Machine, cli, spawn) -> None:
    machine.launch("a")
    line = ("host", "--name", "b", "--queue")
    process = spawn(*line, PATH=cli.environ["PATH"])
    wait_for(lambda: "waiting in the queue behind a" in process.stderr.readline())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert {*machine.states()} == {"a"}


def test_a_container_waits_in_the_same_queue(docker, machine: Machine, cli, type_) -> None:
    machine.launch("a")
    docker.with_gpus("NVIDIA L4")
    docker.answer("config.yaml", GPU_CONFIG)
    cli.environ = {**cli.environ, "CUDA_VISIBLE_DEVICES": "7"}  # not passed to containers
    assert "run 'a' uses GPU 0" in type_("runner local --name b").stderr
    plan = json.loads(type_("runner local --name b --queue --dry-run --json").stdout)
    assert plan["command"][:4] == ["python", "-m", "job.gpu_queue", "/vol/queue"]
    assert plan["steps"][0] == "waits in the queue behind a"
    assert type_("runner local --name b --queue").exit_code == 0
    [run] = docker.calls("compose", "run")
    assert f"{machine.queue}:/vol/queue:rw" in run
    machine.launch("c", "--queue")
    assert "'c' is already queued on this machine" in type_("runner local --name c").stderr
