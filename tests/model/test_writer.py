"""Checkpoints written in the background, from the memory of a GPU that is played: no GPU is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model import checkpoint


class OnGpu(torch.Tensor):
    """Says that it lies on a GPU."""

    is_cuda = True


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what was pinned."""
    shapes: list[tuple[int, ...]] = []
    empty = torch.empty

    def take(shape: Any, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        shapes.extend([tuple(shape)] if pin_memory else [])
        return empty(shape, dtype=dtype)

    monkeypatch.setattr(torch, "empty", take)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return shapes


def test_the_first_checkpoint_waits_for_no_memory(tmp_path: Path, pinned: list[tuple[int, ...]]) -> None:
    weights = {"w": torch.ones(2, 3).as_subclass(OnGpu)}
    state = {"w:exp_avg": torch.zeros(2, 3).as_subclass(OnGpu)}
    writer = checkpoint.BackgroundWriter(tmp_path, lambda step: None)
    writer.prepare((weights, state))
    writer.wait()
    assert pinned == [(2, 3), (2, 3)]
    weights["w"] += 1
    writer.submit(7, (weights, state), {})
    writer.wait()
    assert pinned == [(2, 3), (2, 3)]  # the same memory
    found = checkpoint.newest(tmp_path, pytest.fail)
    assert found is not None
    assert found.step == 7
    assert found.model["w"].tolist() == [[2.0] * 3] * 2


def test_a_process_that_writes_nothing_holds_no_copies(tmp_path: Path, pinned: list[tuple[int, ...]]) -> None:
    writer = checkpoint.BackgroundWriter(tmp_path, lambda step: None)
    writer.submit(7, ({"w": torch.ones(2, 3).as_subclass(OnGpu)}, {}), {}, write=False)
    writer.wait()
    assert (pinned, writer.copies, list(tmp_path.iterdir())) == ([], {}, [])


def test_memory_that_can_not_be_had_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no more locked memory")

    monkeypatch.setattr(torch, "empty", refuse)
    writer = checkpoint.BackgroundWriter(tmp_path, lambda step: None)
    writer.prepare(({"w": torch.ones(2).as_subclass(OnGpu)}, {}))
    with pytest.raises(RuntimeError, match="no more locked memory"):
        writer.wait()


@pytest.mark.parametrize(
    "manifest", ["null", "{}", "[]", '{"model.safetensors": null}', '{"state.json": {}}']
)
def test_a_manifest_that_names_no_files_is_a_damaged_checkpoint(tmp_path: Path, manifest: str) -> None:
    for step in (1, 2):
        checkpoint.write(tmp_path, checkpoint.Checkpoint(step, {"w": torch.ones(1)}, {}, {}))
    (tmp_path / "step_00000002" / "manifest.json").write_text(manifest)
    said: list[str] = []
    found = checkpoint.newest(tmp_path, said.append)
    assert found is not None
    assert found.step == 1
    assert said == [
        "damaged checkpoint passed over: step_00000002: manifest.json is missing or unreadable; going back to the one before"
    ]
