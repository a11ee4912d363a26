"""The services in a fresh clone without .env, started with `docker compose ...`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace

import pexpect
import pytest

from tests.waiting import wait_for


@pytest.mark.parametrize(
    "files", ["docker-compose.yml", "docker-compose.yml:docker-compose.gpu.yml"]
)
def test_compose_accepts_the_files(checkout, files):
    checkout.compose("config", "--quiet", environ={"COMPOSE_FILE": files})


def test_second_checkout_of_the_same_name_does_not_replace_containers(checkout):
    """Without .env, Compose names the project after the folder."""
    if not checkout.compose("version", "--short").stdout.startswith("1."):
        pytest.skip("Compose 2 does not create a volume that nothing mounts")
    checkout.compose("up", "--no-start", "train")
    first, elsewhere = checkout.container("train"), checkout.folder.parent / "elsewhere"
    shutil.copytree(checkout.folder, elsewhere)
    second = replace(checkout, folder=elsewhere).compose(
        "up", "--no-start", "train", environ={"PWD": str(elsewhere)}, check=False
    )
    assert second.returncode == 1
    assert "a volume with the same name uses a different" in second.stderr
    assert str(checkout.folder) in second.stderr
    assert checkout.container("train") == first


class TestUser:
    """The owner of the checkout owns the files of a job, without a setting."""

    SCRIPT = "touch /vol/data/a /vol/checkpoints/a /vol/cache/a $HOME/a; id -u; whoami"

    def test_user_without_root(self, ordinary):
        uid, name = ordinary.bash(self.SCRIPT).split()
        assert int(uid) == ordinary.uid
        assert name
        assert set(ordinary.owners().values()) == {ordinary.uid}

    def test_user_without_root_who_removed_the_volumes(self, ordinary):
        """The engine creates a missing bind source, owned by root."""
        shutil.rmtree(ordinary.folder / "volumes")
        result = ordinary.run("shell", "bash", "-euc", self.SCRIPT)
        assert "can't write" not in result.stderr
        assert set(ordinary.owners().values()) == {ordinary.uid}
        assert {p.stat().st_uid for p in (ordinary.folder / "volumes").iterdir()} == {ordinary.uid}

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs a clone that root owns")
    def test_root(self, checkout):
        assert checkout.bash(self.SCRIPT).split() == ["0", "root"]

    def test_a_user_named_in_the_environment(self, checkout):
        for volume in ("data", "checkpoints", "cache"):
            (checkout.folder / "volumes" / volume).chmod(0o777)
        script = "touch /vol/data/a; id -u; id -g"
        user = {"HOST_UID": "23456", "HOST_GID": "23457"}
        assert checkout.bash(script, environ=user).split() == ["23456", "23457"]
        assert (checkout.folder / "volumes" / "data" / "a").stat().st_uid == 23456

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs folders of another user")
    def test_prints_the_chown_command_if_it_cannot_write(self, ordinary):
        data = ordinary.folder / "volumes" / "data"
        os.chown(data, 0, 0)
        (data / "of-root").touch()
        result = ordinary.run("shell", "true")
        assert f"sudo chown -R {ordinary.uid}:{ordinary.uid} volumes" in result.stderr
        assert data.stat().st_uid == 0, "the entrypoint changed the owner of a folder with files"

    def test_code_is_read_only(self, checkout):
        assert checkout.run("shell", "touch", "/workspace/a", check=False).returncode != 0

    def test_git_reads_the_checkout(self, ordinary):
        ordinary.command("git", "init", "--quiet")
        assert "No commits yet" in ordinary.bash("git status")


class TestSettings:
    def test_shared_memory_is_larger_than_the_default_of_docker(self, checkout):
        assert int(checkout.bash("df --block-size=1M --output=size /dev/shm | tail -1")) == 2048

    def test_secrets_come_from_the_environment_and_from_env_files(self, checkout):
        (checkout.folder / ".env").write_text("HF_TOKEN=from-the-file\n")
        script = "echo ${WANDB_API_KEY-unset} ${HF_TOKEN-unset}"
        assert checkout.bash(script).split() == ["unset", "from-the-file"]
        assert checkout.bash(script, environ={"WANDB_API_KEY": "key"}).split() == [
            "key",
            "from-the-file",
        ]

    def test_tells_that_the_image_has_a_different_lock(self, checkout):
        assert "docker compose build" not in checkout.run("shell", "true").stderr
        (checkout.folder / "requirements.lock").write_text("# different\n")
        assert "docker compose build" in checkout.run("shell", "true").stderr


def test_stop_reaches_the_job(ordinary):
    """Compose's init and the entrypoint pass on SIGTERM and return the job's exit status."""
    job = (
        "import signal, sys, pathlib, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(101))\n"
        "pathlib.Path('/vol/checkpoints/ready').touch()\n"
        "time.sleep(600)\n"
    )
    ordinary.override("train", {"command": ["python", "-c", job]})
    ordinary.compose("up", "--detach", "train")
    wait_for((ordinary.folder / "volumes/checkpoints/ready").exists)
    began = time.monotonic()
    ordinary.compose("stop", "train")
    assert time.monotonic() - began < 30, "killed after the grace period"
    assert ordinary.state("train")["ExitCode"] == 101


def test_shell_survives_a_closed_terminal(checkout):
    """Compose 1.29 kills its container when the terminal is closed."""
    environ = {**checkout.environ, "TERM": "xterm", "PYTHONPATH": str(checkout.folder)}
    for line, answer in (
        ("mark=kept; echo rea''dy", "ready"),
        ("echo is-$mark; exit 7", "is-kept"),
    ):
        shell = pexpect.spawn(
            sys.executable,
            ["-m", "runner", "shell", "--dir", "docs"],
            cwd=str(checkout.folder),
            env=environ,
            encoding="utf-8",
            timeout=60,
        )
        shell.sendline(line)
        shell.expect(answer)
        if answer == "ready":
            shell.kill(signal.SIGHUP)
            shell.close()
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 7
    assert checkout.command("docker", "ps", "-aq", "--filter", "name=shell").stdout == ""


def test_run_gets_time_for_its_checkpoint_when_the_terminal_is_closed(checkout):
    """A shell sends SIGHUP to the runner and to its child processes."""
    folder = checkout.folder / "volumes/checkpoints/slow"
    job = (
        "trap 'sleep 2; touch $OUT_DIR/saved; exit 101' TERM; touch $OUT_DIR/ready; sleep 60 & wait"
    )
    runner = pexpect.spawn(
        sys.executable,
        ["-m", "runner", "local", "--dir", "docs", "--name", "slow", "--", "sh", "-c", job],
        cwd=str(checkout.folder),
        env={**checkout.environ, "TERM": "xterm", "PYTHONPATH": str(checkout.folder)},
    )
    wait_for((folder / "ready").exists)
    os.killpg(runner.pid, signal.SIGHUP)
    os.close(runner.child_fd)
    wait_for((folder / "saved").exists)
    wait_for(lambda: "unfinished" in (folder / "run.json").read_text())
    assert runner.wait() == 101


class TestHealth:
    def start_with_heartbeat(self, checkout, heartbeat_age):
        """Start a container with a run whose heartbeat is ``heartbeat_age`` seconds old."""
        job = (
            "import os, pathlib, time\n"
            "from job.run_record import RunRecord, touch_heartbeat\n"
            "folder = pathlib.Path('/vol/checkpoints/warm')\n"
            "RunRecord(name='warm').write(folder)\n"
            "touch_heartbeat(folder)\n"
            f"then = time.time() - {heartbeat_age}\n"
            "os.utime(folder / 'heartbeat', (then, then))\n"
            "time.sleep(600)\n"
        )
        # The service's own check, only more often.
        health = {"interval": "1s", "retries": 2, "start_period": "0s"}
        checkout.override(
            "train",
            {"command": ["python", "-c", job], "healthcheck": health, "stop_grace_period": "1s"},
        )
        checkout.compose("up", "--detach", "train")

    @pytest.mark.parametrize(("age", "status"), [(0, "healthy"), (3600, "unhealthy")])
    def test_follows_the_heartbeat(self, ordinary, age, status):
        self.start_with_heartbeat(ordinary, age)
        wait_for(lambda: ordinary.state("train")["Health"]["Status"] == status)


def test_tensorboard_serves_the_runs(checkout):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    checkout.compose("up", "--detach", "tensorboard", environ={"TENSORBOARD_PORT": str(port)})

    def page():
        try:
            return urllib.request.urlopen(
                f"http://127.0.0.1:{port}/data/environment", timeout=5
            ).read()
        except (OSError, urllib.error.URLError):
            return None

    assert b"/vol/checkpoints" in wait_for(page)


def test_tests_of_the_trainer_pass_inside(ordinary):
    """Run some of the tests that the service runs; all of them would take too long here."""
    quick = [
        f"tests/{name}.py"
        for name in (
            "model/test_gpt",
            "inference/test_engine",
            "job/test_recipe",
            "job/test_health",
        )
    ]
    result = ordinary.run(
        "test", "python", "-m", "pytest", "-p", "no:cacheprovider", *quick, check=False
    )
    assert result.returncode == 0, result.stdout[-5000:]
    assert " passed" in result.stdout
