"""The stand-in ends containers as Modal does: preemption, timeout, cancellation."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from tests.modal_standin import ModalStandin
from tests.modal_standin.scripts import fail, run, start

RESUMABLE = """
        volume = modal.Volume.from_name("checkpoints", create_if_missing=True, version=2)

        @app.function(
            volumes={"/vol/checkpoints": volume}, single_use_containers=True, max_containers=1
        )
        def train():
            attempt = len(os.listdir("/vol/checkpoints"))
            open(f"/vol/checkpoints/attempt{attempt}", "w").close()
            print("attempt", attempt)
            try:
                while attempt < LAST:
                    time.sleep(0.02)
            except KeyboardInterrupt:
                print("interrupted")
                volume.commit()
                RAISE
            return attempt

        if __name__ == "__main__":
            with app.run():
                print(train.remote())
"""


def test_preempted_call_restarts_with_the_same_input(modal: ModalStandin, tmp_path: Path) -> None:
    client = start(modal, tmp_path, RESUMABLE.replace("LAST", "2").replace("RAISE", "raise"))
    modal.preempt_when(log="attempt", times=2)
    output, complaint = client.communicate(timeout=60)
    assert output.strip() == "2", complaint + modal.log()
    assert modal.log().count("interrupted") == 2
    call = modal.calls()[0]
    assert len(call["attempts"][0]) == 3
    assert call["retries"] == [0]
    assert [task["fate"] for task in modal.tasks()][:2] == ["preempted", "preempted"]


def test_body_that_swallows_the_interrupt_succeeds(modal: ModalStandin, tmp_path: Path) -> None:
    client = start(modal, tmp_path, RESUMABLE.replace("LAST", "1").replace("RAISE", "pass"))
    modal.wait_until(lambda: "attempt 0" in modal.log())
    modal.preempt()
    output, complaint = client.communicate(timeout=60)
    assert output.strip() == "0", complaint + modal.log()


def test_container_that_ignores_the_interrupt_is_killed_with_its_processes(
    modal: ModalStandin, tmp_path: Path
) -> None:
    client = start(
        modal,
        tmp_path,
        """
        @app.function()
        def stubborn():
            import signal, subprocess
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            child = subprocess.Popen(["sleep", "600.25"], start_new_session=True)
            print("ready", flush=True)
            if os.environ["MODAL_TASK_ID"].endswith("never"):
                return
            child.wait()

        if __name__ == "__main__":
            with app.run():
                stubborn.remote()
        """,
    )
    modal.wait_until(lambda: "ready" in modal.log())
    modal.preempt(grace=0.2)
    assert modal.tasks()[0]["exit_code"] == -signal.SIGKILL
    modal.wait_until(lambda: modal.log().count("ready") == 2)
    assert (
        subprocess.run(["pgrep", "-fc", "sleep 600.25"], stdout=subprocess.PIPE).stdout.strip()
        == b"1"
    )
    client.kill()
    client.communicate()


def test_call_that_takes_too_long_is_interrupted_and_retried(
    modal: ModalStandin, tmp_path: Path
) -> None:
    complaint = fail(
        modal,
        tmp_path,
        """
        retries = modal.Retries(max_retries=1, initial_delay=0.0)

        @app.function(timeout=1, startup_timeout=60, retries=retries)
        def slow():
            time.sleep(30)

        if __name__ == "__main__":
            with app.run():
                slow.remote()
        """,
    )
    assert "FunctionTimeoutError" in complaint
    assert "hit its timeout of 1s" in complaint
    assert len(modal.calls()[0]["attempts"][0]) == 2


def test_call_is_cancelled_with_its_container(modal: ModalStandin, tmp_path: Path) -> None:
    printed = run(
        modal,
        tmp_path,
        """
        @app.function()
        def endless():
            try:
                print("running")
                time.sleep(60)
            except KeyboardInterrupt:
                print("asked to stop")
                raise

        if __name__ == "__main__":
            with app.run():
                call = endless.spawn()
                for entry in call.logs.stream():
                    print(entry.message.strip())
                    call.cancel(terminate_containers=True)
                    break
                try:
                    call.get()
                except modal.exception.RemoteError as error:
                    print(error)
        """,
    )
    assert printed.splitlines() == ["running", "Input was cancelled by user"]
    modal.wait_until(lambda: not modal.tasks()[0]["alive"])
    assert "asked to stop" in modal.log()
