"""Each check of runner doctor reports a problem with file, line and remedy; --fix fixes it."""

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
    """Return ``find("text")``, which returns the finding whose message has the text, or {}."""

    def finding(text: str) -> dict[str, Any]:
        findings = json.loads(type_("runner doctor --json").stdout)
        return next((f for f in findings if text in f["message"]), {})

    return finding


class TestDockerfile:
    def test_every_line_that_modal_refuses(self, type_, find, checkout) -> None:
        (checkout / "Dockerfile").write_text(
            'FROM debian\n# fine\nCOPY ["a", "b"]\nRUN ls \\\n  && ls\nADD b /b\nCOPY nowhere /c\n'
        )
        findings = json.loads(type_("runner doctor --json").stdout)
        lines = [(f["line"], f["severity"]) for f in findings if f["file"] == "Dockerfile"]
        assert {line for line, _ in lines} == {3, 6, 7}
        assert {severity for _, severity in lines} == {"warning"}
        remedies = " ".join(f["remedy"] for f in findings if f["file"] == "Dockerfile")
        assert "write COPY SOURCE TARGET" in remedies
        (checkout / "Dockerfile").write_text("FROM debian\nRUN ls\n")
        assert find("Modal can build all 2 instructions")["severity"] == "ok"


class TestMachine:
    @pytest.mark.parametrize(("minutes", "direction"), [(5, "ahead of"), (-5, "behind")])
    def test_engine_with_a_wrong_clock(self, find, docker, minutes: int, direction: str) -> None:
        then = datetime.now(UTC) + timedelta(minutes=minutes)
        docker.answer(
            "info.json", json.dumps({**INFO, "SystemTime": f"{then:%Y-%m-%dT%H:%M:%S}.123456789Z"})
        )
        assert find(f"s {direction} this machine's")["severity"] == "warning"

    def test_run_with_a_time_in_the_future(self, find, make_run) -> None:
        record = make_run("warm") / "run.json"
        assert find("clock: 2")["severity"] == "ok"
        os.utime(record, (time.time() + 3600,) * 2)
        assert find("run 'warm' has a time in the future")["severity"] == "warning"

    @pytest.mark.parametrize(
        ("answer", "severity", "text"),
        [
            ("2 2.9.1 13.0", "ok", "sees 2 GPUs"),
            ("0 2.9.1+cpu None", "warning", "a build without CUDA"),
            ("0 2.9.1 13.0", "warning", "the driver may be too old for CUDA 13.0"),
        ],
    )
    def test_torch_with_and_without_gpus(
        self, find, docker, tmp_path, monkeypatch, answer: str, severity: str, text: str
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
        assert find(text)["severity"] == severity

    def test_torch_that_cannot_be_imported(self, find, docker, tmp_path, monkeypatch) -> None:
        docker.with_gpus("NVIDIA H100")
        python = tmp_path / "python"
        python.write_text("#!/bin/sh\necho 'ImportError: libcudart.so.13' >&2\nexit 1\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        assert find("torch cannot be imported: ImportError: libcudart")["severity"] == "error"


class TestSettings:
    def test_dotenv_line_that_compose_refuses(self, type_, find, checkout) -> None:
        type_("runner doctor --fix")
        with (checkout / ".env").open("a") as file:
            file.write("s3cret s3cret\n")
        finding = find("expected NAME=value")
        assert (finding["severity"], finding["file"], finding["line"]) == ("error", ".env", 5)
        assert "s3cret" not in finding["message"]

    def test_missing_key_of_a_recipe(self, find, checkout) -> None:
        path = checkout / "configs" / "warm.yaml"
        path.write_text(path.read_text() + "  wandb_project: mine\n")
        finding = find("wandb_project needs WANDB_API_KEY")
        place = (finding["file"], finding["line"])
        assert (place, finding["severity"]) == (("configs/warm.yaml", 8), "warning")
        (checkout / ".env").write_text("WANDB_API_KEY=s3cret\n")
        assert find("wandb_project needs") == {}


def checkpoint(run: Path, step: int) -> Path:
    """Write a checkpoint that is complete by its sizes."""
    folder = run / f"step_{step:08d}"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    (folder / "manifest.json").write_text(
        json.dumps({"model.safetensors": {"bytes": 100, "sha256": ""}})
    )
    return folder


def make_old(path: Path) -> Path:
    for each in (path, *path.rglob("*")):
        os.utime(each, (time.time() - 7200,) * 2)
    return path


class TestLeftovers:
    @pytest.fixture
    def partial(self, make_run) -> Path:
        """Return a partial checkpoint."""
        folder = make_run("warm") / ".partial_step_00000050"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x")
        return folder

    @pytest.mark.parametrize(
        ("files", "old", "is_left_over"),
        [
            ([], "partial", True),
            ([], "none", False),
            (["heartbeat"], "partial", False),  # of an active run
            (["heartbeat", "lock"], "heartbeat", False),  # of a transfer
        ],
    )
    def test_old_partial_checkpoint_of_no_process_is_deleted(
        self, type_, find, partial, files: list[str], old: str, is_left_over: bool
    ) -> None:
        for name in files:
            (partial.parent / name).touch()
        if old != "none":
            make_old(partial if old == "partial" else partial.parent / old)
        finding = find(".partial_step_00000050 is left over")
        assert finding.get("severity") == ("warning" if is_left_over else None)
        type_("runner doctor --fix")
        assert partial.is_dir() is not is_left_over

    @pytest.mark.skipif(
        sys.platform != "linux", reason="locks of containers are visible on Linux only"
    )
    def test_partial_checkpoint_is_deleted_when_the_lock_is_free(
        self, type_, find, partial
    ) -> None:
        (partial.parent / "heartbeat").touch()
        with (partial.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            type_("runner doctor --fix")
            assert partial.is_dir()
        assert find(".partial_step_00000050 is left over")["severity"] == "warning"
        type_("runner doctor --fix")
        assert not partial.exists()

    @pytest.mark.parametrize("volume", ["data", "checkpoints", "cache"])
    def test_temporary_file_of_a_killed_process_is_deleted(
        self, type_, find, checkout: Path, volume: str
    ) -> None:
        folder = checkout / "volumes" / volume / "some"
        folder.mkdir(parents=True)
        names = (".meta.json.77.tmp", ".mine.tmp", "x.77.tmp", "meta.json")
        for name in names:
            (folder / name).write_text("{}")
        make_old(folder)
        assert find(".meta.json.77.tmp is left over")["severity"] == "warning"
        type_("runner doctor --fix")
        assert {path.name for path in folder.iterdir()} == {*names[1:]}

    def test_file_that_vanishes_during_the_check_is_ignored(
        self, find, make_run, monkeypatch
    ) -> None:
        gone = make_run("warm") / ".run.json.77.tmp"
        rglob = Path.rglob

        def with_gone(self: Path, pattern: str) -> list[Path]:
            return [*rglob(self, pattern), *([gone] if gone.is_relative_to(self) else [])]

        monkeypatch.setattr(Path, "rglob", with_gone)
        assert find("is left over") == {}
        assert find("Docker engine")["severity"] == "ok"

    def test_leftovers_of_a_killed_deletion_are_removed(self, type_, docker, make_run) -> None:
        run = make_run("warm")
        (run / ".partial_deleted_step_00000050").mkdir()
        (run / ".replaced_step_00000060").mkdir()  # the only copy of a damaged checkpoint
        make_old(run)
        type_("runner doctor --fix")
        assert sorted(path.name for path in run.glob(".*")) == [".replaced_step_00000060"]

    def test_interrupted_transfer_is_reported_and_kept(self, type_, find, make_run) -> None:
        part = make_run("warm") / ".model.safetensors.part"
        part.write_bytes(b"x" * 1024**2)
        make_old(part)
        type_("runner doctor --fix")
        finding = find("1 interrupted transfer (1.0 MB)")
        assert finding["severity"] == "note"
        assert "resume it: `runner pull checkpoints`" in finding["remedy"]
        assert part.exists()

    @pytest.mark.parametrize("broken", ["cut", "model.safetensors", "manifest.json"])
    def test_damaged_checkpoint(self, type_, find, make_run, broken: str) -> None:
        run = make_run("warm", step=20)
        checkpoint(run, 10)
        newest = checkpoint(run, 20)
        assert find("is damaged") == {}
        if broken == "cut":
            (newest / "model.safetensors").write_bytes(b"x" * 99)
        else:
            (newest / broken).unlink()
        assert find("warm/step_00000020 is damaged")["severity"] == "warning"
        assert find("warm/latest names step_00000020")["severity"] == "error"
        type_("runner doctor --fix")
        assert (run / "latest").read_text() == "step_00000010\n"
        assert newest.is_dir()
        assert find("warm/latest names") == {}

    def test_missing_latest(self, type_, find, make_run) -> None:
        run = make_run("warm")
        checkpoint(run, 20)
        assert find("warm/latest is missing")["severity"] == "error"
        type_("runner doctor --fix")
        assert (run / "latest").read_text() == "step_00000020\n"

    def test_run_without_checkpoints_is_fine(self, find, make_run) -> None:
        (make_run("pulled", step=20) / "step_00000020").rmdir()
        assert find("pulled") == {}


def token_of_a_server_at(port: int) -> dict[str, str]:
    url = f"http://127.0.0.1:{port}"
    return {"MODAL_TOKEN_ID": "a", "MODAL_TOKEN_SECRET": "b", "MODAL_SERVER_URL": url}


class TestModal:
    def test_missing_token_is_a_note(self, find) -> None:
        assert find("no Modal token")["severity"] == "note"

    def test_unreachable_server_is_a_warning_without_delay(self, find, cli, docker) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        cli.environ = {**docker.variables, **token_of_a_server_at(port)}
        assert find("Modal can't be reached")["severity"] == "warning"

    def test_server_that_does_not_answer(self, find, cli, docker, monkeypatch) -> None:
        monkeypatch.setattr("runner.doctor.system.MODAL_TIMEOUT_S", 0.5)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            cli.environ = {**docker.variables, **token_of_a_server_at(silent.getsockname()[1])}
            assert find("did not answer within")["severity"] == "warning"

    def test_volumes_are_checked_and_none_is_created(
        self, type_, find, cli, docker, tmp_path
    ) -> None:
        with ModalStandin(tmp_path / "state") as modal:
            cli.environ = {**docker.variables, **modal.environ, "PYTHONPATH": str(ROOT)}
            assert find("accepts the token")["severity"] == "ok"
            missing = find("gpt-runner-data does not exist on Modal yet")
            assert missing["severity"] == "note"
            type_("runner doctor --fix")
            assert find("gpt-runner-data does not exist on Modal yet") == missing
            code = (
                "import modal; modal.Volume.from_name("
                "'gpt-runner-cache', create_if_missing=True, version=2).hydrate()"
            )
            environ = {**os.environ, **modal.environ}
            subprocess.run([sys.executable, "-c", code], env=environ, check=True)
            assert find("gpt-runner-cache exists on Modal")["severity"] == "ok"
