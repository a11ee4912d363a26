"""`runner watch` on Modal: cost, attempts, and a lost network."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.runner.targets.modal.conftest import CloudFixture
from tests.runner.targets.modal.flaky_proxy import FlakyProxy


@pytest.fixture
def cloud(light_cloud: CloudFixture) -> CloudFixture:
    """Use trainings without a network."""
    return light_cloud


@pytest.mark.slow
def test_watch_survives_a_lost_network(cloud: CloudFixture) -> None:
    go = cloud.hold_at(40, 80)
    words = ("--detach", "--device", "cpu", "--max-cost", "5", "max_steps=160")
    cloud.train(*words)
    cloud.wait_for_step(10)
    with FlakyProxy(cloud.modal.url) as proxy:
        watch = cloud.start(
            "watch", "tiny", "--json", "--interval", "0.3", MODAL_SERVER_URL=proxy.url
        )
        snapshots = _snapshots(watch)
        first = next(snapshots)
        assert (first["status"], first["target"], first["max_cost"]) == ("running", "cloud", 5.0)
        _leave_a_frozen_connection(cloud)
        proxy.cut()
        cloud.modal.preempt()  # while the network is down
        # The message depends on the request that was cut.
        words = ("reached", "connect")
        troubled = (one for one in snapshots if one["trouble"])
        lost = next(one for one in troubled if any(word in one["trouble"] for word in words))
        proxy.restore()
        later = (one for one in snapshots if not one["trouble"])
        again = next(one for one in later if one["step"] > lost["step"])
        assert again["cost"] > 0
        go.touch()
        *_, last = snapshots
    assert watch.wait(60) == 0, watch.stderr and watch.stderr.read()
    assert (last["status"], last["step"], last["attempts"]) == ("finished", 160, 2)
    assert last["end_reasons"] == ["preempted", "finished"]
    assert last["newest"]["val_loss"] > 0
    assert watch.stderr is not None
    assert "Traceback" not in watch.stderr.read()


def _leave_a_frozen_connection(cloud: CloudFixture) -> None:
    with FlakyProxy(cloud.modal.url) as proxy:
        watch = cloud.start(
            "watch", "tiny", "--json", "--interval", "0.1", MODAL_SERVER_URL=proxy.url
        )
        next(_snapshots(watch))
        proxy.freeze()
        watch.send_signal(signal.SIGINT)
        _, err = watch.communicate(timeout=60)
        assert (watch.returncode, "run 'tiny' continues" in err) == (130, True)


def _snapshots(process: Any) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in process.stdout)
