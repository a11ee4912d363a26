"""Job files for other systems, as text. Contacts none of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

GRACE_S = 120  # from the signal to the end: time to write a checkpoint
MEMORY_GB, CORES = 32, 8  # for each GPU
UNFINISHED = 101  # the job wrote a checkpoint and wants to be started again
SECRETS = ("HF_TOKEN", "WANDB_API_KEY")

# Values of the label nvidia.com/gpu.product, which NVIDIA's GPU feature discovery sets on nodes.
PRODUCTS = {
    "T4": ("Tesla-T4",),
    "L4": ("NVIDIA-L4",),
    "A10": ("NVIDIA-A10", "NVIDIA-A10G"),
    "L40S": ("NVIDIA-L40S",),
    "A100-40GB": ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-PCIE-40GB"),
    "A100-80GB": ("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe"),
    "RTX-PRO-6000": ("NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition",),
    "H100": ("NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe", "NVIDIA-H100-NVL"),
    "H200": ("NVIDIA-H200", "NVIDIA-H200-NVL"),
    "B200": ("NVIDIA-B200",),
    "B300": ("NVIDIA-B300-SXM6-AC",),
}


@dataclass(frozen=True)
class EmittedJob:
    """A training run for another system. ``gpu`` is a type, None for any."""

    run: str
    image: str
    command: tuple[str, ...]
    gpu: str | None
    count: int
    timeout_s: int

    @property
    def label(self) -> str:
        """Return the run's name as a DNS label, which Kubernetes requires."""
        return re.sub(r"[^a-z0-9-]+", "-", self.run.lower())[:50].strip("-") or "run"

    @property
    def accelerator(self) -> str:
        """Return the GPU type as in PRODUCTS; '' for any."""
        name = (self.gpu or "").removesuffix("!").removesuffix("+")
        return "A100-40GB" if name == "A100" else name

    @property
    def chip(self) -> str:
        """Return the GPU type without its memory."""
        return self.accelerator.removesuffix("-40GB").removesuffix("-80GB")


def slurm(job: EmittedJob) -> str:
    """Return a batch script for Slurm with the container plugin pyxis."""
    hours, rest = divmod(job.timeout_s, 3600)
    time = f"{hours}:{rest // 60:02}:{rest % 60:02}"
    gres = f"gpu:{job.chip.lower()}:{job.count}" if job.gpu else f"gpu:{job.count}"
    image = job.image.replace("/", "#", 1) if "." in job.image.partition("/")[0] else job.image
    return f"""\
#!/bin/bash
#SBATCH --job-name={job.run}
#SBATCH --nodes=1 --ntasks=1
#SBATCH --gres={gres}
#SBATCH --cpus-per-task={CORES * job.count}
#SBATCH --mem={MEMORY_GB * job.count}G
#SBATCH --time={time}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@{GRACE_S}
#SBATCH --output={job.run}-%j.log
# Needs pyxis (srun --container-image). GPT_RUNNER_VOLUMES_DIR is a folder that all nodes share.
volumes=${{GPT_RUNNER_VOLUMES_DIR:-$HOME/gpt-runner-volumes}}
mkdir -p "$volumes"/data "$volumes"/checkpoints "$volumes"/cache
srun --container-image={shlex.quote(image)} --container-workdir=/workspace \\
  --container-mounts="$volumes:/vol" --kill-on-bad-exit=1 \\
  {shlex.join(job.command)} &
child=$!
trap 'kill -TERM $child' TERM  # interrupts wait, whose status is then that of the signal
wait $child
while kill -0 $child 2>/dev/null; do wait $child; done
wait $child
status=$?
# {UNFINISHED}: stopped with a checkpoint; the job resumes from it when it starts again.
[ "$status" -ne {UNFINISHED} ] || scontrol requeue "$SLURM_JOB_ID"
exit "$status"
"""


def kubernetes(job: EmittedJob) -> str:
    """Return a Job of Kubernetes and the claim of its volume."""
    resources = {"cpu": str(CORES * job.count), "memory": f"{MEMORY_GB * job.count}Gi"}
    limits = {**resources, "nvidia.com/gpu": str(job.count)}
    secrets = [
        {
            "name": name,
            "valueFrom": {"secretKeyRef": {"name": "gpt-runner", "key": name, "optional": True}},
        }
        for name in SECRETS
    ]
    container: dict[str, Any] = {
        "name": "job",
        "image": job.image,
        "command": [*job.command],
        "workingDir": "/workspace",
        "env": secrets,
        "resources": {"requests": {**limits}, "limits": {**limits}},
        "volumeMounts": [
            {"name": "volumes", "mountPath": "/vol"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_S,
        "containers": [container],
        "volumes": [
            {"name": "volumes", "persistentVolumeClaim": {"claimName": "gpt-runner"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
        ],
    }
    if job.gpu:
        label = {"key": "nvidia.com/gpu.product", "operator": "In"}
        terms = [{"matchExpressions": [{**label, "values": [*PRODUCTS[job.accelerator]]}]}]
        rule = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        pod["affinity"] = {"nodeAffinity": rule}
    rules = [  # a preempted pod, and one that stopped with a checkpoint, do not count as failures
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
        {
            "action": "Ignore",
            "onExitCodes": {"containerName": "job", "operator": "In", "values": [UNFINISHED]},
        },
    ]
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "gpt-runner"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "200Gi"}},
        },
    }
    work = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job.label, "labels": {"app": "gpt-runner"}},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": job.timeout_s,
            "podFailurePolicy": {"rules": rules},
            "template": {"metadata": {"labels": {"app": "gpt-runner"}}, "spec": pod},
        },
    }
    return f"{_yaml(claim)}---\n{_yaml(work)}"


def skypilot(job: EmittedJob) -> str:
    """Return a managed job of SkyPilot; buckets of the user hold the volumes."""
    task = {
        "name": job.label,
        "resources": {
            "image_id": f"docker:{job.image}",
            "accelerators": f"{job.accelerator.removesuffix('-40GB') or 'H100'}:{job.count}",
            "cpus": f"{CORES * job.count}+",
            "memory": f"{MEMORY_GB * job.count}+",
            "use_spot": True,
            "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [UNFINISHED]},
        },
        "envs": {"GPT_RUNNER_BUCKET": "my-gpt-runner"},
        "secrets": dict.fromkeys(SECRETS, ""),
        "file_mounts": {
            "/vol": {"name": "${GPT_RUNNER_BUCKET}", "mode": "MOUNT_CACHED"},
        },
        "run": f"cd /workspace && timeout --signal=TERM --kill-after={GRACE_S} {job.timeout_s} "
        f"{shlex.join(job.command)}\n",
    }
    return "# Write the name of your own bucket into GPT_RUNNER_BUCKET.\n" + _yaml(task)


def dstack(job: EmittedJob) -> str:
    """Return a task of dstack; a volume of that name must exist (`dstack apply`, type: volume)."""
    gpu = {"name": job.chip, "count": job.count}
    if memory := job.accelerator[len(job.chip) + 1 :]:
        gpu["memory"] = memory
    task = {
        "type": "task",
        "name": job.label,
        "image": job.image,
        "commands": [f"cd /workspace && {shlex.join(job.command)}"],
        "volumes": [{"name": "gpt-runner", "path": "/vol"}],
        "resources": {
            "gpu": gpu if job.gpu else job.count,
            "cpu": f"{CORES * job.count}..",
            "memory": f"{MEMORY_GB * job.count}GB..",
            "shm_size": "2GB",
        },
        "max_duration": f"{job.timeout_s}s",
        "stop_duration": f"{GRACE_S}s",
        "spot_policy": "auto",
        "retry": {"on_events": ["no-capacity", "interruption"], "duration": f"{job.timeout_s}s"},
    }
    return _yaml(task)


def _yaml(tree: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(tree, sort_keys=False, width=100)


ENGINES: dict[str, Callable[[EmittedJob], str]] = {
    "slurm": slurm,
    "k8s": kubernetes,
    "skypilot": skypilot,
    "dstack": dstack,
}
