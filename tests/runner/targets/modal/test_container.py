"""GPU queries, prices and addresses inside the container."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from runner.targets.modal import container
from runner.targets.modal.container import ServeJob, interface_of, price_of, query_gpus
from tests.model.conftest import free_port


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path at which PATH finds a fake nvidia-smi, which does not exist yet."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    return tmp_path / "nvidia-smi"


def write(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_query_returns_a_value_per_gpu(nvidia_smi: Path) -> None:
    write(nvidia_smi, "printf '%s\\n' \"$1\" \"$2\" ' 93'")
    assert query_gpus("utilization.gpu") == [
        "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "93",
    ]  # fmt: skip


@pytest.mark.parametrize("script", ["echo '93'; exit 9", "exec sleep 30"])
def test_failing_nvidia_smi_means_no_gpus(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr("job.metrics.NVIDIA_SMI_TIMEOUT_S", 0.5)
    write(nvidia_smi, script)
    assert query_gpus("name") == []


def test_missing_nvidia_smi_means_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert query_gpus("name") == []


@pytest.mark.parametrize(
    ("given", "price"),
    [
        ("NVIDIA H100 80GB HBM3", 3.0),
        ("NVIDIA A100-SXM4-80GB", 2.0),
        ("NVIDIA A100-SXM4-40GB", 1.0),
        ("NVIDIA L40S", 0.7),
        ("NVIDIA L4", 0.5),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 0.9),
        ("Tesla T4", 3.0),  # not a requested GPU: the highest price
    ],
)
def test_price_of_the_gpu_that_modal_gave(given: str, price: float) -> None:
    table = {
        "A100-40GB": 1.0,
        "A100-80GB": 2.0,
        "H100!": 3.0,
        "L4": 0.5,
        "L40S": 0.7,
        "RTX-PRO-6000": 0.9,
    }
    assert price_of(given, table) == price


def test_interface_of_an_address(tmp_path: Path) -> None:
    known = tmp_path / "if_inet6"
    known.write_text(
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "fe800000000000000000000000000002 02 40 20 80     eth0\n"
        "fdaa000000000000000000000000000a 03 70 00 80     i6pn\n"
    )
    addresses = ("fdaa::a", "::1", "127.0.0.1", "fdaa::b")
    assert [interface_of(address, known) for address in addresses] == ["i6pn", "", "", ""]


def test_a_server_that_fails_after_it_listens_has_not_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(container, "PORT", free_port())
    monkeypatch.setattr(container, "WORKSPACE", str(tmp_path))
    monkeypatch.setattr(ServeJob, "_record", lambda self, job: None)
    program = (
        "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
        "time.sleep(0.5); sys.exit(3)"
    )
    command = [sys.executable, "-c", program, str(container.PORT)]
    monkeypatch.setenv("SERVE_JOB", json.dumps({"command": command, "env": {}}))
    with pytest.raises(RuntimeError, match="did not start; its exit status is 3"):
        ServeJob().start()
