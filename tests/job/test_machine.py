"""The number of threads (affinity, limits, other processes, network), and when to compile."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from job import machine as job_machine
from job.machine import should_compile, threads_for
from job.paths import CONFIGS
from job.recipe import load
from job.step_folders import step_folder

LARGE_STEP_FLOPS = 1e12  # FLOPs of a step that is large enough for many threads


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pretend to have four idle CPUs, and /sys and /proc in ``tmp_path``."""
    monkeypatch.setattr(job_machine, "_allowed", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(job_machine, "CGROUP", tmp_path)
    monkeypatch.setattr(job_machine, "STAT", tmp_path / "stat")
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
    monkeypatch.setattr(job_machine.time, "sleep", lambda _: write(next(counts)))


@pytest.mark.parametrize(
    ("busy", "threads"),
    [((0, 0, 0, 0), 4), ((1, 0, 0, 0), 3), ((1, 1, 0.9, 1), 1), ((0.2, 0.2, 0.1, 0.3), 3)],
)
def test_other_processes_leave_free_cpus(
    machine: Path, monkeypatch: pytest.MonkeyPatch, busy: tuple[float, ...], threads: int
) -> None:
    use(machine, monkeypatch, *busy)
    assert job_machine.choose_threads(LARGE_STEP_FLOPS, job_machine.free_cpus()) == threads


def test_own_work_counts_as_free(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(machine, monkeypatch, 1, 1, 0, 0)
    seconds_per_sample = 100 / os.sysconf("SC_CLK_TCK")
    seconds = itertools.count(0, seconds_per_sample)
    monkeypatch.setattr(job_machine.time, "process_time", lambda: next(seconds))
    assert job_machine.free_cpus() == pytest.approx(3)


def test_short_load_does_not_count(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(machine, monkeypatch, 1, 1, 0, 0, moments=2)
    assert job_machine.choose_threads(LARGE_STEP_FLOPS, job_machine.free_cpus()) == 4


@pytest.mark.parametrize(("flops", "threads"), [(1e6, 1), (1.2e9, 2), (1e10, 4)])
def test_a_small_network_gets_fewer_threads(flops: float, threads: int) -> None:
    assert job_machine.choose_threads(flops, job_machine.free_cpus()) == threads


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
    assert job_machine.available_cpus() == cpus
    assert job_machine.choose_threads(LARGE_STEP_FLOPS, job_machine.free_cpus()) == cpus


def test_without_proc_all_cpus_count_as_free(machine: Path) -> None:
    (machine / "stat").unlink()
    assert job_machine.choose_threads(LARGE_STEP_FLOPS, job_machine.free_cpus()) == 4


def compiles(recipe: str, device: str, *overrides: str) -> bool:
    return should_compile(load(CONFIGS / f"{recipe}.yaml", overrides), device)[0]


@pytest.mark.parametrize(
    ("recipe", "device", "compiled"),
    [
        ("quickstart", "cpu", False),
        ("gpt2_124m", "cpu", True),
        ("gpt2_124m", "cuda", True),
        ("quickstart", "cuda", False),
        ("gpt2_124m", "mps", False),
    ],
)
def test_long_runs_are_compiled(
    recipe: str, device: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda program: f"/usr/bin/{program}")
    assert compiles(recipe, device) is compiled
    assert compiles(recipe, device, "compile=true")
    assert not compiles(recipe, device, "compile=false")


def test_a_shorter_run_of_the_same_network_is_not_compiled() -> None:
    assert not compiles("gpt2_124m", "cuda", "max_steps=2", "warmup_steps=1", "decay_steps=null")


def test_a_cpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program: None)
    assert not compiles("gpt2_124m", "cpu")
