"""The agent of a box and `BoxFiles`, with an ssh and a docker that run on this machine."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.errors import RunnerError
from runner.targets.remote import agent
from runner.targets.remote.connection import BoxSystem, BoxUnavailable
from runner.targets.remote.files import Agent, BoxFiles, copied_records, make_tree, send_tree

SSH = '#!/bin/sh\n[ -e "{folder}/off" ] && exit 255\nfor last; do true; done\nexec sh -c "$last"\n'
DOCKER = '#!/bin/sh\nfor last; do true; done\nexec {python} -c "$last"\n'


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """Return an agent whose volumes are folders of ``tmp_path``."""
    source = Path(agent.__file__).read_text().replace('"/vol"', repr(str(tmp_path)))
    (tmp_path / "agent.py").write_text(source)
    monkeypatch.setattr(agent, "__file__", str(tmp_path / "agent.py"))
    (tmp_path / "bin").mkdir()
    for name, script in (("ssh", SSH), ("docker", DOCKER)):
        program = tmp_path / "bin" / name
        program.write_text(script.format(folder=tmp_path, python=sys.executable))
        program.chmod(0o755)
    for volume in ("data", "checkpoints", "store", "tree0"):
        (tmp_path / volume).mkdir()
    system = BoxSystem({"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}, "lab")
    system.__dict__["context_endpoint"] = None
    opened = Agent(system, lambda: "image", {"data": "data"})
    yield opened
    opened.close()


def test_files_of_a_box(box: Agent, tmp_path: Path) -> None:
    files = BoxFiles(box, "data")
    files.write("a/b.txt", "text")
    assert files.read("a/b.txt", 1, 2) == b"ex"
    assert [entry.path for entry in files.entries("a")] == ["a/b.txt"]
    assert (files.size("a/b.txt"), files.size("none")) == (4, None)
    assert files.open("a/b.txt").size == 4
    (tmp_path / "checkpoints" / "tiny").mkdir()
    (tmp_path / "checkpoints" / "tiny" / "run.json").write_text("{}")
    with copied_records(box) as folder:
        assert (folder / "tiny" / "run.json").read_text() == "{}"
    files.remove("a", recursive=True)
    with pytest.raises(FileNotFoundError):
        files.read("a/b.txt")


def test_a_tree_is_sent_once_and_an_edit_sends_only_what_changed(
    box: Agent, tmp_path: Path
) -> None:
    sources = {}
    for name, text in (("code/train.py", b"print(1)\n"), ("zeros.bin", b"x" + bytes(9_000_000))):
        path = tmp_path / "sources" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
        sources[name] = path
    tree, files = make_tree("/workspace", sources), BoxFiles(box, "tree0")
    assert send_tree(files, tree) > 0
    assert send_tree(files, tree) == 0
    for name, path in sources.items():
        assert (tmp_path / "tree0" / name).read_bytes() == path.read_bytes()
    missing = files.put([file for file, _ in tree.files], {}, tree.volume)
    assert missing == []
    sources["code/train.py"].write_text("print(2)\n")
    new = make_tree("/workspace", sources)
    assert new.volume != tree.volume
    blocks = [m.url for m in files.put([file for file, _ in new.files], {}, new.volume)]
    assert blocks == [hashlib.sha256(b"print(2)\n").hexdigest()]


def test_a_request_is_repeated_only_for_a_box_that_has_answered(
    box: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[float] = []
    requests: list[bytes] = []
    exchange = box._exchange
    monkeypatch.setattr(
        box, "_exchange", lambda frame: (requests.append(frame), exchange(frame))[1]
    )
    files = BoxFiles(box, "data").with_retries(attempts=3, sleep=delays.append)
    (tmp_path / "off").touch()
    for is_known, expected in ((False, 1), (True, 3)):
        box.system.has_answered = is_known
        requests.clear()
        with pytest.raises(BoxUnavailable):
            files.listing()
        assert (len(requests), len(delays)) == (expected, expected - 1)


def test_a_folder_is_removed_after_an_interrupted_removal(box: Agent, tmp_path: Path) -> None:
    for name in ("a", ".replaced_a"):
        (tmp_path / "data" / name).mkdir()
        (tmp_path / "data" / name / "x").touch()
    BoxFiles(box, "data").remove("a", recursive=True)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_wrong_path_is_a_mistake_of_the_user_and_no_error_of_the_connection(
    box: Agent, tmp_path: Path
) -> None:
    files = BoxFiles(box, "data")
    for request in (lambda: files.read("../other"), lambda: files.remove("/")):
        with pytest.raises(RunnerError, match=r"name a file|inside it") as refused:
            request()
        assert refused.value.exit_code == 2
    (tmp_path / "data" / "folder").mkdir()
    with pytest.raises(RunnerError, match="Is a directory") as failed:
        files.read("folder")
    assert "connection" not in failed.value.message
