"""The memory that a training step needs, from the recipe alone. Pure, and free of torch.

It counts tensors: weights, gradients, the optimizer's state, what autocast copies, what a block keeps for its
backward pass, and the logits. tests/model/test_memory.py holds it against torch's own count of live tensors.
What CUDA, the allocator's gaps and the compiler take beside is not in it: ``RESERVED`` and ``GAPS`` are for that.

The peak is at one of two moments: when the backward pass begins, with all activations there and the loss being
differentiated; or at its end, with all gradients there.
"""

from __future__ import annotations

from dataclasses import dataclass

from job.recipe import ModelConfig, Recipe
from job.schedules import tokens_seen

WORD = 4  # bytes of a float32

HALF = 2  # bytes of a bfloat16

RESERVED = 1.5e9  # bytes: the CUDA context, cuBLAS's workspace, the compiler's own

GAPS = 1.05  # what the allocator's gaps add

# More tokens than this in one micro-batch make an 80 GB GPU no faster: 64 x 1,024 is what others train with.
AUTO_TOKENS = 65536

AUTO_ON_CPU = 16  # sequences; a CPU has no lanes to fill, and its caches are small


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at its peak."""

    state: float  # weights, gradients, optimizer, autocast's copies
    activations: float  # what the blocks keep
    loss: float  # logits and what is made of them

    @property
    def peak(self) -> float:
        """All of it."""
        return self.state + self.activations + self.loss

    @property
    def on_gpu(self) -> float:
        """The peak and what a GPU loses beside it."""
        return self.peak * GAPS + RESERVED


@dataclass(frozen=True)
class _Kept:
    """What one token leaves for the backward pass, in bytes for each channel of n_embd (block, last, mlp, again), for
    each logit, and for each head. Counted from model/gpt.py and measured.

    ``block``: in float32 the block's two inputs and their norms (4 widths), q, k, v (3), what attention gives (1), the
    MLP's two hidden layers (8): 16 widths; modern 4 more, for the rotated and the normed q and k. With autocast
    all is bfloat16, but for what an uncompiled RMSNorm keeps.
    ``last``: the input of the last norm and of the head; modern's smear too. ``mlp``: what the last block's MLP needs
    while it is differentiated, which counts where there are few logits; ``again``: the same of the first block.
    """

    block: float
    last: float
    mlp: float
    again: float
    logit: float
    chunked: float  # of a logit, by model/loss.py in chunks
    head: float
    fixed: float  # of a block, in bytes, whatever its width: the norms' statistics


_KEPT = {
    ("gpt2", False): _Kept(64, last=8, mlp=24, again=20, logit=12, chunked=12, head=4, fixed=16),
    ("gpt2", True): _Kept(32, last=4, mlp=16, again=12, logit=12, chunked=16, head=4, fixed=16),
    ("modern", False): _Kept(80, last=16, mlp=33, again=30, logit=16, chunked=19, head=12, fixed=8),
    ("modern", True): _Kept(
        48, last=14.5, mlp=33, again=22, logit=16, chunked=22, head=12, fixed=8
    ),
}

# torch.compile fuses the loss. Bytes per logit by torch's allocator on a fake CUDA device: 2.0 for
# the whole loss (the gradient replaces the logits), 3.8 in chunks (both exist at once).
_COMPILED_LOGIT, _COMPILED_CHUNKED = 2.1, 4.0

# Muon works on all matrices of one shape at once; bytes for each number of the largest stack, two hidden layers' wide.
_MUON_STACK = 21


def micro_batch_size(sequences: int, most: int) -> int:
    """The largest divisor of ``sequences`` that is at most ``most``: micro-batches of one size."""
    return next(size for size in range(min(sequences, most), 0, -1) if sequences % size == 0)


def training_memory(
    recipe: Recipe, micro_batch: int, processes: int = 1, bf16: bool = True, compiled: bool = True
) -> Memory:
    """What one of ``processes`` holds at its peak with ``micro_batch`` sequences taken at once.

    ``bf16``: under autocast; ``compiled``: by torch.compile.
    """
    train, config = recipe.train, recipe.model
    size, kept = network_size(config, recipe.data.tokenizer), _KEPT[config.variant, bf16]
    width, tokens = config.n_embd, micro_batch * config.block_size
    share = max(1, recipe.sequences_per_step // processes)
    # Gradients lie there all the time where they are accumulated, or in the buckets that processes exchange.
    keeps_gradients = share > micro_batch or processes > 1
    in_blocks, head = 12 * config.n_layer * width * width, size.rows * width
    parts = processes if train.shard else 1
    weights = gradients = WORD * size.parameters / parts
    moments = WORD * (2 * size.parameters - (in_blocks if train.optimizer == "muon" else 0)) / parts
    gathered = WORD * (2 * in_blocks / config.n_layer + head) if parts > 1 else 0

    block = tokens * (width * kept.block + config.n_head * kept.head + kept.fixed)
    if config.dropout > 0:
        block += tokens * width * 2  # two masks of a byte
    copies = HALF * size.matrices if bf16 else 0.0
    activations = config.n_layer * block
    in_last = tokens * width * kept.mlp
    if train.activation_checkpointing:  # autocast's copies are made anew with the block
        copies = HALF * head if bf16 else 0.0
        activations = tokens * width * (HALF if bf16 else WORD) * config.n_layer
        in_last += block

    compiled &= parts == 1  # sharded, blocks are compiled and the loss is not
    if train.loss_chunk is None:
        per_logit = _COMPILED_LOGIT if compiled else kept.logit
        logits = tokens * size.rows * per_logit
    else:  # the head's gradient is ready with the loss, beside what the newest chunk adds to it
        per_logit = _COMPILED_CHUNKED if compiled else kept.chunked
        logits = min(tokens, train.loss_chunk) * size.rows * per_logit
        logits += (WORD + (HALF if bf16 else WORD)) * head + tokens * width * WORD
    loss = max(logits + tokens * width * kept.last, in_last)
    begins = weights + moments + gathered + copies + (gradients if keeps_gradients else 0)

    # The embedding's gradient comes last, beside the one that it is added to.
    first = max(block + tokens * width * kept.again, WORD * head if keeps_gradients else 0)
    stack = _MUON_STACK * in_blocks / 3 if train.optimizer == "muon" else 0
    ends = weights + moments + gathered + gradients + max(first, stack)
    if begins + activations + loss >= ends:
        return Memory(begins, activations, loss)
    return Memory(ends, 0, 0)


def largest_micro_batch(
    recipe: Recipe,
    room: float,
    processes: int = 1,
    bf16: bool = True,
    compiled: bool = True,
    most_tokens: int | None = None,
) -> int | None:
    """The most sequences at once that fit into ``room`` bytes of a GPU and divide the step evenly; None where not even
    one fits. ``most_tokens`` bounds the tokens at once."""
    share = max(1, recipe.sequences_per_step // processes)
    bound = share if most_tokens is None else max(1, most_tokens // recipe.model.block_size)
    for size in range(min(share, bound), 0, -1):
        if (
            share % size == 0
            and training_memory(recipe, size, processes, bf16, compiled).on_gpu <= room
        ):
            return size
    return None


def chosen_micro_batch(
    recipe: Recipe, room: float | None, processes: int = 1, bf16: bool = True, compiled: bool = True
) -> int:
    """What ``train.micro_batch`` comes to: the recipe's number, or for ``auto`` what fits into ``room`` bytes of a GPU,
    1 where nothing does; ``room`` None: a CPU."""
    if recipe.train.micro_batch != "auto":
        return recipe.train.micro_batch
    if room is None:
        return AUTO_ON_CPU
    return largest_micro_batch(recipe, room, processes, bf16, compiled, AUTO_TOKENS) or 1


# Rows of the embedding where the recipe names none. `chars` is known only when the data is there.
ROWS = {"bytes": 320, "chars": 128, "gpt2": 50304}


@dataclass(frozen=True)
class Size:
    """Parameters of a network: all of them, and those of matrix products (the head included)."""

    parameters: int
    matrices: int
    rows: int


def network_size(config: ModelConfig, tokenizer: str) -> Size:
    """Count as model/gpt.py builds it."""
    width, rows = config.n_embd, config.vocab_size or ROWS[tokenizer]
    modern = config.variant == "modern"
    blocks = config.n_layer * 12 * width * width
    head = rows * width
    small = (
        width
        if modern
        else width * (13 * config.n_layer + 2 if config.bias else 2 * config.n_layer + 1)
    )
    positions = 0 if modern else config.block_size * width
    embeddings = head * (2 if modern else 1) + positions
    return Size(blocks + embeddings + small, blocks + head, rows)


def flops_per_token(recipe: Recipe) -> float:
    """Training FLOPs of one token, forward and backward, as model/gpt.py counts them: 6 N + 12 L C T (PaLM,
    arXiv:2204.02311, appendix B), with T the window where a block has one, at its final size."""
    config = recipe.model
    matrices = network_size(config, recipe.data.tokenizer).matrices
    return 6.0 * matrices + 12.0 * config.n_embd * tokens_seen(config, config.window_size)
