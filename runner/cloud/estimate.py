"""How long a run will take, estimated from its FLOPs. Pure: no look at a GPU.

    hours = steps · tokens a step · FLOPs a token / (GPUs · peak FLOP/s · MFU)

FLOPs a token are 6 N + 12 L C T (PaLM, arXiv:2204.02311, appendix B), as the trainer counts them.
"""

from __future__ import annotations

from model.recipe import Recipe
from runner.cloud.fit import network_size

# Dense bf16 FLOP/s by the makers' datasheets (T4: fp16), as in model/device.py.
PEAK_FLOPS = {
    "T4": 65e12,
    "L4": 121e12,
    "A10": 125e12,
    "L40S": 362e12,
    "A100": 312e12,
    "A100-40GB": 312e12,
    "A100-80GB": 312e12,
    "RTX-PRO-6000": 504e12,
    "H100": 989e12,
    "H100!": 989e12,
    "H200": 989e12,
    "B200": 2.25e15,
    "B200+": 2.25e15,
    "B300": 2.25e15,
}
# The share of the peak that a GPT-2 sized network reaches with torch.compile; wide ones reach more.
MFU = 0.4
# Launching the kernels of one pass through a small network takes this long however fast the GPU is, in seconds
# for each block. It keeps the estimate of a toy from being absurd.
SECONDS_PER_BLOCK = 0.0008
# Start of the container, torch's import and its compiler, evaluations and checkpoints.
OVERHEAD_SECONDS = 120.0


def flops_per_token(recipe: Recipe) -> float:
    """Forward and backward."""
    config = recipe.model
    matrices = network_size(config, recipe.data.tokenizer).matrices
    return 6.0 * matrices + 12.0 * config.n_layer * config.n_embd * config.block_size


def training_seconds(recipe: Recipe, gpu: str, gpus: int, first_step: int = 0) -> float:
    """Estimated seconds from ``first_step`` to the end on ``gpus`` of that kind, overhead included."""
    steps = max(0, recipe.train.max_steps - first_step)
    if steps == 0:
        return OVERHEAD_SECONDS
    share = max(1, recipe.sequences_per_step // gpus)
    passes = -(-share // min(recipe.train.micro_batch, share))
    by_flops = recipe.train.global_batch_tokens * flops_per_token(recipe) / (gpus * PEAK_FLOPS[gpu] * MFU)
    by_launches = passes * recipe.model.n_layer * SECONDS_PER_BLOCK
    return steps * max(by_flops, by_launches) + OVERHEAD_SECONDS
