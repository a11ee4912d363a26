"""What nvidia-smi tells of this machine's GPUs. Standard library only.

The body of a cloud run has its own (runner/cloud/nvidia_smi.py): it must not import this folder, which may be broken.
"""

from __future__ import annotations

import subprocess

PATIENCE = 5.0  # seconds: nobody's training waits longer for a number


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
