"""Modal's own list of servers: one of them that is there is enough."""

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
from runner.errors import RunnerError
from runner.project import pip_install
from runner.targets.modal import client
from runner.targets.modal.client import addresses, check_known, check_reachable, proxy_variable
from runner.targets.modal.volume import open_files
from tests.modal_standin import ModalStandin
from tests.runner.targets.modal.conftest import make_checkout

PROXY = "http://proxy:3128"

ONE_OF_TWO = "http://nowhere.invalid,http://127.0.0.1:{port}"


def names(monkeypatch: pytest.MonkeyPatch, *known: str) -> list[str]:
    """Only the ``known`` names resolve; the list is of those that were asked for."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int) -> None:
        asked.append(host)
        if host not in known:
            raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(client.socket, "getaddrinfo", getaddrinfo)
    return asked


def test_the_servers_are_those_of_the_client() -> None:
    assert _SETTINGS["server_url"].default == client.DEFAULT
    assert addresses(client.DEFAULT) == [("api.modal.com", 443), ("api.modal2.com", 443)]


@pytest.mark.parametrize("there", ["api.modal.com", "api.modal2.com"])
def test_one_server_whose_name_is_known_is_enough(
    there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = names(monkeypatch, there)
    check_known(str(_SETTINGS["server_url"].default), {})
    assert asked[-1] == there


def test_where_no_name_is_known_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch)
    with pytest.raises(RunnerError) as refused:
        check_known(client.DEFAULT, {})
    assert refused.value.message == (
        "Modal can't be reached: api.modal.com is unknown here (Name or service not known) and api.modal2.com is "
        "unknown here (Name or service not known); check the network and type the same again"
    )


def test_one_server_that_takes_a_connection_is_enough() -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        threading.Thread(target=there.accept, daemon=True).start()
        port = there.getsockname()[1]
        check_reachable({"MODAL_SERVER_URL": ONE_OF_TWO.format(port=port)})
    with pytest.raises(RunnerError, match="Modal can't be reached"):
        check_reachable({"MODAL_SERVER_URL": ONE_OF_TWO.format(port=port)})


@pytest.fixture
def proxy_packages(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The packages for proxies that can be imported: none, until a test adds some."""
    installed: set[str] = set()
    monkeypatch.setattr(client, "find_spec", lambda name: name if name in installed else None)
    return installed


def test_behind_a_proxy_nothing_is_asked(
    proxy_packages: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy_packages.update(client.PROXY_PACKAGES)
    asked = names(monkeypatch)
    check_known(client.DEFAULT, {"HTTPS_PROXY": PROXY})
    assert asked == []


@pytest.mark.parametrize("missing", client.PROXY_PACKAGES)
def test_what_the_client_lacks_for_a_proxy_is_said_before_anything_is_asked(
    missing: str, proxy_packages: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy_packages.update({*client.PROXY_PACKAGES} - {missing})
    asked = names(monkeypatch)
    environ = {"ALL_PROXY": PROXY, "NO_PROXY": "*"}
    for check in (check_reachable, lambda environ: check_known(client.DEFAULT, environ)):
        with pytest.raises(RunnerError) as refused:
            check(environ)
        assert refused.value.message == (
            "ALL_PROXY names a proxy, for which Modal's client needs packages that are not here; type: "
            f"{pip_install('modal[api-proxy-support]')}   (or go without it: MODAL_DISABLE_API_PROXY=1)"
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
def test_the_proxy_is_the_one_that_the_client_takes(
    environ: dict[str, str], tmp_path: Path
) -> None:
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


def test_a_plan_names_the_package_for_the_proxy(
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


def test_the_client_reads_a_volume_over_the_server_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ModalStandin(tmp_path / "state") as modal, modal.active():
        monkeypatch.setenv(
            "MODAL_SERVER_URL", f"http://nowhere.invalid,{modal.environ['MODAL_SERVER_URL']}"
        )
        files = open_files("data", create=True)
        assert files.is_there


def test_a_launch_without_a_network_ends_before_the_client_has_tried(
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


def test_a_token_that_is_not_accepted_is_one_line(tmp_path: Path) -> None:
    with ModalStandin(tmp_path / "state") as modal, modal.active():
        modal.inject("*", "UNAUTHENTICATED", times=None)
        with pytest.raises(RunnerError) as refused:
            open_files("data")
    assert "Modal does not accept the token" in refused.value.message
    assert "`modal token new` makes another" in refused.value.message
    assert "\n" not in refused.value.message
