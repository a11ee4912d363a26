"""The files that are uploaded with a user's command."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from job.exit_status import ExitStatus
from job.files import read_file
from runner.errors import RunnerError
from runner.git import Repository
from runner.planning import ignore_rules
from runner.planning.command_plan import describe_upload
from runner.planning.packaging import list_files, make_omitted_test, setup_files, setup_lines
from runner.project import git_state
from runner.request import UserCommand

RULES = {
    ".gitignore": "*.pt\n/data/\n!keep.pt\n",
    "lib/.gitignore": "*.log\n!keep.log\n",
    "lib/deep/.gitignore": "!b.log\n",
}
SHIPPED = [
    "train.py", "keep.pt", "lib/data/used.txt", "lib/keep.log", "lib/deep/b.log", ".env.example",
    "name with ä space.txt",
]  # fmt: skip
IGNORED = ["a.pt", "data/big.bin", "lib/a.log", "lib/__pycache__/x.pyc", ".env"]


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def git(folder: Path, *words: str) -> None:
    command = ["git", "-c", "user.name=n", "-c", "user.email=e", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture(params=["git", "walk"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Make a folder with these files, with and without Git: both must list the same files."""

    def make_folder(files: dict[str, str]) -> Path:
        folder = write(tmp_path / "folder", files)
        if request.param == "git":
            git(folder, "init", "-q")
        return folder

    return make_folder


def test_nested_gitignore_files(make: Callable[..., Path]) -> None:
    folder = make({**RULES, **dict.fromkeys([*SHIPPED, *IGNORED], "x")})
    assert set(list_files(folder).sizes) == {*RULES, *SHIPPED}


def test_dockerignore_of_the_checkout_is_for_the_image(make: Callable[..., Path]) -> None:
    folder = make({".dockerignore": "*\n", "train.py": "x"})
    assert list_files(folder).sizes == {}
    assert "train.py" in list_files(folder, folder).sizes


def test_links_are_uploaded_if_their_target_is(make: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "secret.pem").write_text("key")
    folder = make({"a.txt": "abc", "data/big.bin": "x", ".env": "x", ".gitignore": "data/\n"})
    links = {
        "b.txt": "a.txt",
        "c.txt": "b.txt",
        "gone": "nothing",
        "loop": "loop",
        "folder": "../folder",
        "above": "..",
        "outside": "../secret.pem",
        "absolute": str(tmp_path / "secret.pem"),
        "ignored": "data/big.bin",
        "environment": ".env",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    listing = list_files(folder)
    assert listing.sizes == {".gitignore": 6, "a.txt": 3, "b.txt": 3, "c.txt": 3}
    assert listing.omitted == {
        "gone": "broken link",
        "loop": "broken link",
        "folder": "link to a folder",
        "above": "link out of the folder",
        "outside": "link out of the folder",
        "absolute": "link out of the folder",
        "ignored": "link to a file that is not uploaded",
        "environment": "link to a file that is not uploaded",
    }
    listing.check()


def test_tracked_file_below_a_link_to_a_different_folder_is_omitted(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {"a.py": "x", "lib/key": "mine"})
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    (folder / "lib").rename(tmp_path / "outside")
    (folder / "lib").symlink_to(tmp_path / "outside")
    assert set(list_files(folder).sizes) == {"a.py"}


CREDENTIALS = [
    ".ssh/id_ed25519", ".ssh/config", ".aws/credentials", ".netrc", "_netrc", ".modal.toml",
    ".cache/huggingface/token", ".cache/huggingface/stored_tokens", ".envrc", ".pypirc",
    ".git-credentials", ".kube/config", ".docker/config.json", ".config/gcloud/credentials.db",
    "id_rsa", "server.key", "deploy.pem", "store.p12", "hf_token", "hf_token.txt", "api_key.txt",
    "secrets.yaml", "credentials.json", "service-account-12.json", "client_secret_1.json",
    ".kaggle/kaggle.json", "passwords.txt",
]  # fmt: skip

NO_CREDENTIALS = [
    "tokenizer.json", "tokens.json", "added_tokens.json", "special_tokens_map.json", "token.py",
    "secrets.py", "keys.txt", "keyboard.txt", "id_rsa.pub", ".dockerfile", "docker/config.json",
    "credentials.py", "monkey.txt",
]  # fmt: skip


def test_credentials_are_omitted_and_named(make: Callable[..., Path]) -> None:
    folder = make(dict.fromkeys([*CREDENTIALS, *NO_CREDENTIALS], "x"))
    listing = list_files(folder)
    assert set(listing.sizes) == set(NO_CREDENTIALS)
    assert set(listing.omitted) == set(CREDENTIALS)
    assert set(listing.omitted.values()) == {"may hold credentials"}
    row = describe_upload(listing.summary())
    assert ".aws/credentials (may hold credentials)" in row
    assert "and 17 more" in row
    assert "add the line `!PATH` to .dockerignore" in row


def test_certificate_is_uploaded_and_a_private_key_is_not(make: Callable[..., Path]) -> None:
    certificate = "-----BEGIN CERTIFICATE-----\n"
    files = {"ca.pem": certificate, "both.pem": f"{certificate}-----BEGIN PRIVATE KEY-----\n"}
    assert set(list_files(make(files)).sizes) == {"ca.pem"}


PRIVATE_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("name", "content", "is_uploaded"),
    [
        ("deploy", PRIVATE_KEY, False),
        ("gcp.json", '{"type": "service_account", "private_key": "-----BEGIN P"}', False),
        ("conf.txt", f"HF_TOKEN=hf_{'a1' * 17}\n", False),
        ("lib/ci.yaml", f"token: ghp_{'a1' * 18}\n", False),
        ("aws.ini", f"id = AKIA{'A1' * 8}\n", False),
        ("notes.txt", "sk-learn and hf_hub, -----BEGIN PRIVATE KEY-----\n", True),
        ("ids.json", '{"id": "hf_short", "ask-abcdefghijklmnopqrstuvwxyz0123456789": 1}', True),
        ("keys.py", f'EXAMPLE = """{PRIVATE_KEY}"""\n', True),
        ("README.md", PRIVATE_KEY, True),
    ],
)
def test_keys_are_recognized_by_content(
    make: Callable[..., Path], name: str, content: str, is_uploaded: bool
) -> None:
    assert set(list_files(make({name: content})).sizes) == ({name} if is_uploaded else set())


def test_credentials_are_uploaded_if_dockerignore_asks_for_them(make: Callable[..., Path]) -> None:
    files = {".dockerignore": "!hf_token\n!certs\n", "hf_token": "x", "certs/a.key": "x"}
    folder = make({**files, "other.key": "x"})
    assert set(list_files(folder).sizes) == set(files)


@pytest.mark.parametrize(
    ("rules", "uploaded"),
    [
        ("*\n!src\n!a.py\n", {"a.py", "src/m.py", "src/lib/n.py"}),
        ("\ufeff*\n!a.py\n", {"a.py"}),
        ("a\n!a/b/c\n", {"a.py", "a/b/c/deep.bin", "src/m.py", "src/lib/n.py"}),
        ("**/*.py\n", {"a/b/c/deep.bin", "a/b/other.txt"}),
        ("**\n!**/m.py\n", {"src/m.py"}),
        ("a/**\nsrc/?.py\n", {"a.py", "src/lib/n.py"}),
        ("/src/\n./a\n", {"a.py"}),
        ("# a.py\n  src/lib  \n[a-b]\n", {"a.py", "src/m.py"}),
        ("lib\n**/*.py\n!src/lib/n.py\n", {"a/b/c/deep.bin", "a/b/other.txt", "src/lib/n.py"}),
        ("src\n!src/lib\nsrc/lib/n.py\n", {"a.py", "a/b/c/deep.bin", "a/b/other.txt"}),
    ],
)
def test_dockerignore_is_read_as_docker_reads_it(
    rules: str, uploaded: set[str], make: Callable[..., Path]
) -> None:
    names = ("a.py", "a/b/c/deep.bin", "a/b/other.txt", "src/m.py", "src/lib/n.py")
    folder = make(dict.fromkeys(names, "x"))
    (folder / ".dockerignore").write_text(rules, encoding="utf-8")
    assert set(list_files(folder).sizes) - {".dockerignore"} == uploaded


def test_invalid_dockerignore_pattern_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {".dockerignore": "a\n[b\n"})
    with pytest.raises(RunnerError, match=r"\.dockerignore:2: invalid pattern '\[b'"):
        list_files(folder)


def test_byte_order_mark_of_a_gitignore(make: Callable[..., Path]) -> None:
    folder = make({"a.pem": "x", "b.txt": "x"})
    (folder / ".gitignore").write_text("\ufeffb.txt\n", encoding="utf-8")
    assert "b.txt" not in list_files(folder).sizes


def test_rules_above_the_folder_apply_in_a_repository_of_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("a.py", "keep.txt", "data/big.txt", "x.bin", "deep/y.bin")
    rules = {".gitignore": "data/\n*.bin\n", "train/deep/.gitignore": "!y.bin\n"}
    folder = write(tmp_path / "r", {**rules, **{f"train/{name}": "x" for name in names}})
    git(folder, "init", "-q")
    (folder / ".git/info/exclude").write_text("keep.txt\n")
    expected = {"a.py", "deep/.gitignore", "deep/y.bin"}
    assert set(list_files(folder / "train").sizes) == expected
    if os.geteuid() == 0:  # then Git itself refuses the repository
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 12345, 12345)
        monkeypatch.delenv("SUDO_UID", raising=False)
        assert set(list_files(folder / "train").sizes) == expected
    monkeypatch.setattr("runner.git.Repository.run", lambda *arguments: None)
    assert set(list_files(folder / "train").sizes) == expected


def test_listing_runs_no_program_that_the_repository_configures(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {"a.py": "x", ".gitattributes": "*.py filter=evil\n"})
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "all")
    pwned = tmp_path / "pwned"
    hook = folder / ".git/hooks/post-index-change"
    hook.write_text(f"#!/bin/sh\ntouch {pwned}\n")
    hook.chmod(0o755)
    with (folder / ".git/config").open("a") as file:
        file.write(
            f'[core]\n\tfsmonitor = "touch {pwned}; false"\n\thooksPath = {hook.parent}\n'
            f'[filter "evil"]\n\tclean = "touch {pwned}; cat"\n\trequired = true\n'
            f'[diff]\n\texternal = "touch {pwned}"\n[pager]\n\tls-files = "touch {pwned}"\n'
        )
    (folder / "a.py").write_text("y")  # the same size: Git has to compare the content
    assert set(list_files(folder).sizes) == {"a.py", ".gitattributes"}
    state = git_state(folder)
    assert not pwned.exists()
    assert state is not None
    assert state["dirty"] is True
    git(folder, "-c", "core.fsmonitor=false", "status")
    assert pwned.exists(), "this configuration should run a program"


def test_excludes_file_of_the_repository_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {"a.py": "x", "b.tmp": "x"})
    (tmp_path / "rules").write_text("*.tmp\n")
    git(folder, "init", "-q")
    git(folder, "config", "core.excludesFile", str(tmp_path / "rules"))
    assert set(list_files(folder).sizes) == {"a.py"}


def test_unreadable_rules_are_refused(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulate it, since root can read everything."""
    folder = make({"a.py": "x", "lib/.gitignore": "*.pem\n", "lib/b.py": "x"})

    def read(path: Path) -> bytes:
        if path.name == ".gitignore" and path.parent.name == "lib":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read_file(path)

    monkeypatch.setattr(ignore_rules, "read_file", read)
    run = Repository.run

    def answer(self: Repository, folder: Path, *arguments: str) -> CompletedProcess[bytes]:
        real = run(self, folder, *arguments)
        assert real is not None
        errors = b"warning: unable to access 'lib/.gitignore': Permission denied\n"
        return CompletedProcess(real.args, real.returncode, real.stdout, errors)

    monkeypatch.setattr(Repository, "run", answer)
    with pytest.raises(RunnerError, match=r"cannot read .*lib/\.gitignore: Permission denied"):
        list_files(folder)


def test_submodule_that_was_not_fetched_is_empty(tmp_path: Path) -> None:
    inner = write(tmp_path / "inner", {"s.py": "x"})
    outer = write(tmp_path / "outer", {"a.py": "x"})
    for folder in (inner, outer):
        git(folder, "init", "-q")
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", "all")
    add = ("submodule", "--quiet", "add", str(inner), "lib/sub")
    git(outer, "-c", "protocol.file.allow=always", *add)
    git(outer, "commit", "-qam", "submodule")
    assert set(list_files(outer).sizes) == {"a.py", ".gitmodules", "lib/sub/s.py"}
    git(tmp_path, "clone", "-q", str(outer), "plain")
    assert set(list_files(tmp_path / "plain").sizes) == {"a.py", ".gitmodules"}


def test_file_with_a_name_that_is_not_utf8_is_refused(make: Callable[..., Path]) -> None:
    folder = make({"a.py": "x", "caf\udce9.txt": "x"})
    with pytest.raises(RunnerError, match=r"caf\\udce9\.txt \(its name is not valid UTF-8\)"):
        list_files(folder).check()
    (folder / ".dockerignore").write_text("caf*\n")
    list_files(folder).check()


def test_unreadable_file_is_refused_unless_a_rule_names_it(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulate it, since root can read everything."""
    folder = make({"a.py": "x", "notes": "x"})
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not str(path).endswith("notes") and access(path, mode)
    )
    with pytest.raises(RunnerError, match=r"cannot upload .*/folder/notes \(Permission denied\)"):
        list_files(folder).check()
    (folder / ".gitignore").write_text("notes\n")
    list_files(folder).check()


def test_unreadable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "f", {"a.py": "x", "private/b.py": "x"})
    scandir = os.scandir

    def scan(path: Any) -> Any:
        if str(path).rstrip("/").endswith("private"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert list_files(folder).problems == {"private": "Permission denied"}
    git(folder, "init", "-q")
    warning = b"warning: could not open directory 'private/': No way\n"
    answer, status = CompletedProcess([], 0, b"a.py\0", warning), CompletedProcess([], 1, b"", b"")
    monkeypatch.setattr(
        Repository, "run", lambda self, folder, name, *rest: status if "check" in name else answer
    )
    assert list_files(folder).problems == {"private": "No way"}


def test_fifo_is_omitted_and_named(make: Callable[..., Path]) -> None:
    folder = make({"a.py": "x"})
    os.mkfifo(folder / "pipe")
    listing = list_files(folder)
    assert set(listing.sizes) == {"a.py"}
    assert set(listing.omitted) <= {"pipe"}  # Git does not list it


@pytest.mark.parametrize(
    ("requirements", "setup", "expected"),
    [
        ("six\n-r base.txt\n-c limits.txt\n", "", None),
        ("-rbase.txt\n--constraint=limits.txt\nsix[x]==1 ; python_version > '3'\n", "", None),
        ("-r https://a.b/c.txt\n-e git+https://a.b/c\n-r ${X}.txt\n", "", None),
        ("--index-url ./x\n# -r no.txt\n", "pip install -r base.txt -c /opt/limits.txt", None),
        ("", "apt-get install -y -r no.txt", None),
        ("-r no.txt", "", r"requirements.txt:1: no.txt does not exist in /.*; correct the path"),
        ("-r base.txt", "pip install -c no.txt", r"--setup: no.txt does not exist"),
        ("six\n-r ../outside.txt", "", r"requirements.txt:2: ../outside.txt is outside /"),
        ("-r link.txt", "", r"requirements.txt:1: link.txt is outside /"),
        ("-r nested/more.txt", "", r"nested/more.txt:1: no.txt does not exist"),
        ("-e .", "", r"requirements.txt:1: \. is a folder.*pip install -e \. && "),
        ("./nested[dev]", "", r"requirements.txt:1: ./nested is a folder"),
        ("", "pip install .", r"--setup: \. is a folder"),
    ],
)
def test_files_that_pip_cannot_read_in_the_image_are_refused(
    tmp_path: Path, requirements: str, setup: str, expected: str | None
) -> None:
    names = ("base.txt", "limits.txt", "x")
    folder = write(tmp_path / "f", {**dict.fromkeys(names, ""), "nested/more.txt": "-r no.txt"})
    (folder / "requirements.txt").write_text(requirements)
    (tmp_path / "outside.txt").write_text("")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    command = UserCommand(("a",), folder, (setup,) if setup else ())
    if expected is None:
        assert setup_lines(command)[0] == "pip install -r requirements.txt" or setup
    else:
        with pytest.raises(RunnerError, match=expected) as error:
            setup_lines(command)
        assert error.value.exit_code == ExitStatus.USAGE


def test_setup_line_does_not_ship_a_file_from_outside(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {"dev.txt": "x"})
    (tmp_path / "outside").write_text("x")
    (folder / "link.txt").symlink_to(tmp_path / "outside")
    lines = ("pip install -r dev.txt -r link.txt -r ../outside",)
    assert setup_files(folder, lines) == ("dev.txt",)


def test_tracked_file_is_uploaded_although_a_rule_names_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {"a.bin": "x", "b.bin": "x"})
    git(folder, "init", "-q")
    git(folder, "add", "a.bin")
    (folder / ".gitignore").write_text("*.bin\n")
    assert set(list_files(folder).sizes) == {"a.bin", ".gitignore"}


def test_folder_that_its_repository_ignores_is_uploaded(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {".gitignore": "scratch/\n", "scratch/train.py": "x"})
    git(folder, "init", "-q")
    assert set(list_files(folder / "scratch").sizes) == {"train.py"}


def test_nested_repository_is_uploaded_without_its_history(tmp_path: Path) -> None:
    inner = {"inner/.gitignore": "*.pt\n", "inner/b.py": "x", "inner/c.pt": "x"}
    folder = write(tmp_path / "f", {"a.py": "x", **inner})
    git(folder / "inner", "init", "-q")
    git(folder, "init", "-q")
    assert set(list_files(folder).sizes) == {"a.py", "inner/.gitignore", "inner/b.py"}


def test_largest_files_of_a_large_folder_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {"a.py": "x"})
    assert list_files(folder).summary().largest == ()
    os.truncate(folder / "a.py", 200_000_000)
    assert list_files(folder).summary().largest == (("a.py", 200_000_000),)


def test_script_that_does_not_exist_is_named(make: Callable[..., Path]) -> None:
    with pytest.raises(RunnerError, match=r"starts train\.py, which does not exist in /"):
        list_files(make({"a.py": ""})).check("train.py")


def test_folder_without_uploaded_files_is_omitted(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {"a/b/c.py": "x", "data/prepare.py": "x", "data/notes.md": "x"})
    out = make_omitted_test(list_files(folder), ("data",))
    assert [out(path) for path in ("a", "a/b", "a/b/c.py")] == [False] * 3
    assert [out(path) for path in ("data", "data/prepare.py", "other")] == [True] * 3


@pytest.mark.parametrize("kind", ["git", "walk"])
def test_many_files_next_to_a_large_ignored_folder_are_listed_fast(
    kind: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "f", {".gitignore": "data/\n"})
    for parent in (folder / top / str(n) for top in ("src", "data") for n in range(200)):
        parent.mkdir(parents=True)
        for name in range(25):
            (parent / f"{name}.py").touch()
    if kind == "git":
        git(folder, "init", "-q")
    began = time.process_time()
    listing = list_files(folder)
    assert len(listing.sizes) == 5001
    # 50,000 files take ten times as long, and a plan may take 2 s.
    assert time.process_time() - began < 0.6


def test_files_that_a_requirements_file_names_belong_to_the_setup(tmp_path: Path) -> None:
    named = {
        "requirements.txt": "-r requirements/base.txt\n-c limits.txt  # pins\nsix\n",
        "requirements/base.txt": "-r more.txt\n./wheel.whl\n-r ../../outside.txt\n",
        "requirements/more.txt": "-r base.txt\n",
        "requirements/wheel.whl": "",
        "limits.txt": "",
    }
    write(tmp_path, {**named, "unnamed.txt": ""})
    assert set(setup_files(tmp_path, ("pip install -r requirements.txt",))) == {*named}
