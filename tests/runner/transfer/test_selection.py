"""Names that would land elsewhere are refused, whoever gives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from runner.targets.modal.volume import ModalVolumeFiles, RemoteEntry
from runner.transfer.selection import UnsafePath, beside, is_temporary, target_of, why_refused
from tests.runner.transfer.conftest import Cloud, tree

Type = Callable[[str], Result]


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
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    assert why_refused(name) is not None
    with pytest.raises(UnsafePath):
        target_of(tmp_path / "root", name)


@pytest.mark.parametrize(
    "name", ["a/b.txt", "...", "a..b", "~", "-rf", "übung/日本", "12:30", "con", " x"]
)
def test_odd_names_that_stay_inside_are_taken(name: str, tmp_path: Path) -> None:
    assert why_refused(name, windows=False) is None
    assert target_of(tmp_path, name).is_relative_to(tmp_path)


@pytest.mark.parametrize("name", ["con", "aux.txt", "a/NUL", "a:b", "dot.", "blank ", "what?"])
def test_windows_has_names_that_are_none(name: str) -> None:
    assert why_refused(name, windows=True) is not None


def test_a_link_on_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafePath, match="symbolic link"):
        target_of(tmp_path / "root", "link/file")


def test_a_link_in_the_files_place_is_replaced_and_not_written_through(
    type_: Type, cloud: Cloud, here: Path, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("mine")
    (here / "data/file.txt").symlink_to(tmp_path / "precious")
    cloud.put("data", "file.txt", b"theirs")
    assert type_("runner pull data").exit_code == 0
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (here / "data/file.txt").is_symlink()


def test_temporary_names_are_nobodys_to_transfer(tmp_path: Path) -> None:
    assert all(
        is_temporary(n)
        for n in (".x.part", "a/.x.part.blocks", ".run.json.77.tmp", "r/.partial_step_1/m")
    )
    assert not any(is_temporary(n) for n in ("x.part", "a/.hidden", "partial_step_1/m"))
    assert len(beside(tmp_path / ("ü" * 127), ".part.blocks").name.encode()) < 256


def test_hostile_names_of_a_listing_are_refused_and_the_rest_comes(
    type_: Type, cloud: Cloud, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.put("data", "good.txt", b"good")
    cloud.put("data", "back\\slash.txt", b"bad")
    real = ModalVolumeFiles.listing

    def listing(self: ModalVolumeFiles, *given: Any, **more: Any) -> list[RemoteEntry]:
        return [*real(self, *given, **more), RemoteEntry("a/../../../evil", 4, 1, "file")]

    monkeypatch.setattr(ModalVolumeFiles, "listing", listing)
    result = type_("runner pull data")
    assert result.exit_code == 1
    assert tree(here / "data") == {"good.txt": b"good"}
    assert "missing: a/../../../evil: the name leaves the folder" in result.stderr
    assert "holds a backslash" in result.stderr
    assert not list(here.parent.rglob("*evil*"))


def test_what_is_no_file_in_the_volume_is_named(type_: Type, cloud: Cloud, here: Path) -> None:
    cloud.put("data", "good.txt", b"good")
    (cloud.folder("data") / "link").symlink_to("/etc/passwd")
    result = type_("runner pull data")
    assert result.exit_code == 0
    assert "link is left out: it is a symlink, not a file" in result.stderr
    assert tree(here / "data") == {"good.txt": b"good"}
