"""What ends an attempt in the cloud, and what comes after it."""

from __future__ import annotations

import json
import signal

from tests.runner.cloud.conftest import Lab


def reasons(lab: Lab) -> list[str | None]:
    return [attempt["reason"] for attempt in lab.ledger()["attempts"]]


def test_an_attempt_that_is_used_up_is_followed_by_one_that_resumes(lab: Lab) -> None:
    lab.slow_down(0.1)
    lab.train("--device", "cpu", "max_steps=60", GPT_RUNNER_ATTEMPT="8s")
    assert len(reasons(lab)) > 1
    assert set(reasons(lab)[:-1]) == {"time-out"}
    assert reasons(lab)[-1] == "finished"
    call = lab.modal.calls()[0]
    assert call["retries"] == [len(reasons(lab)) - 1]
    assert sorted(set(lab.steps())) == list(range(1, 61))


def test_the_timeout_counts_all_attempts(lab: Lab) -> None:
    lab.slow_down(0.05)
    lab.train("--device", "cpu", "max_steps=2000", "--timeout", "8s", status=101)
    assert reasons(lab) == ["timeout"]
    assert (lab.run_folder() / "latest").exists()
    _, err = lab.train("--device", "cpu", "max_steps=2000", "--timeout", "8s", status=2)
    assert "has used" in err
    assert "--timeout" in err


def test_a_cap_in_dollars_checkpoints_and_ends_104(lab: Lab) -> None:
    lab.slow_down(0.05)
    words = ("--device", "cpu", "max_steps=2000", "--max-cost", "8")
    _, err = lab.train(*words, status=104, GPT_RUNNER_PRICES="CPU=900,MEMORY=0")
    assert "--max-cost is spent" in err
    assert reasons(lab) == ["budget"]
    assert 6.0 < lab.ledger()["cost"] < 9.0  # a dollar a second
    assert (lab.run_folder() / "latest").exists()
    state = json.loads(lab.run("status", "tiny", "--json")[0])
    assert state["status"] == "unfinished"
    _, err = lab.train(*words, status=2, GPT_RUNNER_PRICES="CPU=900,MEMORY=0")
    assert "has cost" in err


def test_a_mistake_of_the_users_burns_no_retry(lab: Lab) -> None:
    _, err = lab.train("--device", "cpu", "data.source=texts/none.txt", status=100)
    assert "texts/none.txt" in err
    assert lab.modal.calls()[0]["retries"] == [0]
    assert len(lab.modal.calls()[0]["attempts"][0]) == 1
    assert json.loads(lab.run("status", "tiny", "--json")[0])["status"] == "failed"


def test_a_machine_that_crashes_loses_nothing_that_was_committed(strict_lab: Lab) -> None:
    lab = strict_lab
    lab.slow_down(0.03)
    process = lab.start("cloud", "tiny", "-y", "--device", "cpu", "max_steps=60")
    lab.modal.wait_until(lambda: "latest" in lab.committed(), 60)
    lab.modal.crash()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert reasons(lab) == ["killed", "finished"]
    record = json.loads((lab.run_folder() / "run.json").read_text())
    assert record["attempts"][1]["first_step"] >= 10
    assert record["step"] == 60


def test_ctrl_c_off_a_terminal_stops_the_run_and_it_resumes(lab: Lab) -> None:
    lab.slow_down(0.02)
    process = lab.start("cloud", "tiny", "-y", "--device", "cpu", "max_steps=120", "--max-cost", "3")
    lab.wait_for_step(10)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 101, err
    assert reasons(lab) == ["stopped"]
    _, err = lab.run("resume", "tiny", "-y", "--timeout", "2h")
    assert "goes on from step" in err
    assert "$3.00" in err
    assert "2 h over all attempts" in err
    assert reasons(lab) == ["stopped", "finished"]
    assert sorted(set(lab.steps())) == list(range(1, 121))


def test_sigterm_leaves_the_run_alone(lab: Lab) -> None:
    lab.slow_down(0.02)
    process = lab.start("cloud", "tiny", "-y", "--device", "cpu", "max_steps=60")
    lab.wait_for_step(10)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the run goes on" in err
    lab.modal.wait_until(lambda: lab.ledger()["status"] == 0, 60)


def test_a_run_is_killed_with_now(lab: Lab) -> None:
    lab.slow_down(0.02)
    lab.train("--device", "cpu", "max_steps=9000", "--detach")
    lab.wait_for_step(10)
    lab.run("stop", "tiny", "--now")
    lab.modal.wait_until(lambda: not any(task["alive"] for task in lab.modal.tasks()), 40)
    assert json.loads(lab.run("status", "tiny", "--json")[0])["status"] == "unfinished"
