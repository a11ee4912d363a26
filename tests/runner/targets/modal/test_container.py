"""What nvidia-smi is asked, and what is made of its answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.targets.modal.container import ask_gpus


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where PATH finds it; not there yet."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    return tmp_path / "nvidia-smi"


def write(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_one_value_for_each_gpu(nvidia_smi: Path) -> None:
    write(nvidia_smi, "printf '%s\\n' \"$1\" \"$2\" ' 93'")
    assert ask_gpus("utilization.gpu") == [
        "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "93",
    ]  # fmt: skip


@pytest.mark.parametrize("script", ["echo '93'; exit 9", "exec sleep 30"])
def test_a_failure_and_a_silence_are_no_gpus(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr("runner.targets.modal.container.PATIENCE", 0.5)
    write(nvidia_smi, script)
    assert ask_gpus("name") == []


def test_no_nvidia_smi_is_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_gpus("name") == []
