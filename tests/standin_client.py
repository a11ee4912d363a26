"""Clients of the stand-in for tests: scripts that run in a process of their own, with the real client."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.modal_standin import Api

PREAMBLE = """
import json, os, sys, time
import modal

app = modal.App("a-test")
"""


def start(modal: Api, folder: Path, source: str, name: str = "job") -> subprocess.Popen[str]:
    """Start a script whose first lines import modal and make an `app`."""
    script = folder / f"{name}.py"
    script.write_text(PREAMBLE + textwrap.dedent(source))
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MODAL_")}
    return subprocess.Popen(
        [sys.executable, str(script)],
        env={**inherited, **modal.environ},
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(modal: Api, folder: Path, source: str, name: str = "job") -> str:
    """What the script prints. Fails the test where it fails."""
    process = start(modal, folder, source, name)
    output, complaint = process.communicate(timeout=60)
    assert process.returncode == 0, complaint + modal.log() + "".join(modal.errors())
    return output.strip()


def fail(modal: Api, folder: Path, source: str, name: str = "job") -> str:
    """What the script complains about. Fails the test where it succeeds."""
    process = start(modal, folder, source, name)
    output, complaint = process.communicate(timeout=60)
    assert process.returncode != 0, output
    return complaint
