"""What a run says to type next."""

from __future__ import annotations

import json

import pytest

from job.next_command import next_command


@pytest.mark.parametrize("target", ["host", "local", "cloud"])
def test_the_target_that_the_runner_took_is_named(
    monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setenv("RUN_LAUNCH", json.dumps({"target": target}))
    assert next_command("sample", "--name warm") == f"runner {target} sample --name warm"


def test_without_a_runner_it_is_composes_in_the_container_and_the_hosts_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RUN_LAUNCH", raising=False)
    monkeypatch.setenv("CHECKPOINTS_PATH", "/vol/checkpoints")
    line = "docker compose run --rm sample python -m model.sample --name warm"
    assert next_command("sample", "--name warm") == line
    monkeypatch.setenv("CHECKPOINTS_PATH", "/big/disk/checkpoints")
    assert next_command("sample", "--name warm") == "runner host sample --name warm"
