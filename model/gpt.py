"""The network: GPT-2 exactly, or a modern variant of it, in one file.

    network = GPT(ModelConfig(n_layer=4, n_head=4, n_embd=128, block_size=64), vocab_size=128)
    loss = network(ids_BT, targets_BT)

Names of tensors carry their shape:
    B batch · T positions of this call · S positions attended to · D width (n_embd)
    H heads · K head size (D / H) · V rows of the vocabulary
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from job.attention_windows import short_blocks, tokens_seen
from job.recipe import ModelConfig
from model.cache import Cache, LayerCache
from model.loss import chunked_cross_entropy, cross_entropy, softcap

ROTARY_BASE = 10_000.0
# Gemma 2 and modded-nanogpt cap the logits so that no single token's score runs away early in training.
LOGIT_SOFTCAP = 15.0
# On a CPU, attention to at most so many positions is written as two products: in bfloat16 the backward pass of
# torch's scaled_dot_product_attention takes 5.4 ms there for 12 x 64 positions, this one less than 1 (docs/log.md).
PRODUCTS_UP_TO = 256
# Autocast alone leaves what the blocks add to in float32. On a GPU, whose step waits for memory, it has the dtype of what
# is added, as in llm.c and nanochat: a block of GPT-2 then moves a fifth less (docs/log.md).
LOW_RESIDUAL = ("cuda",)
IGNORED = -100  # a target that counts for nothing

Mask = Tensor | BlockMask | None
# TrainConfig.attention → torch's kernels, that one first.
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
KERNEL_ORDERS = {
    name: [first, *(other for other in KERNELS.values() if other is not first)]
    for name, first in KERNELS.items()
}


class Rotary(nn.Module):
    """Rotary positions (RoFormer, arXiv:2104.09864): pairs of a head's channels turn with the position."""

    cos_TK: Tensor
    sin_TK: Tensor

    def __init__(self, head_size: int, block_size: int) -> None:
        super().__init__()
        frequency = ROTARY_BASE ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
        angle_TK = torch.outer(torch.arange(block_size, dtype=torch.float32), frequency)
        cos_TK, sin_TK = angle_TK.cos(), angle_TK.sin()
        self.register_buffer("cos_TK", torch.cat((cos_TK, cos_TK), -1), persistent=False)
        self.register_buffer("sin_TK", torch.cat((sin_TK, -sin_TK), -1), persistent=False)

    def forward(self, x_BT2HK: Tensor, start: int) -> Tensor:
        """Turn queries and keys together: half as many operations, which is what counts on a CPU."""
        end = start + x_BT2HK.size(1)
        cos = self.cos_TK[start:end, None, None].to(x_BT2HK.dtype)
        sin = self.sin_TK[start:end, None, None].to(x_BT2HK.dtype)
        # The pairs are a channel of the left half and its like in the right: rolled by half, each meets its other.
        return torch.addcmul(x_BT2HK * cos, x_BT2HK.roll(x_BT2HK.size(-1) // 2, -1), sin)


def rms_norm(x: Tensor) -> Tensor:
    """RMSNorm over the last dimension, without weights."""
    return F.rms_norm(x, (x.size(-1),))


def attention_mask(T: int, start: int, window: int | None, device: torch.device) -> Tensor | None:
    """What ``attend`` adds to its scores (float32) or keeps of them (bool), (T, S); None where causal says it all.

    The T queries begin at position ``start``; S positions are seen by any of them.
    """
    if T == 1:
        return None
    seen_by_one = window or start + T
    start = min(start, seen_by_one - 1)  # counted from the first position that is seen
    S = start + T
    if device.type == "cpu" and S <= PRODUCTS_UP_TO:
        unseen_TS = torch.full((T, S), -math.inf)
        mask_TS = unseen_TS.triu(start + 1)
        return mask_TS if seen_by_one >= S else mask_TS + unseen_TS.tril(start - seen_by_one)
    if start == 0 and seen_by_one >= S:
        return None  # is_causal aligns top left, which is right only from position 0
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(start).triu(start - seen_by_one + 1)


@lru_cache
def block_mask(T: int, window: int, device: torch.device) -> BlockMask:
    """A window over T positions as flex_attention wants it: which blocks of 128 x 128 scores it computes at all."""

    size = torch.tensor(window, device=device)  # a number would be compiled in

    def seen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key < size)

    return create_block_mask(seen, None, None, T, T, device=device)


def attend(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask: Mask, dropout: float = 0.0, kernel: str = "auto"
) -> Tensor:
    """Causal attention of T queries to S keys: (B, H, T, K)."""
    if isinstance(mask, BlockMask):
        # Autocast does not know it and would leave q and k in float32 behind their norm.
        q_BHTK, k_BHSK = q_BHTK.to(v_BHSK.dtype), k_BHSK.to(v_BHSK.dtype)
        y_BHTK: Tensor = flex_attention(q_BHTK, k_BHSK, v_BHSK, block_mask=mask)
        return y_BHTK
    if mask is not None and mask.is_floating_point():
        scores_BHTS = (q_BHTK * q_BHTK.size(-1) ** -0.5) @ k_BHSK.mT + mask
        return F.dropout(scores_BHTS.softmax(-1).to(v_BHSK.dtype), dropout) @ v_BHSK
    causal = mask is None and q_BHTK.size(2) > 1
    order = KERNEL_ORDERS.get(kernel)
    # Not around the whole step: the compiler's cache on the disk knows a kernel by what is written here.
    with sdpa_kernel(order, set_priority=True) if order else nullcontext():
        return F.scaled_dot_product_attention(
            q_BHTK, k_BHSK, v_BHSK, attn_mask=mask, is_causal=causal, dropout_p=dropout
        )


class Attention(nn.Module):
    """Causal self-attention, the three projections in one matrix as in GPT-2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.modern = config.variant == "modern"
        bias = config.bias and not self.modern
        self.dropout = config.dropout
        self.kernel = "auto"  # set by the trainer: TrainConfig.attention
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=bias)

    def forward(
        self, x_BTD: Tensor, mask: Mask, rotary: Rotary | None, cache: LayerCache | None, start: int
    ) -> Tensor:
        B, T, D = x_BTD.shape
        qkv_BT3HK = self.c_attn(x_BTD).view(B, T, 3, self.n_head, -1)
        if rotary is None:
            q_BTHK, k_BTHK, v_BTHK = qkv_BT3HK.unbind(2)
        else:  # QK-norm after the rotation, which keeps lengths: bounded attention scores
            qk_BT2HK, v_BT1HK = qkv_BT3HK.split((2, 1), 2)  # slices would be added up in the backward pass
            (q_BTHK, k_BTHK), v_BTHK = rms_norm(rotary(qk_BT2HK, start)).unbind(2), v_BT1HK.squeeze(2)
        q, k, v = q_BTHK.transpose(1, 2), k_BTHK.transpose(1, 2), v_BTHK.transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(k, v, start)
        y_BHTK = attend(q, k, v, mask, self.dropout if self.training else 0.0, self.kernel)
        return self.c_proj(y_BHTK.transpose(1, 2).reshape(B, T, D))


class SquaredReLU(torch.autograd.Function):
    """relu(x)², with a backward pass of one product: torch's own goes through pow and threshold, 4 ms of a 40 ms
    step on 2 CPU cores."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (positive,) = ctx.saved_tensors
        return (grads[0] * positive).mul_(2)


class MLP(nn.Module):
    """Two layers, four times the width between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.modern = config.variant == "modern"
        bias = config.bias and not self.modern
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h = self.c_fc(x_BTD)
        # GPT-2's GELU is the tanh form; squared ReLU is Primer's (arXiv:2109.08668).
        h = SquaredReLU.apply(h) if self.modern else F.gelu(h, approximate="tanh")  # type: ignore[no-untyped-call]
        return self.c_proj(h)


def norm(config: ModelConfig) -> nn.Module:
    """LayerNorm, or RMSNorm without weights."""
    if config.variant == "modern":
        return nn.RMSNorm(config.n_embd, elementwise_affine=False)
    return nn.LayerNorm(config.n_embd, bias=config.bias)


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = norm(config)
        self.attn = Attention(config)
        self.ln_2 = norm(config)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self, x_BTD: Tensor, mask: Mask, rotary: Rotary | None, cache: LayerCache | None, start: int
    ) -> Tensor:
        x_BTD = x_BTD + self.drop(self.attn(self.ln_1(x_BTD), mask, rotary, cache, start))
        return x_BTD + self.drop(self.mlp(self.ln_2(x_BTD)))


class GPT(nn.Module):
    """The network. ``vocab_size`` is the number of rows, padding included.

    Parameter names are those of Hugging Face's GPT-2, so that its files load by name.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.loss_chunk: int | None = None  # set by the trainer: TrainConfig.loss_chunk
        self.activation_checkpointing = False
        self.short = short_blocks(config)
        self.see(config.window_size)
        modern = config.variant == "modern"
        self.wte = nn.Embedding(vocab_size, config.n_embd)
        self.wpe = None if modern else nn.Embedding(config.block_size, config.n_embd)
        # What each channel takes of the token before, so that pairs of tokens are there from the first step on (the
        # smear of modded-nanogpt, without its gate): 1.944 → 1.865 after 600 steps of shakespeare_char_cpu.
        self.smear = nn.Parameter(torch.zeros(config.n_embd)) if modern else None
        self.rotary = Rotary(config.n_embd // config.n_head, config.block_size) if modern else None
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = norm(config)
        # GPT-2 reads its logits off the embedding; the modern variant has a head of its own.
        self.lm_head = nn.Linear(config.n_embd, vocab_size, bias=False) if modern else None
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layer)  # GPT-2 paper, section 2.3
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                if name.endswith("bias"):
                    parameter.zero_()
            elif self.config.variant == "gpt2":
                parameter.normal_(0.0, residual_std if name.endswith("c_proj.weight") else 0.02)
            elif name.endswith("c_proj.weight") or name == "lm_head.weight":
                parameter.zero_()  # a network that begins as the identity (muP-like, as in modded-nanogpt)
            elif name == "wte.weight":
                parameter.normal_(0.0, 1.0)  # the first norm rescales it
            else:
                bound = math.sqrt(3.0 / parameter.size(1))  # variance 1 / fan-in
                parameter.uniform_(-bound, bound)

    def see(self, window: int | None, block_mask: BlockMask | None = None) -> None:
        """Let the short blocks see ``window`` tokens. ``block_mask`` is the same window for flex_attention, which skips
        what no token sees; that has to be compiled, so generation never uses it."""
        self.window, self.block_mask = window, block_mask

    def hidden(self, ids_BT: Tensor, cache: Cache | None = None, start: int = 0) -> Tensor:
        """The last block's output, normed: (B, T, D). ``start`` is the position of the first token."""
        x_BTD, T = self.wte(ids_BT), ids_BT.size(1)
        if self.wpe is not None:
            x_BTD = x_BTD + self.wpe.weight[start : start + T]
        elif self.smear is not None:
            x_BTD = rms_norm(x_BTD)
            before_B1D = torch.zeros_like(x_BTD[:, :1]) if cache is None else cache.before(x_BTD, start)
            x_BTD = torch.addcmul(x_BTD, torch.cat((before_B1D, x_BTD[:, :-1]), dim=1), self.smear)
        if x_BTD.device.type in LOW_RESIDUAL and torch.is_autocast_enabled(x_BTD.device.type):
            x_BTD = x_BTD.to(torch.get_autocast_dtype(x_BTD.device.type))
        x_BTD = self.drop(x_BTD)
        long_mask = attention_mask(T, start, None, x_BTD.device)
        short_mask: Mask = self.block_mask if cache is None else None
        if short_mask is None and any(self.short):
            short_mask = attention_mask(T, start, self.window, x_BTD.device)
        for i, block in enumerate(self.h):
            mask = short_mask if self.short[i] else long_mask
            if self.activation_checkpointing and self.training:
                x_BTD = checkpoint(block, x_BTD, mask, self.rotary, None, start, use_reentrant=False)
            else:
                layer = cache.layers[i] if cache is not None else None
                x_BTD = block(x_BTD, mask, self.rotary, layer, start)
        return self.ln_f(x_BTD)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Scores of the next token, in float32: (B, T, V)."""
        return softcap(F.linear(x_BTD, self.head), self.softcap)

    @property
    def head(self) -> Tensor:
        """The matrix (V, D) that the logits are read off."""
        return self.wte.weight if self.lm_head is None else self.lm_head.weight

    @property
    def softcap(self) -> float | None:
        return None if self.lm_head is None else LOGIT_SOFTCAP

    def forward(self, ids_BT: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        """With targets the mean loss in nats over those that are not IGNORED, else the logits (B, T, V)."""
        x_BTD = self.hidden(ids_BT)
        if targets_BT is None:
            return self.logits(x_BTD)
        x_ND, targets_N = x_BTD.flatten(0, 1), targets_BT.flatten()
        if self.loss_chunk is None:
            return cross_entropy(x_ND, self.head, targets_N, self.softcap, IGNORED)
        return chunked_cross_entropy(x_ND, self.head, targets_N, self.softcap, IGNORED, self.loss_chunk)

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for ``batch`` sequences of up to ``length`` positions."""
        c = self.config
        shape = (batch, c.n_head, length, c.n_embd // c.n_head)
        return Cache.empty([self.window if short else None for short in self.short], shape, self.wte.weight)

    def num_parameters(self) -> int:
        """All parameters, embeddings included."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, window: int | None = None) -> float:
        """Training FLOPs of one token, forward and backward: 6 N + 12 L D T (PaLM, arXiv:2204.02311, B).

        N counts the parameters of matrix products, the head included, embeddings not. T is for a short block ``window``,
        or the one it has.
        """
        matrices = sum(p.numel() for name, p in self.named_parameters() if p.dim() == 2 and "wte" not in name)
        matrices -= self.wpe.weight.numel() if self.wpe is not None else 0
        matrices += self.wte.weight.numel() if self.lm_head is None else 0
        return 6.0 * matrices + 12.0 * self.config.n_embd * tokens_seen(self.config, window or self.window)
