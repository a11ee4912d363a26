"""A runner installed from a wheel works in any folder, with a copy in the user's data folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


class InstalledRunner:
    """The wheel's files in a separate folder, and a home folder."""

    def __init__(self, root: Path, wheel: Path) -> None:
        self.site, self.home, self.cwd = root / "site", root / "home", root / "empty"
        self.cwd.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self.site)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        packages = [path for path in sys.path if path.endswith("site-packages")]
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONPATH": os.pathsep.join([str(self.site), *packages]),
        }
        command = [sys.executable, "-S", "-P", "-m", "runner", *words]
        return subprocess.run(
            command, cwd=self.cwd, env=environ, capture_output=True, text=True, timeout=120
        )

    @property
    def folders(self) -> list[str]:
        folder = self.home / ".local/share/gpt-runner"
        return sorted(path.name for path in folder.iterdir())


def test_an_installed_runner_works_in_an_empty_folder_and_keeps_runs_at_an_upgrade(
    tmp_path: Path, wheel: Path
) -> None:
    installed = InstalledRunner(tmp_path, wheel)
    first = installed.run("host", "quickstart", "--dry-run", "--json")
    assert "project folder:" in first.stderr
    plan = json.loads(first.stdout)
    project = Path(plan["checkout"])
    assert (project / "requirements.lock").is_file()
    clone = installed.run("host", "pipeline", "nanochat").stderr
    assert f"folder {tmp_path}/nanochat does not exist; clone it to that path" in clone
    assert (project / "container" / "entrypoint.sh").is_file()
    assert (project / "bench" / "roofline.py").is_file()  # has a job
    assert installed.run("cloud", "shakespeare_char", "--dry-run").returncode == 0

    assert installed.run("init").stdout.split() == [
        "configs/my_gpt.yaml",
        ".env.example",
        "my_experiment.py",
    ]
    (installed.cwd / ".env").write_text("WANDB_API_KEY=secret\n")
    own = installed.run("cloud", "my_gpt", "wandb_project=x", "--dry-run", "--json")
    sent = json.loads(own.stdout)
    assert sent["secrets"] == ["WANDB_API_KEY"]
    assert [v["host_path"] for v in sent["volumes"] if v["name"] == "mount"] == [
        str(installed.cwd / "configs" / "my_gpt.yaml")
    ]

    run = project.parent / "volumes" / "checkpoints" / "old"
    shutil.copytree(installed.cwd / "configs", run)
    record = next(installed.site.glob("gpt_runner-*.dist-info")) / "RECORD"
    record.write_text(record.read_text() + "more,,\n")
    lock = installed.site / "runner" / "project_files" / "requirements.lock"
    lock.write_text(lock.read_text() + "# newer\n")
    upgraded = installed.run("host", "quickstart", "--dry-run", "--json")
    assert f"upgraded from {project.name}; runs are kept. 1 file changed" in upgraded.stderr
    assert "the image will be rebuilt: requirements.lock" in upgraded.stderr
    after = json.loads(upgraded.stdout)
    assert after["checkout"] != plan["checkout"]
    assert after["volumes"] == plan["volumes"]
    assert run.is_dir()
    assert not [name for name in installed.folders if name.startswith(".0")]  # no partial folder
    assert str(project) in installed.run("doctor").stdout
    heartbeat = run / "heartbeat"
    (run / "run.json").write_text('{"name": "old", "status": "running"}')
    heartbeat.touch()
    installed.run("doctor", "--fix")
    assert project.is_dir()  # the run may use it
    heartbeat.unlink()
    assert f"deleted {project}" in installed.run("doctor", "--fix").stderr
    assert not project.exists()
    assert Path(after["checkout"]).is_dir()
