"""Several processes: how they leave the process group."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from model.distributed import join_world


def test_a_process_that_fails_does_not_wait_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's shutdown waits for all processes, and the others wait for this one."""
    ended: list[str] = []
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **more: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: ended.append("together"))
    with pytest.raises(OSError, match="the volume is full"), join_world("cpu"):
        raise OSError("the volume is full")
    assert ended == []
    with join_world("cpu") as one:
        assert (one.rank, one.size) == (1, 2)
    assert ended == ["together"]
