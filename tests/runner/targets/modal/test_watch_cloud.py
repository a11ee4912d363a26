"""runner watch on a run in the cloud: dollars, attempts, and a network that goes away."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.runner.targets.modal.conftest import Lab
from tests.runner.targets.modal.flaky_proxy import Road


@pytest.mark.slow
def test_a_lost_network_is_said_and_outlived(lab: Lab) -> None:
    go = lab.hold_at(40, 80)
    words = ("--detach", "--device", "cpu", "--max-cost", "5", "max_steps=160")
    lab.train(*words)
    lab.wait_for_step(10)
    with Road(lab.modal.url) as road:
        watch = lab.start("watch", "tiny", "--json", "--interval", "0.3", MODAL_SERVER_URL=road.url)
        looks = _looks(watch)
        first = next(looks)
        assert (first["status"], first["target"], first["max_cost"]) == ("running", "cloud", 5.0)
        _leave_a_frozen_connection(lab)
        road.cut()
        lab.modal.preempt()  # nobody hears of it
        lost = next(look for look in looks if look["trouble"])
        # By what it was about when the road was cut: "can't be reached", "the connection was cut", "could not connect".
        assert any(words in lost["trouble"].lower() for words in ("reached", "connect")), lost[
            "trouble"
        ]
        road.mend()
        again = next(look for look in looks if not look["trouble"] and look["step"] > lost["step"])
        assert again["cost"] > 0
        go.touch()
        *_, last = looks
    assert watch.wait(60) == 0, watch.stderr and watch.stderr.read()
    assert (last["status"], last["step"], last["attempts"]) == ("finished", 160, 2)
    assert last["ends"] == ["preempted", "finished"]
    assert last["newest"]["val_loss"] > 0
    assert watch.stderr is not None
    assert "Traceback" not in watch.stderr.read()


def _leave_a_frozen_connection(lab: Lab) -> None:
    with Road(lab.modal.url) as road:
        watch = lab.start("watch", "tiny", "--json", "--interval", "0.1", MODAL_SERVER_URL=road.url)
        next(_looks(watch))
        road.freeze()
        watch.send_signal(signal.SIGINT)
        _, err = watch.communicate(timeout=60)
        assert (watch.returncode, "left; run tiny goes on" in err) == (130, True)


def _looks(process: Any) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in process.stdout)
