"""The optimizers: AdamW, and Muon for the matrices if the recipe selects it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adamw import adamw

from job.recipe import TrainConfig
from model.device import number_format
from model.distributed import World, full_tensor, shard_like

# The five steps of Polar Express (arXiv:2505.16932, coefficients for a spectrum down to 1e-3).
# Each applies x → a x + b x³ + c x⁵ to the singular values; together they bring them close to 1.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)

# The smear's weights start at 0 and end near 1: at lr itself a short run would end before that.
# Loss after 600 steps at lr 3e-3: 1.907 with 1, 1.880 with 3, 1.865 with 10.
SMEAR_LR_SCALE = 10.0
NORMUON_BETA2 = 0.95


def make_optimizers(
    network: nn.Module, config: TrainConfig, world: World, compiled: bool = False
) -> list[Optimizer]:
    """Return AdamW, and with ``optimizer: muon`` a Muon for the blocks' matrices.

    Weight decay applies to matrices only: norms and biases are not pulled to zero. Embeddings and
    head are tables of rows and stay with AdamW. A group's learning rate is the schedule's rate
    times its ``lr_scale``. ``compiled`` applies to Muon.
    """
    muon = config.optimizer == "muon"
    kinds: defaultdict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        kinds[_kind(name, parameter)].append(parameter)
    matrices = kinds.pop("matrix", [])
    if not muon and matrices:
        kinds["matrix"] = matrices
    scales = {"embedding": config.embedding_lr_scale, "smear": SMEAR_LR_SCALE}
    groups: list[dict[str, Any]] = []
    for kind, parameters in kinds.items():
        # Adam moves a whole row of a table by lr at once, so with Muon tables need no decay.
        # Without Muon this is GPT-2's rule.
        decay = 0.0 if muon or kind in ("vector", "smear") else config.weight_decay
        group = {"params": parameters, "lr_scale": scales.get(kind, 1.0), "weight_decay": decay}
        groups.append(group)
    optimizer = AdamW(groups, config, fused=world.device.type in ("cuda", "cpu"))
    if not muon:
        return [optimizer]
    # In float32 the products take four times as long on a CPU: for a small network as long as the
    # rest of a step.
    is_bf16 = number_format(config.dtype, world.device) == "bfloat16"
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    return [optimizer, Muon(matrices, config, world, dtype, compiled)]


def _kind(name: str, parameter: nn.Parameter) -> str:
    if name == "smear":
        return "smear"
    if parameter.dim() < 2:
        return "vector"
    if name.startswith(("wte", "wpe", "vte")):
        return "embedding"
    return "head" if name.startswith("lm_head") else "matrix"


class Optimizer:
    """Parameters in groups, and their state.

    The base class of torch.optim imports torch's compiler: 1.5 s of CPU time at each start.
    """

    def __init__(self, groups: list[dict[str, Any]], **defaults: Any) -> None:
        self.defaults = defaults
        self.param_groups = [defaults | group for group in groups]
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    def step(self) -> None:
        """Update each parameter that has a gradient."""
        raise NotImplementedError


class AdamW(Optimizer):
    """torch's AdamW, by its function."""

    def __init__(self, groups: list[dict[str, Any]], config: TrainConfig, fused: bool) -> None:
        super().__init__(groups, lr=config.lr, fused=fused)
        self.config = config

    @torch.no_grad()
    def step(self) -> None:
        """Update each parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for p in parameters:
                if not self.state[p]:
                    # The fused kernels count steps on the parameter's device.
                    step = torch.zeros((), device=p.device if group["fused"] else "cpu")
                    moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                    self.state[p] = {"step": step, **moments}
            means, squares, counts = (
                [self.state[p][name] for p in parameters]
                for name in ("exp_avg", "exp_avg_sq", "step")
            )
            adamw(
                parameters,
                [p.grad for p in parameters if p.grad is not None],
                means,
                squares,
                [],
                counts,
                fused=group["fused"],
                amsgrad=False,
                maximize=False,
                lr=group["lr"],
                beta1=self.config.beta1,
                beta2=self.config.beta2,
                eps=self.config.adam_eps,
                weight_decay=group["weight_decay"],
            )


class Muon(Optimizer):
    """Muon (Jordan 2024) with NorMuon's second moment of each row (arXiv:2510.05491).

    torch.optim.Muon updates one matrix after another. Here the matrices of one shape are stacked,
    so that 12 layers need 4 sequences of products instead of 48, and each process orthogonalizes
    its part of a stack. ``compiled`` runs the arithmetic of each shape through torch.compile.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        config: TrainConfig,
        world: World,
        dtype: torch.dtype,
        compiled: bool = False,
        **compile_options: Any,
    ) -> None:
        by_shape: defaultdict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            by_shape[tuple(matrix.shape)].append(matrix)
        scale = config.muon_lr / config.lr
        groups = [{"params": stack, "lr_scale": scale} for stack in by_shape.values()]
        momentum, decay = config.muon_momentum, config.weight_decay
        super().__init__(groups, lr=config.muon_lr, momentum=momentum, weight_decay=decay)
        self.world, self.dtype, self.compiled = world, dtype, compiled
        functions: list[Callable[..., Any]] = [_nesterov, orthogonalize, _apply]
        if compiled:
            options = {"dynamic": False, "fullgraph": True, **compile_options}
            functions = [torch.compile(function, **options) for function in functions]
        self.nesterov, self.orthogonalize, self.apply = functions

    @torch.no_grad()
    def step(self) -> None:
        """Update every stack once."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, group)

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
                self.state[p]["second"] = torch.zeros(p.size(0), 1, device=p.device)
        momenta, seconds = (
            [self.state[p][name] for p in parameters] for name in ("momentum", "second")
        )
        grads = [p.grad for p in parameters if p.grad is not None]
        momentum = torch.tensor(group["momentum"]) if self.compiled else group["momentum"]
        self.nesterov(grads, momenta, momentum)
        rows, columns = parameters[0].shape
        # Queries, keys and values are three matrices in one: 4.338 → 4.325 after 96 steps of a
        # small network.
        rows = rows // 3 if rows == 3 * columns else rows
        stack_nRC = torch.cat([full_tensor(grad) for grad in grads]).view(-1, rows, columns)
        decay = 1 - group["lr"] * group["weight_decay"]
        rate = group["lr"] * max(1.0, rows / columns) ** 0.5
        if self.compiled:  # a Python number would be compiled in, again for each new rate
            decay, rate = torch.tensor(decay), torch.tensor(rate)
        self.apply(list(parameters), seconds, self._orthogonalize(stack_nRC), decay, rate)

    def _orthogonalize(self, stack_nRC: Tensor) -> Tensor:
        """Orthogonalize the stack, in float32; with many processes each does its part."""
        size, n = self.world.size, len(stack_nRC)
        if size == 1 or n < size:
            return self.orthogonalize(stack_nRC, self.dtype).float()
        share = -(-n // size)
        padding = stack_nRC.new_zeros(share * size - n, *stack_nRC.shape[1:])
        padded = torch.cat([stack_nRC, padding])
        part = padded[self.world.rank * share : (self.world.rank + 1) * share]
        own = self.orthogonalize(part, self.dtype).contiguous()
        padded = padded.to(self.dtype)  # the same numbers in half the bytes
        dist.all_gather_into_tensor(padded, own)
        return padded[:n].float()


def _nesterov(grads: list[Tensor], momenta: list[Tensor], momentum: Any) -> None:
    """Update the momenta, and turn the gradients into Nesterov's look-ahead, in place."""
    for grad, mean in zip(grads, momenta, strict=True):
        mean.lerp_(grad, 1 - momentum)
        grad.lerp_(mean, momentum)


def orthogonalize(stack_nRC: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return approximately the nearest matrices whose singular values are all 1.

    ``stack_nRC`` is float32; the products and the result have ``dtype``.
    """
    x = stack_nRC.to(dtype)
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x  # so that the product of a matrix with itself is the smaller one
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _apply(
    weights: list[Tensor], seconds: list[Tensor], stack_nRC: Tensor, decay: Any, rate: Any
) -> None:
    """Scale each row by its second moment, and update the weights, in place."""
    columns = stack_nRC.size(-1)
    second_nR1 = torch.cat(seconds).view(-1, stack_nRC.size(-2), 1)
    squares_nR1 = torch.linalg.vector_norm(stack_nRC, dim=-1, keepdim=True).square()
    second_nR1.lerp_(squares_nR1 / columns, 1 - NORMUON_BETA2)
    # Each row is divided by the root of its second moment; each matrix keeps its norm.
    inverse_nR1 = second_nR1.clamp_min(1e-16).reciprocal()
    scaled_n11 = (squares_nR1 * inverse_nR1).sum(-2, keepdim=True).clamp_min(1e-8)
    kept_n11 = squares_nR1.sum(-2, keepdim=True) / scaled_n11
    stack_nRC *= (inverse_nR1 * kept_n11).sqrt()
    torch._foreach_copy_(seconds, second_nR1.view(len(weights), -1, 1).unbind())
    updates = stack_nRC.view(len(weights), -1, columns).unbind()
    shards = [shard_like(u, w) for u, w in zip(updates, weights, strict=True)]
    torch._foreach_mul_(weights, decay)
    if isinstance(rate, Tensor):
        torch._foreach_sub_(weights, torch._foreach_mul(shards, rate))
    else:
        torch._foreach_sub_(weights, shards, alpha=rate)
