"""Checkpoints: background writes with pinned memory, full disks, damage. No GPU is needed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from job.exit_status import UserError
from job.files import describe_os_error, name_in_errors, write_atomically
from job.step_folders import DiskFull
from model import checkpoint
from tests.model.conftest import Lab

DISK_FULL_MESSAGE = "Error while serializing: I/O error: No space left on device (os error 28)"


class OnGpu(torch.Tensor):
    """A CPU tensor that reports that it is on a GPU."""

    is_cuda = True


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Record the shapes of pinned tensors."""
    shapes: list[tuple[int, ...]] = []
    empty = torch.empty

    def take(shape: Any, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        shapes.extend([tuple(shape)] if pin_memory else [])
        return empty(shape, dtype=dtype)

    monkeypatch.setattr(torch, "empty", take)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return shapes


def test_memory_is_pinned_before_the_first_checkpoint(
    tmp_path: Path, pinned: list[tuple[int, ...]]
) -> None:
    weights = {"w": torch.ones(2, 3).as_subclass(OnGpu)}
    state = {"w:exp_avg": torch.zeros(2, 3).as_subclass(OnGpu)}
    writer = checkpoint.CheckpointWriter(tmp_path, lambda step: None)
    writer.prepare((weights, state))
    writer.wait()
    assert pinned == [(2, 3), (2, 3)]
    weights["w"] += 1
    writer.submit(7, (weights, state), {})
    writer.wait()
    assert pinned == [(2, 3), (2, 3)]  # the same buffers
    found = checkpoint.newest(tmp_path, pytest.fail)
    assert found is not None
    assert found.step == 7
    assert found.model["w"].tolist() == [[2.0] * 3] * 2


def test_a_process_that_does_not_write_has_no_copies(
    tmp_path: Path, pinned: list[tuple[int, ...]]
) -> None:
    writer = checkpoint.CheckpointWriter(tmp_path, lambda step: None)
    writer.submit(7, ({"w": torch.ones(2, 3).as_subclass(OnGpu)}, {}), {}, write=False)
    writer.wait()
    assert (pinned, writer.copies, list(tmp_path.iterdir())) == ([], {}, [])


def test_a_failed_allocation_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no more locked memory")

    monkeypatch.setattr(torch, "empty", refuse)
    writer = checkpoint.CheckpointWriter(tmp_path, lambda step: None)
    writer.prepare(({"w": torch.ones(2).as_subclass(OnGpu)}, {}))
    with pytest.raises(RuntimeError, match="no more locked memory"):
        writer.wait()


@pytest.mark.parametrize(
    "manifest", ["null", "{}", "[]", '{"model.safetensors": null}', '{"state.json": {}}']
)
def test_an_invalid_manifest_is_a_damaged_checkpoint(tmp_path: Path, manifest: str) -> None:
    for step in (1, 2):
        checkpoint.write(tmp_path, checkpoint.Checkpoint(step, {"w": torch.ones(1)}, {}, {}))
    (tmp_path / "step_00000002" / "manifest.json").write_text(manifest)
    messages: list[str] = []
    found = checkpoint.newest(tmp_path, messages.append)
    assert found is not None
    assert found.step == 1
    assert messages == [
        "skipping a damaged checkpoint: step_00000002: manifest.json is missing or unreadable; "
        "trying the previous one"
    ]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that fills the disk: the next file of weights is cut short."""

    def save(tensors: dict[str, torch.Tensor], path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise SafetensorError(DISK_FULL_MESSAGE)

    return lambda: monkeypatch.setattr(checkpoint, "save_file", save)


def test_a_full_disk_keeps_complete_checkpoints_only(
    tmp_path: Path, full: Callable[[], None]
) -> None:
    for step in (1, 2):
        checkpoint.write(tmp_path, checkpoint.Checkpoint(step, {"w": torch.ones(1 << 18)}, {}, {}))
    full()
    writer = checkpoint.CheckpointWriter(tmp_path, pytest.fail)
    writer.submit(3, ({"w": torch.ones(1 << 18)}, {}), {})
    with pytest.raises(DiskFull) as raised:
        writer.wait()
    message = str(raised.value)
    assert f"the disk of {tmp_path} is full: the checkpoint of step 3 needs 1.0 MB" in message
    assert "B are free; step_00000002 is the last intact one" in message
    assert f"(its oldest checkpoint is {tmp_path}/step_00000001) and run" in message
    assert message.endswith(f"run `runner resume {tmp_path.name}`")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "latest",
        "step_00000001",
        "step_00000002",
    ]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DISK_FULL_MESSAGE, "the disk of RUN is full: the checkpoint of step 10 needs"),
        (
            "I/O error: No such file or directory (os error 2)",
            "RUN/.partial_step_00000010/model.safetensors: no such file or directory",
        ),
    ],
)
def test_a_system_error_ends_training_with_one_line(lab: Lab, error: str, words: str) -> None:
    _, err = lab.run_python(
        "import sys\n"
        "from safetensors import SafetensorError\n"
        "from model import checkpoint, train\n"
        "def save(*_, **__):\n"
        f"    raise SafetensorError({error!r})\n"
        "checkpoint.save_file = save\n"
        f"sys.exit(train.main([{str(lab.recipe)!r}, 'max_steps=10', '--name', 't']))\n",
        status=100,
    )
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith(
        "error: " + words.replace("RUN", str(lab.run_folder("t")))
    )
    assert '"status": "failed"' in (lab.run_folder("t") / "run.json").read_text()


def test_all_files_of_a_checkpoint_have_the_same_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = checkpoint.write(tmp_path, checkpoint.Checkpoint(1, {"w": torch.ones(1)}, {}, {}))
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o640"}
    assert len([*folder.iterdir()]) == 4


def test_a_system_error_names_its_file_or_the_fullest_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left on device") as raised:
        write_atomically(tmp_path / "run.json", "{}")
    assert describe_os_error(raised.value).startswith(
        f"{tmp_path}/run.json: no space left on device: "
    )
    assert not [*tmp_path.iterdir()]  # no partial file
    for name in ("DATA_PATH", "CHECKPOINTS_PATH", "CACHE_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    assert describe_os_error(OSError(errno.ENOSPC, "No space left on device")).startswith(
        f"{tmp_path}: no space left"
    )
    denied = PermissionError(errno.EACCES, "Permission denied", "/a/b")
    assert describe_os_error(denied) == "/a/b: permission denied; check its rights: `ls -ld /a/b`"
    fifo = OSError(errno.EINVAL, "a FIFO, not a regular file", "/a/b")
    assert describe_os_error(fifo) == "/a/b: a FIFO, not a regular file"
    assert describe_os_error(IsADirectoryError(21, "Is a directory", "/a")) == "/a: is a directory"
    assert describe_os_error(ValueError("as it is")) == "as it is"
    with pytest.raises(FileNotFoundError, match="gone"), name_in_errors(tmp_path / "gone"):
        raise SafetensorError("I/O error: No such file or directory (os error 2)")


@pytest.mark.parametrize(
    ("saved", "name"), [({}, "b"), ({"b": (1, 4)}, "b"), ({"b": (4,), "c": (2,)}, "c")]
)
def test_weights_of_a_different_network_are_refused(
    saved: dict[str, tuple[int, ...]], name: str
) -> None:
    """A shape that copy_ would broadcast is no exception."""
    weight = torch.ones(4)
    with pytest.raises(UserError, match=f"the checkpoint and the network differ in {name}:"):
        checkpoint.restore_model({weight: "b"}, {n: torch.zeros(s) for n, s in saved.items()})
    assert weight.tolist() == [1.0] * 4
