"""Train transformers' GPT-2 as a typical hand-written loop does: AdamW, autocast, torch.compile.

Started by bench/trainers.py as a process, with its orders as JSON.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from bench.baselines.training_loop import Orders, cosine, train


def main() -> None:
    """Build the network, compile it on CUDA, and train."""
    orders = Orders.from_argv()
    cuda = orders.device == "cuda"
    torch.manual_seed(orders.seed)
    torch.set_float32_matmul_precision("high")
    config = GPT2Config(
        vocab_size=orders.vocab_size,
        n_positions=orders.block_size,
        n_embd=orders.n_embd,
        n_layer=orders.n_layer,
        n_head=orders.n_head,
        resid_pdrop=orders.dropout,
        embd_pdrop=orders.dropout,
        attn_pdrop=orders.dropout,
        use_cache=False,
    )
    network: torch.nn.Module = GPT2LMHeadModel(config)
    network.to(orders.device)
    decayed = [p for p in network.parameters() if p.dim() >= 2]
    others = [p for p in network.parameters() if p.dim() < 2]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": 0.1},
        {"params": others, "weight_decay": 0.0},
    ]
    peak = orders.lr or 6e-4
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=True)

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        logits = network(inputs).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def step_optimizer(step: int) -> None:
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, orders.steps, peak)
        optimizer.step()

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext()

    forward = torch.compile(loss_of, dynamic=False) if cuda else loss_of
    train(orders, network, forward, step_optimizer, autocast)


if __name__ == "__main__":
    main()
