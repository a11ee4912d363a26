"""Print the loss of out/ckpt.pt on the bytes of this file."""

from pathlib import Path

import torch
from torch.nn import functional as F

weights = torch.load("out/ckpt.pt", weights_only=True)["model"]["weight"]
text = torch.tensor(list(Path(__file__).read_bytes()))
print(f"validation loss {F.cross_entropy(weights[text[:-1]], text[1:]).item():.4f}")
