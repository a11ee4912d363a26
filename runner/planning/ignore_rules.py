"""Rules that keep files of a folder from being uploaded: .gitignore, .dockerignore, credentials."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pathspec

from job.files import read_file
from job.format import byte_size
from runner.errors import RunnerError, usage
from runner.git import find_repository

LARGE_IGNORED_BYTES = 1_000_000  # from which an ignored file is named

# Never uploaded: history, environments, compiled files. Names, since patterns would take half a
# second for 50,000 paths.
NEVER_UPLOADED = {
    ".git",
    ".env",
    "__pycache__",
    ".venv",
    "venv",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".ipynb_checkpoints",
    ".DS_Store",
}

CREDENTIAL_FOLDERS = {".ssh", ".aws", ".azure", ".gnupg", ".kube", ".kaggle"}
CREDENTIAL_PATHS = re.compile(r"(.*/)?(\.docker/config\.json|gcloud/.*(credentials|tokens).*)")
CREDENTIAL_NAMES = re.compile(
    r"""
    [._]netrc | \.modal\.toml | \.pypirc | \.npmrc | \.pgpass | \.git-credentials | \.envrc
    | \.htpasswd | \.boto | \.s3cfg | kaggle\.json | stored_tokens
    | id_(rsa|dsa|ecdsa|ed25519)(_sk)?
    | .*\.(p12|pfx|jks|keystore|kdbx|ppk|token)
    | (.*[._-])?(api[._-]?keys?|access[._-]?keys?|secrets?|token|passwords?|credentials?
        |service[._-]?account.*|client[._-]?secret.*)(\.(txt|json|ya?ml|toml|ini|cfg|conf))?
    """,
    re.IGNORECASE | re.VERBOSE,
)
KEY_FILE = re.compile(r".*\.(pem|key)", re.IGNORECASE)
# Files that are read, as code may hold an example of a key. A settings file is rarely longer.
SETTINGS_FILE = re.compile(r"[^.]+|.*\.(txt|json|ya?ml|toml|ini|cfg|conf|env)", re.IGNORECASE)
SECRET = re.compile(
    rb"""
    \A\s*-----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY | "private_key":\s*"-----BEGIN
    | \b(hf_[A-Za-z0-9]{30,} | gh[pousr]_[A-Za-z0-9]{36,} | github_pat_\w{50,} | AKIA[A-Z0-9]{16}
        | sk-(proj-|ant-)?[\w-]{32,} | xox[abp]-[\w-]{20,})(?![\w-])
    """,
    re.VERBOSE,
)
# Each match has one of these. With them, listing modded-nanogpt takes 0.95 s instead of 3.4.
SECRET_MARKS = (
    *(b"-----BEGIN", b"hf_", b"AKIA", b"sk-", b"xox", b"github_pat_"),
    *(b"gh%c_" % letter for letter in b"pousr"),
)
KEY_BYTES = 64 * 1024  # certificate bundles are longer, and start with a certificate

Spec = pathspec.PathSpec[Any]


def is_never_uploaded(path: str) -> bool:
    """Return True if a part of ``path`` is a name that is never uploaded."""
    parts = path.rstrip("/").split("/")
    name = parts[-1]
    return (
        not NEVER_UPLOADED.isdisjoint(parts)
        or (name.startswith(".env.") and name != ".env.example")
        or name.endswith((".pyc", ".pyo", ".pyd"))
    )


def may_hold_credentials(folder: Path, path: str) -> bool:
    """Return True if the file looks like a key, token or password."""
    *folders, name = path.split("/")
    if not CREDENTIAL_FOLDERS.isdisjoint(folders):
        return True
    if CREDENTIAL_NAMES.fullmatch(name) or CREDENTIAL_PATHS.fullmatch(path):
        return True
    if KEY_FILE.fullmatch(name):
        content = _read_start(folder / path)
        is_public = b"BEGIN CERTIFICATE" in content or b"BEGIN PUBLIC KEY" in content
        return not is_public or b"PRIVATE KEY" in content
    content = _read_start(folder / path) if SETTINGS_FILE.fullmatch(name) else b""
    return any(mark in content for mark in SECRET_MARKS) and SECRET.search(content) is not None


def _read_start(path: Path) -> bytes:
    """Return the first bytes of a regular file; empty for anything else."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(KEY_BYTES)
    except OSError:
        return b""


def read_gitignore(path: Path) -> Spec | None:
    """Read a .gitignore; None if it does not exist. Raises RunnerError if it is unreadable."""
    lines = _read_rules(path)
    return None if lines is None else pathspec.PathSpec.from_lines("gitignore", lines)


@dataclass(frozen=True)
class DockerIgnore:
    """The rules of a .dockerignore, as Docker reads them.

    A pattern starts at the folder. It applies to everything below a folder that it matches, unless
    a later pattern with ``!`` matches.
    """

    rules: tuple[tuple[bool, re.Pattern[str]], ...]  # whether it starts with `!`, and the pattern
    included: frozenset[str]  # paths that a rule with `!` names literally

    @classmethod
    def read(cls, folder: Path) -> DockerIgnore | None:
        """Read the folder's .dockerignore; None if it does not exist. Raises RunnerError."""
        path = folder / ".dockerignore"
        lines = _read_rules(path)
        if lines is None:
            return None
        rules, included = [], set()
        for number, line in enumerate(lines, 1):
            text = "" if line.startswith("#") else line.strip()
            is_exception = text.startswith("!")
            pattern = text.removeprefix("!").strip()
            if not pattern:
                continue
            pattern = posixpath.normpath(pattern).lstrip("/") or "."
            if is_exception:
                included.add(pattern)
            try:
                regex = rf"(?:{_docker_regex(pattern)})(?:/.*)?"  # and all that is below
                rules.append((is_exception, re.compile(regex, re.DOTALL)))
            except re.error as error:
                raise usage(f"{path}:{number}: invalid pattern '{text}': {error}") from error
        return cls(tuple(rules), frozenset(included))

    def ignores(self, path: str) -> bool:
        """Return True if a rule excludes the file."""
        path = path.rstrip("/")
        for is_exception, regex in reversed(self.rules):
            if regex.fullmatch(path):
                return not is_exception
        return False

    def names(self, path: str) -> bool:
        """Return True if a rule with ``!`` names the file, or a folder that contains it."""
        parts = path.split("/")
        return any("/".join(parts[: i + 1]) in self.included for i in range(len(parts)))


def _docker_regex(pattern: str) -> str:
    """Translate a pattern as github.com/moby/patternmatcher does."""
    regex, i = "", 0
    while i < len(pattern):
        character = pattern[i]
        i += 1
        if character == "*" and pattern[i : i + 1] == "*":
            i += 1
            if pattern[i : i + 1] == "/":
                i += 1
            regex += ".*" if i == len(pattern) else "(?:.*/)?"
        elif character == "*":
            regex += "[^/]*"
        elif character == "?":
            regex += "[^/]"
        elif character == "\\" and i < len(pattern):
            regex += re.escape(pattern[i])
            i += 1
        elif character in "[]^-":
            regex += character
        else:
            regex += re.escape(character)
    return regex


def _read_rules(path: Path) -> list[str] | None:
    """Return the lines of a file without its byte order mark; None if it does not exist."""
    try:
        text = read_file(path).decode("utf-8", "surrogateescape")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunnerError(
            f"cannot read {path}: {error.strerror}; without its rules, private files could be "
            f"uploaded; make it readable: `chmod u+r {os.fspath(path)}`"
        ) from error
    return text.removeprefix("\ufeff").splitlines()


def ignored_data(folder: Path) -> dict[str, str]:
    """Return the larger files that .gitignore excludes, which a job may miss, with the reason."""
    repository = find_repository(folder)
    options = ("--others", "--ignored", "--exclude-standard", "--directory")
    answer = repository and repository.run(folder, "ls-files", "-z", *options, ".")
    omitted = {}
    for path in os.fsdecode(answer.stdout).split("\0") if answer and not answer.returncode else ():
        if not path or is_never_uploaded(path.rstrip("/")):
            continue
        full = folder / path
        files = [file for file in (full.iterdir() if full.is_dir() else [full]) if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        if size >= LARGE_IGNORED_BYTES:
            omitted[path] = f"{byte_size(size)}, git ignores it"
    return omitted
