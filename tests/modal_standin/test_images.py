"""The stand-in counts builds, and refuses what Modal's builder refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.modal_standin import ModalStandin
from tests.modal_standin.dockerfile import copied, environment, missing_sources, working_directory
from tests.modal_standin.scripts import fail, run

DOCKERFILE = """\
FROM python:3.11-slim
ENV COLOR=blue \\
    SHADE=dark$COLOR
COPY requirements.txt /tmp/
RUN pip install -r /tmp/requirements.txt
WORKDIR /workspace
"""

JOB = """
        image = modal.Image.from_dockerfile("Dockerfile", context_dir=".")
        image = image.add_local_dir("code", "/workspace")

        @app.function(image=image)
        def look():
            return os.getcwd(), os.environ["SHADE"], open("main.txt").read()

        if __name__ == "__main__":
            with app.run():
                print(*look.remote())
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "main.txt").write_text("first")
    (folder / "Dockerfile").write_text(DOCKERFILE)
    (folder / "requirements.txt").write_text("torch\n")
    os.utime(folder / "requirements.txt", (1, 1))
    return folder


def test_edit_of_mounted_code_builds_nothing_and_of_a_copied_file_its_layer(
    modal: ModalStandin, project: Path
) -> None:
    assert run(modal, project, JOB) == "/workspace darkblue first"
    assert [build.commands[0] for build in modal.builds] == ["FROM python:3.11-slim", "FROM base"]
    (project / "code" / "main.txt").write_text("second")
    assert run(modal, project, JOB) == "/workspace darkblue second"
    assert len(modal.builds) == 2
    assert len(modal.recorded("ImageGetOrCreate")) == 4
    (project / "requirements.txt").write_text("torch\nnumpy\n")
    run(modal, project, JOB)
    assert [build.commands[0] for build in modal.builds[2:]] == ["FROM base"]


def test_missing_copy_source_fails_the_build(modal: ModalStandin, project: Path) -> None:
    (project / "requirements.txt").unlink()
    complaint = fail(modal, project, JOB)
    assert "Image build for im-" in complaint
    assert '"/requirements.txt": not found' in complaint
    assert modal.builds[-1].failure
    assert modal.tasks() == []


def test_recorded_image_is_written_as_one_dockerfile(modal: ModalStandin, project: Path) -> None:
    run(modal, project, JOB)
    dockerfile = modal.write_dockerfile(modal.builds[-1].image_id, project / "flat")
    lines = dockerfile.read_text().splitlines()
    assert lines[0] == "FROM python:3.11-slim"
    assert "COPY requirements.txt /tmp/" in lines
    assert (project / "flat" / "requirements.txt").read_text() == "torch\n"
    assert not any(line.startswith("FROM base") for line in lines)


def test_files_of_two_layers_do_not_hide_each_other(modal: ModalStandin, project: Path) -> None:
    run(modal, project, JOB.replace('"/workspace")', '"/workspace", copy=True)'))
    dockerfile = modal.write_dockerfile(modal.builds[-1].image_id, project / "flat")
    assert "COPY layer1/requirements.txt /tmp/" in dockerfile.read_text().splitlines()
    assert (project / "flat" / "layer1" / "requirements.txt").read_text() == "torch\n"
    assert (project / "flat" / "layer2" / "workspace" / "main.txt").read_text() == "first"


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("COPY a.txt /", []),
        ("COPY folder /x/", []),
        ("COPY folder/ . /x/", []),
        ("COPY *.txt /", []),
        ("COPY --chown=1:1 gone.txt a.txt /", ["gone.txt"]),
        ('COPY ["gone.txt", "/"]', ["gone.txt"]),
        ("COPY *.md /", ["*.md"]),
        ("COPY --from=build /gone.txt /", []),
        ("ADD gone.txt /", ["gone.txt"]),
        ("ADD https://example.org/gone.txt /", []),
        ("RUN --mount=type=bind,source=gone.txt,target=/x true", ["gone.txt"]),
        ("RUN --mount=type=cache,target=/root/.cache true", []),
        ("RUN <<END\nCOPY gone.txt /\nEND", []),
        ("COPY \\\n  # why\n  gone.txt /", ["gone.txt"]),
    ],
)
def test_sources_are_searched_in_the_context(command: str, missing: list[str]) -> None:
    assert missing_sources(command.split("\n"), ["/a.txt", "/folder/b.txt"]) == missing


def test_copied_files_are_in_the_image() -> None:
    lines = ["WORKDIR /w", "COPY a.txt b.txt", "COPY a.txt folder /x/", "COPY --chown=1:1 . ."]
    context = ["/a.txt", "/folder/deep/c.txt"]
    assert copied(lines, context, "") == [
        ("/a.txt", "/w/b.txt"),
        ("/a.txt", "/x/a.txt"),
        ("/folder/deep/c.txt", "/x/deep/c.txt"),
        ("/a.txt", "/w/a.txt"),
        ("/folder/deep/c.txt", "/w/folder/deep/c.txt"),
    ]


def test_copied_code_is_in_the_image_and_each_edit_builds(
    modal: ModalStandin, project: Path
) -> None:
    job = JOB.replace('"/workspace")', '"/workspace", copy=True)')
    assert run(modal, project, job) == "/workspace darkblue first"
    builds = len(modal.builds)
    (project / "code" / "main.txt").write_text("second")
    assert run(modal, project, job) == "/workspace darkblue second"
    assert len(modal.builds) == builds + 1


def test_environment_and_directory_of_the_dockerfile() -> None:
    lines = ["ARG WHO=me", 'ENV A="x y" B=$WHO', "ENV OLD old form", "WORKDIR /w", "WORKDIR sub"]
    assert environment(lines, {}, {"KEPT": "1"}) == {
        "KEPT": "1",
        "A": "x y",
        "B": "me",
        "OLD": "old form",
    }
    assert environment(lines, {"WHO": "you"}, {})["B"] == "you"
    assert working_directory(lines, "/root") == "/w/sub"
