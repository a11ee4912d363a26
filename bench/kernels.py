"""Measure where the time of a training step goes: kernels, matrix products, attention.

    python -m bench kernels gpt2_124m --text novels.txt.xz --baseline nanogpt=../nanoGPT

Takes about 30 seconds on an H200, plus compilation. Three steps of ours, of the recipe `speedrun`
and of nanoGPT run under torch's profiler: milliseconds per step by kind of kernel, and the slowest
kernels. Then the TFLOP/s of each shape of matrix product in the recipe, and of causal attention by
cuDNN, torch's flash kernels and flex_attention with heads of 64 and 128.
"""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from bench.results import Results
from bench.roofline import median_seconds
from bench.setup import Setup, prepare_setup
from bench.steps import StepFunction, nanogpt, nanogpt_step, our_network, our_step
from job.arguments import find_recipe

PROFILED_STEPS, WARMUP_STEPS = 3, 3
MIN_RUN_S = 0.2  # per product and attention kernel
SHOWN_KERNELS = 12
HEAD_SIZES = (64, 128)
Heads = tuple[Tensor, Tensor, Tensor]
Prepare = Callable[[Setup], StepFunction]
# Kinds of kernels by a part of their name; the first match counts.
KINDS = {
    "attention": ("flash", "attention", "attn", "cudnn_generated", "sdpa", "flex"),
    "product": (
        *("gemm", "cutlass", "nvjet", "xmma", "mm_", "::mm", "bmm", "addmm", "linear", "matmul"),
    ),
    "loss": ("softmax", "loss", "nll", "logsumexp", "cross_entropy"),
    "optimizer": ("adam", "multi_tensor", "muon", "foreach"),
    "copy": ("memcpy", "memset", "copy"),
}


def main(arguments: Namespace, results: Results) -> int:
    """Return 0 if ours was profiled."""
    with prepare_setup(arguments, results) as setup:
        device = torch.device(setup.device)
        for name, (own, prepare) in _networks(setup).items():
            if setup.has_time(f"profile of {name}"):
                with results.record_failure(part="profile", trainer=name):
                    results.add("profile", trainer=name, **profile_steps(own, prepare(own)))
        torch._dynamo.reset()
        for what, measure in (("product", product_speeds), ("attention", attention_speeds)):
            if setup.has_time(what, 5):
                with results.record_failure(part=what):
                    measure(setup, device)
    return 0 if results.has_trainer("ours") else 1


def _networks(setup: Setup) -> dict[str, tuple[Setup, Prepare]]:
    """Return by name the setup of each network, and the function that returns its step."""
    networks: dict[str, tuple[Setup, Prepare]] = {"ours": (setup, _our_step)}
    if "nanogpt" in setup.baselines:
        networks["nanogpt"] = setup, lambda setup: nanogpt_step(setup, nanogpt(setup))
    args = (str(find_recipe("speedrun")), *setup.recipe_args[1:])
    networks["speedrun"] = replace(setup, recipe_args=args), _our_step
    return networks


def _our_step(setup: Setup) -> StepFunction:
    device = torch.device(setup.device)
    network = our_network(setup.recipe, setup.tokenizer.padded_vocab_size, device)
    return our_step(setup, network, compiled=setup.device == "cuda")


def _tokens(setup: Setup) -> tuple[Tensor, Tensor]:
    """Return one random micro-batch."""
    shape = (setup.micro_batch(None), setup.recipe.model.block_size)
    tokens = torch.randint(0, setup.tokenizer.vocab_size, shape, device=setup.device)
    return tokens, tokens.roll(-1, 1)


def profile_steps(setup: Setup, step: StepFunction) -> dict[str, Any]:
    """Return milliseconds per step of each kind of kernel, and of the slowest kernels."""
    rate, on_cuda = setup.recipe.train.lr, setup.device == "cuda"
    for _ in range(WARMUP_STEPS):
        step([_tokens(setup)], rate)
    activities = [ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        for _ in range(PROFILED_STEPS):
            step([_tokens(setup)], rate)
    kinds: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    launches = 0
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        milliseconds = microseconds / 1e3 / PROFILED_STEPS
        kinds[_kind(event.key)] += milliseconds
        kernels[event.key] += milliseconds
        launches += event.count
    slowest = kernels.most_common(SHOWN_KERNELS)
    return {
        "ms_by_kind": {kind: round(ms, 3) for kind, ms in kinds.most_common()},
        "ms_by_kernel": {name[:80]: round(ms, 3) for name, ms in slowest},
        "kernels_per_step": round(launches / PROFILED_STEPS),
    }


def _kind(kernel: str) -> str:
    name = kernel.lower()
    matches = (kind for kind, parts in KINDS.items() if any(part in name for part in parts))
    return next(matches, "other")


def product_speeds(setup: Setup, device: torch.device) -> None:
    """Add a result for each shape of matrix product in the recipe's forward pass."""
    width, rows = setup.recipe.model.n_embd, setup.tokenizer.padded_vocab_size
    tokens = setup.micro_batch(None) * setup.recipe.model.block_size
    head_tokens = setup.recipe.train.loss_chunk or tokens
    shapes = {
        "qkv": (tokens, width, 3 * width),
        "projection": (tokens, width, width),
        "mlp up": (tokens, width, 4 * width),
        "mlp down": (tokens, 4 * width, width),
        "head": (head_tokens, width, rows),
    }
    for name, (m, k, n) in shapes.items():
        a = torch.randn(m, k, device=device, dtype=torch.bfloat16)
        b = torch.randn(n, k, device=device, dtype=torch.bfloat16)
        seconds = _seconds(partial(nn.functional.linear, a, b))
        teraflops = 2 * m * k * n / seconds / 1e12
        setup.results.add("product", name=name, mkn=[m, k, n], tflops=round(teraflops, 3))


def attention_speeds(setup: Setup, device: torch.device) -> None:
    """Add a result for each attention kernel and head size, forward alone and with backward."""
    context, width = setup.recipe.model.block_size, setup.recipe.model.n_embd
    batch = setup.micro_batch(None)
    backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    for size in HEAD_SIZES:
        shape = (batch, max(1, width // size), context, size)
        zeros = torch.zeros(shape, device=device, dtype=torch.bfloat16)
        q, k, v = (torch.randn_like(zeros).requires_grad_() for _ in range(3))
        qkv = q, k, v
        kernels: dict[str, Callable[[], Tensor]] = {
            name: partial(_sdpa, qkv, backend) for name, backend in backends.items()
        }
        if device.type == "cuda":  # flex_attention has no backward pass on a CPU
            kernels["flex"] = _flex(qkv, context)
        # Causal attention computes half of the scores: two products forward, five backward.
        forward = 2 * 2 * batch * width * context**2 / 2
        for name, kernel in kernels.items():
            with setup.results.record_failure(part="attention", kernel=name, head_size=size):
                forward_seconds = _seconds(kernel)
                total_seconds = _seconds(partial(_with_backward, kernel))
                setup.results.add(
                    "attention",
                    kernel=name,
                    head_size=size,
                    forward_tflops=round(forward / forward_seconds / 1e12, 3),
                    total_tflops=round(3.5 * forward / total_seconds / 1e12, 3),
                )


def _sdpa(qkv: Heads, backend: SDPBackend) -> Tensor:
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(*qkv, is_causal=True)


def _with_backward(kernel: Callable[[], Tensor]) -> None:
    torch.autograd.backward(kernel().sum())


def _flex(qkv: Heads, context: int) -> Callable[[], Tensor]:
    mask = create_block_mask(
        lambda b, h, q, k: q >= k, None, None, context, context, device=qkv[0].device.type
    )
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(*qkv, block_mask=mask)


def _seconds(function: Callable[[], object]) -> float:
    function()  # compiles
    return median_seconds("function()", MIN_RUN_S, function=function)
