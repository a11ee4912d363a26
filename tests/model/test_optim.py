"""Optimizers: which parameters each gets, and the updates of Muon."""

from __future__ import annotations

import pytest
import torch

from job.recipe import TrainConfig
from model.distributed import World
from model.optim import AdamW, Muon, make_optimizers, orthogonalize
from tests.model.test_gpt import ids, network

CPU = torch.device("cpu")


def config(**more: object) -> TrainConfig:
    return TrainConfig(max_steps=9, global_batch_tokens=2, **more)  # type: ignore[arg-type]


def test_weight_decay_applies_to_matrices_only() -> None:
    (adamw,) = make_optimizers(network("gpt2"), config(), World())
    for group in adamw.param_groups:
        assert all((p.dim() >= 2) == (group["weight_decay"] > 0) for p in group["params"])


@pytest.mark.parametrize("fused", [True, False])
def test_adamw_is_that_of_torch(fused: bool) -> None:
    nets = [network("gpt2") for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    settings = config(lr=1e-2, beta1=0.8, beta2=0.97, adam_eps=1e-6)
    groups = [[{"params": list(net.parameters()), "weight_decay": 0.2}] for net in nets]
    ours = AdamW(groups[0], settings, fused)
    theirs = torch.optim.AdamW(groups[1], 1e-2, (0.8, 0.97), 1e-6, fused=fused)
    for step in range(3):
        for net, optimizer in zip(nets, (ours, theirs), strict=True):
            optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
            net(ids(), ids()).backward()
            if step == 1:
                net.wte.weight.grad = None
            optimizer.step()
            net.zero_grad(set_to_none=True)
    for name, weight in nets[0].named_parameters():
        assert torch.equal(weight, nets[1].get_parameter(name)), name


@pytest.mark.parametrize("variant", ["gpt2", "modern"])
def test_every_parameter_has_one_optimizer(variant: str) -> None:
    net = network(variant)
    made = make_optimizers(net, config(optimizer="muon"), World())
    given = [p for optimizer in made for group in optimizer.param_groups for p in group["params"]]
    assert len(given) == len(set(given)) == len(list(net.parameters()))
    muon = next(o for o in made if isinstance(o, Muon))
    matrices = {id(p) for group in muon.param_groups for p in group["params"]}
    assert matrices == {
        id(p) for n, p in net.named_parameters() if n.startswith("h.") and p.dim() == 2
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 40, 40), (2, 96, 32), (2, 32, 128)])
def test_singular_values_are_close_to_one(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape), dtype).float())
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_muon_moves_each_matrix_by_its_rate() -> None:
    """The RMS of an update is about rate * sqrt(max(1, rows / columns) / longer side)."""
    net = network("modern")
    net(ids(), ids()).backward()
    _, muon = make_optimizers(net, config(optimizer="muon", weight_decay=0.0), World())
    before = {id(p): p.detach().clone() for g in muon.param_groups for p in g["params"]}
    muon.step()
    for group in muon.param_groups:
        for p in group["params"]:
            rows, columns = p.shape
            expected = 0.02 * max(1, rows / columns) ** 0.5 / max(rows, columns) ** 0.5
            moved = (p.detach() - before[id(p)]).square().mean().sqrt().item()
            assert moved == pytest.approx(expected, rel=0.35)


def test_a_gradient_of_zeros_moves_nothing() -> None:
    """Most gradients are zero at the first step, when the blocks are the identity."""
    net = network("modern")
    net(ids(), ids()).backward()
    _, muon = make_optimizers(net, config(optimizer="muon", weight_decay=0.0), World())
    matrices = [p for group in muon.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in matrices]
    for p in matrices:
        assert p.grad is not None
        p.grad.zero_()
    muon.step()
    assert all(torch.equal(p, b) for p, b in zip(matrices, before, strict=True))


def test_compiled_muon_gives_the_same_and_a_new_rate_compiles_nothing() -> None:
    settings = config(optimizer="muon", weight_decay=0.1)
    weights, graphs = [], []

    def run_uncompiled(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    for options in ({}, {"compiled": True, "backend": run_uncompiled}):
        net = network("modern")
        matrices = [p for n, p in net.named_parameters() if n.startswith("h.") and p.dim() == 2]
        muon = Muon(matrices, settings, World(), torch.float32, **options)  # type: ignore[arg-type]
        compiled = []
        for step in range(3):
            net(ids(), ids().roll(-1, 1)).backward()
            for group in muon.param_groups:
                group["lr"] = 0.02 / (step + 1)
            muon.step()
            net.zero_grad()
            compiled.append(len(graphs))
        weights.append(torch.cat([p.detach().flatten() for p in matrices]))
    # Three functions for each of four shapes.
    assert compiled == [12, 12, 12]
    assert torch.allclose(*weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("compiled", [True, False])
def test_muon_is_compiled_if_the_network_is(compiled: bool) -> None:
    _, muon = make_optimizers(network(), config(optimizer="muon"), World(), compiled)
    assert isinstance(muon, Muon)
    assert muon.compiled == compiled
