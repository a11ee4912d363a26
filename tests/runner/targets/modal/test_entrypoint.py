"""What ends an attempt in the cloud, and what comes after it."""

from __future__ import annotations

import json
import signal

import pytest

from tests.runner.targets.modal.conftest import Lab, seconds_to_begin


@pytest.fixture
def brief() -> int:
    """Seconds in which a job begins and comes to write a checkpoint, and not much more."""
    return round(5 + 1.5 * seconds_to_begin())


def reasons(lab: Lab) -> list[str | None]:
    return [attempt["reason"] for attempt in lab.ledger()["attempts"]]


def a_dollar_a_second(lab: Lab) -> None:
    """On a machine of 4 cores."""
    (lab.checkout / "prices.yaml").write_text("CPU: 900\nMEMORY: 0\n")


def test_an_attempt_that_is_used_up_is_followed_by_one_that_resumes(lab: Lab, brief: int) -> None:
    lab.slow_down(0.1)
    steps = 7 * brief  # more than an attempt has time for
    lab.train("--device", "cpu", f"max_steps={steps}", GPT_RUNNER_ATTEMPT=f"{brief}s")
    assert len(reasons(lab)) > 1
    assert set(reasons(lab)[:-1]) == {"attempt-timeout"}
    assert reasons(lab)[-1] == "finished"
    call = lab.modal.calls()[0]
    assert call["retries"] == [len(reasons(lab)) - 1]
    assert lab.steps() == list(range(1, steps + 1))


def test_the_timeout_counts_all_attempts(lab: Lab, brief: int) -> None:
    lab.slow_down(0.05)
    _, err = lab.train("--device", "cpu", "max_steps=2000", "--timeout", f"{brief}s", status=101)
    assert reasons(lab) == ["run-timeout"]
    words = "it reached its --timeout; to resume: `runner resume tiny --timeout LONGER`"
    assert err.splitlines()[-1] == f"stopped: {words}"
    assert lab.run("status", "tiny")[1] == f"{words}\n"
    assert (lab.run_folder() / "latest").exists()
    # Less than was used: the checkpoint is written, and the attempt over, some seconds before its time is up.
    _, err = lab.train("--device", "cpu", "max_steps=2000", "--timeout", f"{brief // 2}s", status=2)
    assert "has used" in err
    assert "--timeout" in err
    assert "give it more: --timeout 1h" in lab.run("resume", "tiny", "-y", status=2)[1]
    assert "--timeout 1h" not in lab.run("resume", "tiny", "--timeout", "1h", "--dry-run")[1]
    assert len(lab.modal.calls()) == 1


@pytest.mark.slow
def test_a_cap_in_dollars_holds_over_three_attempts_and_more_money_goes_on(
    lab: Lab, brief: int
) -> None:
    lab.slow_down(0.05)
    a_dollar_a_second(lab)
    cap = min(60, 4 * brief)  # dollars, and so seconds: three attempts
    more = cap + min(20, 2 * brief)
    process = lab.start(
        "cloud", "tiny", "-y", "--device", "cpu", "max_steps=9000", "--max-cost", str(cap)
    )
    lab.wait_for_step(10)
    lab.modal.preempt()
    before = len(lab.metrics())
    lab.modal.wait_until(lambda: len(lab.metrics()) > before and len(reasons(lab)) == 2, 60)
    lab.modal.preempt()
    _, err = process.communicate(timeout=180)
    assert process.returncode == 104, err
    assert "--max-cost is spent" in err
    assert reasons(lab) == ["preempted", "preempted", "budget"]
    book = lab.ledger()
    assert book["cost"] == pytest.approx(
        sum(attempt["cost"] for attempt in book["attempts"]), abs=0.001
    )
    assert 0.90 * cap <= book["cost"] <= 1.02 * cap
    reached = json.loads((lab.run_folder() / "run.json").read_text())["step"]
    assert (lab.run_folder() / "latest").exists()
    assert json.loads(lab.run("status", "tiny", "--json")[0])["status"] == "unfinished"
    assert "runner resume tiny --max-cost MORE" in lab.run("watch", "tiny", status=104)[1]
    _, err = lab.train("--device", "cpu", "max_steps=9000", "--max-cost", "10", status=2)
    assert "has cost" in err  # less than is spent
    _, err = lab.run("resume", "tiny", "-y", "--max-cost", str(more), status=104)
    assert f"resumes from step {reached}" in err
    assert 0.90 * more <= lab.ledger()["cost"] <= 1.02 * more
    assert json.loads((lab.run_folder() / "run.json").read_text())["step"] > reached


def test_a_mistake_of_the_users_burns_no_retry(lab: Lab) -> None:
    _, err = lab.train("--device", "cpu", "data.source=texts/none.txt", status=100)
    assert "texts/none.txt" in err
    assert lab.modal.calls()[0]["retries"] == [0]
    assert len(lab.modal.calls()[0]["attempts"][0]) == 1
    assert json.loads(lab.run("status", "tiny", "--json")[0])["status"] == "failed"
    # It came to no log of its own: what Modal has of its output is shown.
    assert not (lab.run_folder() / "log.txt").exists()
    assert "texts/none.txt" in lab.run("logs", "tiny")[0]


def test_a_machine_that_crashes_loses_nothing_that_was_committed(strict_lab: Lab) -> None:
    lab = strict_lab
    go = lab.hold_at(25)
    process = lab.start("cloud", "tiny", "-y", "--device", "cpu", "max_steps=60")
    lab.modal.wait_until(lambda: "latest" in lab.committed(), 60)
    lab.modal.crash()
    go.touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert (
        "in-progress inputs will be re-scheduled" in err
    )  # Modal's own line, which belongs to no call
    assert reasons(lab) == ["killed", "finished"]
    record = json.loads((lab.run_folder() / "run.json").read_text())
    assert record["attempts"][1]["first_step"] >= 10
    assert record["step"] == 60


def test_ctrl_c_off_a_terminal_stops_the_run_and_it_resumes(lab: Lab) -> None:
    lab.hold_at(25)
    process = lab.start(
        "cloud", "tiny", "-y", "--device", "cpu", "max_steps=120", "--max-cost", "3"
    )
    lab.wait_for_step(10)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 101, err
    assert reasons(lab) == ["stopped"]
    lab.slow_down(0.0)
    _, err = lab.run("resume", "tiny", "-y", "--timeout", "2h")
    assert "resumes from step" in err
    assert "$3.00" in err
    assert "2h00m over all attempts" in err
    assert reasons(lab) == ["stopped", "finished"]
    assert sorted(set(lab.steps())) == list(range(1, 121))


def test_sigterm_leaves_the_run_alone(lab: Lab) -> None:
    go = lab.hold_at(25)
    process = lab.start("cloud", "tiny", "-y", "--device", "cpu", "max_steps=60")
    lab.wait_for_step(10)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith(
        "left; the run goes on. `runner logs tiny --follow` shows it"
    )
    go.touch()
    lab.modal.wait_until(lambda: lab.ledger()["status"] == 0, 60)


def test_a_run_is_killed_with_now(lab: Lab) -> None:
    lab.slow_down(0.02)
    lab.train("--device", "cpu", "max_steps=9000", "--detach")
    lab.wait_for_step(10)
    lab.run("stop", "tiny", "--force")
    lab.modal.wait_until(lambda: not any(task["alive"] for task in lab.modal.tasks()), 60)
    state = json.loads(lab.run("status", "tiny", "--json")[0])
    assert (state["status"], state["ends"], state["reason"]) == (
        "unfinished",
        ["stopped"],
        "stopped",
    )
