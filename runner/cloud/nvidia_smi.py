"""What nvidia-smi tells of this container's GPUs, for the body: the standard library alone serves it."""

from __future__ import annotations

import subprocess

PATIENCE = 30.0  # seconds: 8 GPUs of a machine that has just started answer late


def ask_gpus(query: str) -> list[str]:
    """The values of one ``--query-gpu`` field, without their units, a string for each GPU in nvidia-smi's order.

    Empty where nvidia-smi is missing, fails, or takes longer than ``PATIENCE``.
    """
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines()] if done.returncode == 0 else []
