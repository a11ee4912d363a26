"""runner doctor: findings, fixes and exit status."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.project import read_dotenv
from tests.runner.targets.docker_stand_in import INFO, DockerStandIn, own_settings

OLD_ENGINE = json.dumps({**INFO, "ServerVersion": "18.09.1"})


@pytest.fixture
def messages(type_):
    """Return ``messages("error")``, which returns the messages of that severity."""

    def of_severity(severity: str) -> list[str]:
        findings = json.loads(type_("runner doctor --json").stdout)
        return [finding["message"] for finding in findings if finding["severity"] == severity]

    return of_severity


@pytest.mark.parametrize("problem", ["can't be read: Is a directory", "is larger than 1 MB"])
def test_an_unreadable_dotenv_is_one_finding(
    type_, docker, checkout, messages, problem: str
) -> None:
    if "directory" in problem:
        (checkout / ".env").mkdir()
    else:
        (checkout / ".env").write_bytes(b"#" * 2_000_000)
    assert messages("error") == [f"{checkout}/.env {problem}"]
    assert problem in type_("runner doctor --fix").stderr


class TestFix:
    def test_new_checkout_is_prepared(self, type_, docker, checkout, messages) -> None:
        assert ".env does not exist yet" in messages("warning")  # `runner local` creates it
        result = type_("runner doctor --fix")
        assert result.exit_code == 0, result.stdout
        assert (checkout / ".env").read_text() == own_settings(checkout)
        assert (checkout / "volumes" / "data").stat().st_uid == os.getuid()

    def test_second_fix_changes_nothing(self, type_, docker) -> None:
        type_("runner doctor --fix")
        assert type_("runner doctor --fix").stderr == ""

    def test_gpus_add_their_compose_file(self, type_, docker, checkout) -> None:
        docker.with_gpus("NVIDIA H100")
        type_("runner doctor --fix")
        assert read_dotenv(checkout)["COMPOSE_FILE"] == "docker-compose.yml:docker-compose.gpu.yml"

    def test_compose_file_is_removed_without_gpus(self, type_, docker, checkout) -> None:
        (checkout / ".env").write_text(
            "COMPOSE_FILE=docker-compose.yml:docker-compose.gpu.yml:mine.yml\n"
        )
        assert type_("runner doctor").exit_code == 1
        type_("runner doctor --fix")
        assert read_dotenv(checkout)["COMPOSE_FILE"] == "docker-compose.yml:mine.yml"

    def test_override_file_is_added(self, type_, docker, checkout) -> None:
        """With COMPOSE_FILE in .env, Compose no longer reads it by default."""
        (checkout / "docker-compose.override.yml").write_text("services: {}\n")
        type_("runner doctor --fix")
        files = read_dotenv(checkout)["COMPOSE_FILE"]
        assert files == "docker-compose.yml:docker-compose.override.yml"
        assert type_("runner doctor").exit_code == 0

    def test_keys_and_comments_are_kept(self, type_, docker, checkout) -> None:
        path = checkout / ".env"
        path.write_text("# mine\nWANDB_API_KEY='s3cret'\nHOST_UID=99999\n")
        path.chmod(0o640)
        result = type_("runner doctor --fix")
        lines = path.read_text().splitlines()
        assert lines[:3] == ["# mine", "WANDB_API_KEY='s3cret'", f"HOST_UID={os.getuid()}"]
        assert path.stat().st_mode & 0o777 == 0o640
        assert "s3cret" not in result.stdout + result.stderr
        assert [name.name for name in checkout.glob(".env*")] == [".env"]


class TestFindings:
    def test_prepared_checkout_has_no_errors(self, type_, docker, messages) -> None:
        type_("runner doctor --fix")
        assert messages("error") == []
        text = " ".join(messages("ok"))
        versions = ("Docker engine 20.10.24", "Compose 1.29.2")
        for part in (*versions, "recipes: quickstart, warm", "GB free"):
            assert part in text

    @pytest.mark.parametrize(
        ("prepare", "severity", "message"),
        [
            (DockerStandIn.without_engine, "warning", "no Docker engine answers"),
            (lambda docker: docker.with_gpus("H100", "H100"), "ok", "GPUs: 2 x H100"),
            (
                lambda docker: docker.with_gpus("H100", toolkit=False),
                "warning",
                "Docker has no access to the GPUs",
            ),
            (
                lambda docker: docker.answer("compose_version", "1.25.0\n"),
                "warning",
                "older than 1.29",
            ),
            (
                lambda docker: docker.answer("info.json", OLD_ENGINE),
                "warning",
                "18.09.1 is older than 20",
            ),
        ],
    )
    def test_docker_that_lacks_something(
        self,
        docker,
        messages,
        prepare: Callable[[DockerStandIn], None],
        severity: str,
        message: str,
    ) -> None:
        prepare(docker)
        assert message in str(messages(severity))
        assert messages("error") == []

    def test_container_reports_the_gpus_it_sees(self, docker, messages) -> None:
        docker.with_gpus("NVIDIA H100", "NVIDIA H100")
        assert "a container sees 2 GPUs" in messages("ok")
        docker.answer("gpus", "GPU 0: NVIDIA H100 (UUID: GPU-0)\n")
        assert "a container sees 1 of 2 GPUs" in messages("warning")
        (docker.folder / "gpus").unlink()
        assert "a container sees no GPU: cat: " in str(messages("error"))
        docker.answer("no_image", "")
        assert "build the image to test it" in str(messages("ok"))

    def test_invalid_recipe_with_its_line(self, type_, docker, checkout) -> None:
        path = checkout / "configs" / "warm.yaml"
        path.write_text(path.read_text().replace("max_steps", "max_step"))
        findings = json.loads(type_("runner doctor --json").stdout)
        finding = next(f for f in findings if "unknown key" in f["message"])
        place = (finding["file"], finding["line"])
        assert (place, finding["severity"]) == (("configs/warm.yaml", 6), "error")
        assert "did you mean 'train.max_steps'?" in finding["message"]
        assert "configs/warm.yaml:6: " in type_("runner doctor").stdout

    @pytest.mark.parametrize("name", ["docker-compose.gpu.yml", "Dockerfile"])
    def test_missing_file_of_the_checkout(self, docker, checkout, messages, name: str) -> None:
        (checkout / name).unlink()
        assert f"{name} is missing" in messages("error")

    def test_folder_of_a_different_user(self, docker, checkout, messages, monkeypatch) -> None:
        (checkout / "volumes" / "data").mkdir(parents=True)
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root
        assert "no permission to write to volumes/data" in messages("error")

    @pytest.mark.parametrize(("free", "severity"), [(0.5, "error"), (5, "warning"), (50, "ok")])
    def test_free_space(self, docker, messages, monkeypatch, free: float, severity: str) -> None:
        usage = shutil.disk_usage("/")._replace(free=int(free * 1024**3))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        assert "B free on the disk" in str(messages(severity))

    def test_free_space_on_the_disk_of_another_volume(
        self, docker, messages, cli, checkout, tmp_path, monkeypatch
    ) -> None:
        elsewhere = Path("/dev/shm")  # another disk; the folder does not exist yet
        if not elsewhere.is_dir() or elsewhere.stat().st_dev == checkout.stat().st_dev:
            pytest.skip("there is only one disk")
        cli.environ = {**docker.variables, "CHECKPOINTS_PATH": str(elsewhere / "no" / "runs")}
        usage = shutil.disk_usage("/")
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path: usage._replace(free=(path != elsewhere) * 2**40)
        )
        assert "0 bytes free on the disk of checkpoints, /dev/shm" in messages("error")
        assert "1.1 TB free on the disk of the checkout" in messages("ok")
