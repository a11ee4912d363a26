"""The samples of an attempt, and what it imports."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from corpus.tokenizers import ByteTokenizer
from job.paths import CHECKOUT, CONFIGS
from job.recipe import load
from model.attempt import _sample
from model.gpt import GPT
from model.step import StepRunner
from tests.model.conftest import Lab
from tests.model.test_gpt import network


def test_sampling_from_a_compiled_network_compiles_nothing(tmp_path: Path) -> None:
    made, graphs = GPT(network().config, vocab_size=320), []

    def run_uncompiled(
        graph: torch.fx.GraphModule, inputs: list[torch.Tensor]
    ) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    for block in made.h:
        block.compile(dynamic=False, backend=run_uncompiled)
    recipe = load(CONFIGS / "quickstart.yaml", ["sample.max_new_tokens=3"])
    log = SimpleNamespace(
        display=SimpleNamespace(log_only=lambda text: None),
        metrics=SimpleNamespace(text=lambda kind, text, step: None),
    )
    steps = SimpleNamespace(eager=partial(StepRunner.eager, SimpleNamespace(compiled=True)))
    trainer = SimpleNamespace(recipe=recipe, folder=tmp_path, log=log, steps=steps)
    _sample(trainer, ByteTokenizer(), [1, 2], made, 7, None)  # type: ignore[arg-type]
    assert (tmp_path / "samples" / "step_00000007.txt").exists()
    assert not graphs
    made(torch.tensor([[1, 2, 3]]))
    assert graphs


def test_an_uncompiled_attempt_does_not_import_the_compiler(lab: Lab) -> None:
    arguments = [str(lab.recipe), "--name", "r", "max_steps=1", "optimizer=muon"]
    code = (
        f"import sys; from model.train import main; assert main({arguments}) == 0; "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=lab.environment(), cwd=CHECKOUT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
