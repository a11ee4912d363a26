"""Scripts that use the real Modal client against the stand-in, each in its own process."""

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
    """Start a script after lines that import modal and create `app`."""
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
    """Return the script's output. Fail the test if the script fails."""
    process = start(modal, folder, source, name)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors + modal.log() + "".join(modal.errors())
    return output.strip()


def fail(modal: Api, folder: Path, source: str, name: str = "job") -> str:
    """Return the script's errors. Fail the test if the script succeeds."""
    process = start(modal, folder, source, name)
    output, errors = process.communicate(timeout=60)
    assert process.returncode != 0, output
    return errors
