"""Compare `runner` with Modal's client on one stand-in; they run in turns.

    python -m tests.runner.targets.modal.compare_client launch [--delay 0.1] [--rounds 5] [--names]
    python -m tests.runner.targets.modal.compare_client transfer [--files 300] [--mb 231]

``launch`` counts requests and seconds from the start of the command to the function call, for a new
run with a prepared dataset and a built image. ``transfer`` measures a pull and a push with SHA-256
against `modal volume get` and `put`. Prints each pair and the median ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

from job.paths import VOLUMES
from runner.targets.modal import calls
from runner.targets.modal.volume import open_volume
from tests.modal_standin.executor import Container
from tests.runner.targets.modal.conftest import CloudFixture, make_checkout, open_cloud

CALL = "FunctionMap"
# The same image, code, volumes and limits as `runner cloud train`.
APP = f"""
import modal

image = modal.Image.from_dockerfile("Dockerfile", context_dir=".")
image = image.add_local_dir(".", "/workspace", ignore=[".git", "volumes", "state"])
volumes = {{
    f"/vol/{{name}}": modal.Volume.from_name(
        f"gpt-runner-{{name}}", create_if_missing=True, version=2
    )
    for name in {VOLUMES!r}
}}
app = modal.App("baseline")


@app.function(image=image, gpu="L4", volumes=volumes, timeout=3600, retries=3)
def train(job):
    pass


@app.local_entrypoint()
def main():
    train.spawn({{}}).get()
"""


class IdleExecutor:
    """Containers that do nothing until they are killed."""

    async def start(self, container: Container) -> IdleContainer:
        return IdleContainer()


class IdleContainer:
    """A container without a process."""

    def __init__(self) -> None:
        self.stdout, self.stderr = asyncio.StreamReader(), asyncio.StreamReader()
        self._ended = asyncio.Event()

    async def wait(self) -> int:
        await self._ended.wait()
        return -9

    def interrupt(self) -> None:
        for stream in (self.stdout, self.stderr):
            stream.feed_eof()
        self._ended.set()

    async def kill(self) -> None:
        self.interrupt()


def prepare(cloud: CloudFixture) -> None:
    """Put the dataset on the volume, and build the image."""
    with cloud.modal.active():
        for name in VOLUMES:
            open_volume(name, cloud.environ)
    (cloud.volume("data") / "tiny").mkdir()
    (cloud.volume("data") / "tiny" / "meta.json").write_text("{}")
    (cloud.checkout / "baseline.py").write_text(APP)
    author = ("-c", "user.name=test", "-c", "user.email=test@example.com")
    for words in (("init", "-q"), ("add", "."), (*author, "commit", "-q", "-m", "Checkout")):
        subprocess.run(["git", *words], cwd=cloud.checkout, check=True)
    launch(cloud, runner_words("first"))


def runner_words(name: str) -> list[str]:
    """Return the command of a launch."""
    command = "from runner.cli import main; main()"
    words = ["cloud", "train", "tiny", "-y", "--name", name, "--gpu", "L4"]
    return [sys.executable, "-c", command, *words]


def modal_words(*words: str) -> list[str]:
    """Return a command of Modal's client."""
    return [sys.executable, "-m", "modal", *words]


def launch(cloud: CloudFixture, words: list[str]) -> tuple[float, Counter[str]]:
    """Run the command until its function call; return the seconds and requests until then."""
    modal = cloud.modal
    before = len(modal.recorded())
    started = time.time()
    process = subprocess.Popen(
        words,
        cwd=cloud.checkout,
        env=cloud.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while not (found := modal.recorded(CALL, after=before - 1)):
        if process.poll() is not None and not modal.recorded(CALL, after=before - 1):
            raise SystemExit(f"{words} ended: {process.communicate()[1].decode()}")
        time.sleep(0.02)
    process.kill()
    process.communicate()
    requests = [r for r in modal.recorded(after=before - 1) if r.number <= found[0].number]
    with modal.active():
        for app in modal.apps():
            calls.stop_app(app["id"])
    return found[0].at - started, Counter(r.rpc for r in requests if not r.task)


def compare_launches(cloud: CloudFixture, rounds: int, names: bool) -> None:
    """Launch in turns."""
    ratios = []
    launch(cloud, modal_words("run", "--detach", "baseline.py"))
    for number in range(rounds):
        runner_s, runner_requests = launch(cloud, runner_words(f"run-{number}"))
        modal_s, modal_requests = launch(cloud, modal_words("run", "--detach", "baseline.py"))
        ratios.append(runner_s / modal_s)
        print(
            f"runner {runner_s:.2f} s, {runner_requests.total()} requests; "
            f"modal run {modal_s:.2f} s, {modal_requests.total()} requests"
        )
        if names and not number:
            for name in sorted(runner_requests | modal_requests):
                print(f"  {name:32} {runner_requests[name]:3} {modal_requests[name]:3}")
    print(f"median ratio of the times: {median(ratios):.3f}")


def compare_transfers(cloud: CloudFixture, rounds: int, files: int, size: int) -> None:
    """Pull and push in turns, with new content each time."""
    with cloud.modal.active():
        open_volume("data", cloud.environ)
    runner = [sys.executable, "-c", "from runner.cli import main; main()"]
    pulls, pushes = [], []
    for number in range(rounds):
        folder, other = cloud.checkout / f"put-{number}", cloud.checkout / f"modal-put-{number}"
        for new in (folder, other):
            new.mkdir()
            for file in range(files):
                (new / f"file-{file:04}.bin").write_bytes(os.urandom(size // files))
        pulled, got = cloud.checkout / "pulled", cloud.checkout / "got"
        steps: list[tuple[str, list[str]]] = [
            ("modal put", modal_words("volume", "put", "gpt-runner-data", str(other), "/there")),
            ("push", [*runner, "push", "data", str(folder), "--dest", "here", "-y"]),
            ("modal get", modal_words("volume", "get", "gpt-runner-data", "/here", str(got))),
            ("pull", [*runner, "pull", "data", "here", "--dest", str(pulled)]),
        ]
        got.mkdir()
        seconds = {
            name: timed(lambda words=words: cloud_run(cloud, words)) for name, words in steps
        }
        shutil.rmtree(cloud.volume("data") / "here")
        shutil.rmtree(cloud.volume("data") / "there")
        for old in (folder, other, pulled, got):
            shutil.rmtree(old)
        pulls.append(seconds["pull"] / seconds["modal get"])
        pushes.append(seconds["push"] / seconds["modal put"])
        print(", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()))
    print(f"median ratios: pull {median(pulls):.3f}, push {median(pushes):.3f}")


def timed(work: Callable[[], None]) -> float:
    """Return the seconds that ``work`` takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def cloud_run(cloud: CloudFixture, words: list[str]) -> None:
    """Run a command in the checkout."""
    subprocess.run(words, cwd=cloud.checkout, env=cloud.environ, check=True, capture_output=True)


def main() -> None:
    """Run the comparison that the command line selects."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("launch", "transfer"))
    parser.add_argument("--delay", type=float, default=0.0, help="seconds for each request")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--names", action="store_true", help="count each request by name")
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--mb", type=int, default=231)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkout = make_checkout(folder / "checkout")
        executor = IdleExecutor()
        with open_cloud(checkout, folder, executor=executor, delay=options.delay) as cloud:
            cloud.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed client is compiled
            if options.what == "launch":
                prepare(cloud)
                compare_launches(cloud, options.rounds, options.names)
            else:
                compare_transfers(cloud, options.rounds, options.files, options.mb * 1_000_000)


if __name__ == "__main__":
    main()
