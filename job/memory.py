"""Compute the memory of a training step from the recipe alone, without torch.

Counts tensors: weights, gradients, optimizer state, autocast's copies, activations kept for the
backward pass, and logits. tests/model/test_memory.py compares it with torch's count of live
tensors. CUDA's context and the allocator's gaps are added by ``RESERVED`` and ``GAPS``.

The peak is either at the start of the backward pass, with all activations and the loss, or at its
end, with all gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from job.schedules import tokens_seen

if TYPE_CHECKING:
    from job.recipe import ModelConfig, Recipe

WORD = 4  # bytes of a float32

HALF = 2  # bytes of a bfloat16

RESERVED = 1.5e9  # bytes: CUDA context, cuBLAS workspace, compiler

GAPS = 1.05  # factor for the allocator's gaps

# A larger micro-batch does not make an 80 GB GPU faster; peers use 64 x 1,024 too.
AUTO_TOKENS = 65536

AUTO_ON_CPU = 16  # sequences; larger ones overflow the caches


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at its peak."""

    state: float  # weights, gradients, optimizer, autocast's copies
    activations: float  # kept by the blocks
    loss: float  # logits and their gradients

    @property
    def peak(self) -> float:
        """Return the sum."""
        return self.state + self.activations + self.loss

    @property
    def on_gpu(self) -> float:
        """Return the peak plus the GPU's overhead."""
        return self.peak * GAPS + RESERVED


@dataclass(frozen=True)
class _ActivationBytes:
    """Bytes that one token keeps for the backward pass, counted from model/gpt.py and measured.

    Per channel of n_embd: ``block``, ``last``, ``mlp``, ``again``; ``logit`` per logit, ``head``
    per head.

    ``block``: in float32 the block's two inputs and their norms (4 widths), q, k, v (3), the
    attention output (1), and the MLP's two hidden layers (8): 16 widths; modern adds 4 for the
    rotated and normalized q and k. With autocast all are bfloat16, except what an uncompiled
    RMSNorm keeps. ``last``: the inputs of the last norm and the head, and modern's smear. ``mlp``:
    the last block's MLP during its backward pass, which matters for small vocabularies. ``again``:
    the same for the first block.
    """

    block: float
    last: float
    mlp: float
    again: float
    logit: float
    chunked: float  # per logit, in chunks (model/loss.py)
    head: float
    fixed: float  # per block, independent of its width: the norms' statistics


_ACTIVATION_BYTES = {
    ("gpt2", False): _ActivationBytes(
        64, last=8, mlp=24, again=20, logit=12, chunked=12, head=4, fixed=16
    ),
    ("gpt2", True): _ActivationBytes(
        32, last=4, mlp=16, again=12, logit=12, chunked=16, head=4, fixed=16
    ),
    ("modern", False): _ActivationBytes(
        80, last=16, mlp=33, again=30, logit=16, chunked=19, head=12, fixed=8
    ),
    ("modern", True): _ActivationBytes(
        48, last=14.5, mlp=33, again=22, logit=16, chunked=22, head=12, fixed=8
    ),
}

# torch.compile fuses the loss. Bytes per logit by torch's allocator on a fake CUDA device: 2.0 for
# the whole loss (the gradient replaces the logits), 3.8 in chunks (both exist at once).
_COMPILED_LOGIT, _COMPILED_CHUNKED = 2.1, 4.0

# A compiled block of the modern variant in bfloat16 keeps two bytes each of its two inputs and
# their norms, q, k, v and the rotated q and k (5), the attention output, and the squared ReLU (4):
# 14 widths. Counted on a fake CUDA device for speedrun: 28.6.
_COMPILED_MODERN_BLOCK = 30

# Muon stacks all matrices of one shape; bytes per number of the largest stack (the MLP's).
_MUON_STACK = 21


def micro_batch_size(sequences: int, limit: int) -> int:
    """Return the largest divisor of ``sequences`` that is at most ``limit``."""
    return next(size for size in range(min(sequences, limit), 0, -1) if sequences % size == 0)


def training_memory(
    recipe: Recipe, micro_batch: int, processes: int = 1, bf16: bool = True, compiled: bool = True
) -> Memory:
    """Return the peak memory of one of ``processes`` with ``micro_batch`` sequences at once.

    ``bf16``: under autocast. ``compiled``: by torch.compile.
    """
    train, config = recipe.train, recipe.model
    size = network_size(config, recipe.data.tokenizer)
    kept = _ACTIVATION_BYTES[config.variant, bf16]
    width, tokens = config.n_embd, micro_batch * config.block_size
    share = max(1, recipe.sequences_per_step // processes)
    # Gradients persist if they are accumulated, or in the buckets that processes exchange.
    keeps_gradients = share > micro_batch or processes > 1
    in_blocks, head = 12 * config.n_layer * width * width, size.rows * width
    parts = processes if train.shard else 1
    weights = gradients = WORD * size.parameters / parts
    moments = WORD * (2 * size.parameters - (in_blocks if train.optimizer == "muon" else 0)) / parts
    gathered = WORD * (2 * in_blocks / config.n_layer + head) if parts > 1 else 0

    is_fused = compiled and bf16 and config.variant == "modern"
    per_width = _COMPILED_MODERN_BLOCK if is_fused else kept.block
    block = tokens * (width * per_width + config.n_head * kept.head + kept.fixed)
    if config.dropout > 0:
        block += tokens * width * 2  # two masks of a byte
    copies = HALF * size.matrices if bf16 else 0.0
    activations = config.n_layer * block
    in_last = tokens * width * kept.mlp
    if train.activation_checkpointing:  # autocast repeats its copies with the block
        copies = HALF * head if bf16 else 0.0
        activations = tokens * width * (HALF if bf16 else WORD) * config.n_layer
        in_last += block

    compiled &= parts == 1  # when sharded, only the blocks are compiled
    if train.loss_chunk is None:
        per_logit = _COMPILED_LOGIT if compiled else kept.logit
        logits = tokens * size.rows * per_logit
    else:  # the head's gradient, and the newest chunk's addition to it
        per_logit = _COMPILED_CHUNKED if compiled else kept.chunked
        logits = min(tokens, train.loss_chunk) * size.rows * per_logit
        logits += (WORD + (HALF if bf16 else WORD)) * head + tokens * width * WORD
    loss = max(logits + tokens * width * kept.last, in_last)
    begins = weights + moments + gathered + copies + (gradients if keeps_gradients else 0)

    # The embedding's gradient comes last, together with the buffer that it is added to.
    first = max(block + tokens * width * kept.again, WORD * head if keeps_gradients else 0)
    stack = _MUON_STACK * in_blocks / 3 if train.optimizer == "muon" else 0
    ends = weights + moments + gathered + gradients + max(first, stack)
    if begins + activations + loss >= ends:
        return Memory(begins, activations, loss)
    return Memory(ends, 0, 0)


def largest_micro_batch(
    recipe: Recipe,
    available_bytes: float,
    processes: int = 1,
    bf16: bool = True,
    compiled: bool = True,
    max_tokens: int | None = None,
) -> int | None:
    """Return the largest micro-batch that fits into memory and divides the step evenly.

    None if not even one sequence fits. ``max_tokens`` limits its tokens.
    """
    share = max(1, recipe.sequences_per_step // processes)
    bound = share if max_tokens is None else max(1, max_tokens // recipe.model.block_size)
    for size in range(min(share, bound), 0, -1):
        if (
            share % size == 0
            and training_memory(recipe, size, processes, bf16, compiled).on_gpu <= available_bytes
        ):
            return size
    return None


def chosen_micro_batch(
    recipe: Recipe,
    available_bytes: float | None,
    processes: int = 1,
    bf16: bool = True,
    compiled: bool = True,
) -> int:
    """Resolve ``train.micro_batch``: the recipe's number, or for ``auto`` the largest that fits.

    ``available_bytes`` is the GPU's memory in bytes, None for a CPU. Returns 1 if nothing fits.
    """
    if recipe.train.micro_batch != "auto":
        return recipe.train.micro_batch
    if available_bytes is None:
        return AUTO_ON_CPU
    return largest_micro_batch(recipe, available_bytes, processes, bf16, compiled, AUTO_TOKENS) or 1


# Rows of the embedding unless the recipe gives them; `chars` is exact only once the data exists.
ROWS = {"bytes": 320, "chars": 128, "gpt2": 50304}


@dataclass(frozen=True)
class Size:
    """Parameters of a network: all of them, and those in matrix products (head included)."""

    parameters: int
    matrices: int
    rows: int


def network_size(config: ModelConfig, tokenizer: str) -> Size:
    """Count the parameters of the network that model/gpt.py builds."""
    width, rows = config.n_embd, config.vocab_size or ROWS[tokenizer]
    modern = config.variant == "modern"
    blocks = config.n_layer * 12 * width * width
    head = rows * width
    small = (
        width * config.smear
        if modern
        else width * (13 * config.n_layer + 2 if config.bias else 2 * config.n_layer + 1)
    )
    positions = 0 if modern else config.block_size * width
    embeddings = head * ((2 if modern else 1) + config.value_embeddings) + positions
    return Size(blocks + embeddings + small, blocks + head, rows)


def flops_per_token(recipe: Recipe, rows: int | None = None, window: int | None = None) -> float:
    """Return the training FLOPs of one token, 6 N + 12 L D T (PaLM, arXiv:2204.02311, B).

    N counts the parameters of matrix products: the head, but not the embeddings. T is ``window``
    for a short block, by default model.window_size. ``rows`` of the head are known once the data
    is.
    """
    config = recipe.model
    size = network_size(config, recipe.data.tokenizer)
    matrices = size.matrices + ((rows or size.rows) - size.rows) * config.n_embd
    seen = tokens_seen(config, window or config.window_size)
    return 6.0 * matrices + 12.0 * config.n_embd * seen


def out_of_memory_message(device: str, micro_batch: int, smaller: int, reason: str) -> str:
    """Return the message for too little memory for a ``micro_batch`` that can't be halved."""
    if micro_batch == 1:
        return (
            f"{device} has too little memory for one sequence ({reason}). Use a larger GPU, "
            "activation_checkpointing=true, or a smaller n_layer, n_embd or block_size; "
            "`runner estimate` shows what fits"
        )
    return (
        f"{device} has too little memory for micro_batch {micro_batch} ({reason}). Run it again "
        f"with micro_batch={smaller}; the batch size and the result stay the same"
    )


def smaller_micro_batch_message(smaller: int, micro_batch: int, times: int) -> str:
    """Return the message for a micro-batch that was too large and is now ``smaller``."""
    return (
        f"out of memory with micro_batch {micro_batch}: continuing with {smaller}"
        f"{micro_batches_text(times)}; the batch stays the same. "
        f"Set micro_batch: {smaller} in the recipe"
    )


def micro_batches_text(times: int) -> str:
    """Return how a process divides its part of the batch; nothing if it does not."""
    return f", in {times} micro-batches" if times > 1 else ""
