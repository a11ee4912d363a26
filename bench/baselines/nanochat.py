"""Train nanochat's network and optimizer with the settings of its scripts/base_train.py.

Started by bench/trainers.py as a process, with its orders as JSON. ``lr`` scales all of its
learning rates. Without FlashAttention 3 all layers attend fully, as nanochat recommends.
"""

from __future__ import annotations

import math
import sys

import torch

from bench.baselines.training_loop import Orders, train

HEAD_SIZE = 128
REFERENCE_TOKENS = 2**19  # tokens in a step of the size that its rates were tuned for
TOKENS_PER_PARAMETER = 12  # nanochat's default training length


def main() -> None:
    """Build the network, compile it, and train."""
    orders = Orders.from_argv()
    sys.path.insert(0, orders.checkout)
    from nanochat.flash_attention import USE_FA3  # type: ignore[import-not-found]
    from nanochat.gpt import GPT, GPTConfig  # type: ignore[import-not-found]

    torch.manual_seed(orders.seed)
    torch.set_float32_matmul_precision("high")
    heads = orders.n_embd // HEAD_SIZE if orders.n_embd % HEAD_SIZE == 0 else orders.n_head
    with torch.device("meta"):
        network = GPT(
            GPTConfig(
                sequence_len=orders.block_size,
                vocab_size=orders.vocab_size,
                n_layer=orders.n_layer,
                n_head=heads,
                n_kv_head=heads,
                n_embd=orders.n_embd,
                window_pattern="SSSL" if USE_FA3 else "L",
            )
        )
    network.to_empty(device=orders.device)
    network.init_weights()
    compiled = torch.compile(network, dynamic=False)
    batch_ratio = orders.sequences * orders.block_size / REFERENCE_TOKENS
    scale = math.sqrt(batch_ratio) * (orders.lr or 1.0)
    # nanochat scales its weight decay down for runs longer than its default length.
    counts = network.num_scaling_params()
    planned = TOKENS_PER_PARAMETER * (counts["transformer_matrices"] + counts["lm_head"])
    tokens = max(orders.steps * orders.sequences * orders.block_size, 1)
    weight_decay = 0.28 * math.sqrt(batch_ratio) * min(1.0, planned / tokens)
    optimizer = network.setup_optimizer(
        unembedding_lr=0.008 * scale,
        embedding_lr=0.3 * scale,
        scalar_lr=0.5 * scale,
        matrix_lr=0.02 * scale,
        weight_decay=weight_decay,
    )

    def step_optimizer(step: int) -> None:
        rate, momentum = schedule(step, orders.steps)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
            if group["kind"] == "muon":
                group["momentum"] = momentum
                group["weight_decay"] = (
                    weight_decay * 0.5 * (1 + math.cos(math.pi * step / orders.steps))
                )
        optimizer.step()

    train(orders, network, compiled, step_optimizer, flash_attention_3=bool(USE_FA3))


def schedule(step: int, steps: int) -> tuple[float, float]:
    """Return the factor on the learning rates, and Muon's momentum.

    The rates rise for 40 steps, stay, and fall to a twentieth over the last 65 % of the steps.
    """
    down = round(0.65 * steps)
    left = (steps - step) / max(1, down)
    rate = min((step + 1) / 40, 1.0)
    if step >= 40 and left < 1:
        rate = left + (1 - left) * 0.05
    momentum = 0.85 + 0.12 * min(step / 400, 1.0)
    if step >= 400 and left < 1:
        momentum = 0.97 * left + 0.90 * (1 - left)
    return rate, momentum


if __name__ == "__main__":
    main()
