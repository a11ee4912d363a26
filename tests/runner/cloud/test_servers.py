"""Modal's own list of servers: one of them that is there is enough."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from modal.config import _SETTINGS

from runner.cloud import servers
from runner.cloud.servers import addresses, check_known, check_reachable
from runner.cloud.volumes import open_files
from runner.errors import RunnerError
from tests.modal_standin import ModalStandin

ONE_OF_TWO = "http://nowhere.invalid,http://127.0.0.1:{port}"


def names(monkeypatch: pytest.MonkeyPatch, *known: str) -> list[str]:
    """Only the ``known`` names resolve; the list is of those that were asked for."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int) -> None:
        asked.append(host)
        if host not in known:
            raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(servers.socket, "getaddrinfo", getaddrinfo)
    return asked


def test_the_servers_are_those_of_the_client() -> None:
    assert _SETTINGS["server_url"].default == servers.DEFAULT
    assert addresses(servers.DEFAULT) == [("api.modal.com", 443), ("api.modal2.com", 443)]


@pytest.mark.parametrize("there", ["api.modal.com", "api.modal2.com"])
def test_one_server_whose_name_is_known_is_enough(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = names(monkeypatch, there)
    check_known(str(_SETTINGS["server_url"].default), {})
    assert asked[-1] == there


def test_where_no_name_is_known_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch)
    with pytest.raises(RunnerError) as refused:
        check_known(servers.DEFAULT, {})
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


def test_behind_a_proxy_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = names(monkeypatch)
    check_known(servers.DEFAULT, {"HTTPS_PROXY": "http://proxy:3128"})
    assert asked == []


def test_the_client_reads_a_volume_over_the_server_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ModalStandin(tmp_path / "state") as modal, modal.active():
        monkeypatch.setenv("MODAL_SERVER_URL", f"http://nowhere.invalid,{modal.environ['MODAL_SERVER_URL']}")
        files = open_files("data", create=True)
        assert files.is_there


def test_a_token_that_is_not_accepted_is_one_line(tmp_path: Path) -> None:
    with ModalStandin(tmp_path / "state") as modal, modal.active():
        modal.inject("*", "UNAUTHENTICATED", times=None)
        with pytest.raises(RunnerError) as refused:
            open_files("data")
    assert "Modal does not accept the token" in refused.value.message
    assert "`modal token new` makes another" in refused.value.message
    assert "\n" not in refused.value.message
