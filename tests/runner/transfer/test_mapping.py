"""Names that lead out of the folder or are not valid file names are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from runner.targets.modal.volume import ModalVolumeFiles, RemoteEntry
from runner.transfer.mapping import (
    UnsafePath,
    is_temporary,
    local_path,
    temporary_path,
    unsafe_reason,
)
from tests.runner.transfer.conftest import Cloud, tree

Invoke = Callable[[str], Result]


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "a//b",
        "./a",
        "a/.",
        "..",
        "",
        "C:/x",
        "c:x",
        "a\\b",
        "..\\x",
        "a\nb",
        "a\0b",
        "a\udcff",
    ],
)
def test_unsafe_name_is_refused(name: str, tmp_path: Path) -> None:
    assert unsafe_reason(name) is not None
    with pytest.raises(UnsafePath):
        local_path(tmp_path / "root", name)


@pytest.mark.parametrize(
    "name", ["a/b.txt", "...", "a..b", "~", "-rf", "übung/日本", "12:30", "con", " x"]
)
def test_unusual_safe_name_is_accepted(name: str, tmp_path: Path) -> None:
    assert unsafe_reason(name) is None
    assert local_path(tmp_path, name).is_relative_to(tmp_path)


def test_symbolic_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafePath, match="symbolic link"):
        local_path(tmp_path / "root", "link/file")


def test_symbolic_link_instead_of_a_file_is_replaced(
    invoke: Invoke, cloud: Cloud, local: Path, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("mine")
    (local / "data/file.txt").symlink_to(tmp_path / "precious")
    cloud.put("data", "file.txt", b"theirs")
    assert invoke("runner pull data").exit_code == 0
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (local / "data/file.txt").is_symlink()


def test_temporary_names_are_not_transferred(tmp_path: Path) -> None:
    assert all(
        is_temporary(n)
        for n in (".x.part", "a/.x.part.blocks", ".run.json.77.tmp", "r/.partial_step_1/m")
    )
    assert not any(is_temporary(n) for n in ("x.part", "a/.hidden", "partial_step_1/m"))
    assert len(temporary_path(tmp_path / ("ü" * 127), ".part.blocks").name.encode()) < 256


def test_unsafe_names_in_a_listing_are_refused_and_the_others_pulled(
    invoke: Invoke, cloud: Cloud, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.put("data", "good.txt", b"good")
    cloud.put("data", "back\\slash.txt", b"bad")
    real = ModalVolumeFiles.listing

    def listing(self: ModalVolumeFiles, *args: Any, **kwargs: Any) -> list[RemoteEntry]:
        return [*real(self, *args, **kwargs), RemoteEntry("a/../../../evil", 4, 1, "file")]

    monkeypatch.setattr(ModalVolumeFiles, "listing", listing)
    result = invoke("runner pull data")
    assert result.exit_code == 1
    assert tree(local / "data") == {"good.txt": b"good"}
    assert "missing: a/../../../evil: the name leads out of the folder" in result.stderr
    assert "contains a backslash" in result.stderr
    assert not list(local.parent.rglob("*evil*"))


def test_link_in_the_volume_is_missing_from_the_pull(
    invoke: Invoke, cloud: Cloud, local: Path
) -> None:
    cloud.put("data", "good.txt", b"good")
    cloud.put("data", "set/meta.json", b"{}")
    (cloud.folder("data") / "set/link").symlink_to("/etc/passwd")
    result = invoke("runner pull data")
    assert result.exit_code == 1
    assert "missing: set/link: a symlink, not a file" in result.stderr
    assert "missing: set/meta.json: its folder is incomplete" in result.stderr
    assert tree(local / "data") == {"good.txt": b"good"}
