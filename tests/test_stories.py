"""Run the command lines of whole pages of docs/, as printed and in order.

Modal is the stand-in. A cloned repository is a folder of small programs with the same names, which
write the same output files. GPT-2 and torchrun are only planned (--dry-run), to save time.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from runner.cli import main
from runner.console import CliContext
from tests.conftest import CHECKOUT
from tests.runner.targets.modal.conftest import CloudFixture, make_checkout, open_cloud
from tests.tiny_recipe import write_recipe

PAGES = ("nanogpt", "modded_nanogpt", "nanochat", "gpt2", "experiments")

# Files that each program reads -> files that it writes.
PROGRAMS = {
    "nanoGPT": {
        "data/shakespeare_char/prepare.py": "-> data/shakespeare_char/train.bin",
        "data/openwebtext/prepare.py": "-> data/openwebtext/train.bin",
        "train.py": "data/shakespeare_char/train.bin -> out-shakespeare-char/ckpt.pt",
        "sample.py": "out-shakespeare-char/ckpt.pt ->",
    },
    "modded-nanogpt": {
        "data/cached_fineweb10B.py": "-> data/fineweb10B/fineweb_train_000001.bin",
        "train_gpt.py": "$DATA_PATH/data/fineweb10B/fineweb_train_000001.bin -> logs/run.txt",
    },
    "nanochat": {"scripts/chat_cli.py": "-> base/answer"},
}
PROGRAM = """\
import os, sys
from pathlib import Path
needs, writes = (os.path.expandvars(part).split() for part in {files!r}.split("->"))
assert all(Path(path).exists() for path in needs), needs
for path in map(Path, writes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("written")
print("ran", *sys.argv)
"""

LAUNCHES = ("host", "local", "cloud", "sweep", "resume")


def block_of(page: str, language: str = "") -> str:
    """Return the page's code blocks of a language; blocks of commands have none."""
    text = (CHECKOUT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", text)
    return "".join(block for name, block in blocks if name == language)


def lines_of(page: str) -> list[str]:
    """Return the command lines of the page, without comments."""
    lines = block_of(page).replace("\\\n", " ").splitlines()
    lines = [line.split("  #")[0].strip() for line in lines]
    return [line for line in lines if line]


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[CloudFixture]:
    checkout = make_checkout(tmp_path / "checkout")
    shutil.copytree(CHECKOUT / "configs", checkout / "configs", dirs_exist_ok=True)
    write_recipe(checkout / "configs" / "gpt2_124m.yaml", str(checkout / "texts" / "text.txt"))
    (checkout / "lr.yaml").write_text(block_of("gpt2", "yaml"))
    with open_cloud(checkout, tmp_path) as made:
        yield made


def is_run(words: list[str]) -> bool:
    """Return True for a launch that takes only seconds."""
    if "--" in words:
        return "--setup" not in words and "--nproc_per_node=8" not in words
    return "--detach" in words or (words[:2] == ["host", "run"] and "--name" in words)


def insert(words: list[str], option: str) -> list[str]:
    """Insert an option of the runner before ``--``."""
    at = words.index("--") if "--" in words else len(words)
    return [*words[:at], option, *words[at:]]


class Reader:
    """Run the lines of a page: for real, with --dry-run, or in the shell of an earlier line."""

    def __init__(self, cloud: CloudFixture) -> None:
        self.cloud, self.variables = cloud, dict[str, str]()
        self.shell: list[str] = []  # the command that opened it

    def run(self, line: str) -> None:
        for name, value in self.variables.items():
            line = line.replace(f"${name}", value)
        program, *words = shlex.split(line)
        if program != "runner":
            self._run_other(line, program, words)
        elif words[0] == "shell" and "--" not in words:
            self.shell = words
        elif words[0] == "local" and shutil.which("docker") is None:
            pass
        elif is_run(words):
            self.cloud.run(*insert(words, "-y"))
        elif words[0] in LAUNCHES and "--dry-run" not in words:
            self.invoke(insert(words, "--dry-run"))
        else:
            self.invoke(words if words[0] != "tensorboard" else [*words, "--help"])

    def _run_other(self, line: str, program: str, words: list[str]) -> None:
        name, equals, value = line.partition("=")
        if program == "git":
            make_repository(self.cloud.checkout / words[-1])
        elif program == "cp":
            shutil.copy(*(self.cloud.checkout / word for word in words))
        elif equals and name.isupper() and " " not in name and not self.shell:
            self.variables[name] = shlex.split(value)[0]
        elif "torchrun" not in line:
            assert self.shell, f"not a command of the runner: {line}"
            self.cloud.run(*self.shell, "-y", "--", "bash", "-c", line)

    def invoke(self, words: list[str]) -> None:
        """Run a command in this process: a new one takes a second of CPU to start."""
        environ = {**self.cloud.environ, "WANDB_API_KEY": "key"}
        cli = CliContext(environ, self.cloud.checkout, terminal=False)
        with self.cloud.modal.active():
            result = CliRunner().invoke(main, words, obj=cli)
        assert result.exit_code == 0, f"runner {shlex.join(words)}\n{result.output}"


def make_repository(folder: Path) -> None:
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "train_shakespeare_char.py").touch()
    for path, files in PROGRAMS[folder.name].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(PROGRAM.format(files=files))


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_the_page_work(cloud: CloudFixture, page: str) -> None:
    reader = Reader(cloud)
    if page == "nanochat":  # its pipeline is only planned: write a file of it, to be pulled
        (cloud.checkout / "tokenizer.pkl").write_text("written")
        cloud.run("push", "data", "tokenizer.pkl", "--dest", "nanochat/tokenizer.pkl", "-y")
    for line in lines_of(page):
        reader.run(line)
