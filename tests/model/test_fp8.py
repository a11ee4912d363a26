"""Products in float8 on the CPU, where torch computes them exactly, though slowly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from job.exit_status import RecipeError
from job.paths import CONFIGS
from job.recipe import ModelConfig, load
from job.run_session import refuse_kernels
from model import device as devices
from model.fp8 import Linear, _Product
from model.gpt import GPT
from model.loss import chunked_cross_entropy
from tests.model.loss_errors import CAP, fp8_error
from tests.model.loss_errors import exact_loss as exact


def loss_and_gradients(
    fp8: bool, cap: float | None, compiled: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(64, 32, dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(128, 32) * 0.5).requires_grad_()
    targets = torch.randint(0, 128, (64,))
    function = lambda *tensors: chunked_cross_entropy(*tensors, cap, 32, exact, fp8)  # noqa: E731
    if compiled:
        function = torch.compile(function, backend="aot_eager", fullgraph=True)
    loss = function(x, weight, targets)
    loss.backward()
    assert x.grad is not None
    assert weight.grad is not None
    return loss.detach(), x.grad.float(), weight.grad


@pytest.mark.parametrize("cap", [None, CAP])
def test_the_head_in_float8_has_nearly_the_same_loss_and_gradients(cap: float | None) -> None:
    loss, *gradients = loss_and_gradients(False, cap)
    loss_fp8, *gradients_fp8 = loss_and_gradients(True, cap)
    assert loss_fp8 != loss
    assert loss_fp8.item() == pytest.approx(loss.item(), rel=0.01)
    for gradient, rounded in zip(gradients, gradients_fp8, strict=True):
        assert (gradient - rounded).norm() < 0.1 * gradient.norm()


def test_float8_compiles_to_one_graph() -> None:
    loss, *gradients = loss_and_gradients(True, CAP)
    compiled, *others = loss_and_gradients(True, CAP, compiled=True)
    assert compiled.item() == pytest.approx(loss.item(), rel=1e-3)
    for gradient, other in zip(gradients, others, strict=True):
        assert (gradient - other).norm() < 0.05 * gradient.norm()


def test_the_gradient_of_a_logit_has_its_scale() -> None:
    assert fp8_error(exact) < 0.1


def test_a_plain_product_has_the_gradients_of_a_linear_layer() -> None:
    x = torch.randn(6, 32, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(16, 32, requires_grad=True)
    y, expected = _Product.apply(x, weight, False), x @ weight.bfloat16().mT
    assert torch.equal(y, expected)
    given, wanted = (torch.autograd.grad(z.square().sum(), (x, weight)) for z in (y, expected))
    assert [gradient.dtype for gradient in given] == [x.dtype, weight.dtype]
    assert all(map(torch.equal, given, wanted))


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_rounded_in_training_only(bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = Linear(32, 48, bias=bias), torch.randn(2, 16, 32, requires_grad=True)
    expected = layer(x)
    layer.fp8 = True
    assert torch.equal(layer.eval()(x), expected)
    rounded = layer.train()(x)
    assert not torch.equal(rounded, expected)
    assert (rounded - expected).norm() < 0.1 * expected.norm()
    rounded.sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, layer.weight.sum(0).expand_as(x), atol=0.05)


def trained_loss(fp8: str, steps: int) -> float:
    """Return the loss after ``steps`` of a small network on text that repeats."""
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32}
    network = GPT(ModelConfig(variant="modern", **shape), vocab_size=64)
    network.loss_chunk, network.fp8_head = 256, fp8 != "none"
    for module in network.modules():
        if isinstance(module, Linear):
            module.fp8 = fp8 == "all"
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    text = torch.randint(0, 64, (48,)).repeat(20)
    for _ in range(steps):
        starts = torch.randint(0, len(text) - 33, (8,))
        rows = torch.stack([text[start : start + 33] for start in starts])
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(rows[:, :-1], rows[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


@pytest.mark.parametrize(("fp8", "steps"), [("head", 15), ("all", 2)])
def test_training_in_float8_has_nearly_the_same_loss(fp8: str, steps: int) -> None:
    expected, rounded = trained_loss("none", steps), trained_loss(fp8, steps)
    assert rounded != expected
    assert rounded == pytest.approx(expected, rel=0.03)


def test_float8_needs_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load(CONFIGS / "speedrun.yaml", ["fp8=head"])
    for capability, has in (((8, 0), False), ((8, 9), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert devices.has_float8(torch.device("cuda")) == has
    assert devices.has_float8(torch.device("cpu"))
    refuse_kernels(recipe, "cuda", has_float8=True)
    with pytest.raises(RecipeError, match="needs an NVIDIA GPU"):
        refuse_kernels(recipe, "mps", has_float8=devices.has_float8(torch.device("mps")))


def test_float8_needs_the_loss_in_chunks() -> None:
    with pytest.raises(RecipeError, match="needs loss_chunk"):
        load(CONFIGS / "quickstart.yaml", ["fp8=head"])
