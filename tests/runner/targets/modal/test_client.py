"""Tests of reaching Modal: its servers, proxies and tokens."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from modal.config import _SETTINGS

from runner.cli import main
from runner.console import CliContext
from runner.errors import ModalUnavailable, RunnerError
from runner.project import pip_install
from runner.targets.modal import client
from runner.targets.modal.client import (
    check_known_hosts,
    check_reachable,
    proxy_variable,
    server_addresses,
)
from runner.targets.modal.target import ModalTarget
from runner.targets.modal.volume import open_files
from tests.modal_standin import ModalStandin
from tests.runner.targets.modal.conftest import make_checkout

PROXY = "http://proxy:3128"

ONE_OF_TWO = "http://nowhere.invalid,http://127.0.0.1:{port}"


def names(monkeypatch: pytest.MonkeyPatch, *known: str) -> list[str]:
    """Let only ``known`` names resolve; return the list of names that were looked up."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int) -> None:
        asked.append(host)
        if host not in known:
            raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(client.socket, "getaddrinfo", getaddrinfo)
    return asked


def test_default_servers_are_the_clients() -> None:
    assert _SETTINGS["server_url"].default == client.DEFAULT_SERVERS
    assert server_addresses(client.DEFAULT_SERVERS) == [
        ("api.modal.com", 443),
        ("api.modal2.com", 443),
    ]


@pytest.mark.parametrize("there", ["api.modal.com", "api.modal2.com"])
def test_one_resolvable_server_is_enough(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = names(monkeypatch, there)
    check_known_hosts(str(_SETTINGS["server_url"].default), {})
    assert asked[-1] == there


def test_no_resolvable_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch)
    with pytest.raises(RunnerError) as refused:
        check_known_hosts(client.DEFAULT_SERVERS, {})
    assert refused.value.message == (
        "Modal can't be reached: api.modal.com does not resolve (Name or service not known) and "
        "api.modal2.com does not resolve (Name or service not known); "
        "check the network and try again"
    )


def test_one_reachable_server_is_enough() -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        threading.Thread(target=there.accept, daemon=True).start()
        port = there.getsockname()[1]
        check_reachable({"MODAL_SERVER_URL": ONE_OF_TWO.format(port=port)})
    with pytest.raises(RunnerError, match="Modal can't be reached"):
        check_reachable({"MODAL_SERVER_URL": ONE_OF_TWO.format(port=port)})


@pytest.fixture
def proxy_packages(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the set of importable proxy packages, empty until a test adds some."""
    installed: set[str] = set()
    monkeypatch.setattr(client, "find_spec", lambda name: name if name in installed else None)
    return installed


def test_names_are_not_resolved_behind_a_proxy(
    proxy_packages: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy_packages.update(client.PROXY_PACKAGES)
    asked = names(monkeypatch)
    check_known_hosts(client.DEFAULT_SERVERS, {"HTTPS_PROXY": PROXY})
    assert asked == []


@pytest.mark.parametrize("missing", client.PROXY_PACKAGES)
def test_missing_proxy_packages_are_named_before_any_request(
    missing: str, proxy_packages: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy_packages.update({*client.PROXY_PACKAGES} - {missing})
    asked = names(monkeypatch)
    environ = {"ALL_PROXY": PROXY, "NO_PROXY": "*"}
    for check in (
        check_reachable,
        lambda environ: check_known_hosts(client.DEFAULT_SERVERS, environ),
    ):
        with pytest.raises(RunnerError) as refused:
            check(environ)
        assert refused.value.message == (
            "ALL_PROXY names a proxy, for which Modal's client lacks packages; type: "
            f"{pip_install('modal[api-proxy-support]')}   "
            "(or connect directly: MODAL_DISABLE_API_PROXY=1)"
        )
    assert asked == []


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
    asked = subprocess.run(
        [sys.executable, "-c", program], env=given, capture_output=True, text=True
    )
    variable = proxy_variable(given)
    assert (given[variable] if variable else "") == asked.stdout.strip(), asked.stderr


def test_commands_name_the_missing_proxy_package(
    proxy_packages: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("runner.pricing.prices._fetch_rates", lambda: asked.append("prices"))
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "HTTPS_PROXY": PROXY}
    environ |= {"MODAL_TOKEN_ID": "ak", "MODAL_TOKEN_SECRET": "as"}
    cli = CliContext(environ=environ, cwd=make_checkout(tmp_path / "checkout"), terminal=False)
    for line in ("cloud tiny --dry-run", "status cl", "doctor"):
        said = CliRunner().invoke(main, line.split(), obj=cli)
        assert "HTTPS_PROXY names a proxy" in said.output
        assert "modal[api-proxy-support]" in said.output
    assert asked == []


def test_volume_is_read_from_the_reachable_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ModalStandin(tmp_path / "state") as modal, modal.active():
        monkeypatch.setenv(
            "MODAL_SERVER_URL", f"http://nowhere.invalid,{modal.environ['MODAL_SERVER_URL']}"
        )
        files = open_files("data", create=True)
        assert files.exists


def test_launch_offline_fails_before_the_client_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.pricing.prices._fetch_rates", lambda: {})
    monkeypatch.setattr(
        "modal.Volume.from_name", lambda *_, **__: pytest.fail("the client was asked")
    )
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setattr("modal.config.config.get", lambda name: f"http://127.0.0.1:{port}")
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    environ |= {"MODAL_TOKEN_ID": "ak", "MODAL_TOKEN_SECRET": "as"}
    cli = CliContext(environ=environ, cwd=make_checkout(tmp_path / "checkout"), terminal=False)
    said = CliRunner().invoke(main, ["cloud", "tiny", "-y"], obj=cli)
    assert (said.exit_code, said.output.count("\n")) == (1, 1)
    assert (
        "Modal can't be reached ([Errno 111] Connection refused); check the network" in said.output
    )


def test_refused_token_is_one_line(tmp_path: Path) -> None:
    with ModalStandin(tmp_path / "state") as modal, modal.active():
        modal.inject("*", "UNAUTHENTICATED", times=None)
        with pytest.raises(RunnerError) as refused:
            open_files("data")
    assert "Modal does not accept the token" in refused.value.message
    assert "create another with `modal token new`" in refused.value.message
    assert "\n" not in refused.value.message


def test_modal_that_stops_answering_is_a_runner_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"HOME": str(tmp_path), "MODAL_TOKEN_ID": "ak", "MODAL_TOKEN_SECRET": "as"}
    checkout = make_checkout(tmp_path / "checkout")
    target = ModalTarget(CliContext(environ=environ, cwd=checkout, terminal=False), checkout)

    def unavailable(*args: object) -> None:
        raise ModalUnavailable("busy")

    monkeypatch.setattr("runner.targets.modal.target.check_reachable", lambda environ: None)
    monkeypatch.setattr("runner.targets.modal.volume.open_files", unavailable)
    for request in (target.runs, lambda: target.state("tiny")):
        with pytest.raises(RunnerError, match="Modal can't be reached: busy"):
            request()
