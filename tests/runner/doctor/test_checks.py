"""runner doctor: each check names what was broken, with file, line and remedy, and --fix puts it right."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.modal_standin import ModalStandin
from tests.runner.conftest import ROOT
from tests.runner.targets.docker_stand_in import INFO

Find = Callable[[str], dict[str, Any]]


@pytest.fixture
def find(type_, docker) -> Find:
    """``find("words")``: the finding whose message has them; {} where there is none."""

    def finding(words: str) -> dict[str, Any]:
        found = json.loads(type_("runner doctor --json").stdout)
        return next((f for f in found if words in f["message"]), {})

    return finding


class TestDockerfile:
    def test_every_line_that_modal_does_not_take(self, type_, docker, checkout) -> None:
        (checkout / "Dockerfile").write_text(
            'FROM debian\n# fine\nCOPY ["a", "b"]\nRUN ls \\\n  && ls\nADD b /b\nCOPY nowhere /c\n'
        )
        found = json.loads(type_("runner doctor --json").stdout)
        lines = [(f["line"], f["severity"]) for f in found if f["file"] == "Dockerfile"]
        assert {line for line, _ in lines} == {3, 6, 7}
        assert {severity for _, severity in lines} == {"warning"}
        remedies = " ".join(f["remedy"] for f in found if f["file"] == "Dockerfile")
        assert "write COPY SOURCE TARGET" in remedies

    def test_one_that_modal_takes(self, find, checkout) -> None:
        (checkout / "Dockerfile").write_text("FROM debian\nRUN ls\n")
        assert find("takes all 2 instructions")["severity"] == "ok"

    def test_none(self, find, checkout) -> None:
        (checkout / "Dockerfile").unlink()
        assert find("Dockerfile is missing")["severity"] == "error"


class TestMachine:
    def test_an_old_engine(self, find, docker) -> None:
        docker.answer("info.json", json.dumps({**INFO, "ServerVersion": "18.09.1"}))
        assert find("18.09.1 is older than 20")["severity"] == "warning"

    @pytest.mark.parametrize(("minutes", "words"), [(5, "ahead of"), (-5, "behind")])
    def test_an_engine_whose_clock_is_wrong(self, find, docker, minutes: int, words: str) -> None:
        then = datetime.now(UTC) + timedelta(minutes=minutes)
        docker.answer(
            "info.json", json.dumps({**INFO, "SystemTime": f"{then:%Y-%m-%dT%H:%M:%S}.123456789Z"})
        )
        assert find(f"s {words} this machine's")["severity"] == "warning"

    def test_a_run_from_the_future(self, find, make_run) -> None:
        record = make_run("warm") / "run.json"
        assert find("clock: 2")["severity"] == "ok"
        os.utime(record, (time.time() + 3600,) * 2)
        assert find("run 'warm' was written in the future")["severity"] == "warning"

    @pytest.mark.parametrize(
        ("answer", "severity", "words"),
        [
            ("2 2.9.1 13.0", "ok", "sees 2 GPUs"),
            ("0 2.9.1+cpu None", "warning", "a build without CUDA"),
            ("0 2.9.1 13.0", "warning", "the driver may be too old for CUDA 13.0"),
        ],
    )
    def test_what_torch_sees(
        self, find, docker, tmp_path, monkeypatch, answer: str, severity: str, words: str
    ) -> None:
        docker.with_gpus("NVIDIA H100")
        count, version, cuda = answer.split()
        fake = tmp_path / "fake" / "torch.py"
        fake.parent.mkdir()
        fake.write_text(
            f"class cuda: device_count = staticmethod(lambda: {count})\n__version__ = {version!r}\n"
            f"class version: cuda = {cuda!r}\n"
        )
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nPYTHONPATH={fake.parent} exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        assert find(words)["severity"] == severity

    def test_a_torch_that_is_broken(self, find, docker, tmp_path, monkeypatch) -> None:
        docker.with_gpus("NVIDIA H100")
        python = tmp_path / "python"
        python.write_text("#!/bin/sh\necho 'ImportError: libcudart.so.13' >&2\nexit 1\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        assert find("torch can't be imported: ImportError: libcudart")["severity"] == "error"


class TestSettings:
    def test_a_line_that_compose_refuses(self, type_, find, checkout) -> None:
        type_("runner doctor --fix")
        with (checkout / ".env").open("a") as file:
            file.write("hush hush\n")
        finding = find("expected NAME=value")
        assert (finding["severity"], finding["file"], finding["line"]) == ("error", ".env", 5)
        assert "hush" not in finding["message"]

    def test_a_key_that_a_recipe_needs(self, find, checkout) -> None:
        path = checkout / "configs" / "warm.yaml"
        path.write_text(path.read_text() + "  wandb_project: mine\n")
        finding = find("wandb_project needs WANDB_API_KEY")
        assert (finding["severity"], finding["file"], finding["line"]) == (
            "warning",
            "configs/warm.yaml",
            8,
        )
        (checkout / ".env").write_text("WANDB_API_KEY=hush\n")
        assert find("wandb_project needs") == {}


def checkpoint(run: Path, step: int) -> Path:
    """A whole one, as far as sizes tell."""
    folder = run / f"step_{step:08d}"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    (folder / "manifest.json").write_text(
        json.dumps({"model.safetensors": {"bytes": 100, "sha256": ""}})
    )
    return folder


def long_ago(path: Path) -> Path:
    for each in (path, *path.rglob("*")):
        os.utime(each, (time.time() - 7200,) * 2)
    return path


class TestLeftovers:
    @pytest.fixture
    def half(self, make_run) -> Path:
        """A checkpoint in the making."""
        folder = make_run("warm") / ".partial_step_00000050"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x")
        return folder

    def test_a_half_written_checkpoint_is_deleted(self, type_, find, half) -> None:
        long_ago(half)
        assert find(".partial_step_00000050 was not written to its end")["severity"] == "warning"
        type_("runner doctor --fix")
        assert not half.exists()

    def test_what_may_be_in_the_making_is_let_alone(self, type_, find, half) -> None:
        (half.parent / "heartbeat").touch()
        long_ago(half)
        type_("runner doctor --fix")
        assert half.is_dir()
        assert find("not written to its end") == {}

    def test_so_is_what_is_young(self, type_, half) -> None:
        type_("runner doctor --fix")
        assert half.is_dir()

    @pytest.mark.skipif(
        sys.platform != "linux", reason="locks of containers are seen on Linux alone"
    )
    def test_where_nothing_holds_the_runs_lock_it_is_nobodys(self, type_, find, half) -> None:
        (half.parent / "heartbeat").touch()
        with (half.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            type_("runner doctor --fix")
            assert half.is_dir()
        assert find(".partial_step_00000050 was not written to its end")["severity"] == "warning"
        type_("runner doctor --fix")
        assert not half.exists()

    def test_what_a_transfer_brings_after_a_training_here_is_let_alone(self, type_, half) -> None:
        (half.parent / "lock").touch()
        (half.parent / "heartbeat").touch()
        long_ago(half.parent / "heartbeat")
        type_("runner doctor --fix")
        assert half.is_dir()

    def test_an_interrupted_transfer_is_named_and_kept(self, type_, find, make_run) -> None:
        part = make_run("warm") / ".model.safetensors.part"
        part.write_bytes(b"x" * 1024**2)
        long_ago(part)
        type_("runner doctor --fix")
        finding = find("1 interrupted transfer (1.0 MB)")
        assert finding["severity"] == "note"
        assert "runner pull checkpoints goes on" in finding["remedy"]
        assert part.exists()

    @pytest.mark.parametrize("broken", ["cut", "gone", "no manifest"])
    def test_a_damaged_checkpoint(self, type_, find, make_run, broken: str) -> None:
        run = make_run("warm", step=20)
        checkpoint(run, 10)
        newest = checkpoint(run, 20)
        assert find("damaged") == {}
        if broken == "cut":
            (newest / "model.safetensors").write_bytes(b"x" * 99)
        else:
            (
                newest / ("manifest.json" if broken == "no manifest" else "model.safetensors")
            ).unlink()
        assert find("warm/step_00000020 is damaged")["severity"] == "warning"
        assert find("warm/latest names step_00000020")["severity"] == "error"
        type_("runner doctor --fix")
        assert (run / "latest").read_text() == "step_00000010\n"
        assert newest.is_dir()
        assert find("warm/latest names") == {}

    def test_a_latest_that_is_missing(self, type_, find, make_run) -> None:
        run = make_run("warm")
        checkpoint(run, 20)
        assert find("warm/latest is missing")["severity"] == "error"
        type_("runner doctor --fix")
        assert (run / "latest").read_text() == "step_00000020\n"

    def test_a_run_without_its_checkpoints_is_no_fault(self, find, make_run) -> None:
        (make_run("pulled", step=20) / "step_00000020").rmdir()
        assert find("pulled") == {}


class TestModal:
    def test_no_token_is_a_note(self, find) -> None:
        assert find("no Modal token")["severity"] == "note"

    def test_a_server_that_is_not_there_is_a_warning_at_once(self, find, cli, docker) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        cli.environ = {
            **docker.variables,
            "MODAL_TOKEN_ID": "a",
            "MODAL_TOKEN_SECRET": "b",
            "MODAL_SERVER_URL": f"http://127.0.0.1:{port}",
        }
        assert find("Modal can't be reached")["severity"] == "warning"

    def test_a_server_that_hangs(self, find, cli, docker, monkeypatch) -> None:
        monkeypatch.setattr("runner.doctor.modal.PATIENCE", 0.5)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            cli.environ = {
                **docker.variables,
                "MODAL_TOKEN_ID": "a",
                "MODAL_TOKEN_SECRET": "b",
                "MODAL_SERVER_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            }
            assert find("did not answer within")["severity"] == "warning"

    def test_volumes_are_looked_at_and_none_is_made(
        self, type_, find, cli, docker, tmp_path
    ) -> None:
        with ModalStandin(tmp_path / "state") as modal:
            cli.environ = {**docker.variables, **modal.environ, "PYTHONPATH": str(ROOT)}
            assert find("accepts the token")["severity"] == "ok"
            missing = find("gpt-runner-data is not on Modal yet")
            assert missing["severity"] == "note"
            type_("runner doctor --fix")
            assert find("gpt-runner-data is not on Modal yet") == missing
            make = "modal.Volume.from_name('gpt-runner-cache', create_if_missing=True, version=2).hydrate()"
            environ = {**os.environ, **modal.environ}
            subprocess.run([sys.executable, "-c", f"import modal; {make}"], env=environ, check=True)
            assert find("gpt-runner-cache is on Modal")["severity"] == "ok"
