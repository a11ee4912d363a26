"""The network: GPT-2 exactly, or a modern variant of it.

    network = GPT(ModelConfig(n_layer=4, n_head=4, n_embd=128, block_size=64), vocab_size=128)
    loss = network(ids_BT, targets_BT)

The names of tensors end with their shape:
    B batch · T positions of this call · S positions attended to · D width (n_embd)
    H heads · K head size (D / H) · V rows of the vocabulary · N tokens (B x T)
    P previous tokens of the smear
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from inference.engine import KVCache, LayerCache, Start
from job.recipe import ModelConfig
from job.schedules import short_blocks
from model.attention import Mask, attend, attention_mask, position_index
from model.fp8 import Linear
from model.functions import DeferredNorm, SquaredReLU, gelu, rms_norm
from model.loss import ChunkLoss, chunked_cross_entropy, cross_entropy, exact_loss, softcap

ROTARY_BASE = 10_000.0
# Gemma 2 and modded-nanogpt cap the logits, so that no token's score grows without bound early in
# training.
LOGIT_SOFTCAP = 15.0
# Devices on which a step waits for memory: the network is then computed in the order that moves
# the fewest bytes. There the residual stream, which autocast leaves in float32, also has autocast's
# dtype, as in llm.c and nanochat: a block of GPT-2 moves 20% fewer bytes.
MEMORY_BOUND = ("cuda",)


class Rotary(nn.Module):
    """Rotary positions (RoFormer, arXiv:2104.09864): rotate channel pairs by their position."""

    cos_TK: Tensor
    sin_TK: Tensor

    def __init__(self, head_size: int, block_size: int) -> None:
        super().__init__()
        frequency = ROTARY_BASE ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
        angle_TK = torch.outer(torch.arange(block_size, dtype=torch.float32), frequency)
        cos_TK, sin_TK = angle_TK.cos(), angle_TK.sin()
        self.register_buffer("cos_TK", torch.cat((cos_TK, cos_TK), -1), persistent=False)
        self.register_buffer("sin_TK", torch.cat((sin_TK, -sin_TK), -1), persistent=False)

    def forward(self, x_BT2HK: Tensor, start: Start) -> Tensor:
        """Rotate queries and keys together: half the operations, whose number limits a CPU."""
        at = position_index(start, x_BT2HK.size(1))
        cos = self.cos_TK[at][..., None, None, :].to(x_BT2HK.dtype)
        sin = self.sin_TK[at][..., None, None, :].to(x_BT2HK.dtype)
        # A pair is a channel of the left half and its counterpart in the right half.
        return torch.addcmul(x_BT2HK * cos, x_BT2HK.roll(x_BT2HK.size(-1) // 2, -1), sin)


class BlockContext(NamedTuple):
    """The context of a block, next to its input."""

    mask: Mask
    rotary: Rotary | None
    cache: LayerCache | None
    start: Start  # position of the first token


class Attention(nn.Module):
    """Causal self-attention with the three projections in one matrix, as in GPT-2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        bias = config.bias and config.variant != "modern"
        self.dropout = config.dropout
        self.kernel = "auto"  # StepRunner sets it to TrainConfig.attention
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=bias)

    def forward(self, x_BTD: Tensor, value_BTD: Tensor | None, context: BlockContext) -> Tensor:
        B, T, D = x_BTD.shape
        mask, rotary, cache, start = context
        qkv_BT3HK = self.c_attn(x_BTD).view(B, T, 3, self.n_head, -1)
        if rotary is None:
            q_BTHK, k_BTHK, v_BTHK = qkv_BT3HK.unbind(2)
        else:
            # split, because the backward pass of slices would sum full-size gradients
            qk_BT2HK, v_BT1HK = qkv_BT3HK.split((2, 1), 2)
            q_BTHK, k_BTHK = _qk_norm(qk_BT2HK, rotary, start).unbind(2)
            v_BTHK = v_BT1HK.squeeze(2)
        if value_BTD is not None:
            v_BTHK = v_BTHK + value_BTD.view_as(v_BTHK)
        q, k, v = q_BTHK.transpose(1, 2), k_BTHK.transpose(1, 2), v_BTHK.transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(k, v, start)
        y_BHTK = attend(q, k, v, mask, self.dropout if self.training else 0.0, self.kernel)
        return self.c_proj(y_BHTK.transpose(1, 2).reshape(B, T, D))


def _qk_norm(qk_BT2HK: Tensor, rotary: Rotary, start: Start) -> Tensor:
    """Rotate and normalize queries and keys, which bounds the attention scores.

    A rotation keeps the norm, so the order changes only rounding and speed. Inductor moves 7.3 GB
    less per 65,536 tokens when the norm comes first. An uncompiled CPU step is 20% faster when it
    comes last.
    """
    if qk_BT2HK.is_cuda:
        return rotary(rms_norm(qk_BT2HK), start)
    return rms_norm(rotary(qk_BT2HK, start))


class MLP(nn.Module):
    """Two linear layers with four times the width between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.modern = config.variant == "modern"
        bias = config.bias and not self.modern
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, bias=bias)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, bias=bias)

    def forward(self, x_BTD: Tensor, norm: nn.Module) -> Tensor:
        r, is_compiled = None, torch.compiler.is_compiling()  # not compiled, it writes more
        if self.modern and is_compiled and x_BTD.device.type in MEMORY_BOUND:
            x_BTD, r = DeferredNorm.apply(x_BTD)  # type: ignore[no-untyped-call]
        else:
            x_BTD = norm(x_BTD)
        h = self.c_fc(x_BTD)
        # Squared ReLU is Primer's (arXiv:2109.08668).
        h = SquaredReLU.apply(h, r) if self.modern else gelu(h)  # type: ignore[no-untyped-call]
        return self.c_proj(h)


class RMSNorm(nn.Module):
    """``rms_norm`` as a module."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return rms_norm(x_BTD)


def make_norm(config: ModelConfig) -> nn.Module:
    """Return a LayerNorm, or for the modern variant an RMSNorm without weights."""
    if config.variant == "modern":
        return RMSNorm()
    return nn.LayerNorm(config.n_embd, bias=config.bias)


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = make_norm(config)
        self.attn = Attention(config)
        self.ln_2 = make_norm(config)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, value_BTD: Tensor | None, context: BlockContext) -> Tensor:
        x_BTD = x_BTD + self.drop(self.attn(self.ln_1(x_BTD), value_BTD, context))
        return x_BTD + self.drop(self.mlp(x_BTD, self.ln_2))


class GPT(nn.Module):
    """The network. ``vocab_size`` is the number of rows, padding included.

    Parameters have the names of Hugging Face's GPT-2, so that its files load by name.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        # StepRunner sets these from TrainConfig.
        self.loss_chunk: int | None = None
        self.chunk_loss: ChunkLoss = exact_loss
        self.fp8_head = False
        self.activation_checkpointing = False
        self.short = short_blocks(config)
        self.set_attention_window(config.window_size)
        modern = config.variant == "modern"
        self.wte = nn.Embedding(vocab_size, config.n_embd)
        self.wpe = None if modern else nn.Embedding(config.block_size, config.n_embd)
        # Each channel adds a learned share of the previous tokens, the nearest first, so that token
        # pairs are visible from the first step (modded-nanogpt's smear without its gate): loss
        # 1.944 → 1.865 after 600 steps of shakespeare_char_cpu with one token; 1.962 with one and
        # 1.905 with three after 115 shorter steps.
        shape = config.smear, config.n_embd
        self.smear = nn.Parameter(torch.zeros(shape)) if modern and config.smear else None
        self.rotary = Rotary(config.n_embd // config.n_head, config.block_size) if modern else None
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        # Every second block from the last adds an embedding of each token to its value (from
        # modded-nanogpt): the last blocks then see the token itself.
        last = range(config.n_layer - 1, -1, -2)[: config.value_embeddings]
        self.vte = nn.ModuleDict({str(i): nn.Embedding(vocab_size, config.n_embd) for i in last})
        self.ln_f = make_norm(config)
        # GPT-2 ties its head to the embedding; the modern variant does not.
        self.lm_head = nn.Linear(config.n_embd, vocab_size, bias=False) if modern else None
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the first weights from torch's global generator."""
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layer)  # GPT-2 paper, section 2.3
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2 or name == "smear":
                if name.endswith("bias"):
                    parameter.zero_()
            elif self.config.variant == "gpt2":
                parameter.normal_(0.0, residual_std if name.endswith("c_proj.weight") else 0.02)
            elif name.endswith("c_proj.weight") or name == "lm_head.weight":
                # Each block is the identity at first (muP-like, as in modded-nanogpt).
                parameter.zero_()
            elif name.startswith("vte"):
                parameter.normal_(0.0, parameter.size(1) ** -0.5)
            elif name == "wte.weight":
                parameter.normal_(0.0, 1.0)  # the first norm rescales it
            else:
                bound = math.sqrt(3.0 / parameter.size(1))  # variance 1 / fan-in
                parameter.uniform_(-bound, bound)

    def set_attention_window(self, window: int | None, block_mask: BlockMask | None = None) -> None:
        """Limit the short blocks to ``window`` tokens.

        ``block_mask`` is the same window for flex_attention, which skips what no token sees. It
        needs the compiler, so generation does not use it.
        """
        self.window, self.block_mask = window, block_mask

    def hidden(self, ids_BT: Tensor, cache: KVCache | None = None, start: Start = 0) -> Tensor:
        """Return the normalized output of the last block (B, T, D).

        ``start`` is the position of the first token.
        """
        x_BTD, T = self.wte(ids_BT), ids_BT.size(1)
        device = x_BTD.device
        if self.wpe is not None:
            x_BTD = x_BTD + self.wpe.weight[position_index(start, T)]
        if device.type in MEMORY_BOUND and torch.is_autocast_enabled(device.type):
            x_BTD = x_BTD.to(torch.get_autocast_dtype(device.type))
        if self.config.variant == "modern":
            x_BTD = rms_norm(x_BTD)
        if self.smear is not None:
            P = self.smear.size(0)
            before_BPD = x_BTD.new_zeros(x_BTD.size(0), P, x_BTD.size(2))
            if cache is not None:
                before_BPD = cache.previous(x_BTD, start)
            embeddings_BSD = torch.cat((before_BPD, x_BTD), dim=1)
            for i, share_D in enumerate(self.smear.to(x_BTD.dtype), start=1):
                x_BTD = torch.addcmul(x_BTD, embeddings_BSD[:, P - i : P - i + T], share_D)
        x_BTD = self.drop(x_BTD)
        long_mask = attention_mask(T, start, None, device)
        short_mask: Mask = self.block_mask if cache is None else None
        if short_mask is None and any(self.short):
            short_mask = attention_mask(T, start, self.window, device)
        for i, block in enumerate(self.h):
            mask = short_mask if self.short[i] else long_mask
            has_value = str(i) in self.vte
            value_BTD = self.vte[str(i)](ids_BT).to(x_BTD.dtype) if has_value else None
            layer = cache.layers[i] if cache is not None else None
            context = BlockContext(mask, self.rotary, layer, start)
            if self.activation_checkpointing and self.training:
                x_BTD = checkpoint(block, x_BTD, value_BTD, context, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, value_BTD, context)
        return self.ln_f(x_BTD).to(x_BTD.dtype)  # autocast returns float32

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Return the scores of the next token in float32 (B, T, V)."""
        return softcap(F.linear(x_BTD, self.head), self.softcap)

    @property
    def head(self) -> Tensor:
        """The matrix (V, D) that turns the last hidden state into logits."""
        return self.wte.weight if self.lm_head is None else self.lm_head.weight

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.wte.weight.device

    @property
    def softcap(self) -> float | None:
        """The bound of the logits; None for GPT-2."""
        return None if self.lm_head is None else LOGIT_SOFTCAP

    def forward(self, ids_BT: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        """Return the mean loss in nats over the targets; without targets the logits (B, T, V)."""
        x_BTD = self.hidden(ids_BT)
        if targets_BT is None:
            return self.logits(x_BTD)
        x_ND, targets_N = x_BTD.flatten(0, 1), targets_BT.flatten()
        given = (x_ND, self.head, targets_N, self.softcap)
        if self.loss_chunk is None:
            return cross_entropy(*given)
        fp8 = self.fp8_head and self.training
        return chunked_cross_entropy(*given, self.loss_chunk, self.chunk_loss, fp8)

    def new_cache(self, batch: int, length: int) -> KVCache:
        """Return an empty cache for ``batch`` sequences of up to ``length`` positions."""
        width, heads, like = self.config.n_embd, self.config.n_head, self.wte.weight
        empty = like.new_zeros(batch, heads, length, width // heads)
        windows = [self.window if is_short else None for is_short in self.short]
        layers = [LayerCache(window, empty.clone(), empty.clone()) for window in windows]
        return KVCache(layers, like.new_zeros(batch, self.config.smear, width))
