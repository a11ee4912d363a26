"""The network: GPT-2 exactly, or a modern variant of it, in one file.

    network = GPT(ModelConfig(n_layer=4, n_head=4, n_embd=128, block_size=64), vocab_size=128)
    loss = network(ids_BT, targets_BT)

Names of tensors carry their shape:
    B batch · T positions of this call · S positions attended to · D width (n_embd)
    H heads · K head size (D / H) · V rows of the vocabulary
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.recipe import ModelConfig

ROTARY_BASE = 10_000.0
# Gemma 2 and modded-nanogpt cap the logits so that no single token's score runs away early in training.
LOGIT_SOFTCAP = 15.0
IGNORED = -100  # a target that counts for nothing


@dataclass
class LayerCache:
    """Keys and values of the positions already read, for one block: (B, H, S, K), filled to ``length``."""

    k_BHSK: Tensor
    v_BHSK: Tensor

    def extend(self, k_BHTK: Tensor, v_BHTK: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Write the new positions at ``start`` and return all that are filled."""
        end = start + k_BHTK.size(2)
        self.k_BHSK[:, :, start:end] = k_BHTK
        self.v_BHSK[:, :, start:end] = v_BHTK
        return self.k_BHSK[:, :, :end], self.v_BHSK[:, :, :end]


class Rotary(nn.Module):
    """Rotary positions (RoFormer, arXiv:2104.09864): pairs of a head's channels turn with the position."""

    cos_TK: Tensor
    sin_TK: Tensor

    def __init__(self, head_size: int, block_size: int) -> None:
        super().__init__()
        frequency = ROTARY_BASE ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
        angle_TK = torch.outer(torch.arange(block_size, dtype=torch.float32), frequency)
        self.register_buffer("cos_TK", angle_TK.cos(), persistent=False)
        self.register_buffer("sin_TK", angle_TK.sin(), persistent=False)

    def forward(self, x_BT2HK: Tensor, start: int) -> Tensor:
        """Turn queries and keys together: half as many operations, which is what counts on a CPU."""
        end = start + x_BT2HK.size(1)
        cos = self.cos_TK[start:end, None, None].to(x_BT2HK.dtype)
        sin = self.sin_TK[start:end, None, None].to(x_BT2HK.dtype)
        left, right = x_BT2HK.chunk(2, dim=-1)
        return torch.cat((left * cos + right * sin, right * cos - left * sin), dim=-1)


def rms_norm(x: Tensor) -> Tensor:
    """RMSNorm over the last dimension, without weights."""
    return F.rms_norm(x, (x.size(-1),))


class Attention(nn.Module):
    """Causal self-attention, the three projections in one matrix as in GPT-2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.modern = config.variant == "modern"
        bias = config.bias and not self.modern
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=bias)

    def forward(self, x_BTD: Tensor, rotary: Rotary | None, cache: LayerCache | None, start: int) -> Tensor:
        B, T, D = x_BTD.shape
        qkv_BT3HK = self.c_attn(x_BTD).view(B, T, 3, self.n_head, -1)
        if rotary is None:
            q_BTHK, k_BTHK, v_BTHK = qkv_BT3HK.unbind(2)
        else:  # QK-norm after the rotation, which keeps lengths: bounded attention scores
            qk_BT2HK, v_BTHK = qkv_BT3HK[:, :, :2], qkv_BT3HK[:, :, 2]
            q_BTHK, k_BTHK = rms_norm(rotary(qk_BT2HK, start)).unbind(2)
        q, k, v = q_BTHK.transpose(1, 2), k_BTHK.transpose(1, 2), v_BTHK.transpose(1, 2)
        mask = None
        if cache is not None:
            k, v = cache.extend(k, v, start)
            if T > 1 and start > 0:  # is_causal aligns top left, which is right only from position 0
                mask = torch.ones(T, start + T, dtype=torch.bool, device=x_BTD.device).tril(start)
        y_BHTK = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None and T > 1,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.c_proj(y_BHTK.transpose(1, 2).reshape(B, T, D))


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
        h = F.relu(h).square() if self.modern else F.gelu(h, approximate="tanh")
        return self.c_proj(h)


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        modern = config.variant == "modern"
        self.ln_1 = nn.Identity() if modern else nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config)
        self.ln_2 = nn.Identity() if modern else nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)
        self.norm = rms_norm if modern else _unchanged
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, rotary: Rotary | None, cache: LayerCache | None, start: int) -> Tensor:
        x_BTD = x_BTD + self.drop(self.attn(self.norm(self.ln_1(x_BTD)), rotary, cache, start))
        return x_BTD + self.drop(self.mlp(self.norm(self.ln_2(x_BTD))))


def _unchanged(x: Tensor) -> Tensor:
    return x


class GPT(nn.Module):
    """The network. ``vocab_size`` is the number of rows, padding included.

    Parameter names are those of Hugging Face's GPT-2, so that its files load by name.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        modern = config.variant == "modern"
        self.wte = nn.Embedding(vocab_size, config.n_embd)
        self.wpe = None if modern else nn.Embedding(config.block_size, config.n_embd)
        self.rotary = Rotary(config.n_embd // config.n_head, config.block_size) if modern else None
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.Identity() if modern else nn.LayerNorm(config.n_embd, bias=config.bias)
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

    def hidden(self, ids_BT: Tensor, cache: list[LayerCache] | None = None, start: int = 0) -> Tensor:
        """The last block's output, normed: (B, T, D). ``start`` is the position of the first token."""
        x_BTD = self.wte(ids_BT)
        positions = slice(start, start + ids_BT.size(1))
        x_BTD = rms_norm(x_BTD) if self.wpe is None else x_BTD + self.wpe.weight[positions]
        x_BTD = self.drop(x_BTD)
        for i, block in enumerate(self.h):
            x_BTD = block(x_BTD, self.rotary, cache[i] if cache is not None else None, start)
        return self.ln_f(x_BTD) if self.lm_head is None else rms_norm(x_BTD)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Scores of the next token, in float32: (B, T, V)."""
        if self.lm_head is None:
            return F.linear(x_BTD, self.wte.weight).float()
        return LOGIT_SOFTCAP * torch.tanh(self.lm_head(x_BTD).float() / LOGIT_SOFTCAP)

    def forward(self, ids_BT: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        """With targets the mean loss in nats over those that are not IGNORED, else the logits (B, T, V)."""
        logits_BTV = self.logits(self.hidden(ids_BT))
        if targets_BT is None:
            return logits_BTV
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED)

    def new_cache(self, batch: int, length: int) -> list[LayerCache]:
        """An empty key-value cache for ``batch`` sequences of up to ``length`` positions."""
        weight = self.wte.weight
        shape = (batch, self.config.n_head, length, self.config.n_embd // self.config.n_head)
        return [LayerCache(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.h]

    def num_parameters(self) -> int:
        """All parameters, embeddings included."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self) -> float:
        """Training FLOPs of one token, forward and backward: 6 N + 12 L D T (PaLM, arXiv:2204.02311, B).

        N counts the parameters of matrix products, the head included, embeddings not.
        """
        matrices = sum(p.numel() for name, p in self.named_parameters() if p.dim() == 2 and "wte" not in name)
        matrices -= self.wpe.weight.numel() if self.wpe is not None else 0
        matrices += self.wte.weight.numel() if self.lm_head is None else 0
        c = self.config
        return 6.0 * matrices + 12.0 * c.n_layer * c.n_embd * c.block_size
