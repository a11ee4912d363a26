"""The end of an attempt, and the next attempt."""

from __future__ import annotations

import json
import signal

import pytest

from tests.runner.targets.modal.conftest import CloudFixture, measure_start_seconds
from tests.webhook import PATH, Endpoint


@pytest.fixture
def cloud(light_cloud: CloudFixture) -> CloudFixture:
    """Use trainings without a network."""
    return light_cloud


@pytest.fixture
def brief() -> int:
    """Return the seconds that a job needs to start and write a checkpoint."""
    return round(5 + 1.5 * measure_start_seconds())


def reasons(cloud: CloudFixture) -> list[str | None]:
    return [attempt["reason"] for attempt in cloud.ledger()["attempts"]]


def set_price_of_a_dollar_per_second(cloud: CloudFixture) -> None:
    """Set prices so that a machine with 4 cores costs a dollar per second."""
    (cloud.checkout / "prices.yaml").write_text("CPU: 900\nMEMORY: 0\n")


def test_attempt_timeout_is_followed_by_a_resuming_attempt(cloud: CloudFixture, brief: int) -> None:
    cloud.hold_at(25)  # the next attempt starts after it
    cloud.train("--device", "cpu", GPT_RUNNER_ATTEMPT=f"{brief}s")
    assert len(reasons(cloud)) > 1
    assert set(reasons(cloud)[:-1]) == {"attempt-timeout"}
    assert reasons(cloud)[-1] == "finished"
    call = cloud.modal.calls()[0]
    assert call["retries"] == [len(reasons(cloud)) - 1]
    assert cloud.steps() == list(range(1, 61))


def test_timeout_covers_all_attempts(cloud: CloudFixture, brief: int) -> None:
    cloud.slow_down(0.05)
    _, err = cloud.train("--device", "cpu", "max_steps=2000", "--timeout", f"{brief}s", status=101)
    assert reasons(cloud) == ["run-timeout"]
    words = "it reached its --timeout; to resume: `runner resume tiny --timeout LONGER`"
    assert err.splitlines()[-1] == f"stopped: {words}"
    assert cloud.run("status", "tiny")[1] == f"{words}\n"
    assert (cloud.run_folder() / "latest").exists()
    # Less than the time used, which is a few seconds below the limit.
    _, err = cloud.train(
        "--device", "cpu", "max_steps=2000", "--timeout", f"{brief // 2}s", status=2
    )
    assert "has used" in err
    assert "--timeout" in err
    assert "raise it: --timeout 1h" in cloud.run("resume", "tiny", "-y", status=2)[1]
    assert "--timeout 1h" not in cloud.run("resume", "tiny", "--timeout", "1h", "--dry-run")[1]
    assert len(cloud.modal.calls()) == 1


@pytest.mark.slow
def test_budget_holds_over_three_attempts_and_can_be_raised(
    cloud: CloudFixture, brief: int
) -> None:
    cloud.slow_down(0.05)
    set_price_of_a_dollar_per_second(cloud)
    cap = min(60, 4 * brief)  # dollars and seconds, for three attempts
    more = cap + min(20, 2 * brief)
    webhook = Endpoint()
    words = ("--device", "cpu", "max_steps=9000", "--max-cost", str(cap), "--notify", webhook.url)
    process = cloud.start("cloud", "tiny", "-y", *words)
    cloud.wait_for_step(10)
    cloud.modal.preempt()
    before = len(cloud.metrics())
    cloud.modal.wait_until(lambda: len(cloud.metrics()) > before and len(reasons(cloud)) == 2, 60)
    cloud.modal.preempt()
    _, err = cloud.finish(process, 104)
    assert "reached its --max-cost" in err
    assert reasons(cloud) == ["preempted", "preempted", "budget"]
    webhook.server_close()
    titles = [body["title"].partition(" $")[0] for body in webhook.bodies]
    assert titles == [
        "run 'tiny' resumes as attempt 2: preempted",
        "run 'tiny' resumes as attempt 3: preempted",
        "run 'tiny' has spent",
        "run 'tiny' stopped: budget",
    ]
    assert all(body["line"] for body in webhook.bodies)
    assert PATH not in err + cloud.modal.log()
    assert cloud.modal.appeared(PATH) == []
    book = cloud.ledger()
    assert book["cost"] == pytest.approx(
        sum(attempt["cost"] for attempt in book["attempts"]), abs=0.001
    )
    assert 0.90 * cap <= book["cost"] <= 1.02 * cap
    reached = json.loads((cloud.run_folder() / "run.json").read_text())["step"]
    assert (cloud.run_folder() / "latest").exists()
    assert json.loads(cloud.run("status", "tiny", "--json")[0])["status"] == "unfinished"
    assert "runner resume tiny --max-cost MORE" in cloud.run("watch", "tiny", status=104)[1]
    _, err = cloud.train("--device", "cpu", "max_steps=9000", "--max-cost", "10", status=2)
    assert "has cost" in err  # the limit is below the cost so far
    _, err = cloud.run("resume", "tiny", "-y", "--max-cost", str(more), status=104)
    assert f"resumes from step {reached}" in err
    assert 0.90 * more <= cloud.ledger()["cost"] <= 1.02 * more
    assert json.loads((cloud.run_folder() / "run.json").read_text())["step"] > reached


def test_user_error_uses_no_retry(cloud: CloudFixture) -> None:
    (cloud.checkout / "texts" / "empty.txt").touch()
    _, err = cloud.train("--device", "cpu", "data.source=texts/empty.txt", status=100)
    assert "texts/empty.txt" in err
    assert cloud.modal.calls()[0]["retries"] == [0]
    assert len(cloud.modal.calls()[0]["attempts"][0]) == 1
    assert json.loads(cloud.run("status", "tiny", "--json")[0])["status"] == "failed"
    # It failed before it had a log: Modal's copy of the output is shown.
    assert not (cloud.run_folder() / "log.txt").exists()
    assert "texts/empty.txt" in cloud.run("logs", "tiny")[0]


def test_crashed_machine_loses_no_committed_checkpoint(strict_cloud: CloudFixture) -> None:
    cloud = strict_cloud
    go = cloud.hold_at(25)
    process = cloud.start("cloud", "tiny", "-y", "--device", "cpu", "max_steps=60")
    cloud.modal.wait_until(lambda: "latest" in cloud.committed(), 60)
    cloud.modal.crash()
    go.touch()
    _, err = cloud.finish(process)
    assert "in-progress inputs will be re-scheduled" in err  # Modal's own line
    assert reasons(cloud) == ["killed", "finished"]
    record = json.loads((cloud.run_folder() / "run.json").read_text())
    assert record["attempts"][1]["first_step"] >= 10
    assert record["step"] == 60


def test_sigint_without_a_terminal_stops_the_run(cloud: CloudFixture) -> None:
    cloud.hold_at(25)
    process = cloud.start(
        "cloud", "tiny", "-y", "--device", "cpu", "max_steps=120", "--max-cost", "3"
    )
    cloud.wait_for_step(10)
    process.send_signal(signal.SIGINT)
    _, err = cloud.finish(process, 101)
    assert reasons(cloud) == ["stopped"]
    cloud.slow_down(0.0)
    _, err = cloud.run("resume", "tiny", "-y", "--timeout", "2h")
    assert "resumes from step" in err
    assert "$3.00" in err
    assert "2h00m or $3.00 in total for all attempts" in err
    assert reasons(cloud) == ["stopped", "finished"]
    assert sorted(set(cloud.steps())) == list(range(1, 121))


def test_sigterm_detaches_from_the_run(cloud: CloudFixture) -> None:
    go = cloud.hold_at(25)
    process = cloud.start("cloud", "tiny", "-y", "--device", "cpu", "max_steps=60")
    cloud.wait_for_step(10)
    process.send_signal(signal.SIGTERM)
    _, err = cloud.finish(process, 130)
    assert err.splitlines()[-1].startswith(
        "detached; the run continues. Follow it with `runner logs tiny --follow`"
    )
    go.touch()
    cloud.modal.wait_until(lambda: cloud.ledger()["status"] == 0, 60)


def test_stop_with_force_kills_the_run(cloud: CloudFixture) -> None:
    cloud.slow_down(0.02)
    cloud.train("--device", "cpu", "max_steps=9000", "--detach")
    cloud.wait_for_step(10)
    cloud.run("stop", "tiny", "--force")
    cloud.modal.wait_until(lambda: not any(task["alive"] for task in cloud.modal.tasks()), 60)
    state = json.loads(cloud.run("status", "tiny", "--json")[0])
    values = [state[name] for name in ("status", "end_reasons", "reason")]
    assert values == ["unfinished", ["stopped"], "stopped"]
