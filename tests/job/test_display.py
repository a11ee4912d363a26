"""The next command that a run suggests."""

from __future__ import annotations

import json

import pytest

from job.display import next_command


@pytest.mark.parametrize("target", ["host", "local", "cloud", "remote:lab"])
def test_target_of_the_launch_is_named(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.setenv("RUN_LAUNCH", json.dumps({"target": target}))
    words = target.replace(":", " ")  # as in `runner remote lab`
    assert next_command("sample", "--name warm") == f"runner {words} sample --name warm"


def test_without_a_launch_the_command_is_for_compose_in_the_container_and_else_for_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RUN_LAUNCH", raising=False)
    monkeypatch.setenv("CHECKPOINTS_PATH", "/vol/checkpoints")
    line = "docker compose run --rm sample python -m serving.sample --name warm"
    assert next_command("sample", "--name warm") == line
    monkeypatch.setenv("CHECKPOINTS_PATH", "/big/disk/checkpoints")
    assert next_command("sample", "--name warm") == "runner host sample --name warm"
