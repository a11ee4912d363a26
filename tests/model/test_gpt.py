"""The network: equal to Hugging Face's GPT-2, causal, and equal with and without the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from corpus.tokenizers import CharTokenizer
from job.paths import CONFIGS
from job.recipe import ModelConfig, load
from model.attention import KERNEL_ORDERS, attend, attention_mask, block_mask
from model.functions import DeferredNorm, SquaredReLU, gelu, rms_norm, sigmoid_gelu
from model.gpt import GPT, Rotary, _qk_norm
from model.load_run import read_gpt2
from model.loss import IGNORE_INDEX
from serving.export import export


def scramble(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() < 2), std=0.2)


def network(variant: str = "modern", **shape: object) -> GPT:
    torch.manual_seed(0)
    config = ModelConfig(
        **{"variant": variant, "n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 32, **shape}
    )  # type: ignore[arg-type]
    made = GPT(config, vocab_size=128)
    scramble(made)  # the modern variant starts with zeros, which would hide mistakes
    return made.eval()


def ids(batch: int = 2, length: int = 32) -> torch.Tensor:
    return torch.randint(0, 128, (batch, length), generator=torch.Generator().manual_seed(1))


def tokens(count: int) -> CharTokenizer:
    """Return a tokenizer with ``count`` tokens."""
    return CharTokenizer(chr(0x4E00 + i) for i in range(count))


@pytest.mark.slow
def test_import_and_export_of_random_weights_keep_the_logits(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=3, n_head=4, n_embd=64, n_positions=48, vocab_size=211)
    ).eval()
    scramble(reference)
    reference.save_pretrained(tmp_path / "reference")
    ids_BT = torch.randint(0, 211, (2, 48))
    net = GPT(ModelConfig(n_layer=3, n_head=4, n_embd=64, block_size=48), vocab_size=211).eval()
    net.load_state_dict(read_gpt2(tmp_path / "reference", net, tokens(211)))
    expected = reference(ids_BT).logits
    assert expected.std() > 0.5  # otherwise the comparison below would be empty
    assert (net(ids_BT) - expected).abs().max() < 1e-4

    export(net, None, tmp_path / "exported")
    assert (
        len({path.stat().st_mode for path in (tmp_path / "exported").iterdir()}) == 1
    )  # all files are equally readable
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "exported").eval()
    assert (again(ids_BT).logits - expected).abs().max() < 1e-4


@pytest.mark.slow
def test_a_network_without_biases_exports_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    net = network("gpt2", bias=False)
    export(net, None, tmp_path)
    reference = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert (reference(ids()).logits - net(ids())).abs().max() < 1e-4


@pytest.mark.parametrize("variant", ["gpt2", "modern"])
def test_the_residual_is_bfloat16_on_a_gpu(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, tokens = network(variant), ids(8)
    dtypes: set[torch.dtype] = set()
    net.h[1].register_forward_pre_hook(lambda block, inputs: dtypes.add(inputs[0].dtype))

    def loss() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return float(net(tokens, tokens.roll(-1, 1)))

    cpu = loss()
    monkeypatch.setattr("model.gpt.MEMORY_BOUND", ("cpu",))
    assert loss() == pytest.approx(cpu, rel=0.01)
    assert dtypes == {torch.float32, torch.bfloat16}


def test_gpt2_124m_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        gpt2 = GPT(ModelConfig(), vocab_size=50257)
    assert sum(p.numel() for p in gpt2.parameters()) == 124_439_808


@pytest.mark.parametrize("variant", ["gpt2", "modern"])
def test_a_token_does_not_see_later_tokens(variant: str) -> None:
    made, before = network(variant), ids()
    after = before.clone()
    after[:, 20:] = (after[:, 20:] + 1) % 128
    a, b = made(before), made(after)
    assert torch.equal(a[:, :20], b[:, :20])
    assert not torch.allclose(a[:, 20:], b[:, 20:])


def test_value_embeddings_are_in_every_second_block_from_the_last() -> None:
    made = network(n_layer=5, value_embeddings=2)
    assert sorted(made.vte) == ["2", "4"]
    before = made(ids())
    with torch.no_grad():
        made.vte["2"].weight.zero_()
    assert not torch.allclose(made(ids()), before)
    with pytest.raises(ValidationError, match="must be at most 3 for 5 blocks"):
        network(n_layer=5, value_embeddings=4)
    with pytest.raises(ValidationError, match="must be at most 0"):
        network("gpt2", value_embeddings=1)


@pytest.mark.parametrize(
    ("variant", "shape"),
    [("gpt2", {}), ("modern", {"smear": 0}), ("modern", {"smear": 3, "value_embeddings": 1})],
)
def test_the_cache_changes_nothing(variant: str, shape: dict[str, object]) -> None:
    made, tokens = network(variant, **shape), ids()
    expected = made(tokens)
    cache = made.new_cache(2, 32)
    parts = [(0, 7), (7, 12), (12, 13), (13, 32)]
    got = [made.logits(made.hidden(tokens[:, a:b], cache, a)) for a, b in parts]
    assert torch.allclose(torch.cat(got, dim=1), expected, atol=1e-5)


@pytest.mark.parametrize("variant", ["gpt2", "modern"])
def test_the_first_loss_is_that_of_a_uniform_guess(variant: str) -> None:
    torch.manual_seed(0)
    shape = {"variant": variant, "n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 32}
    made = GPT(ModelConfig(**shape), 128)  # type: ignore[arg-type]
    loss = made(ids(), ids().roll(1, 1))
    assert loss.item() == pytest.approx(4.852, abs=0.1)  # ln 128


def test_ignored_targets_do_not_count() -> None:
    made, tokens = network(), ids()
    targets = tokens.clone()
    targets[1] = IGNORE_INDEX
    assert torch.allclose(made(tokens, targets), made(tokens[:1], tokens[:1]), atol=1e-6)


def test_dropout_drops_only_in_training() -> None:
    made = network(dropout=0.5)
    assert torch.equal(made(ids()), made(ids()))
    made.train()
    assert not torch.equal(made(ids()), made(ids()))


@pytest.mark.parametrize(("start", "positions"), [(0, 16), (5, 11), (15, 1)])
def test_attention_as_products_equals_sdpa(start: int, positions: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 3, positions, 8)
    k, v = torch.randn(2, 3, 16, 8), torch.randn(2, 3, 16, 8)
    mask = torch.ones(positions, 16, dtype=torch.bool).tril(start)
    expected = attend(q, k, v, mask, 0.0)
    got = attend(q, k, v, attention_mask(positions, start, None, torch.device("cpu")), 0.0)
    assert torch.allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("products", [0, 256], ids=["sdpa", "products"])
@pytest.mark.parametrize(
    ("start", "positions", "window"), [(0, 16, 5), (3, 9, 5), (9, 7, 5), (11, 1, 5), (2, 4, 1)]
)
def test_a_window_covers_the_newest_tokens(
    monkeypatch: pytest.MonkeyPatch, products: int, start: int, positions: int, window: int
) -> None:
    monkeypatch.setattr("model.attention.MAX_PRODUCT_POSITIONS", products)
    torch.manual_seed(0)
    end = start + positions
    q, k, v = torch.randn(2, 3, positions, 8), torch.randn(2, 3, end, 8), torch.randn(2, 3, end, 8)
    distance = torch.arange(start, end)[:, None] - torch.arange(end)
    expected = attend(q, k, v, (distance >= 0) & (distance < window), 0.0)
    first = max(0, start - window + 1)  # as the cache returns them
    mask = attention_mask(positions, start, window, torch.device("cpu"))
    assert torch.allclose(
        attend(q, k[:, :, first:], v[:, :, first:], mask, 0.0), expected, atol=1e-6
    )


@pytest.mark.parametrize("products", [0, 256], ids=["sdpa", "products"])
@pytest.mark.parametrize("window", [1, 5, 32])
def test_the_cache_changes_nothing_with_windows(
    monkeypatch: pytest.MonkeyPatch, window: int, products: int
) -> None:
    monkeypatch.setattr("model.attention.MAX_PRODUCT_POSITIONS", products)
    made, tokens = network(n_layer=4, attention_pattern="SSL", window_size=window), ids()
    expected = made(tokens)
    cache = made.new_cache(2, 32)
    parts = [(0, 7), (7, 12), (12, 13), (13, 14), (14, 32)]
    got = [made.logits(made.hidden(tokens[:, a:b], cache, a)) for a, b in parts]
    assert torch.allclose(torch.cat(got, dim=1), expected, atol=1e-5)
    full = network(n_layer=4)
    full.load_state_dict(made.state_dict())
    assert torch.allclose(full(tokens)[:, :window], expected[:, :window], atol=1e-5)
    assert torch.allclose(full(tokens), expected, atol=1e-5) == (window == 32)


def test_the_pattern_repeats_and_the_last_block_sees_all() -> None:
    assert network(n_layer=6, attention_pattern="SSL", window_size=4).short == [
        True,
        True,
        False,
        True,
        True,
        False,
    ]
    assert network(n_layer=4, attention_pattern="S", window_size=4).short == [
        True,
        True,
        True,
        False,
    ]
    assert network(n_layer=4).short == [False] * 4


def test_flex_attention_equals_the_mask_and_a_new_window_compiles_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The kernels need a GPU, so the graph runs uncompiled. torch refuses its backward pass on a
    # CPU by this check.
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    made, tokens = (
        network(n_layer=3, attention_pattern="SSL", window_size=32, block_size=160).train(),
        ids(length=160),
    )
    graphs = []

    def run_uncompiled(
        graph: torch.fx.GraphModule, inputs: list[torch.Tensor]
    ) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(made, dynamic=False, fullgraph=True, backend=run_uncompiled)
    for window in (32, 128, 7):
        gradients = []
        for forward, mask in (
            (made, None),
            (compiled, block_mask(160, window, torch.device("cpu"))),
        ):
            made.set_attention_window(window, mask)
            made.zero_grad()
            forward(tokens, tokens.roll(-1, 1)).backward()
            gradients.append(made.h[0].attn.c_attn.weight.grad.clone())
        assert torch.allclose(*gradients, atol=1e-6)
        assert gradients[0].norm() > 1e-3
    assert len(graphs) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_flex_attention_on_a_gpu_equals_the_mask() -> None:
    shape = {
        "n_layer": 3,
        "n_embd": 256,
        "block_size": 320,
        "attention_pattern": "SSL",
        "window_size": 100,
    }
    made, tokens = network(**shape).cuda().train(), ids(length=320).cuda()
    compiled = torch.compile(made, dynamic=False, fullgraph=True)
    for window in (100, 37):
        results = []
        for forward, mask in ((made, None), (compiled, block_mask(320, window, tokens.device))):
            made.set_attention_window(window, mask)
            made.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = forward(tokens, tokens.roll(-1, 1))
            loss.backward()
            results.append((loss.item(), made.h[0].attn.c_attn.weight.grad.clone()))
        (loss, gradient), (flex_loss, flex_gradient) = results
        assert flex_loss == pytest.approx(loss, rel=1e-2)
        assert (flex_gradient - gradient).norm() < 0.05 * gradient.norm()


@pytest.mark.parametrize("kernel", list(KERNEL_ORDERS))
def test_all_attention_kernels_agree(kernel: str) -> None:
    q, k, v = torch.randn(3, 2, 4, 300, 16).unbind(0)
    assert torch.allclose(attend(q, k, v, None, 0.0, kernel), attend(q, k, v, None, 0.0), atol=1e-6)
    assert KERNEL_ORDERS[kernel][0].name.lower().startswith(kernel)


def test_squared_relu_has_the_right_gradient() -> None:
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.equal(SquaredReLU.apply(x), x.relu().square())
    assert torch.autograd.gradcheck(SquaredReLU.apply, x)


def _mlp(x: torch.Tensor, weight: torch.Tensor, deferred: bool) -> torch.Tensor:
    if deferred:
        x, r = DeferredNorm.apply(x)
        return SquaredReLU.apply(x @ weight, r)
    return SquaredReLU.apply(rms_norm(x) @ weight)


def test_a_deferred_norm_has_the_gradient_of_the_norm() -> None:
    x, weight = (3 * torch.randn(n, 8, dtype=torch.float64, requires_grad=True) for n in (5, 8))
    assert torch.allclose(_mlp(x, weight, True), _mlp(x, weight, False), rtol=1e-12)
    assert torch.autograd.gradcheck(lambda *inputs: _mlp(*inputs, True), (x, weight))


def test_a_network_compiled_for_a_gpu_defers_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    made, norms = network(), []
    made.h[1].ln_2.register_forward_hook(lambda *_: norms.append("ln_2"))
    expected = made(ids())
    monkeypatch.setattr("model.gpt.MEMORY_BOUND", ("cpu",))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.allclose(made(ids()), expected, atol=1e-5)
    assert norms == ["ln_2"]


@pytest.mark.parametrize("scale", [0.02, 1.0, 30.0, 3000.0])
def test_a_deferred_norm_is_as_precise_in_bfloat16(scale: float) -> None:
    """Compare both forms with float64; rows of a residual stream differ in size."""
    torch.manual_seed(0)
    width = 256
    rows = scale * torch.linspace(1, 10, 128)[:, None] * torch.randn(128, width)
    weight = torch.randn(width, 4 * width) * width**-0.5
    upstream = torch.randn(128, 4 * width)

    def results(dtype: torch.dtype, deferred: bool) -> list[torch.Tensor]:
        # The same numbers in each dtype: only the arithmetic differs.
        inputs = [t.bfloat16().to(dtype).requires_grad_() for t in (rows, weight)]
        y = _mlp(*inputs, deferred)
        grads = torch.autograd.grad(y, inputs, upstream.bfloat16().to(dtype))
        return [t.double() for t in (y.detach(), *grads)]

    exact = results(torch.float64, False)
    for truth, plain, deferred in zip(
        exact, *(results(torch.bfloat16, deferred) for deferred in (False, True)), strict=True
    ):
        errors = [float((t - truth).norm() / truth.norm()) for t in (plain, deferred)]
        print(f"relative errors: {errors[0]:.5f} plain, {errors[1]:.5f} deferred")
        assert errors[1] < max(0.008, 1.1 * errors[0])


class OnGpu(torch.Tensor):
    """A CPU tensor that reports that it is on a GPU."""

    is_cuda = True


def test_queries_and_keys_are_normalized_first_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    rotary, qk = Rotary(head_size=8, block_size=16), torch.randn(2, 16, 2, 3, 8)
    rotary.register_forward_hook(lambda *_: order.append("rotate"))
    monkeypatch.setattr("model.gpt.rms_norm", lambda x: (order.append("norm"), rms_norm(x))[1])
    on_cpu, on_gpu = _qk_norm(qk, rotary, 0), _qk_norm(qk.as_subclass(OnGpu), rotary, 0)
    assert order == ["rotate", "norm", "norm", "rotate"]
    assert torch.allclose(on_cpu, on_gpu, atol=1e-6)
    assert not torch.allclose(on_cpu[:, :1], on_cpu[:, 1:2])


def test_a_norm_keeps_the_dtype_where_autocast_runs_it_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    norm = torch.nn.functional.rms_norm
    monkeypatch.setattr(
        torch.nn.functional, "rms_norm", lambda x, shape, **_: norm(x.float(), shape)
    )
    x = torch.randn(2, 8, dtype=torch.bfloat16).as_subclass(OnGpu)
    assert rms_norm(x).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_and_its_gradient_equal_those_of_torch(dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, 32, dtype=dtype, requires_grad=True)
    weights = torch.randn(3, 5, 32)
    results = []
    for norm in (rms_norm, lambda x: torch.nn.functional.rms_norm(x, (32,))):
        y = norm(x)
        (grad,) = torch.autograd.grad((y * weights).sum() + x.sum(), x)
        results.append(torch.cat([y.detach(), grad]))
    assert torch.equal(*results)
    assert torch.equal(rms_norm(x), rms_norm(x.detach()))
    assert torch.autograd.gradcheck(rms_norm, x.double())


def test_the_sigmoid_form_of_gelu_is_the_tanh_form(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-9, 9, 181, dtype=torch.float64, requires_grad=True)
    results = []
    for form in (sigmoid_gelu(x), torch.nn.functional.gelu(x, approximate="tanh")):
        (grad,) = torch.autograd.grad(form.sum(), x)
        results.append(torch.cat([form.detach(), grad]))
    assert torch.allclose(*results, rtol=0, atol=1e-12)
    calls: list[bool] = []
    monkeypatch.setattr("model.functions.sigmoid_gelu", lambda x: calls.append(x.is_cuda))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    gelu(x)
    gelu(x.as_subclass(OnGpu))
    assert calls == [True]


@pytest.mark.parametrize("recipe", ["gpt2_124m", "gpt2_350m", "gpt2_774m", "gpt2_1558m"])
def test_the_gpt2_recipes_have_the_published_sizes(recipe: str) -> None:
    config = load(CONFIGS / f"{recipe}.yaml").model
    with torch.device("meta"):
        made = GPT(config, vocab_size=50257)
    published = {"gpt2_124m": 124.4, "gpt2_350m": 354.8, "gpt2_774m": 774.0, "gpt2_1558m": 1557.6}[
        recipe
    ]
    count = sum(p.numel() for p in made.parameters())
    assert count / 1e6 == pytest.approx(published, rel=2e-3)  # without biases
