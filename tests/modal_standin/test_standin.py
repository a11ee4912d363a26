"""The stand-in for Modal runs functions as Modal does: bodies, logs, detached apps, limits."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from tests.modal_standin import ModalStandin, StandinError, connect
from tests.modal_standin.scripts import fail, run, start

WAIT_FOR_GO = """
        volume = modal.Volume.from_name("checkpoints", create_if_missing=True, version=2)

        @app.function(volumes={"/vol/checkpoints": volume})
        def wait_for_go():
            print("waiting")
            while not os.path.exists("/vol/checkpoints/go"):
                time.sleep(0.02)
            return "continued"
"""


def test_call_runs_the_body_in_a_container_and_returns_its_value(
    modal: ModalStandin, tmp_path: Path
) -> None:
    printed = run(
        modal,
        tmp_path,
        """
        @app.function(secrets=[modal.Secret.from_dict({"TOKEN": "s3cret" * 3})])
        def double(x):
            print("in", os.getcwd(), len(os.environ["TOKEN"]), os.environ["MODAL_TASK_ID"])
            return 2 * x

        if __name__ == "__main__":
            with app.run():
                print(double.remote(21), sum(double.map([1, 2, 3])))
        """,
    )
    assert printed == "42 12"
    assert f"in /root 18 {modal.tasks()[0]['id']}" in modal.log()
    assert modal.unimplemented() == []
    assert modal.appeared("s3cret" * 3) == []
    assert "s3cret" * 3 not in (modal.state / "requests.jsonl").read_text()


def test_entry_point_has_no_click_and_no_rich_but_its_subprocesses_do(
    modal: ModalStandin, tmp_path: Path
) -> None:
    printed = run(
        modal,
        tmp_path,
        """
        @app.function()
        def importable():
            import importlib, subprocess
            found = []
            for name in ("click", "rich", "modal"):
                try:
                    importlib.import_module(name)
                    found.append(name)
                except ModuleNotFoundError:
                    pass
            found.append(subprocess.call(["python", "-c", "import click, rich"]))
            return found

        if __name__ == "__main__":
            with app.run():
                print(importable.remote())
        """,
    )
    assert printed == "['modal', 0]"


def test_container_has_mounted_files_and_not_this_repository(
    modal: ModalStandin, tmp_path: Path
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "part.txt").write_text("mounted")
    printed = run(
        modal,
        tmp_path,
        f"""
        image = modal.Image.debian_slim().env({{"COLOUR": "blue"}}).workdir("/workspace")
        image = image.add_local_dir({str(code)!r}, "/workspace")

        @app.function(image=image)
        def look():
            text = open("part.txt").read()
            return os.getcwd(), text, os.environ["COLOUR"], os.path.exists({__file__!r})

        if __name__ == "__main__":
            with app.run():
                print(*look.remote())
        """,
    )
    assert printed == "/workspace mounted blue False"
    assert not Path("/workspace").exists() or not Path("/workspace/part.txt").exists()


def test_exception_of_the_body_reaches_the_caller_after_its_retries(
    modal: ModalStandin, tmp_path: Path
) -> None:
    complaint = fail(
        modal,
        tmp_path,
        """
        @app.function(retries=modal.Retries(max_retries=2, initial_delay=0.0))
        def broken():
            raise ValueError("no such corpus")

        if __name__ == "__main__":
            with app.run():
                broken.remote()
        """,
    )
    assert "ValueError: no such corpus" in complaint
    assert modal.calls()[0]["retries"] == [2]


def test_detached_call_outlives_its_client(modal: ModalStandin, tmp_path: Path) -> None:
    client = start(
        modal,
        tmp_path,
        WAIT_FOR_GO
        + """
        if __name__ == "__main__":
            with app.run(detach=True):
                print(wait_for_go.spawn().object_id, flush=True)
                time.sleep(60)
        """,
    )
    assert client.stdout is not None
    call_id = client.stdout.readline().strip()
    modal.wait_until(lambda: "waiting" in modal.log(call_id))
    client.send_signal(signal.SIGKILL)
    client.communicate()
    follow = f"""
        call = modal.FunctionCall.from_id({call_id!r})
        try:
            call.get(timeout=0)
        except TimeoutError:
            print("still running")
        print(*[entry.message.strip() for entry in call.logs.tail(10)])
    """
    assert run(modal, tmp_path, follow, "follow").splitlines() == ["still running", "waiting"]
    (modal.volume_path("checkpoints") / "go").touch()
    assert (
        run(modal, tmp_path, f"print(modal.FunctionCall.from_id({call_id!r}).get())", "end")
        == "continued"
    )


def test_attached_app_ends_with_its_client(tmp_path: Path) -> None:
    with ModalStandin(tmp_path / "state", heartbeat_timeout=3.0, grace=0.5) as modal:
        client = start(
            modal,
            tmp_path,
            """
            @app.function()
            def forever():
                print("started")
                while True:
                    time.sleep(0.1)

            if __name__ == "__main__":
                with app.run():
                    forever.remote()
            """,
        )
        modal.wait_until(lambda: "started" in modal.log())
        client.kill()
        client.communicate()
        modal.wait_until(lambda: not any(task["alive"] for task in modal.tasks()))
        assert modal.tasks()[0]["fate"] == "stopped"


REFUSED_FORMATS = {
    "gpu='H1000'": "H1000 is not a valid GPU type",
    "gpu=['H100', 'h1']": "H1 is not a valid GPU type",
    "gpu='H100:9'": "between 1 and 8",
    "gpu='A10:5'": "between 1 and 4",
    "timeout=90000": "between 1 and 86400",
    "retries=11": "between 0 and 10",
}


def test_invalid_function_is_refused(modal: ModalStandin, tmp_path: Path) -> None:
    source = f"""
        def never():
            pass

        if __name__ == "__main__":
            for option in {list(REFUSED_FORMATS)!r}:
                app = modal.App("refused")
                eval(f"app.function({{option}})")(never)
                try:
                    with app.run():
                        print("accepted")
                except modal.exception.InvalidError as error:
                    print(error)
    """
    answers = run(modal, tmp_path, source).splitlines()
    assert len(answers) == len(REFUSED_FORMATS)
    assert [
        m for m, answer in zip(REFUSED_FORMATS.values(), answers, strict=True) if m not in answer
    ] == []


def test_deployed_function_is_found_by_its_name(modal: ModalStandin, tmp_path: Path) -> None:
    source = """
        @app.function()
        def echo(x):
            return x

        if __name__ == "__main__":
            app.deploy()
    """
    run(modal, tmp_path, source)
    assert (
        run(
            modal, tmp_path, 'print(modal.Function.from_name("a-test", "echo").remote(5))', "caller"
        )
        == "5"
    )


def test_waiting_client_survives_a_cut_connection(modal: ModalStandin, tmp_path: Path) -> None:
    client = start(
        modal,
        tmp_path,
        WAIT_FOR_GO
        + """
        if __name__ == "__main__":
            with app.run():
                print(wait_for_go.remote())
        """,
    )
    modal.wait_until(lambda: "waiting" in modal.log())
    assert modal.disconnect() >= 1
    (modal.volume_path("checkpoints") / "go").touch()
    output, complaint = client.communicate(timeout=60)
    assert output.strip() == "continued", complaint


def test_result_outlives_the_server(tmp_path: Path) -> None:
    with ModalStandin(tmp_path / "state") as first:
        call_id = run(
            first,
            tmp_path,
            """
            @app.function()
            def answer():
                print("thinking")
                return 42

            if __name__ == "__main__":
                with app.run():
                    call = answer.spawn()
                    call.get()
                    print(call.object_id)
            """,
        )
    follow = f"""
        call = modal.FunctionCall.from_id({call_id!r})
        print(call.get(), *[entry.message.strip() for entry in call.logs.tail()])
    """
    with ModalStandin(tmp_path / "state") as second:
        assert run(second, tmp_path, follow, "follow") == "42 thinking"


def test_controls_work_from_another_process(modal: ModalStandin) -> None:
    other = connect(modal.state)
    assert other.environ == modal.environ
    assert other.builds == []
    with pytest.raises(StandinError, match="no container works"):
        other.preempt()


def test_command_line_exits_with_the_command_status(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import os, sys; print(os.environ['MODAL_SERVER_URL']); sys.exit(7)",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.modal_standin", "--state", str(tmp_path), "--", *command],
        stdout=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
    )
    assert done.returncode == 7
    assert done.stdout.startswith("http://127.0.0.1:")
    assert len(done.stdout.splitlines()) == 1
