"""`runner cloud serve` on the stand-in: the price, machines on demand, and the end."""

from __future__ import annotations

import json
import re

import pytest

from tests.runner.targets.modal.conftest import CloudFixture


@pytest.mark.slow
def test_a_server_scales_from_zero_behind_a_key_and_ends_when_stopped(cloud: CloudFixture) -> None:
    openai = pytest.importorskip("openai")
    cloud.train("--gpu", "T4", "max_steps=5")
    started = len(cloud.modal.tasks())
    _, err = cloud.run("cloud", "serve", status=2)
    assert "This costs $" in err
    assert "an hour while it answers requests" in err
    assert "pass -y" in err
    _, err = cloud.run("cloud", "serve", "--max-cost", "1", "-y", status=2)
    assert "--max-cost limits a run, and a server has no end" in err

    out, err = cloud.run("cloud", "serve", "tiny", "--device", "cpu", "-y")
    assert out == "serve-tiny\n"
    address = re.search(r"serving at (\S+)/v1", err)
    key = re.search(r"API key: (\S+)", err)
    assert address is not None
    assert key is not None
    assert len(cloud.modal.tasks()) == started  # no machine before a request
    _, err = cloud.run("cloud", "serve", "tiny", "-y", status=1)
    assert "runner stop serve-tiny" in err
    runs = json.loads(cloud.run("runs", "--json")[0])
    [server] = [run for run in runs if run["run"] == "serve-tiny"]
    assert (server["status"], server["job"]) == ("running", "serve")

    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{address[1]}/v1", api_key="guess").models.list()
    client = openai.OpenAI(base_url=f"{address[1]}/v1", api_key=key[1])
    words = {"model": "tiny", "prompt": "the ", "temperature": 0, "max_tokens": 8}
    streamed = client.completions.create(**words, stream=True)
    text = "".join(chunk.choices[0].text for chunk in streamed)
    sampled, _ = cloud.run(
        *("cloud", "sample", "--name", "tiny", "prompt=the ", "temperature=0"),
        *("max_new_tokens=8", "--device", "cpu", "--json", "-y"),
    )
    assert "the " + text == json.loads(sampled)["samples"][0]
    alive = [task for task in cloud.modal.tasks() if task["ended_at"] == 0]
    assert len(alive) == 1
    state = json.loads(cloud.run("status", "serve-tiny", "--json")[0])
    assert (state["status"], state["attempts"], state["cost"] > 0) == ("running", 1, True)

    cloud.run("stop", "serve-tiny")
    cloud.modal.wait_until(lambda: all(task["ended_at"] for task in cloud.modal.tasks()), 60)
    assert "serve-tiny" not in cloud.run("runs")[0]
    assert cloud.modal.appeared(key[1]) == []


@pytest.mark.slow
def test_behind_modal_s_proxy_no_stranger_starts_a_machine(cloud: CloudFixture) -> None:
    openai = pytest.importorskip("openai")
    cloud.train("--device", "cpu", "max_steps=5")
    started = len(cloud.modal.tasks())
    words = ("cloud", "serve", "tiny", "--device", "cpu", "-y")
    _, err = cloud.run(*words, GPT_RUNNER_PROXY_AUTH="1", SERVE_TOKEN="key")
    assert "requests also need Modal-Key and Modal-Secret" in err
    address = re.search(r"serving at (\S+)/v1", err)
    assert address is not None
    options = {"base_url": f"{address[1]}/v1", "api_key": "key", "max_retries": 0}
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(**options).models.list()
    assert len(cloud.modal.tasks()) == started
    headers = {"Modal-Key": "wk-1", "Modal-Secret": "ws-1"}
    client = openai.OpenAI(**options, default_headers=headers)
    assert [model.id for model in client.models.list()] == ["tiny"]
    cloud.run("stop", "serve-tiny")
