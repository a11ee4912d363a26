"""Notifications of each ending on Modal, with a live or dead client, to all kinds of endpoints."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.runner.targets.modal.conftest import CloudFixture, measure_start_seconds
from tests.webhook import PATH, Endpoint, down, slow, up

RESUMES = "resumes as attempt 2: "


class Ending(NamedTuple):
    """A way to end a run, with the messages that it must send."""

    reasons: list[str]  # of the attempts; repeated ones at the end count once
    titles: list[str]
    status: int
    words: tuple[str, ...] = ()
    act: Callable[[CloudFixture, str], Any] | None = None  # while the run waits
    is_held: bool = True  # the run waits at a step until it is stopped

    def variables(self) -> dict[str, str]:
        timeout = f"{round(5 + 1.5 * measure_start_seconds())}s"
        return {"GPT_RUNNER_ATTEMPT": timeout} if "attempt-timeout" in self.reasons else {}


def preempt(cloud: CloudFixture, run: str) -> None:
    cloud.modal.preempt()
    cloud.go.touch()


def crash(cloud: CloudFixture, run: str) -> None:
    cloud.modal.crash()
    cloud.go.touch()


ENDINGS = {
    "finished": Ending(["finished"], ["finished"], 0, is_held=False),
    "failed": Ending(
        ["failed"],
        ["failed with exit status 1"],
        100,
        ("data.source=texts/empty.txt",),
        is_held=False,
    ),
    "preempted": Ending(
        ["preempted", "finished"], [f"{RESUMES}preempted", "finished"], 0, act=preempt
    ),
    "killed": Ending(["killed", "finished"], [f"{RESUMES}killed", "finished"], 0, act=crash),
    "attempt-timeout": Ending(
        ["attempt-timeout", "finished"], [f"{RESUMES}attempt-timeout", "finished"], 0
    ),
    "run-timeout": Ending(["run-timeout"], ["stopped: run-timeout"], 101, ("--timeout", "15s")),
    "budget": Ending(
        ["budget"], ["has spent $ of its $ limit", "stopped: budget"], 104, ("--max-cost", "15")
    ),
    "stopped": Ending(
        ["stopped"], ["was stopped"], 101, act=lambda cloud, run: cloud.run("stop", run)
    ),
    "killed by hand": Ending(
        ["stopped"], ["was stopped"], 101, act=lambda cloud, run: cloud.run("stop", run, "--force")
    ),
    "stalled": Ending(
        ["stalled"], ["stopped: stalled: no step"], 101, ("resources.stop_stalled_after=3s",)
    ),
}
STATES = (up, slow, down)


def check_ending(
    cloud: CloudFixture, ending: Ending, state: Callable[[Endpoint], None], has_client: bool
) -> None:
    """End a run in this way, and check that its endpoint gets each message once."""
    run, endpoint = f"run{len(cloud.started)}", Endpoint()
    state(endpoint)
    cloud.go.unlink(missing_ok=True)
    if ending.is_held:
        cloud.hold_at(25)
    else:
        cloud.slow_down(0.0)
    words = ("--name", run, "--device", "cpu", "--notify", endpoint.url, *ending.words)
    calls = len(cloud.modal.calls())
    client = cloud.start("cloud", "tiny", "-y", *words, **ending.variables())
    if not has_client:
        cloud.modal.wait_until(lambda: len(cloud.modal.calls()) > calls, 120)
        client.kill()
    if ending.act is not None:
        cloud.wait_for_step(20, run)
        ending.act(cloud, run)
    cloud.modal.wait_until(lambda: _has_ended(cloud, run), 240)
    out, err = client.communicate(timeout=120)
    if has_client:
        assert client.returncode == ending.status, out + err
    found = [attempt["reason"] for attempt in cloud.ledger(run)["attempts"]]
    assert list(dict.fromkeys(found)) == ending.reasons
    cloud.modal.wait_until(lambda: not any(task["alive"] for task in cloud.modal.tasks()), 120)
    titles = [re.sub(r"\$[\d.]+", "$", body["title"]) for body in endpoint.bodies]
    expected = [] if state is down else [f"run '{run}' {title}" for title in ending.titles]
    assert [title[: len(part)] for title, part in zip(titles, expected, strict=True)] == expected
    assert PATH not in out + err + cloud.modal.log()
    assert cloud.modal.appeared(PATH) == []
    endpoint.answer.set()
    if state is not down:
        down(endpoint)


def _has_ended(cloud: CloudFixture, run: str) -> bool:
    return "cloud.json" in cloud.committed(run) and cloud.ledger(run)["status"] is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for number, name in enumerate(ENDINGS)]
)
def test_each_ending_sends_each_message_once(
    light_cloud: CloudFixture, name: str, number: int
) -> None:
    (light_cloud.checkout / "prices.yaml").write_text("CPU: 900\nMEMORY: 0\n")  # a dollar a second
    (light_cloud.checkout / "texts" / "empty.txt").touch()  # cannot be prepared
    check_ending(light_cloud, ENDINGS[name], STATES[number % 3], has_client=number % 2 == 0)
