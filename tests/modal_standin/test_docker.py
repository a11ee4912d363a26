"""The recorded image can be built by Docker, and a body runs in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.modal_standin import DockerExecutor, ModalStandin, build_image, docker_answers
from tests.modal_standin.docker_executor import image_tag
from tests.modal_standin.scripts import start

BASE = f"python:{sys.version_info.major}.{sys.version_info.minor}-slim-bookworm"

JOB = f"""
        open("Dockerfile", "w").write(
            "FROM {BASE}\\nCOPY note.txt /note.txt\\nRUN touch /built\\nENV COLOR=blue\\n"
        )
        image = modal.Image.from_dockerfile("Dockerfile", context_dir=".")
        image = image.add_local_file("code.txt", "/workspace/code.txt")
        volume = modal.Volume.from_name("checkpoints", create_if_missing=True, version=2)

        @app.function(image=image, volumes={{"/vol/checkpoints": volume}})
        def read_files():
            attempt = len(os.listdir("/vol/checkpoints"))
            open(f"/vol/checkpoints/attempt{{attempt}}", "w").close()
            print("attempt", attempt)
            while attempt == 0:
                time.sleep(0.05)
            paths = ("/note.txt", "/workspace/code.txt")
            found = [*(open(path).read() for path in paths), os.environ["COLOR"]]
            return found, os.path.exists("/built"), os.path.exists("/.dockerenv")

        if __name__ == "__main__":
            with app.run():
                print(read_files.remote())
"""


def has_base_image() -> bool:
    if not docker_answers():
        return False
    return subprocess.run(["docker", "image", "inspect", BASE], capture_output=True).returncode == 0


@pytest.mark.container
@pytest.mark.slow
@pytest.mark.skipif(not has_base_image(), reason=f"no Docker engine answers, or {BASE} is missing")
def test_body_in_a_docker_image_survives_a_preemption(
    tmp_path: Path,
) -> None:
    (tmp_path / "note.txt").write_text("copied")
    (tmp_path / "code.txt").write_text("mounted")
    executor = DockerExecutor(lambda image_id: build_image(modal, image_id))
    with ModalStandin(tmp_path / "state", executor=executor, grace=10.0) as modal:
        client = start(modal, tmp_path, JOB)
        modal.wait_until(lambda: "attempt 0" in modal.log(), timeout=120)
        modal.preempt()
        output, complaint = client.communicate(timeout=120)
        assert output.strip() == "(['copied', 'mounted', 'blue'], True, True)", (
            complaint + modal.log()
        )
        assert modal.errors() == []
        subprocess.run(
            ["docker", "image", "rm", image_tag(modal.builds[-1].image_id)], capture_output=True
        )
