"""The number of threads: affinity, a container's limit, other processes, the network's size."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from job import cpu
from job.paths import CONFIGS
from job.recipe import load
from job.speed import threads_for
from job.step_folders import step_folder

LARGE_STEP_FLOPS = 1e12  # FLOPs of a step that is large enough for many threads


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pretend to have four idle CPUs, and /sys and /proc in ``tmp_path``."""
    monkeypatch.setattr(cpu, "_allowed", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(cpu, "CGROUP", tmp_path)
    monkeypatch.setattr(cpu, "STAT", tmp_path / "stat")
    use(tmp_path, monkeypatch, 0.0, 0.0, 0.0, 0.0)
    return tmp_path


def use(folder: Path, monkeypatch: pytest.MonkeyPatch, *busy: float, moments: int = 99) -> None:
    """Make each CPU busy for a share of the time; CPU 9 is not for this process.

    After ``moments`` samples all are idle.
    """
    used, idle = [0.0] * len(busy), [0.0] * len(busy)

    def write(count: int) -> None:
        for n, share in enumerate(busy):
            share = share if count < moments else 0
            used[n], idle[n] = used[n] + 100 * share, idle[n] + 100 * (1 - share)
        lines = [f"cpu{n} {int(used[n])} 0 0 {int(idle[n])} 0 0 0 0" for n in range(len(busy))]
        lines.append(f"cpu9 {100 * count} 0 0 0 0 0 0 0")
        (folder / "stat").write_text("\n".join(["cpu 1 1 1 1", *lines, "intr 1"]))

    counts = itertools.count()
    write(next(counts))
    monkeypatch.setattr(cpu.time, "sleep", lambda _: write(next(counts)))


@pytest.mark.parametrize(
    ("busy", "threads"),
    [((0, 0, 0, 0), 4), ((1, 0, 0, 0), 3), ((1, 1, 0.9, 1), 1), ((0.2, 0.2, 0.1, 0.3), 3)],
)
def test_other_processes_leave_free_cpus(
    machine: Path, monkeypatch: pytest.MonkeyPatch, busy: tuple[float, ...], threads: int
) -> None:
    use(machine, monkeypatch, *busy)
    assert cpu.choose_threads(LARGE_STEP_FLOPS, cpu.free_cpus()) == threads


def test_own_work_counts_as_free(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(machine, monkeypatch, 1, 1, 0, 0)
    seconds_per_sample = 100 / os.sysconf("SC_CLK_TCK")
    seconds = itertools.count(0, seconds_per_sample)
    monkeypatch.setattr(cpu.time, "process_time", lambda: next(seconds))
    assert cpu.free_cpus() == pytest.approx(3)


def test_short_load_does_not_count(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(machine, monkeypatch, 1, 1, 0, 0, moments=2)
    assert cpu.choose_threads(LARGE_STEP_FLOPS, cpu.free_cpus()) == 4


@pytest.mark.parametrize(("flops", "threads"), [(1e6, 1), (1.2e9, 2), (1e10, 4)])
def test_a_small_network_gets_fewer_threads(flops: float, threads: int) -> None:
    assert cpu.choose_threads(flops, cpu.free_cpus()) == threads


def test_a_run_keeps_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A different number of threads adds in a different order and ends with different weights."""
    recipe = load(CONFIGS / "quickstart.yaml")
    assert threads_for(recipe, tmp_path, 4.0) == 4
    for step, threads in ((1, 3), (2, 2)):
        folder = step_folder(tmp_path, step)
        folder.mkdir()
        (folder / "state.json").write_text(json.dumps({"threads": threads}))
    assert threads_for(recipe, tmp_path, 4.0) == 2
    (folder / "state.json").write_text("{")
    assert threads_for(recipe, tmp_path, 4.0) == 3


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "max 100000\n"}, 4),
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu.max": "?"}, 4),
    ],
)
def test_a_container_has_a_limit(machine: Path, files: dict[str, str], cpus: int) -> None:
    for name, text in files.items():
        (machine / name).parent.mkdir(exist_ok=True)
        (machine / name).write_text(text)
    assert cpu.available_cpus() == cpus
    assert cpu.choose_threads(LARGE_STEP_FLOPS, cpu.free_cpus()) == cpus


def test_without_proc_all_cpus_count_as_free(machine: Path) -> None:
    (machine / "stat").unlink()
    assert cpu.choose_threads(LARGE_STEP_FLOPS, cpu.free_cpus()) == 4
