"""Tests of Modal's credentials and profiles, compared with the client's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from runner.cli import main
from runner.console import CliContext
from runner.doctor import modal as modal_check
from runner.doctor.base import CheckContext
from runner.targets.modal import image
from runner.targets.modal.account import account_id, config_file, is_configured, setting
from tests.runner.targets.modal.conftest import make_checkout

TWO = """\
[work]
token_id = "ak-1"
token_secret = "as-1"
active = true

[home]
token_id = "ak-2"
token_secret = "as-2"
"""

OAUTH = '[default]\noauth_refresh_token = "r"\noauth_client_id = "c"\n'

BROKEN = '[default]\ntoken_id = "ak-1\n'


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}


def write(environ: dict[str, str], text: str) -> Path:
    file = config_file(environ)
    file.write_text(text)
    return file


def client_takes(environ: dict[str, str]) -> bool:
    """Return whether the client finds credentials; it reads its file at import."""
    program = """
import asyncio
from modal.client import _Client

async def no_network(self):
    print(bool(self._credentials or self._oauth_credentials))

_Client._open = no_network
asyncio.run(_Client.from_env())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False
    )
    return ran.stdout.strip() == "True"


def test_account_id_changes_with_profile_and_token(environ: dict[str, str], tmp_path: Path) -> None:
    checkout, cache = make_checkout(tmp_path / "checkout"), tmp_path / "cache"
    write(environ, TWO)
    image.remember(checkout, cache, account_id(environ))
    assert image.describe(checkout, cache, account_id(environ))[0]
    home = TWO.replace("active = true\n", "") + "active = true\n"  # modal profile activate home
    for changed in (home, TWO.replace("ak-1", "ak-3")):
        write(environ, changed)
        assert not image.describe(checkout, cache, account_id(environ))[0]
    write(environ, TWO)
    assert image.describe(checkout, cache, account_id(environ))[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# mine\n\n" + TWO, True),
        (OAUTH + 'oauth_client_secret = "s"\n', True),
        (OAUTH, False),
        ('[default]\ntoken_id = "ak-1"\n', False),
        ("", False),
    ],
)
def test_credentials_match_the_client(text: str, expected: bool, environ: dict[str, str]) -> None:
    write(environ, text)
    assert is_configured(environ) is client_takes(environ) is expected


def test_oauth_credentials_in_the_environment(environ: dict[str, str]) -> None:
    write(environ, OAUTH)
    assert is_configured({**environ, "MODAL_OAUTH_CLIENT_SECRET": "s"})
    assert is_configured({**environ, "MODAL_OAUTH_JWT_KEY": "k"})
    assert not is_configured(
        {**environ, "MODAL_OAUTH_JWT_KEY": "k", "MODAL_OAUTH_CLIENT_SECRET": "s"}
    )


def test_setting_comes_from_the_active_profile(environ: dict[str, str]) -> None:
    write(environ, TWO)
    assert setting("token_id", environ) == "ak-1"
    assert setting("token_id", {**environ, "MODAL_PROFILE": "home"}) == "ak-2"
    assert setting("token_id", {**environ, "MODAL_TOKEN_ID": "ak-4"}) == "ak-4"
    assert setting("server_url", environ) is None


@pytest.mark.parametrize("text", [BROKEN, 'token_id = "ak-1"\n', "[default\n", "\x00"])
def test_unreadable_config_file_is_one_line(
    text: str, environ: dict[str, str], tmp_path: Path
) -> None:
    file = write(environ, text)
    assert not client_takes(environ)
    cli = CliContext(environ=environ, cwd=make_checkout(tmp_path / "checkout"), terminal=False)
    for line in ("ls data", "cloud tiny --dry-run"):
        refused = CliRunner().invoke(main, line.split(), obj=cli)
        assert refused.exit_code == 1
        assert refused.stderr.startswith(f"error: Modal's client can't read {file}: ")
        assert refused.stderr.endswith(
            f"; fix it, or create another: mv {file} {file}.old && modal token new\n"
        )
        assert refused.stderr.count("\n") == 1


def test_doctor_names_the_config_file(environ: dict[str, str], tmp_path: Path) -> None:
    file = write(environ, BROKEN)
    (finding,) = modal_check.check_modal(CheckContext(tmp_path, environ))
    assert (finding.severity, finding.remedy.partition(":")[0]) == (
        "error",
        "fix it, or create another",
    )
    assert str(file) in finding.message
