"""Connections to Modal: servers, proxies and tokens."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from modal.config import _SETTINGS

from runner.cli import main
from runner.console import CliContext
from runner.doctor import CheckContext
from runner.doctor import system as system_checks
from runner.errors import ModalUnavailable, RunnerError
from runner.project import pip_install
from runner.targets.modal import client
from runner.targets.modal.client import (
    NEW_TOKEN,
    check_reachable,
    config_file,
    is_configured,
    new_token_command,
    proxy_variable,
    server_addresses,
    setting,
)
from runner.targets.modal.image import ImageBuilds
from runner.targets.modal.target import ModalTarget
from runner.targets.modal.volume import ModalVolumeFiles
from tests.modal_standin import ModalStandin
from tests.runner.targets.modal.conftest import ROOT, make_checkout, open_cloud

PROXY = "http://proxy:3128"

TOKEN = {"MODAL_TOKEN_ID": "ak", "MODAL_TOKEN_SECRET": "as"}

ONE_OF_TWO = "http://nowhere.invalid,http://127.0.0.1:{port}"


def names(monkeypatch: pytest.MonkeyPatch, *known: str) -> list[str]:
    """Make only ``known`` hosts reachable; return the list of the hosts that are contacted."""
    requests: list[str] = []

    def create_connection(address: tuple[str, int], timeout: float) -> socket.socket:
        requests.append(address[0])
        if address[0] not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return socket.socket()

    monkeypatch.setattr(client.socket, "create_connection", create_connection)
    return requests


def test_default_servers_are_the_clients() -> None:
    assert _SETTINGS["server_url"].default == client.DEFAULT_SERVERS
    assert server_addresses(client.DEFAULT_SERVERS) == [
        ("api.modal.com", 443),
        ("api.modal2.com", 443),
    ]


@pytest.mark.parametrize("reachable", ["api.modal.com", "api.modal2.com"])
def test_one_server_is_enough(reachable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = names(monkeypatch, reachable)
    check_reachable({}, str(_SETTINGS["server_url"].default))
    assert requests[-1] == reachable


def test_no_reachable_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch)
    with pytest.raises(RunnerError) as refused:
        check_reachable({})
    assert refused.value.message == (
        "Modal can't be reached: api.modal.com (Name or service not known), "
        "api.modal2.com (Name or service not known); check the network and try again"
    )


def test_one_reachable_server_is_enough() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        environ = {"MODAL_SERVER_URL": ONE_OF_TWO.format(port=server.getsockname()[1])}
        with pytest.raises(RunnerError, match="Modal can't be reached"):
            check_reachable(environ)  # the server does not listen yet
        server.listen()
        check_reachable(environ)


@pytest.fixture
def proxy_packages(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the set of importable proxy packages, empty until a test adds some."""
    installed: set[str] = set()
    monkeypatch.setattr(client, "find_spec", lambda name: name if name in installed else None)
    return installed


def test_names_are_not_resolved_with_a_proxy(
    proxy_packages: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy_packages.update(client.PROXY_PACKAGES)
    requests = names(monkeypatch)
    check_reachable({"HTTPS_PROXY": PROXY})
    assert requests == []


@pytest.mark.parametrize("missing", client.PROXY_PACKAGES)
def test_missing_proxy_packages_are_named_before_any_request(
    missing: str, proxy_packages: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy_packages.update({*client.PROXY_PACKAGES} - {missing})
    requests = names(monkeypatch)
    environ = {"ALL_PROXY": PROXY, "NO_PROXY": "*"}
    with pytest.raises(RunnerError) as refused:
        check_reachable(environ)
    assert refused.value.message == (
        "ALL_PROXY names a proxy, for which Modal's client lacks packages; install them: "
        f"{pip_install('modal[api-proxy-support]')}   "
        "(or connect directly: MODAL_DISABLE_API_PROXY=1)"
    )
    assert requests == []


@pytest.mark.parametrize(
    "environ",
    [
        {"HTTPS_PROXY": PROXY},
        {"all_proxy": PROXY, "https_proxy": ""},
        {"HTTPS_PROXY": PROXY, "https_proxy": ""},
        {"HTTPS_PROXY": PROXY, "NO_PROXY": "*"},
        {"HTTP_PROXY": PROXY},
        {"https_proxy": PROXY, "MODAL_DISABLE_API_PROXY": "1"},
        {"https_proxy": PROXY, "MODAL_DISABLE_API_PROXY": "false"},
        {"https_proxy": PROXY, "MODAL_PROFILE": "direct"},
        {},
    ],
)
def test_proxy_variable_matches_the_client(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / ".modal.toml").write_text("[direct]\ndisable_api_proxy = true\n")
    given = {**environ, "HOME": str(tmp_path)}
    program = (
        "from modal._utils.proxy_support import *; print(get_proxy_url(None, use_ssl=True) or '')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=given, capture_output=True, text=True
    )
    variable = proxy_variable(given)
    assert (given[variable] if variable else "") == done.stdout.strip(), done.stderr


def test_commands_name_the_missing_proxy_package(
    proxy_packages: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    requests: list[str] = []
    monkeypatch.setattr("runner.planning.gpus._fetch_rates", lambda: requests.append("prices"))
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "HTTPS_PROXY": PROXY}
    environ |= TOKEN
    cli = CliContext(environ=environ, cwd=make_checkout(tmp_path / "checkout"), terminal=False)
    for line in ("cloud tiny --dry-run", "status cl", "doctor"):
        result = CliRunner().invoke(main, line.split(), obj=cli)
        assert "HTTPS_PROXY names a proxy" in result.output
        assert "modal[api-proxy-support]" in result.output
    assert requests == []


def test_volume_is_read_from_the_reachable_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ModalStandin(tmp_path / "state") as modal, modal.active():
        monkeypatch.setenv(
            "MODAL_SERVER_URL", f"http://nowhere.invalid,{modal.environ['MODAL_SERVER_URL']}"
        )
        files = ModalVolumeFiles("data")
        files.create()
        assert files.exists


def test_launch_offline_fails_before_the_client_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.planning.gpus._fetch_rates", lambda: {})
    monkeypatch.setattr(
        "modal.Volume.from_name", lambda *_, **__: pytest.fail("the client was used")
    )
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setattr("modal.config.config.get", lambda name: f"http://127.0.0.1:{port}")
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    environ |= TOKEN
    cli = CliContext(environ=environ, cwd=make_checkout(tmp_path / "checkout"), terminal=False)
    result = CliRunner().invoke(main, ["cloud", "tiny", "-y"], obj=cli)
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert (
        "Modal can't be reached: 127.0.0.1 (Connection refused); check the network" in result.output
    )


def test_refused_token_is_one_line(tmp_path: Path) -> None:
    with ModalStandin(tmp_path / "state") as modal, modal.active():
        modal.inject("*", "UNAUTHENTICATED", times=None)
        with pytest.raises(RunnerError) as refused:
            ModalVolumeFiles("data").create()
    assert "Modal does not accept the token" in refused.value.message
    assert f"create a new one with `{NEW_TOKEN}`" in refused.value.message
    assert "\n" not in refused.value.message


def test_modal_that_stops_answering_is_a_runner_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"HOME": str(tmp_path), **TOKEN}
    checkout = make_checkout(tmp_path / "checkout")
    target = ModalTarget(CliContext(environ=environ, cwd=checkout, terminal=False), checkout)

    def unavailable(*args: object, **options: object) -> None:
        raise ModalUnavailable("busy")

    monkeypatch.setattr("runner.targets.modal.target.check_reachable", lambda environ: None)
    monkeypatch.setattr("runner.targets.modal.volume.open_volume", unavailable)
    for request in (target.runs, lambda: target.state("tiny")):
        with pytest.raises(RunnerError, match="Modal can't be reached: busy"):
            request()


TWO_PROFILES = """\
[work]
token_id = "ak-1"
token_secret = "as-1"
active = true

[home]
token_id = "ak-2"
token_secret = "as-2"
"""

OAUTH = '[default]\noauth_refresh_token = "r"\noauth_client_id = "c"\n'

INVALID_TOML = '[default]\ntoken_id = "ak-1\n'


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}


def write(environ: dict[str, str], text: str) -> Path:
    file = config_file(environ)
    file.write_text(text)
    return file


def client_takes(environ: dict[str, str]) -> bool:
    """Return True if the client finds credentials; it reads its file at import."""
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
    write(environ, TWO_PROFILES)
    builds = ImageBuilds(checkout, cache, environ)
    builds.remember()
    assert builds.describe()[0]
    # modal profile activate home
    home = TWO_PROFILES.replace("active = true\n", "") + "active = true\n"
    for changed in (home, TWO_PROFILES.replace("ak-1", "ak-3")):
        write(environ, changed)
        assert not builds.describe()[0]
    write(environ, TWO_PROFILES)
    assert builds.describe()[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# mine\n\n" + TWO_PROFILES, True),
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
    write(environ, TWO_PROFILES)
    assert setting("token_id", environ) == "ak-1"
    assert setting("token_id", {**environ, "MODAL_PROFILE": "home"}) == "ak-2"
    assert setting("token_id", {**environ, "MODAL_TOKEN_ID": "ak-4"}) == "ak-4"
    assert setting("server_url", environ) is None


@pytest.mark.parametrize("text", [INVALID_TOML, 'token_id = "ak-1"\n', "[default\n", "\x00"])
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
            f"; fix it, or create a new one: mv {file} {file}.old && {NEW_TOKEN}\n"
        )
        assert refused.stderr.count("\n") == 1


def test_doctor_names_the_config_file(environ: dict[str, str], tmp_path: Path) -> None:
    file = write(environ, INVALID_TOML)
    (finding,) = system_checks.check_modal(CheckContext(tmp_path, environ))
    remedy = "fix it, or create a new one"
    assert (finding.severity, finding.remedy.partition(":")[0]) == ("error", remedy)
    assert str(file) in finding.message


def test_launch_asks_modal_before_it_reads_the_recipe(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    with open_cloud(checkout, tmp_path, delay=0.3) as cloud:
        _, err = cloud.run("cloud", "tiny", "lr=oops", status=2)
        assert err == "error: argument 'lr=oops': train.lr: expected a number, got 'oops'\n"
        asked = {request.rpc for request in cloud.modal.recorded()}
        assert {"VolumeGetOrCreate", "AppList", "WorkspaceBillingRates"} <= asked
        cloud.run("cloud", "tiny", "--dry-run")
        assert len(cloud.modal.recorded("AppList")) == 2  # one for each launch


def test_launch_offline_ends_before_the_client_retries(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    environ |= TOKEN
    with socket.create_server(("127.0.0.1", 0)) as closed:
        environ["MODAL_SERVER_URL"] = f"http://127.0.0.1:{closed.getsockname()[1]}"
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "runner", "cloud", "tiny", "-y"],
        cwd=make_checkout(tmp_path / "checkout"),
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "can't be reached" in process.stderr.readline()
    process.wait(timeout=30)  # the client retries for 55 s
    assert process.returncode == 1


def test_token_is_created_without_the_program_of_modal_in_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert new_token_command() == shlex.join([sys.executable, "-m", "modal", "token", "new"])
    (tmp_path / "modal").touch(mode=0o755)
    assert new_token_command() == "modal token new"
