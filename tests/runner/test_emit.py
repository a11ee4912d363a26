"""`runner emit` writes files for other engines; docs/emit.md has the engines' own checks."""

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result

from runner.console import CliContext
from runner.emit import PRODUCTS, EmittedJob
from runner.planning.gpus import GPU_TYPES

LINE = "runner emit {} quickstart lr=1e-3 --name My_Run --gpu H100:2 --timeout 90m"


@pytest.fixture(autouse=True)
def image(cli: CliContext) -> None:
    cli.environ = {**cli.environ, "GPT_RUNNER_IMAGE": "ghcr.io/me/gpt:v1"}


def test_every_engine_gets_image_command_resources_limit_and_restart(
    type_: Callable[[str], Result],
) -> None:
    written = {}
    for engine in ("slurm", "k8s", "skypilot", "dstack"):
        result = type_(LINE.format(engine))
        assert result.exit_code == 0, result.stderr
        written[engine] = result.stdout
        assert "configs/quickstart.yaml" in result.stdout
        assert "lr=1e-3" in result.stdout
    slurm = written["slurm"]
    assert "#SBATCH --gres=gpu:h100:2\n" in slurm
    assert "#SBATCH --time=1:30:00\n" in slurm
    assert "#SBATCH --requeue\n" in slurm
    assert "ghcr.io#me/gpt:v1" in slurm  # enroot writes # after the registry

    claim, job = yaml.safe_load_all(written["k8s"])
    assert claim["kind"] == "PersistentVolumeClaim"
    pod = job["spec"]["template"]["spec"]
    assert job["metadata"]["name"] == "my-run"
    assert job["spec"]["activeDeadlineSeconds"] == 5400
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert "NVIDIA-H100-80GB-HBM3" in str(terms)
    assert pod["containers"][0]["command"][:2] == ["torchrun", "--standalone"]

    sky = yaml.safe_load(written["skypilot"])
    assert sky["resources"]["accelerators"] == "H100:2"
    assert sky["resources"]["job_recovery"]["recover_on_exit_codes"] == [101]
    task = yaml.safe_load(written["dstack"])
    assert task["resources"]["gpu"] == {"name": "H100", "count": 2}
    assert "interruption" in task["retry"]["on_events"]


def test_name_of_a_job_is_a_dns_label() -> None:
    for run in ("My_Run", "a" * 49 + "-b", "_"):
        label = EmittedJob(run, "image", (), None, 1, 60).label
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", label), label


def test_zero_gpus_are_refused(type_: Callable[[str], Result]) -> None:
    refused = type_("runner emit slurm quickstart --gpu 0")
    assert refused.exit_code == 2
    assert refused.stderr == "error: --gpu 0: expected 8 for any GPU, or H100:8\n"


def test_gpus_and_time_limit_are_the_recipe_s_by_default(type_: Callable[[str], Result]) -> None:
    slurm = type_("runner emit slurm quickstart resources.gpu=H100:8 resources.timeout=3h").stdout
    assert "#SBATCH --gres=gpu:h100:8\n" in slurm
    assert "#SBATCH --time=3:00:00\n" in slurm
    assert "--nproc-per-node=8" in slurm


def test_every_gpu_type_has_a_name_in_each_engine(type_: Callable[[str], Result]) -> None:
    for name in GPU_TYPES:
        assert PRODUCTS[name][0] in type_(f"runner emit k8s quickstart --gpu {name}").stdout
    assert "gres=gpu:a100:1" in type_("runner emit slurm quickstart --gpu A100-80GB").stdout
    task = yaml.safe_load(type_("runner emit dstack quickstart --gpu A100-80GB").stdout)
    assert task["resources"]["gpu"] == {"name": "A100", "count": 1, "memory": "80GB"}
    for name, expected in (("A100", "A100:1"), ("A100-80GB", "A100-80GB:1"), ("H100!", "H100:1")):
        sky = yaml.safe_load(type_(f"runner emit skypilot quickstart --gpu {name}").stdout)
        assert sky["resources"]["accelerators"] == expected


@pytest.mark.parametrize(("status", "requeued"), [(101, "requeue 7\n"), (0, ""), (1, "")])
def test_slurm_requeues_a_job_that_stopped_with_a_checkpoint(
    type_: Callable[[str], Result], tmp_path: Path, status: int, requeued: str
) -> None:
    programs = {
        "srun": f"trap 'sleep 0.2; exit {status}' TERM; echo started; while :; do sleep 0.05; done",
        "scontrol": 'echo "$@"',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job").write_text(type_("runner emit slurm quickstart").stdout)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "SLURM_JOB_ID": "7"}
    script = ["bash", str(tmp_path / "job")]
    with subprocess.Popen(script, env=environ, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "started\n"
        job.send_signal(signal.SIGTERM)
        assert job.stdout.read() == requeued
    assert job.returncode == status


def test_an_image_and_recipes_inside_it_are_needed(
    type_: Callable[[str], Result], cli: CliContext, tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text((cli.cwd / "configs" / "quickstart.yaml").read_text())
    result = type_(f"runner emit k8s {own}")
    assert result.exit_code == 2
    assert "is not in the image" in result.stderr
    assert "error: unknown recipe 'nope'; the recipes in" in type_("runner emit k8s nope").stderr
    cli.environ = {**cli.environ, "GPT_RUNNER_IMAGE": ""}
    result = type_("runner emit k8s quickstart")
    assert result.exit_code == 2
    assert (
        "a job file needs a published image: run `runner image push REGISTRY/NAME`, then "
        "`export GPT_RUNNER_IMAGE=REGISTRY/NAME`"
    ) in result.stderr
