"""The samples that an attempt writes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from corpus.tokenizers import ByteTokenizer
from job.paths import CONFIGS
from job.recipe import load
from model.attempt import _sample
from model.gpt import GPT
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
    trainer = SimpleNamespace(recipe=recipe, folder=tmp_path, log=log)
    _sample(trainer, ByteTokenizer(), [1, 2], made, 7, None)  # type: ignore[arg-type]
    assert (tmp_path / "samples" / "step_00000007.txt").exists()
    assert not graphs
    made(torch.tensor([[1, 2, 3]]))
    assert graphs
