"""The optimizers: AdamW, and Muon for the matrices where a recipe asks for it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from job.recipe import TrainConfig
from model.device import number_format
from model.distributed import World
from model.parallel import part_like, whole

# The five steps of Polar Express (arXiv:2505.16932, the coefficients for a spectrum down to 1e-3): each applies
# x → a x + b x³ + c x⁵ to the singular values, and together they bring them near 1.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)

# The smear's weights begin at 0 and end near 1: at lr itself they would take the whole of a short run. After 600
# steps at lr 3e-3: 1.907 with 1, 1.880 with 3, 1.865 with 10.
SMEAR_LR_SCALE = 10.0


def make_optimizers(
    network: nn.Module, config: TrainConfig, device: torch.device, world: World
) -> list[torch.optim.Optimizer]:
    """AdamW with decoupled decay on matrices only: norms and biases are not pulled to zero. With
    ``optimizer: muon`` the blocks' matrices go to Muon; embeddings and head, tables of rows, stay with AdamW.

    ``lr_scale`` of a group is what the schedule's rate is multiplied by.
    """
    muon = config.optimizer == "muon"
    kinds: defaultdict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        kinds[_kind(name, parameter)].append(parameter)
    matrices = kinds.pop("matrix", [])
    scales = {"embedding": config.embedding_lr_scale, "smear": SMEAR_LR_SCALE}
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr_scale": scales.get(kind, 1.0),
            # Rows of a table that Adam moves at once by lr need no pull; without Muon this is GPT-2's rule.
            "weight_decay": 0.0 if kind in ("vector", "smear") or muon else config.weight_decay,
        }
        for kind, parameters in kinds.items()
    ]
    if not muon and matrices:
        groups.append({"params": matrices, "lr_scale": 1.0, "weight_decay": config.weight_decay})
    adamw = torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=device.type in ("cuda", "cpu")
    )
    if not muon:
        return [adamw]
    # In float32 the products take four times as long on a CPU, which for a small network is as long as the rest of a step.
    dtype = torch.bfloat16 if number_format(config.dtype, device) == "bfloat16" else torch.float32
    return [adamw, Muon(matrices, config, world, dtype)]


def _kind(name: str, parameter: nn.Parameter) -> str:
    if parameter.dim() < 2:
        return "smear" if name == "smear" else "vector"
    if name.startswith(("wte", "wpe")):
        return "embedding"
    return "head" if name.startswith("lm_head") else "matrix"


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024) with NorMuon's second moment of each row (arXiv:2510.05491).

    torch.optim.Muon takes one matrix after another; here those of one shape are stacked, so that a network of
    12 layers needs 4 sequences of products instead of 48, and each process orthogonalises its part of a stack.
    """

    def __init__(
        self, matrices: list[nn.Parameter], config: TrainConfig, world: World, dtype: torch.dtype
    ) -> None:
        by_shape: defaultdict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            by_shape[tuple(matrix.shape)].append(matrix)
        scale = config.muon_lr / config.lr
        super().__init__(
            [{"params": stack, "lr_scale": scale} for stack in by_shape.values()],
            {
                "lr": config.muon_lr,
                "momentum": config.muon_momentum,
                "beta2": 0.95,
                "weight_decay": config.weight_decay,
            },
        )
        self.world, self.dtype = world, dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every stack."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, group)

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
                self.state[p]["second"] = torch.zeros(p.size(0), 1, device=p.device)
        momenta, seconds = ([self.state[p][name] for p in parameters] for name in ("momentum", "second"))
        grads = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        torch._foreach_lerp_(grads, momenta, group["momentum"])  # Nesterov
        rows, columns = parameters[0].shape
        # Queries, keys and values are three matrices in one: 4.338 → 4.325 after 96 steps of a small network (docs/log.md).
        rows = rows // 3 if rows == 3 * columns else rows
        stack_nRC = self._orthogonal(torch.cat([whole(grad) for grad in grads]).view(-1, rows, columns))
        second_nR1 = torch.cat(seconds).view(-1, rows, 1)
        squares_nR1 = torch.linalg.vector_norm(stack_nRC, dim=-1, keepdim=True).square()
        second_nR1.lerp_(squares_nR1 / columns, 1 - group["beta2"])
        # Each row by the root of its second moment, all of a matrix so that it keeps its norm.
        inverse_nR1 = second_nR1.clamp_min(1e-16).reciprocal()
        scaled_n11 = (squares_nR1 * inverse_nR1).sum(-2, keepdim=True).clamp_min(1e-8)
        kept_n11 = squares_nR1.sum(-2, keepdim=True) / scaled_n11
        stack_nRC *= (inverse_nR1 * kept_n11).sqrt()
        torch._foreach_copy_(seconds, second_nR1.view(len(parameters), -1, 1).unbind())
        updates = stack_nRC.view(len(parameters), -1, columns).unbind()
        weights: list[Tensor] = list(parameters)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        step = group["lr"] * max(1.0, rows / columns) ** 0.5
        torch._foreach_sub_(
            weights, [part_like(u, p) for u, p in zip(updates, weights, strict=True)], alpha=step
        )

    def _orthogonal(self, stack_nRC: Tensor) -> Tensor:
        """The stack orthogonalised, in float32; with many processes each does its part of it."""
        size, n = self.world.size, len(stack_nRC)
        if size == 1 or n < size:
            return orthogonal(stack_nRC, self.dtype).float()
        share = -(-n // size)
        padded = torch.cat([stack_nRC, stack_nRC.new_zeros(share * size - n, *stack_nRC.shape[1:])])
        part = padded[self.world.rank * share : (self.world.rank + 1) * share]
        mine = orthogonal(part, self.dtype).contiguous()
        padded = padded.to(self.dtype)  # half the bytes between the processes, and the same numbers
        dist.all_gather_single(padded, mine)
        return padded[:n].float()


def orthogonal(stack_nRC: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The nearest matrices with all singular values 1, about: (n, R, C) float32 to ``dtype``, by products in it."""
    x = stack_nRC.to(dtype)
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x  # the product of a matrix with itself is then the smaller one
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
