"""Several processes: joining and leaving the process group, and signals."""

from __future__ import annotations

import signal

import pytest
import torch
import torch.distributed as dist

from model.distributed import ProcessLost, StopSignal, World, join_world


def test_a_process_that_fails_does_not_wait_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's shutdown waits for all processes, and the others wait for this one."""
    ended: list[str] = []
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **more: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: ended.append("together"))
    with pytest.raises(OSError, match="the volume is full"), join_world(torch.device("cpu")):
        raise OSError("the volume is full")
    assert ended == []
    with join_world(torch.device("cpu")) as one:
        assert (one.rank, one.size) == (1, 2)
    assert ended == ["together"]


def test_sigterm_sigint_and_sighup_stop_but_nohup_is_kept() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        stop = StopSignal(World())
        with stop.listening():
            signal.raise_signal(number)
            assert stop.is_set()
            assert stop.received == number
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopSignal(World())
        with stop.listening():
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_failed_exchange_is_the_loss_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(dist, name, lambda *args, **options: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    text = "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"
    with (
        pytest.raises(ProcessLost, match="another process of this run ended"),
        join_world(torch.device("cpu")),
    ):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="shapes"), join_world(torch.device("cpu")):
        raise RuntimeError("shapes differ")
