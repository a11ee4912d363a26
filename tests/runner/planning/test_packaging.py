"""What of a folder goes with its command."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.planning.packaging import keeps_out, list_files

FILES = {
    ".gitignore": "*.pt\n/data/\n!keep.pt\n",
    "train.py": "x",
    "keep.pt": "x",
    "a.pt": "x",
    "data/big.bin": "x",
    "lib/data/used.txt": "x",
    "lib/.gitignore": "*.log\n!keep.log\n",
    "lib/a.log": "x",
    "lib/keep.log": "x",
    "lib/deep/b.log": "x",
    "lib/deep/.gitignore": "!b.log\n",
    "lib/__pycache__/x.pyc": "x",
    ".env": "TOKEN=hush",
    ".env.example": "TOKEN=",
    "name with ä space.txt": "x",
}

SHIPPED = {
    ".gitignore", "train.py", "keep.pt", "lib/data/used.txt", "lib/.gitignore", "lib/keep.log",
    "lib/deep/b.log", "lib/deep/.gitignore", ".env.example", "name with ä space.txt",
}  # fmt: skip


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def git(folder: Path, *words: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=n", "-c", "user.email=e", *words],
        cwd=folder,
        check=True,
        capture_output=True,
    )


@pytest.fixture(params=["git", "walk"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """A folder with these files, as a repository and as none: both must say the same."""

    def made(files: dict[str, str]) -> Path:
        folder = write(tmp_path / "folder", files)
        if request.param == "git":
            git(folder, "init", "-q")
        return folder

    return made


def test_nested_ignore_files_are_read_as_git_reads_them(make: Callable[..., Path]) -> None:
    assert set(list_files(make(FILES)).sizes) == SHIPPED


def test_dockerignore_begins_at_the_folder(make: Callable[..., Path]) -> None:
    files = {
        ".dockerignore": "out\n**/*.tmp\n!b.tmp\n",
        "out/a": "x",
        "sub/out/a": "x",
        "sub/a.tmp": "x",
        "b.tmp": "x",
    }
    assert set(list_files(make(files)).sizes) == {".dockerignore", "sub/out/a", "b.tmp"}


def test_of_our_own_checkout_the_dockerignore_is_about_the_image(make: Callable[..., Path]) -> None:
    folder = make({".dockerignore": "*\n", "train.py": "x"})
    assert list_files(folder).sizes == {}
    assert "train.py" in list_files(folder, folder).sizes


def test_links(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make({"a.txt": "abc"})
    (folder / "b.txt").symlink_to("a.txt")
    (folder / "gone").symlink_to("nothing")
    (folder / "elsewhere").symlink_to(tmp_path)
    listing = list_files(folder)
    assert listing.sizes == {"a.txt": 3, "b.txt": 3}
    assert listing.links == ("elsewhere",)


def test_a_tracked_file_goes_though_a_rule_names_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {"a.bin": "x", "b.bin": "x"})
    git(folder, "init", "-q")
    git(folder, "add", "a.bin")
    (folder / ".gitignore").write_text("*.bin\n")
    assert set(list_files(folder).sizes) == {"a.bin", ".gitignore"}


def test_a_folder_that_its_repository_ignores_goes_all_the_same(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {".gitignore": "scratch/\n", "scratch/train.py": "x"})
    git(folder, "init", "-q")
    assert set(list_files(folder / "scratch").sizes) == {"train.py"}


def test_a_repository_inside_goes_without_its_history(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "f",
        {"a.py": "x", "inner/.gitignore": "*.pt\n", "inner/b.py": "x", "inner/c.pt": "x"},
    )
    git(folder / "inner", "init", "-q")
    git(folder, "init", "-q")
    assert set(list_files(folder).sizes) == {"a.py", "inner/.gitignore", "inner/b.py"}


def test_the_largest_are_named_where_it_is_much(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {"a.py": "x"})
    assert list_files(folder).summary().largest == ()
    os.truncate(folder / "a.py", 200_000_000)
    assert list_files(folder).summary().largest == (("a.py", 200_000_000),)


def test_a_folder_is_left_out_where_nothing_in_it_goes(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {"a/b/c.py": "x", "data/prepare.py": "x", "data/notes.md": "x"})
    out = keeps_out(list_files(folder), ("data",))
    assert [out(path) for path in ("a", "a/b", "a/b/c.py")] == [False] * 3
    assert [out(path) for path in ("data", "data/prepare.py", "other")] == [True] * 3


@pytest.mark.parametrize("kind", ["git", "walk"])
def test_many_files_beside_a_large_ignored_folder(kind: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {".gitignore": "data/\n"})
    for number in range(200):
        (folder / "src" / str(number)).mkdir(parents=True)
        (folder / "data" / str(number)).mkdir(parents=True)
        for name in range(25):
            (folder / "src" / str(number) / f"{name}.py").touch()
            (folder / "data" / str(number) / f"{name}.bin").touch()
    if kind == "git":
        git(folder, "init", "-q")
    began = time.process_time()
    listing = list_files(folder)
    assert len(listing.sizes) == 5001
    # 50,000 files take ten times that; the plan's bound is 2 s.
    assert time.process_time() - began < 0.6
