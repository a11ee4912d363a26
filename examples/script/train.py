"""Train a bigram model on the bytes of this file: a plain script that does not know the runner."""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--resume", action="store_true", help="continue from out/ckpt.pt")
args = parser.parse_args()

torch.manual_seed(1)
text = torch.tensor(list(Path(__file__).read_bytes()))
model = nn.Embedding(256, 256)  # for each byte the logits of the next one
optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
path = Path("out/ckpt.pt")
first_step = 1
if args.resume:
    checkpoint = torch.load(path, weights_only=True)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    first_step = checkpoint["step"] + 1

path.parent.mkdir(exist_ok=True)
for step in range(first_step, args.steps + 1):
    loss = F.cross_entropy(model(text[:-1]), text[1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0 or step == args.steps:
        print(f"step {step}: loss {loss.item():.4f}", flush=True)
        state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, path)
