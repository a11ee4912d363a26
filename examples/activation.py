"""An experiment: which activation fits a curve best? See examples/README.md."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from experiment import TBLogger, load_checkpoint, save_checkpoint, should_stop

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


def train(
    output_dir: str = ".",
    activation: Literal["relu", "gelu", "tanh"] = "gelu",
    lr: float = 3e-3,
    steps: int = 200,
    width: int = 32,
    seed: int = 1,
) -> dict[str, float]:
    """Fit sin(3x) between -2 and 2, or resume; return the error between the training points."""
    config = {name: value for name, value in locals().items() if name != "output_dir"}
    torch.manual_seed(seed)
    x = torch.linspace(-2, 2, 128).unsqueeze(1)
    val_x = (x[1:] + x[:-1]) / 2
    model = nn.Sequential(
        nn.Linear(1, width),
        ACTIVATIONS[activation](),
        nn.Linear(width, width),
        ACTIVATIONS[activation](),
        nn.Linear(width, 1),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    checkpoint = load_checkpoint(output_dir, config=config, model=model, optimizer=optimizer)

    log = TBLogger(output_dir, "train")
    for step in range(checkpoint.step + 1 if checkpoint else 1, steps + 1):
        loss = (model(x) - torch.sin(3 * x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log.log(step, loss=loss.item())
        stop = should_stop()
        if stop or step == steps:
            save_checkpoint(output_dir, step, config=config, model=model, optimizer=optimizer)
        if stop:
            break

    with torch.no_grad():
        return {"val_loss": (model(val_x) - torch.sin(3 * val_x)).square().mean().item()}
