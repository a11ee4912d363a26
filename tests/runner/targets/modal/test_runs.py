"""`runner cloud` with real trainings on the stand-in."""

from __future__ import annotations

import json
import signal
import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from job.step_folders import newest_intact
from tests.runner.targets.modal.conftest import CloudFixture
from tests.waiting import wait_for


def test_training_leaves_records_and_a_finished_run_is_only_shown(cloud: CloudFixture) -> None:
    out, err = cloud.train("--gpu", "h100:1,A100-80GB", "--max-cost", "5")
    assert "run 'tiny' finished" in err
    assert out.startswith("the ")  # stdout has the sample
    assert "H100, else 1 x A100-80GB" in err
    assert "$5.00" in err
    assert cloud.steps() == list(range(1, 61))
    made = [request.message.function_data for request in cloud.modal.recorded("FunctionCreate")]
    (train,) = (list(data.ranked_functions) for data in made if data.function_name == "train")
    gpus = [ranked.function.resources.gpu_config.gpu_type for ranked in train]
    assert gpus == ["H100", "A100-80GB"]
    train = train[0].function
    # 5 dollars pay for less than a day; Modal's timeout is some minutes longer, for the checkpoint.
    assert (train.timeout_secs, train.startup_timeout_secs) == (7439, 1200)
    assert train.single_use_containers
    assert train.concurrency_limit == 1 or train.autoscaler_settings.max_containers == 1
    assert (train.retry_policy.retries, train.retry_policy.max_delay_ms) == (10, 60_000)
    app = next(app for app in cloud.modal.apps() if app["tags"].get("job") == "train")
    launch = json.loads((cloud.run_folder() / "launch.json").read_text())["identity"]
    tags = {"project": "gpt-runner", "run": "tiny", "job": "train", "launch": launch}
    assert app["tags"] == tags
    state = json.loads(cloud.run("status", "tiny", "--json")[0])
    values = [state[name] for name in ("status", "target", "step", "attempts")]
    assert values == ["finished", "cloud", 60, 1]
    assert state["gpu"] == "H100,A100-80GB"
    assert 0 < state["cost"] < 0.2
    assert "run 'tiny' finished" in cloud.run("logs", "tiny", "--tail", "3")[0]
    # With edited code, no image would be built, and the finished run is only shown.
    calls = len(cloud.modal.calls())
    with (cloud.checkout / "model" / "gpt.py").open("a") as code:
        code.write("\n# an edit\n")
    with (cloud.checkout / "configs" / "tiny.yaml").open("a") as recipe:
        recipe.write("\n# an edit\n")
    assert "cached, built" in cloud.run("cloud", "tiny", "--device", "cpu", "--dry-run")[1]
    sample = (cloud.run_folder() / "samples" / "step_00000060.txt").read_text()
    out, err = cloud.train("--device", "cpu")
    assert out == f"{sample}\n"
    assert "run 'tiny' is already finished: 60 steps, validation loss" in err
    assert cloud.run("resume", "tiny", "-y")[0] == out
    assert len(cloud.modal.calls()) == calls


@contextmanager
def _tensorboard(cloud: CloudFixture) -> Iterator[Callable[[], bytes]]:
    """Run `runner tensorboard tiny`; yield a function that returns its current tags."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    board = cloud.start("tensorboard", "tiny", "--port", str(port))

    def tags() -> bytes:
        try:
            url = f"http://127.0.0.1:{port}/data/plugin/scalars/tags"
            return bytes(urllib.request.urlopen(url, timeout=5).read())
        except OSError:
            return b""

    try:
        yield tags
    finally:
        board.send_signal(signal.SIGTERM)
        _, err = cloud.finish(board)
    assert f"curves of tiny: http://127.0.0.1:{port} (Ctrl-C stops it)" in err
    assert "Traceback" not in err


def test_detached_run_outlives_its_client(light_cloud: CloudFixture) -> None:
    cloud = light_cloud
    cloud.slow_down(0.02)
    process = cloud.start("cloud", "tiny", "-y", "--device", "cpu", "--detach", "max_steps=4000")
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "tiny"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    cloud.wait_for_step(10)
    with _tensorboard(cloud) as tags:
        state = json.loads(cloud.run("status", "tiny", "--json")[0])
        assert (state["status"], state["alive"]) == ("running", True)
        assert "step" in cloud.run("logs", "tiny", "--tail", "5")[0]
        wait_for(lambda: b"train/loss" in tags(), 60)
    assert not (cloud.checkout / "volumes" / "checkpoints" / "tiny").exists()
    cloud.run("stop", "tiny")
    state = json.loads(cloud.run("status", "tiny", "--json")[0])
    assert state["status"] == "unfinished"
    assert state["reason"] == "stopped"
    assert newest_intact(cloud.run_folder(), print) is not None
