"""torch.compile is used only if the run is long enough to save the time of compiling."""

from __future__ import annotations

import pytest

from job.paths import CONFIGS
from job.recipe import load
from job.speed import should_compile


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
