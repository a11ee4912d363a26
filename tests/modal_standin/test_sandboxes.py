"""The stand-in's sandboxes run commands, and its clusters run functions, as the client expects."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.modal_standin import ModalStandin
from tests.modal_standin.scripts import run


@pytest.mark.parametrize("gpu", ["None", "'H100'"])
def test_commands_run_in_the_sandbox_file_system(
    modal: ModalStandin, tmp_path: Path, gpu: str
) -> None:
    printed = run(
        modal,
        tmp_path,
        f"""
        app = modal.App.lookup("shells", create_if_missing=True)
        volume = modal.Volume.from_name("data", create_if_missing=True, version=2)
        sandbox = modal.Sandbox.create(
            app=app, gpu={gpu}, volumes={{"/vol/data": volume}}, timeout=60, idle_timeout=30,
            tags={{"kind": "shell"}}, secrets=[modal.Secret.from_dict({{"TOKEN": "secret" * 3}})],
        )
        script = "cat; echo done > /vol/data/mark; echo $TOKEN | wc -c; exit 3"
        command = sandbox.exec("bash", "-c", script)
        command.stdin.write("typed\\n")
        command.stdin.write_eof()
        command.stdin.drain()
        print(command.stdout.read().split(), command.wait())
        mixed = sandbox.exec("sh", "-c", "echo error >&2; cat /vol/data/mark")
        print(mixed.stdout.read().strip())
        listed = modal.Sandbox.list(tags={{"kind": "shell"}})
        same = [s.object_id == sandbox.object_id for s in listed]
        print(sandbox.poll(), same)
        sandbox.terminate()
        sandbox.wait(raise_on_termination=False)
        print(sandbox.returncode)
        """,
    )
    assert printed.splitlines() == ["['typed', '19'] 3", "done", "None [True]", "137"]
    assert (modal.volume_path("data") / "mark").read_text() == "done\n"
    assert modal.appeared("secret" * 3) == []


def test_shell_has_a_terminal(modal: ModalStandin, tmp_path: Path) -> None:
    printed = run(
        modal,
        tmp_path,
        """
        app = modal.App.lookup("shells", create_if_missing=True)
        sandbox = modal.Sandbox.create(app=app, timeout=60)
        shell = sandbox.exec("bash", "--norc", pty=True)
        shell.stdin.write("tty; echo in $PWD; env | grep -c MODAL_TOKEN; exit 4\\n")
        shell.stdin.drain()
        text = shell.stdout.read()
        print("/dev/pts/" in text, "in /root" in text, "\\n0" in text, shell.wait())
        sandbox.terminate()
        """,
    )
    assert printed == "True True True 4"


def test_idle_sandbox_ends_by_itself(modal: ModalStandin, tmp_path: Path) -> None:
    run(
        modal,
        tmp_path,
        """
        app = modal.App.lookup("shells", create_if_missing=True)
        sandbox = modal.Sandbox.create(app=app, timeout=60, idle_timeout=1)
        sandbox.wait(raise_on_termination=False)
        """,
    )


def test_containers_of_a_cluster_know_each_other(modal: ModalStandin, tmp_path: Path) -> None:
    printed = run(
        modal,
        tmp_path,
        """
        @app.function(gpu="H100:8")
        @modal.clustered(size=2)
        def meet():
            cluster = modal.Cluster.from_context()
            print("rank", cluster.container_rank())
            ids = cluster.container_ids()
            return cluster.container_rank(), cluster.container_ips("ipv4"), len(ids)

        if __name__ == "__main__":
            with app.run():
                print(*meet.remote())
        """,
    )
    assert printed == "0 ['127.0.0.1', '127.0.0.1'] 2"
    modal.wait_until(lambda: {"rank 0", "rank 1"} <= set(modal.log().splitlines()))
