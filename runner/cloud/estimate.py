"""How long a run will take, estimated from its FLOPs. Pure: no look at a GPU.

    hours = steps · tokens a step · FLOPs a token / (GPUs · peak FLOP/s · MFU)

MFU, the share of the datasheet's peak that a trainer reaches, is a table: what others measured with the same parts
(torch.compile, fused attention, bfloat16), and where nobody did, a cautious value that says so.
"""

from __future__ import annotations

from job.batch_schedule import tokens_before
from job.network_size import flops_per_token
from job.peak_flops import datasheet_flops
from job.recipe import Recipe
from runner.cloud.fit import fit, uses_bf16
from runner.cloud.gpu_kinds import BY_NAME

REFERENCE_WIDTH = 768
# Narrow networks reach less: nanoGPT's shakespeare_char, 384 wide, takes 3 minutes on an A100, a tenth of the peak
# and a third of 124M's share: the width to the power of 1.6. Wide ones reach more: torchtitan's 8B, 4,096
# wide, 0.41 on an H100 (6,667 tokens/s compiled): to the power of 0.13.
NARROW_POWER, WIDE_POWER = 1.6, 0.13
MOST_MFU = 0.5

# Launching the kernels of one pass through a small network takes this long however fast the GPU is, in seconds
# for each block. It keeps the estimate of a toy from being absurd.
SECONDS_PER_BLOCK = 0.0008
# Start of the container, torch's import and its compiler.
OVERHEAD_SECONDS = 120.0
# An evaluation is a forward pass alone: a third of the FLOPs of training.
FORWARD_SHARE = 1 / 3
AGAIN = 1 + FORWARD_SHARE  # with activation checkpointing the forward pass is made twice
# Tokens of an evaluation where the recipe reads the whole validation set, whose size a plan does not know.
EVAL_TOKENS = 1_000_000


def mfu(recipe: Recipe, gpu: str) -> float:
    """The share of the peak that this network is expected to reach there."""
    ratio = recipe.model.n_embd / REFERENCE_WIDTH
    return min(MOST_MFU, BY_NAME[gpu].mfu * ratio ** (NARROW_POWER if ratio < 1 else WIDE_POWER))


def tokens_per_second(recipe: Recipe, gpu: str, gpus: int) -> float:
    """Expected training speed of ``gpus`` together."""
    peak = datasheet_flops(gpu)
    assert peak is not None  # of every GPU that can be asked for
    if not uses_bf16(recipe, gpu):
        peak *= BY_NAME[gpu].float32_share
    work = flops_per_token(recipe) * (AGAIN if recipe.train.activation_checkpointing else 1)
    by_flops = work / (gpus * peak * mfu(recipe, gpu))
    passes = fit(recipe, gpu, gpus).grad_accum_steps
    by_launches = passes * recipe.model.n_layer * SECONDS_PER_BLOCK / recipe.train.global_batch_tokens
    return 1 / max(by_flops, by_launches)


def training_seconds(recipe: Recipe, gpu: str, gpus: int, first_step: int = 0) -> float:
    """Estimated seconds from ``first_step`` to the end on ``gpus`` of that kind, start and evaluations included."""
    train = recipe.train
    steps = max(0, train.max_steps - first_step)
    if steps == 0:
        return OVERHEAD_SECONDS
    evaluations = -(-train.max_steps // train.eval_every) - first_step // train.eval_every
    tokens = tokens_before(train, train.max_steps) - tokens_before(train, first_step)
    tokens += int(evaluations * (train.eval_tokens or EVAL_TOKENS) * FORWARD_SHARE)
    return tokens / tokens_per_second(recipe, gpu, gpus) + OVERHEAD_SECONDS
