"""runner doctor --parity: ten steps on each target, with the losses compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.doctor.parity import STEPS, ShortRun, largest_difference, table
from tests.runner.targets.modal.conftest import CloudFixture, cloud  # noqa: F401


def short_run(*losses: float, torch: str = "2.9.1") -> ShortRun:
    return ShortRun(dict(enumerate(losses, 1)), {"torch": torch})


class TestComparison:
    def test_largest_difference_is_marked(self) -> None:
        trials = {"host": short_run(3.0, 2.5, 2.0), "local": short_run(3.0, 2.502, 2.0005)}
        assert largest_difference(trials) == (2, pytest.approx(0.002))
        marked = [line for line in table(trials) if "largest difference" in line]
        assert len(marked) == 1
        assert marked[0].startswith("step 2")
        assert marked[0].endswith("2.0e-03")

    def test_different_versions_are_marked(self) -> None:
        lines = table({"host": short_run(1.0), "cloud": short_run(1.0, torch="2.8.0")})
        assert next(line for line in lines if line.startswith("torch")).endswith("differ")

    @pytest.mark.parametrize("other", [short_run(3.0), short_run(3.0, float("nan"))])
    def test_missing_or_non_finite_loss_is_an_infinite_difference(self, other: ShortRun) -> None:
        assert largest_difference({"host": short_run(3.0, 2.5), "local": other})[1] == float("inf")

    def test_single_target_has_no_difference(self) -> None:
        assert largest_difference({"host": short_run(3.0, 2.5)}) == (0, 0.0)


def test_host_and_modal_agree_on_ten_steps(cloud: CloudFixture, tmp_path: Path) -> None:  # noqa: F811
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text("#!/bin/sh\nexit 1\n")  # without an engine, local is unavailable
    docker.chmod(0o755)
    path = f"{docker.parent}:{cloud.environ['PATH']}"
    out, _ = cloud.run("doctor", "--parity", "tiny", "-y", "--json", PATH=path, OMP_NUM_THREADS="1")
    (folder,) = (cloud.checkout / "volumes" / "checkpoints").glob("parity-*-host")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = next(row["loss"] for row in rows if row["kind"] == "train" and row["step"] == STEPS)
    report = json.loads(out)
    assert report["targets"]["host"]["run"] == folder.name
    losses = [report["targets"][name]["losses"] for name in ("host", "cloud")]
    assert [by_step[str(STEPS)] for by_step in losses] == [
        last,
        pytest.approx(last, abs=report["tolerance"]),
    ]
    assert report["largest_difference"] <= report["tolerance"]


def test_parity_without_confirmation_costs_nothing(cloud: CloudFixture) -> None:  # noqa: F811
    _, err = cloud.run("doctor", "--parity", "tiny", status=2)
    assert "pass -y to confirm" in err
    assert not list((cloud.checkout / "volumes").rglob("parity-*"))
