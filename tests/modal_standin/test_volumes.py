"""The stand-in's volumes store files, and fail as configured."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from tests.modal_standin import ModalStandin
from tests.modal_standin.scripts import fail, run, start

MEGABYTE = 1 << 20


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a folder with 100 small files and one of 20 MB with zeros after a block."""
    folder = tmp_path / "corpus"
    (folder / "small").mkdir(parents=True)
    generator = random.Random(1)
    first, zeros, rest = (
        generator.randbytes(7 * MEGABYTE),
        bytes(MEGABYTE),
        generator.randbytes(12 * MEGABYTE),
    )
    (folder / "large.bin").write_bytes(first + zeros + rest)
    for number in range(100):
        (folder / "small" / f"{number}.txt").write_bytes(generator.randbytes(number))
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


UPLOAD = """
    volume = modal.Volume.from_name("data", create_if_missing=True, version=VERSION)
    with volume.batch_upload() as batch:
        batch.put_directory("corpus", "/")
"""

DOWNLOAD = """
    volume = modal.Volume.from_name("data", version=VERSION)
    for entry in volume.listdir("/", recursive=True):
        if entry.type.name == "FILE":
            target = os.path.join("back", entry.path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "wb") as file:
                assert volume.read_file_into_fileobj(entry.path, file) == entry.size
"""


@pytest.mark.parametrize("version", ["1", "2"])
def test_uploaded_files_are_downloaded_byte_for_byte(
    modal: ModalStandin, tmp_path: Path, corpus: Path, version: str
) -> None:
    run(modal, tmp_path, UPLOAD.replace("VERSION", version))
    assert digests(modal.volume_path("data")) == digests(corpus)
    run(modal, tmp_path, DOWNLOAD.replace("VERSION", version))
    assert digests(tmp_path / "back") == digests(corpus)
    assert modal.unimplemented() == []


def test_transfers_survive_faults_that_the_client_retries(
    modal: ModalStandin, tmp_path: Path, corpus: Path
) -> None:
    for number in range(30, 100):
        (corpus / "small" / f"{number}.txt").unlink()
    modal.inject("VolumeGetOrCreate", "UNAVAILABLE")
    modal.inject("VolumePutFiles2", "lost", after=1)
    modal.inject("BlockPut", "503")
    modal.inject("BlockPut", "cut", after=10)
    run(modal, tmp_path, UPLOAD.replace("VERSION", "2"))
    assert modal.faults_fired() == 4
    modal.clear_faults()
    modal.inject("BlockGet", "503", times=2)
    modal.inject("BlockGet", "cut", times=2, after=5)
    run(modal, tmp_path, DOWNLOAD.replace("VERSION", "2"))
    assert modal.faults_fired() == 4
    assert digests(tmp_path / "back") == digests(corpus)


def test_client_does_not_detect_a_truncated_block(modal: ModalStandin, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * MEGABYTE)
    run(
        modal,
        tmp_path,
        """
        volume = modal.Volume.from_name("data", create_if_missing=True, version=2)
        with volume.batch_upload() as batch:
            batch.put_file("file", "/file")
        """,
    )
    modal.inject("BlockGet", "truncate")
    run(
        modal,
        tmp_path,
        """
        volume = modal.Volume.from_name("data")
        with open("back", "wb") as file:
            volume.read_file_into_fileobj("file", file)
        """,
    )
    assert (tmp_path / "back").read_bytes() == b"x" * (MEGABYTE // 2) + bytes(MEGABYTE // 2)


def test_upload_without_force_overwrites_nothing(modal: ModalStandin, tmp_path: Path) -> None:
    printed = run(
        modal,
        tmp_path,
        """
        import io
        volume = modal.Volume.from_name("data", create_if_missing=True, version=2)
        for content, force in ((b"first", False), (b"second", False), (b"third", True)):
            try:
                with volume.batch_upload(force=force) as batch:
                    batch.put_file(io.BytesIO(content), "/file")
            except FileExistsError:
                print("refused")
            print(*volume.read_file("file"))
        """,
    )
    assert printed.splitlines() == ["b'first'", "refused", "b'first'", "b'third'"]


def test_files_are_listed_copied_and_removed(modal: ModalStandin, tmp_path: Path) -> None:
    printed = run(
        modal,
        tmp_path,
        """
        import io
        volume = modal.Volume.from_name("data", create_if_missing=True, version=2)
        with volume.batch_upload() as batch:
            batch.put_file(io.BytesIO(b"one"), "/run/a")
        volume.copy_files(["run/a"], "run/b")
        volume.copy_files(["run"], "other", recursive=True)
        volume.remove_file("run", recursive=True)
        entries = volume.listdir("/", recursive=True)
        print([(entry.path, entry.type.name, entry.size) for entry in entries])
        for action in (lambda: volume.listdir("run"), lambda: list(volume.read_file("run/a"))):
            try:
                action()
            except Exception as error:
                print(type(error).__name__)
        modal.Volume.rename("data", "renamed")
        print([volume.name for volume in modal.Volume.objects.list()])
        modal.Volume.objects.delete("renamed")
        print([volume.name for volume in modal.Volume.objects.list()])
        """,
    )
    assert printed.splitlines() == [
        "[('other', 'DIRECTORY', 0), ('other/a', 'FILE', 3), ('other/b', 'FILE', 3)]",
        "NotFoundError",
        "FileNotFoundError",
        "['renamed']",
        "[]",
    ]


def test_version_1_volume_is_not_opened_as_version_2(modal: ModalStandin, tmp_path: Path) -> None:
    run(
        modal,
        tmp_path,
        'modal.Volume.from_name("data", create_if_missing=True, version=1).hydrate()',
    )
    complaint = fail(modal, tmp_path, 'modal.Volume.from_name("data", version=2).hydrate()')
    assert "has version v1, not v2 as requested" in complaint


def test_volumes_survive_a_restart_of_the_server(tmp_path: Path, corpus: Path) -> None:
    with ModalStandin(tmp_path / "state") as first:
        run(first, tmp_path, UPLOAD.replace("VERSION", "2"))
    with ModalStandin(tmp_path / "state") as second:
        run(second, tmp_path, DOWNLOAD.replace("VERSION", "2"))
    assert digests(tmp_path / "back") == digests(corpus)


WRITER = """
        volume = modal.Volume.from_name("checkpoints", create_if_missing=True, version=2)

        @app.function(volumes={"/vol/checkpoints": volume})
        def train():
            found = sorted(os.listdir("/vol/checkpoints"))
            if found:
                return found
            open("/vol/checkpoints/step1", "w").close()
            volume.commit()
            open("/vol/checkpoints/step2", "w").close()
            print("written")
            time.sleep(60)

        if __name__ == "__main__":
            with app.run():
                print(train.remote())
"""


@pytest.mark.parametrize(("strict", "left"), [(True, "['step1']"), (False, "['step1', 'step2']")])
def test_crash_loses_uncommitted_files_with_strict_commits(
    tmp_path: Path, strict: bool, left: str
) -> None:
    with ModalStandin(tmp_path / "state", strict_commits=strict) as modal:
        client = start(modal, tmp_path, WRITER)
        modal.wait_until(lambda: "written" in modal.log())
        modal.crash()
        output, complaint = client.communicate(timeout=60)
        assert output.strip() == left, complaint + modal.log()
        assert len(modal.recorded("VolumeCommit")) >= 1


def test_reload_fails_while_a_file_is_open(modal: ModalStandin, tmp_path: Path) -> None:
    complaint = fail(
        modal,
        tmp_path,
        """
        volume = modal.Volume.from_name("checkpoints", create_if_missing=True, version=2)

        @app.function(volumes={"/vol/checkpoints": volume})
        def read():
            with open("/vol/checkpoints/log.txt", "w"):
                volume.reload()

        if __name__ == "__main__":
            with app.run():
                read.remote()
        """,
    )
    assert "there are open files preventing the operation" in complaint
    assert "log.txt" in complaint
