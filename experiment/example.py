"""A small GPT that learns Python from the source code of Python's own library, byte by byte.

    runner host run EXAMPLE.py                     some seconds on a CPU; the same line goes on after a stop
    runner host run EXAMPLE.py lr=1e-3 --name other
    runner cloud run EXAMPLE.py --gpu L4

Every parameter of train() is an option of the command; what it returns is the run's result. What the run writes
goes below output_dir.
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
    """Bytes in, logits of the next byte out. Shapes: B sequences, T bytes, C channels."""

    def __init__(self, n_layer: int, n_embd: int, block_size: int) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, n_embd)
        self.positions = nn.Embedding(block_size, n_embd)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                n_embd, 4, 4 * n_embd, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(n_layer)
        )
        self.norm = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, 256)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        length = tokens_BT.size(1)
        mask_TT = nn.Transformer.generate_square_subsequent_mask(length, device=tokens_BT.device)
        x_BTC = self.bytes(tokens_BT) + self.positions.weight[:length]
        for block in self.blocks:
            x_BTC = block(x_BTC, src_mask=mask_TT, is_causal=True)
        logits_BTV: Tensor = self.head(self.norm(x_BTC))
        return logits_BTV


def batch(text: Tensor, step: int, size: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Windows of the text and the bytes that follow. They depend on the step alone, so that a resumed run reads
    what an unbroken one would have read."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(text) - block_size - 1, (size,), generator=generator).tolist()
    windows = torch.stack([text[start : start + block_size + 1] for start in starts])
    return windows[:, :-1], windows[:, 1:]


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
    """Train, and go on from the newest checkpoint in ``output_dir`` where there is one."""
    config = {name: value for name, value in locals().items() if name != "output_dir"}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    source = "".join(inspect.getsource(module) for module in (inspect, textwrap, tokenize))
    text = torch.tensor(list(source.encode()), device=device)
    split = len(text) * 9 // 10

    network = SmallGPT(n_layer, n_embd, block_size).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    found = load_checkpoint(output_dir, config=config, model=network, optimizer=optimizer)
    first = found.step if found else 0

    log, val_log = TBLogger(output_dir, "train"), TBLogger(output_dir, "val")
    for step in range(first + 1, steps + 1):
        inputs, targets = batch(text[:split], step, batch_size, block_size)
        loss = F.cross_entropy(network(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        log.log(step, loss=loss.item())
        stop = should_stop()
        if step % 100 == 0 or step == steps:
            val_log.log(step, loss=validation_loss(network, text[split:], block_size))
            print(f"step {step}/{steps}  loss {loss.item():.4f}")
        if stop or step % 100 == 0 or step == steps:
            save_checkpoint(output_dir, step, config=config, model=network, optimizer=optimizer)
        if stop:
            break
    return {"val_loss": validation_loss(network, text[split:], block_size), "steps": steps}


@torch.no_grad()
def validation_loss(network: nn.Module, text: Tensor, block_size: int) -> float:
    """Mean loss over 64 windows of the text, the same each time."""
    inputs, targets = batch(text, 0, 64, block_size)
    return F.cross_entropy(network(inputs).flatten(0, 1), targets.flatten()).item()


if __name__ == "__main__":
    print(train())
