"""runner doctor: what it finds, what it puts right, and when it ends 1."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from runner.project import read_dotenv, update_dotenv
from tests.runner.targets.docker_stand_in import own_settings


@pytest.fixture
def found(type_):
    """``found("error")``: the messages of that severity."""

    def messages(severity: str) -> list[str]:
        findings = json.loads(type_("runner doctor --json").stdout)
        return [finding["message"] for finding in findings if finding["severity"] == severity]

    return messages


class TestFix:
    def test_a_fresh_checkout_is_made_ready(self, type_, docker, checkout, found) -> None:
        assert ".env is missing" in found("warning")  # no error: the first `runner local` writes it
        result = type_("runner doctor --fix")
        assert result.exit_code == 0, result.stdout
        assert (checkout / ".env").read_text() == own_settings(checkout)
        assert (checkout / "volumes" / "data").stat().st_uid == os.getuid()

    def test_the_second_time_there_is_nothing_to_do(self, type_, docker) -> None:
        type_("runner doctor --fix")
        assert type_("runner doctor --fix").stderr == ""

    def test_gpus_bring_their_compose_file(self, type_, docker, checkout) -> None:
        docker.with_gpus("NVIDIA H100")
        type_("runner doctor --fix")
        assert read_dotenv(checkout)["COMPOSE_FILE"] == "docker-compose.yml:docker-compose.gpu.yml"

    def test_gpus_that_are_gone_take_it_away(self, type_, docker, checkout) -> None:
        (checkout / ".env").write_text(
            "COMPOSE_FILE=docker-compose.yml:docker-compose.gpu.yml:mine.yml\n"
        )
        assert type_("runner doctor").exit_code == 1
        type_("runner doctor --fix")
        assert read_dotenv(checkout)["COMPOSE_FILE"] == "docker-compose.yml:mine.yml"

    def test_an_override_that_compose_read_by_itself_is_named(
        self, type_, docker, checkout
    ) -> None:
        """With COMPOSE_FILE in .env, compose no longer looks for it."""
        (checkout / "docker-compose.override.yml").write_text("services: {}\n")
        type_("runner doctor --fix")
        assert (
            read_dotenv(checkout)["COMPOSE_FILE"]
            == "docker-compose.yml:docker-compose.override.yml"
        )
        assert type_("runner doctor").exit_code == 0

    def test_keys_and_comments_stay(self, type_, docker, checkout) -> None:
        path = checkout / ".env"
        path.write_text("# mine\nWANDB_API_KEY='hush'\nHOST_UID=99999\n")
        path.chmod(0o640)
        result = type_("runner doctor --fix")
        lines = path.read_text().splitlines()
        assert lines[:3] == ["# mine", "WANDB_API_KEY='hush'", f"HOST_UID={os.getuid()}"]
        assert path.stat().st_mode & 0o777 == 0o640
        assert "hush" not in result.stdout + result.stderr
        assert [name.name for name in checkout.glob(".env*")] == [".env"]

    def test_a_comment_that_is_no_utf8_stays_as_it_is(self, checkout) -> None:
        (checkout / ".env").write_bytes(b"# cl\xe9\nA=b\n")
        assert read_dotenv(checkout) == {"A": "b"}
        update_dotenv(checkout, {"A": "c"})
        assert (checkout / ".env").read_bytes() == b"# cl\xe9\nA=c\n"

    def test_a_new_file_is_the_users_alone(self, checkout) -> None:
        update_dotenv(checkout, {"HOST_UID": "1"})
        assert (checkout / ".env").stat().st_mode & 0o777 == 0o600


class TestFindings:
    def test_all_is_well(self, type_, docker, found) -> None:
        type_("runner doctor --fix")
        assert found("error") == []
        well = " ".join(found("ok"))
        for words in (
            "engine 20.10.24 answers",
            "compose 1.29.2",
            "recipes: quickstart, warm",
            "GB free",
        ):
            assert words in well

    def test_no_engine_is_no_error_where_the_host_can_train(self, docker, found) -> None:
        docker.without_engine()
        assert found("error") == []
        assert any("no Docker engine answers" in message for message in found("warning"))

    def test_an_engine_without_the_toolkit(self, docker, found) -> None:
        docker.with_gpus("NVIDIA H100", "NVIDIA H100", toolkit=False)
        assert "GPUs: 2 x NVIDIA H100" in found("ok")
        assert any("can't hand out GPUs" in message for message in found("warning"))

    def test_a_container_is_asked_whether_it_sees_them(self, docker, found) -> None:
        docker.with_gpus("NVIDIA H100", "NVIDIA H100")
        assert "a container sees 2 GPUs" in found("ok")
        docker.answer("gpus", "GPU 0: NVIDIA H100 (UUID: GPU-0)\n")
        assert "a container sees 1 of 2 GPUs" in found("warning")
        (docker.folder / "gpus").unlink()
        assert any("a container sees no GPU: cat: " in message for message in found("error"))
        docker.answer("no_image", "")
        assert any("tried once the image is built" in message for message in found("ok"))

    def test_an_old_compose(self, docker, found) -> None:
        docker.answer("compose_version", "1.25.0\n")
        assert any("older than 1.29" in message for message in found("warning"))

    def test_a_wrong_recipe_with_its_line(self, type_, docker, checkout) -> None:
        path = checkout / "configs" / "warm.yaml"
        path.write_text(path.read_text().replace("max_steps", "max_step"))
        findings = json.loads(type_("runner doctor --json").stdout)
        finding = next(f for f in findings if "unknown key" in f["message"])
        assert (finding["file"], finding["line"], finding["severity"]) == (
            "configs/warm.yaml",
            6,
            "error",
        )
        assert "did you mean 'train.max_steps'?" in finding["message"]
        assert "configs/warm.yaml:6: " in type_("runner doctor").stdout

    def test_a_compose_file_that_is_missing(self, docker, checkout, found) -> None:
        (checkout / "docker-compose.gpu.yml").unlink()
        assert "docker-compose.gpu.yml is missing" in found("error")

    def test_a_folder_of_somebody_else(self, docker, checkout, found, monkeypatch) -> None:
        (checkout / "volumes" / "data").mkdir(parents=True)
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
        assert "volumes/data is not yours to write" in found("error")

    @pytest.mark.parametrize(("free", "severity"), [(0.5, "error"), (5, "warning"), (50, "ok")])
    def test_room_on_the_disk(self, docker, found, monkeypatch, free: float, severity: str) -> None:
        import shutil

        usage = shutil.disk_usage("/")._replace(free=int(free * 1024**3))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        assert any("B free on the disk" in message for message in found(severity))

    def test_room_on_the_disk_of_a_volume_elsewhere(
        self, docker, found, cli, checkout, tmp_path, monkeypatch
    ) -> None:
        import shutil

        elsewhere = Path("/dev/shm")  # a disk of its own, for a folder that is not there yet
        if not elsewhere.is_dir() or elsewhere.stat().st_dev == checkout.stat().st_dev:
            pytest.skip("there is one disk alone")
        cli.environ = {**docker.variables, "CHECKPOINTS_PATH": str(elsewhere / "no" / "runs")}
        usage = shutil.disk_usage("/")
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path: usage._replace(free=(path != elsewhere) * 2**40)
        )
        assert "0 bytes free on the disk of checkpoints, /dev/shm" in found("error")
        assert "1.1 TB free on the disk of the checkout" in found("ok")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b", "b"),
        ("export A=b", "b"),
        ("A='b c'", "b c"),
        ('A="b"', "b"),
        ("A=b # why", "b"),
        ('A="b # c" # why', "b # c"),
        ("A='b' ", "b"),
        ("A = b", "b"),
        ("A=", ""),
    ],
)
def test_lines_of_dotenv(tmp_path, line: str, value: str) -> None:
    (tmp_path / ".env").write_text(f"# A=no\n{line}\n")
    assert read_dotenv(tmp_path) == {"A": value}
