"""Checks of the Dockerfile, Compose files, lock and Makefile that need no Docker engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from modal._image import _create_context_mount
from modal._utils.docker_utils import extract_copy_command_patterns, splittable_from_line_index
from modal.file_pattern_matcher import FilePatternMatcher
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from job.paths import VolumePaths

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPOSE_FILES = ("docker-compose.yml", "docker-compose.gpu.yml")
SERVICES = {"train", "prepare", "sample", "chat", "serve", "shell", "tensorboard", "test"}


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, each with its arguments on one line."""
    lines = [
        line
        for line in DOCKERFILE.splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [(word.upper(), rest) for word, _, rest in (line.partition(" ") for line in joined)]


def locked() -> dict[str, tuple[str, int]]:
    """Return the version and the number of hashes of each locked package."""
    found = {}
    for entry in re.sub(r"\\\n\s*", " ", LOCK).splitlines():
        if entry and not entry.startswith("#"):
            pin, *hashes = entry.split()
            name, version = pin.split("==")
            found[canonicalize_name(name)] = (
                version,
                sum(h.startswith("--hash=sha256:") for h in hashes),
            )
    return found


def tool(name: str) -> Path:
    """Return a program of the extra `dev`; skip the test if it is not installed."""
    path = Path(sysconfig.get_path("scripts")) / name
    if not path.exists():
        pytest.skip(f"{name} is not installed")
    return path


class TestDockerfile:
    def test_begins_with_a_plain_from(self):
        assert DOCKERFILE.splitlines()[0] == "FROM python:3.11-slim-bookworm"

    def test_modal_can_cache_the_base_as_a_separate_layer(self):
        assert splittable_from_line_index(DOCKERFILE.split("\n")) == 0

    def test_modal_finds_every_copied_file(self):
        assert extract_copy_command_patterns(DOCKERFILE.splitlines()) == ["requirements.lock"]

    def test_modal_uploads_only_the_lock(self):
        ignored = FilePatternMatcher(*(ROOT / ".dockerignore").read_text().splitlines())
        mount = _create_context_mount(DOCKERFILE.splitlines(), ignored, ROOT)
        (entry,) = mount._entries
        assert [path.name for path, _ in entry.get_files_to_upload()] == ["requirements.lock"]

    def test_uses_nothing_that_modal_ignores_or_refuses(self):
        assert {word for word, _ in instructions()} == {"FROM", "RUN", "ENV", "COPY", "WORKDIR"}
        assert not re.search(r"RUN --mount|<<|COPY --(parents|exclude)|\$", DOCKERFILE)

    def test_calls_python_and_pip_by_name(self):
        assert "bin/" not in DOCKERFILE

    def test_installs_torch_of_pyproject_alone_and_first(self):
        (torch,) = (r for r in PROJECT["optional-dependencies"]["train"] if r.startswith("torch"))
        installs = [
            rest for word, rest in instructions() if word == "RUN" and "pip install" in rest
        ]
        assert installs[0] == f"pip install {torch}"
        assert installs[1].startswith("pip install --require-hashes -r ")

    def test_environment_points_at_the_volumes(self):
        environment = dict(
            pair.split("=", 1)
            for word, rest in instructions()
            if word == "ENV"
            for pair in shlex.split(rest)
        )
        volumes = VolumePaths.under(Path("/vol")).environment()
        assert volumes.items() <= environment.items()
        assert environment["HF_HOME"] == "/vol/cache/huggingface"
        assert environment["NVIDIA_VISIBLE_DEVICES"] == "all"
        assert environment["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"

    def test_hadolint_reports_nothing(self):
        result = subprocess.run(
            [tool("hadolint"), ROOT / "Dockerfile"], capture_output=True, text=True
        )
        assert (result.stdout, result.returncode) == ("", 0)


def test_modal_is_limited_to_a_minor_version_because_of_its_private_api():
    modal = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "modal")
    assert [modal.specifier.contains(v) for v in ("1.6.3", "1.6.4", "1.6.9", "1.7.0")] == [
        False,
        True,
        True,
        False,
    ]


class TestLock:
    def test_has_the_requirements_of_pyproject(self):
        extras = PROJECT["optional-dependencies"]
        requirements = [*extras["train"]]
        runner_only = ("click", "modal", "pathspec", "python-dotenv")
        requirements += [r for r in PROJECT["dependencies"] if not r.startswith(runner_only)]
        pins = locked()
        for requirement in map(Requirement, requirements):
            if requirement.name != "torch":
                version, _ = pins[canonicalize_name(requirement.name)]
                assert requirement.specifier.contains(version), (
                    f"{requirement} is locked at {version}"
                )

    def test_every_package_has_hashes(self):
        assert [name for name, (_, hashes) in locked().items() if not hashes] == []

    def test_omits_torch_and_its_cuda_packages(self):
        of_torch = re.compile("torch|triton|nvidia-(?!ml-py).*|cuda-.*")
        assert [name for name in locked() if of_torch.fullmatch(name)] == []

    def test_omits_the_requirements_of_the_runner(self):
        assert "modal" not in locked()

    def test_names_the_command_that_makes_it_and_no_server(self):
        assert "make lock" in "".join(line for line in LOCK.splitlines() if line.startswith("#"))
        assert "://" not in LOCK
        assert "index-url" not in LOCK


class TestCompose:
    @pytest.mark.parametrize("name", COMPOSE_FILES)
    def test_is_valid_for_the_compose_specification(self, name):
        data = os.environ.get("GPT_RUNNER_TEST_DATA")
        shared = Path(data).parent if data else ROOT.parent / "shared"
        schema = shared / "schema" / "compose-spec.json"
        if not schema.exists():
            pytest.skip(f"the schema of the Compose specification is missing: {schema}")
        jsonschema.Draft7Validator(json.loads(schema.read_text())).validate(compose(name))

    def test_has_the_jobs(self):
        assert set(compose()["services"]) == SERVICES

    def test_up_without_arguments_starts_only_train(self):
        services = compose()["services"]
        assert [name for name, service in services.items() if "profiles" not in service] == [
            "train"
        ]

    def test_code_is_read_only_and_the_volumes_are_in_the_checkout(self):
        for service in compose()["services"].values():
            assert service["volumes"] == [
                ".:/workspace:ro",
                "./volumes/data:/vol/data",
                "./volumes/checkpoints:/vol/checkpoints",
                "./volumes/cache:/vol/cache",
            ]

    def test_commands_receive_signals(self):
        for service in compose()["services"].values():
            assert isinstance(service["command"], list), (
                "a shell may run a string, and not pass on SIGTERM"
            )
            assert service["init"] is True

    def test_ports_are_open_only_to_this_machine(self):
        for service in compose()["services"].values():
            assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))

    def test_gpu_file_extends_existing_services(self):
        gpu = compose("docker-compose.gpu.yml")["services"]
        assert set(gpu) <= SERVICES
        for service in gpu.values():
            (device,) = service["deploy"]["resources"]["reservations"]["devices"]
            assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def compose(name: str = "docker-compose.yml") -> dict:
    return yaml.safe_load((ROOT / name).read_text())


class TestFreshClone:
    def test_has_the_folders_of_the_volumes(self):
        """The engine would create a missing bind source as root."""
        for volume in ("data", "checkpoints", "cache"):
            assert (ROOT / "volumes" / volume / ".gitkeep").exists()

    def test_git_ignores_the_files_of_a_run(self):
        if not (ROOT / ".git").exists():
            pytest.skip("not a git checkout")
        written = [
            "volumes/data/x/meta.json",
            "volumes/checkpoints/run/run.json",
            "volumes/cache/a",
            ".env",
        ]
        result = subprocess.run(
            ["git", "check-ignore", *written], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert result.stdout.split() == written


class TestScripts:
    @pytest.mark.parametrize("name", ["container/entrypoint.sh", ".ci/run"])
    def test_stops_at_the_first_error(self, name):
        assert "\nset -euo pipefail\n" in (ROOT / name).read_text()
        subprocess.run(["bash", "-n", ROOT / name], check=True)

    def test_entrypoint_replaces_itself_with_the_command(self):
        assert (ROOT / "container" / "entrypoint.sh").read_text().endswith('exec "$@"\n')

    def test_ci_is_executable(self):
        assert os.access(ROOT / ".ci" / "run", os.X_OK)


def make(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run make in the checkout, with PATH set to ``path`` if given."""
    environ = {**os.environ, **({"PATH": path} if path else {})}
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        environ.pop(name, None)
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environ, capture_output=True, text=True
    )


class TestMakefile:
    def test_without_a_target_lists_the_targets(self):
        listed = {line.split()[0] for line in make().stdout.splitlines()}
        assert listed == {"help", "train", "test", "bench", "lint", "fmt", "docs", "lock", "clean"}

    def test_train_passes_on_recipe_name_and_arguments(self):
        command = make(
            "--dry-run", "train", "RECIPE=tiny", "NAME=mine", "ARGS=lr=1e-3 max_steps=5"
        ).stdout
        assert "runner host train tiny --name mine lr=1e-3 max_steps=5" in command

    def test_clean_keeps_the_volumes(self):
        assert "volumes" not in make("--dry-run", "clean").stdout

    def test_installs_torch_of_pyproject_before_the_rest(self, tmp_path):
        pyproject = (ROOT / "pyproject.toml").read_text()
        (tmp_path / "pyproject.toml").write_text(pyproject.replace("torch==", "torch==9."))
        (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
        lines = make("--dry-run", "-C", str(tmp_path), "train").stdout.splitlines()
        installs = [line for line in lines if ".venv/bin/python -m pip install" in line]
        assert "torch==9." in installs[0]
        assert "'.[train]'" in installs[1]

    def test_moved_checkout_reinstalls_itself_and_starts(self, tmp_path):
        """Python is replaced by a script that records its calls: installing needs the network."""
        first, second = tmp_path / "first", tmp_path / "second"
        (first / ".venv" / "bin").mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml"):
            (first / name).write_bytes((ROOT / name).read_bytes())
        (first / ".venv" / "bin" / "pip").touch()
        python = first / ".venv" / "bin" / "python"
        python.write_text('#!/bin/sh\necho "$@" >> calls\n')
        python.chmod(0o755)

        def calls(checkout: Path) -> list[str]:
            (checkout / "calls").unlink(missing_ok=True)
            assert make("-C", str(checkout), "train").returncode == 0
            return [
                " ".join(line.split()[:3]) for line in (checkout / "calls").read_text().splitlines()
            ]

        installs = ["-m pip install", "-m pip install"]
        assert calls(first) == [*installs, "-m runner host"]
        assert calls(first) == ["-m runner host"]
        first.rename(second)
        assert calls(second) == [*installs, "-m runner host"]
        assert calls(second) == ["-m runner host"]

    @pytest.mark.parametrize(
        ("script", "message"),
        [
            (None, "no Python 3.11 to 3.14 found"),
            ('[ "$1" = -c ]', "sudo apt install python3-venv"),
        ],
        ids=["no Python", "Python without venv"],
    )
    def test_names_the_missing_program(self, tmp_path, script, message):
        """PATH has a few tools and, with ``script``, a Python that only answers its version."""
        programs = tmp_path / "bin"
        programs.mkdir()
        for name in ("sh", "sed", "rm", "make", "touch"):
            (found,) = subprocess.run(
                ["which", name], capture_output=True, text=True
            ).stdout.split()
            (programs / name).symlink_to(found)
        if script:
            (programs / "python3").write_text(f"#!/bin/sh\n{script}\n")
            (programs / "python3").chmod(0o755)
        for name in ("Makefile", "pyproject.toml"):
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
        result = make("-C", str(tmp_path), "train", path=str(programs))
        assert result.returncode != 0
        assert message in result.stderr
        assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("module", ["job.health", "job.user_command.supervisor"])
def test_health_check_starts_fast_and_a_command_needs_no_package(module: str) -> None:
    """Docker runs the check every 30 s; packages of a user's command must not break its start."""
    packages = {"torch", "numpy", "pydantic", "yaml", "rich", "regex", "tensorboard"}
    code = f"import sys, {module}; print({packages} & set(sys.modules) or set())"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"


def model_lines() -> list[int]:
    return [len(path.read_text().splitlines()) for path in (ROOT / "model").glob("*.py")]


def test_files_of_the_trainer_are_short() -> None:
    assert max(model_lines()) <= 350


def test_trainer_is_short_enough_to_read_in_an_afternoon() -> None:
    assert sum(model_lines()) < 2500
