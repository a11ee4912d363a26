"""Train a small GPT, byte by byte, on the source code of Python's standard library.

    runner host run EXAMPLE.py                        # takes seconds on a CPU
    runner host run EXAMPLE.py lr=1e-3 --name slower  # set a parameter of train()
    runner cloud run EXAMPLE.py --gpu L4              # on a rented GPU

The parameters of train() are the options of the command, and the dict that it returns is the run's
result. If you interrupt a run, the same command resumes it.

Shapes: B sequences, T bytes in each, C channels, V = 256 values of a byte.
"""

from __future__ import annotations

import inspect
import textwrap
import tokenize

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiment import TBLogger, load_checkpoint, save_checkpoint, should_stop


class SmallGPT(nn.Module):
    """A transformer that predicts the next byte."""

    def __init__(self, n_layer: int, n_embd: int, block_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, n_embd)
        self.positions = nn.Embedding(block_size, n_embd)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                d_model=n_embd,
                nhead=4,
                dim_feedforward=4 * n_embd,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(n_layer)
        )
        self.norm = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, 256)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return the logits of each next byte."""
        length = tokens_BT.size(1)
        mask_TT = nn.Transformer.generate_square_subsequent_mask(length, device=tokens_BT.device)
        x_BTC = self.embedding(tokens_BT) + self.positions.weight[:length]
        for block in self.blocks:
            x_BTC = block(x_BTC, src_mask=mask_TT, is_causal=True)
        logits_BTV: Tensor = self.head(self.norm(x_BTC))
        return logits_BTV


def load_text(device: str) -> tuple[Tensor, Tensor]:
    """Return the bytes to train on and the bytes to evaluate on."""
    source = "".join(inspect.getsource(module) for module in (inspect, textwrap, tokenize))
    text = torch.tensor(list(source.encode()), device=device)
    split = len(text) * 9 // 10
    return text[:split], text[split:]


def get_batch(text: Tensor, step: int, batch_size: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Return random windows of the text, and the same windows one byte later.

    They depend on the step alone, so a resumed run sees the batches of an unbroken one.
    """
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(text) - block_size - 1, (batch_size,), generator=generator).tolist()
    windows = torch.stack([text[start : start + block_size + 1] for start in starts])
    return windows[:, :-1], windows[:, 1:]


def compute_loss(model: nn.Module, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the mean cross-entropy of the next byte, in nats."""
    return F.cross_entropy(model(inputs_BT).flatten(0, 1), targets_BT.flatten())


@torch.no_grad()
def evaluate(model: nn.Module, text: Tensor, block_size: int) -> float:
    """Return the loss over 64 windows of the text, which are the same each time."""
    return compute_loss(model, *get_batch(text, 0, 64, block_size)).item()


def train(
    output_dir: str = ".",
    lr: float = 2e-3,
    steps: int = 300,
    n_layer: int = 2,
    n_embd: int = 64,
    block_size: int = 64,
    batch_size: int = 16,
    seed: int = 1337,
) -> dict[str, float]:
    """Train, or resume from the newest checkpoint in ``output_dir``; return the results."""
    # All parameters but the folder: a checkpoint is loaded only if these are the same.
    config = {name: value for name, value in locals().items() if name != "output_dir"}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    train_text, val_text = load_text(device)
    model = SmallGPT(n_layer, n_embd, block_size).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)

    checkpoint = load_checkpoint(output_dir, config=config, model=model, optimizer=optimizer)
    first_step = checkpoint.step + 1 if checkpoint else 1
    train_log, val_log = TBLogger(output_dir, "train"), TBLogger(output_dir, "val")
    for step in range(first_step, steps + 1):
        loss = compute_loss(model, *get_batch(train_text, step, batch_size, block_size))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        train_log.log(step, loss=loss.item())

        is_milestone = step % 100 == 0 or step == steps
        if is_milestone:
            val_log.log(step, loss=evaluate(model, val_text, block_size))
            print(f"step {step}/{steps}  loss {loss.item():.4f}")
        stop = should_stop()  # Ctrl-C, a preemption, a time limit, a spent budget
        if is_milestone or stop:
            save_checkpoint(output_dir, step, config=config, model=model, optimizer=optimizer)
        if stop:
            break
    return {"val_loss": evaluate(model, val_text, block_size), "steps": steps}


if __name__ == "__main__":
    print(train())
