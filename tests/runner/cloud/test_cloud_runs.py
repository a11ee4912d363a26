"""`runner cloud` against the stand-in: it trains for real."""

from __future__ import annotations

import json
import signal

from model.checkpoint import newest
from tests.runner.cloud.conftest import Lab, train_here


def test_it_trains_in_the_cloud_and_its_records_are_found_afterwards(lab: Lab) -> None:
    out, err = lab.train("--gpu", "h100:1,A100-80GB", "--max-cost", "5")
    assert "run tiny is finished" in err
    assert out.startswith("the ")  # the sample: stdout is data
    assert "H100, else 1 x A100-80GB" in err
    assert "$5.00" in err
    assert lab.steps() == list(range(1, 61))
    state = json.loads(lab.run("status", "tiny", "--json")[0])
    assert (state["status"], state["target"], state["step"], state["attempts"]) == (
        "finished",
        "cloud",
        60,
        1,
    )
    assert state["gpu"] == "H100,A100-80GB"
    assert 0 < state["cost"] < 0.2
    assert "run tiny is finished" in lab.run("logs", "tiny", "--tail", "3")[0]
    # Again, with the code edited: no image is built, and the finished run is only shown.
    builds = len(lab.modal.builds)
    with (lab.checkout / "model" / "gpt.py").open("a") as code:
        code.write("\n# an edit\n")
    with (lab.checkout / "configs" / "tiny.yaml").open("a") as recipe:
        recipe.write("\n# an edit\n")
    out, err = lab.train("--device", "cpu")
    assert "is finished already" in err + out
    assert "cached, built" in err
    assert len(lab.modal.builds) == builds


def test_five_preemptions_end_with_the_weights_of_an_unbroken_run(lab: Lab) -> None:
    steps = ("max_steps=100", "checkpoint_every=10", "eval_every=50")
    train_here(lab.checkout, *steps)
    lab.slow_down(0.02)
    process = lab.start("cloud", "tiny", "-y", "--device", "cpu", *steps)
    for step in (10, 20, 40, 60, 80):
        lab.wait_for_step(step)
        lab.modal.preempt()
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, out + err
    unbroken = lab.checkout / "volumes" / "checkpoints" / "tiny"
    ours, theirs = newest(lab.run_folder(), print), newest(unbroken, print)
    assert ours is not None
    assert theirs is not None
    assert ours.step == theirs.step == 100
    assert lab.weights() == (unbroken / "step_00000100" / "model.safetensors").read_bytes()
    ledger = lab.ledger()
    reasons = [attempt["reason"] for attempt in ledger["attempts"]]
    assert reasons == ["preempted"] * 5 + ["finished"]
    costs = [attempt["cost"] for attempt in ledger["attempts"]]
    assert ledger["cost"] == round(sum(costs), 4) or abs(ledger["cost"] - sum(costs)) < 1e-3
    state = json.loads(lab.run("status", "tiny", "--json")[0])
    assert state["attempts"] == 6
    assert "6: 5 x preempted, finished" in lab.run("status", "tiny")[0]
    assert abs(state["cost"] - sum(costs)) < 1e-3
    assert lab.modal.calls()[0]["retries"] == [0]
    assert sorted(set(lab.steps())) == list(range(1, 101))


def test_a_detached_run_outlives_its_client_and_is_found_again(lab: Lab) -> None:
    lab.slow_down(0.02)
    process = lab.start("cloud", "tiny", "-y", "--device", "cpu", "--detach", "max_steps=4000")
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "tiny"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lab.wait_for_step(10)
    state = json.loads(lab.run("status", "tiny", "--json")[0])
    assert (state["status"], state["alive"]) == ("running", True)
    assert "step" in lab.run("logs", "tiny", "--tail", "5")[0]
    lab.run("stop", "tiny")
    state = json.loads(lab.run("status", "tiny", "--json")[0])
    assert state["status"] == "unfinished"
    assert state["reason"] == "stopped"
    assert newest(lab.run_folder(), print) is not None
