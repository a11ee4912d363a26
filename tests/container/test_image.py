"""The contents of the image, read from inside a container."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from job.paths import VolumePaths
from tests.container.checkout import ROOT

# torch.compile writes and builds C++, and looks up the user's name.
COMPILE = """
import getpass, os, torch
double = torch.compile(lambda x: torch.relu(x) * 2 + 1)
x = torch.linspace(-1, 1, 8)
assert torch.allclose(double(x), torch.relu(x) * 2 + 1)
assert os.access(os.path.expanduser("~"), os.W_OK)
cached = os.listdir(os.environ["TORCHINDUCTOR_CACHE_DIR"])
print(os.getuid(), getpass.getuser(), cached != [])
"""


def inside(image: str, *command: str, options: tuple[str, ...] = ()) -> str:
    """Return the output of a command under ``docker run``, without Compose and mounts."""
    result = subprocess.run(
        ["docker", "run", "--rm", *options, image, *command], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_contains_exactly_the_locked_versions(image):
    listed = json.loads(inside(image, "python", "-m", "pip", "list", "--format", "json"))
    installed = {re.sub(r"[-_.]+", "-", p["name"]).lower(): p["version"] for p in listed}
    pins = dict(
        re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    )
    assert {name: installed.get(name) for name in pins} == pins
    assert installed["torch"].split("+")[0] == "2.13.0"


def test_packages_are_compatible(image):
    assert "No broken requirements" in inside(image, "python", "-m", "pip", "check")


def test_has_compilers_and_git(image):
    inside(image, "sh", "-c", "gcc --version && g++ --version && git --version")


def test_environment_points_at_the_volumes(image):
    environment = json.loads(
        inside(image, "python", "-c", "import json, os; print(json.dumps(dict(os.environ)))")
    )
    assert VolumePaths.under(Path("/vol")).environment().items() <= environment.items()
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "all"


def test_contains_no_code(image):
    assert inside(image, "ls", "-A", "/workspace") == ""


def test_any_user_can_compile_and_write(image):
    user = ("--user", "12345:12345")
    assert inside(image, "python", "-c", COMPILE, options=user) == "12345 runner True\n"


def test_any_user_can_write_to_volumes_that_are_not_mounted(image):
    script = "touch /vol/data/a /vol/checkpoints/a /vol/cache/a"
    inside(image, "sh", "-c", script, options=("--user", "12345:12345"))


def test_edit_does_not_rebuild(image, checkout):
    """The code is not in the image: after an edit, a build takes every layer from the cache."""
    for edited in (
        "job/run_record.py",
        "configs/quickstart.yaml",
        "docker-compose.yml",
        "pyproject.toml",
    ):
        with (checkout.folder / edited).open("a") as file:
            file.write("# an edit\n")
    before = layers(checkout, image)
    checkout.compose("build", "train")
    assert layers(checkout, "gpt-runner") == before
    assert checkout.bash("tail -1 job/run_record.py") == "# an edit\n"


def layers(checkout, image):
    """Return the digests of an image's layers; a rebuilt layer has a different one."""
    listed = checkout.command(
        "docker", "image", "inspect", "--format", "{{json .RootFS.Layers}}", image
    )
    return json.loads(listed.stdout)
