"""A recipe that trains in seconds on one core, and its text."""

from __future__ import annotations

from pathlib import Path

RECIPE = """\
model: {variant: modern, n_layer: 2, n_head: 2, n_embd: 32, block_size: 32}
data: {dataset: tiny, source: SOURCE, tokenizer: bytes, split: tail}
train:
  max_steps: 60
  global_batch_tokens: 256
  micro_batch: 8
  lr: 3e-3
  dtype: float32
  warmup_steps: 5
  eval_every: 20
  eval_tokens: 1024
  checkpoint_every: 10
  log_every: 5
  keep_last: 3
sample: {prompt: "the ", max_new_tokens: 20}
"""

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run")


def write_recipe(path: Path, source: str) -> Path:
    """Write the recipe to ``path``, with ``source`` as its `data.source`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(RECIPE.replace("SOURCE", source))
    return path


def write_text(path: Path) -> Path:
    """Write 600 lines of seven words each, 20 kB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "\n".join(" ".join(WORDS[(i * j + i) % 10] for j in range(7)) for i in range(600))
    )
    return path
