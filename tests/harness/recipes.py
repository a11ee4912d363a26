"""Mutated recipes and overrides are accepted, or refused with status 2 within a second of CPU.

    python -m tests.harness.recipes --count 3000 --seed 1
    python -m tests.harness.recipes --train 200 --seed 1    # random tiny recipes, three steps each

A refusal is one error that names the file, the key or the argument. Each third input goes to the
trainer's own check, the others to `runner host --dry-run` and `runner estimate`.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from job.paths import CONFIGS
from job.recipe import known_keys
from tests.harness.forked import CommandResult, run
from tests.harness.main import harness_main
from tests.harness.mutations import VALUES, damaged_yaml
from tests.tiny_recipe import write_recipe, write_text

CPU_LIMIT_S = 1.0
STEPS = 3


def faults(folder: Path, count: int, rng: random.Random) -> Iterator[str]:
    """Yield a description for each mutated input that breaks a promise, "" for others."""
    tiny = write_recipe(folder / "tiny.yaml", str(write_text(folder / "text.txt"))).read_bytes()
    shipped = [path.read_bytes() for path in sorted(CONFIGS.glob("*.yaml"))]
    recipe = folder / "mutated.yaml"
    for number in range(count):
        words: list[str] = []
        if rng.random() < 0.3:
            recipe.write_bytes(tiny)
            words = [_override(rng) for _ in range(rng.choice([1, 1, 2]))]
        else:
            recipe.write_bytes(damaged_yaml(rng.choice([*shipped, tiny, tiny, tiny]), rng))
        reader = (
            ["runner", "host", "--dry-run"],
            ["runner", "estimate"],
            ["runner", "host", "prepare", "--dry-run"],
        )[number % 3]
        ended = run([*reader, str(recipe), *words], folder)
        fault = ended.fault((0, 2), CPU_LIMIT_S) or _unnamed(ended, words)
        if fault:
            kept = folder / f"fault_{number}.yaml"
            shutil.copy(recipe, kept)
            fault = f"{kept.name} {reader} {words}: {fault}"
        yield fault


def _override(rng: random.Random) -> str:
    key = rng.choice([*known_keys()])
    if rng.random() < 0.4:
        key = key.rpartition(".")[2]
    if rng.random() < 0.1:
        key = rng.choice(["", "x", "model", "train", "a.b.c", "train.", ".lr", "--lr", "é", "lr "])
    # Nothing that starts a process can have a NUL byte.
    return f"{key}={rng.choice(VALUES)}"


def _unnamed(ended: CommandResult, words: list[str]) -> str:
    names = ["mutated.yaml", *(word.partition("=")[0].strip().lstrip("-") for word in words)]
    if ended.status == 2 and not any(name and name in ended.err for name in names):
        return f"the error names neither file nor argument: {ended.tail()}"
    return ""


def training_faults(folder: Path, count: int, rng: random.Random) -> Iterator[str]:
    """Yield a description for each accepted random recipe that does not train, "" for others."""
    text = write_text(folder / "text.txt")
    trained = 0
    while trained < count:
        tree = random_recipe(rng, text, trained)
        recipe = folder / f"random_{trained}.yaml"
        recipe.write_text(yaml.safe_dump(tree))
        for volume in ("checkpoints", "data"):
            shutil.rmtree(folder / volume, ignore_errors=True)
        ended = run(["model.train", str(recipe), "--name", recipe.stem], folder)
        if ended.status == 2:  # an impossible combination
            if fault := ended.fault(cpu_limit=CPU_LIMIT_S) or _unnamed_random(ended, recipe):
                yield f"{tree}: {fault}"
            continue
        trained += 1
        fault = ended.fault((0, 100))
        if not fault and ended.status == 0 and f" finished: {STEPS} steps" not in ended.err:
            fault = f"did not train {STEPS} steps: {ended.tail()}"
        elif not fault and ended.status == 100 and "lr" not in ended.err:
            fault = ended.tail()
        yield f"{tree}: {fault}" if fault else ""


def _unnamed_random(ended: CommandResult, recipe: Path) -> str:
    return "" if recipe.name in ended.err else f"the error does not name the file: {ended.tail()}"


def random_recipe(rng: random.Random, text: Path, number: int) -> dict[str, Any]:
    """Draw a tiny recipe, with extreme values for every setting."""

    def some(**choices: list[Any]) -> dict[str, Any]:
        return {key: rng.choice(values) for key, values in choices.items() if rng.random() < 0.5}

    variant = rng.choice(["gpt2", "modern"])
    block = rng.choice([2, 7, 16, 32])
    heads = rng.choice([1, 2, 3])
    sequences = rng.choice([1, 2, 3, 8])
    model = {"variant": variant, "n_layer": rng.choice([1, 2, 3]), "n_head": heads}
    model |= {"n_embd": heads * rng.choice([2, 4, 8, 10]), "block_size": block}
    model |= some(
        dropout=[0.0, 0.5, 0.999999], bias=[True, False], vocab_size=[None, 256, 300, 65536]
    )
    data = {"dataset": f"d{number}", "source": str(text), "split": "tail"}
    data |= {"tokenizer": rng.choice(["bytes", "chars"])}
    data |= some(val_fraction=[1e-2, 0.1], shard_tokens=[1024, 2**63 - 1], shards=[1, 10**12])
    train: dict[str, Any] = {
        "eval_tokens": 64,
        "max_steps": STEPS,
        "global_batch_tokens": block * sequences,
    }
    train |= some(
        micro_batch=[1, 2, 10**9, "auto"],
        lr=[1e-30, 1e-3, 1.0, 1e30],
        min_lr=[0.0, 1e-31],
        schedule=["cosine", "linear", "constant"],
        warmup_steps=[0, 1, 2],
        decay_steps=[None, 1],
        weight_decay=[0.0, 0.1, 1e10],
        optimizer=["adamw", "muon"],
        muon_lr=[1e-20, 0.02, 1e10],
        muon_momentum=[0.0, 0.999999],
        embedding_lr_scale=[1e-10, 10.0, 1e10],
        beta1=[0.0, 0.999999],
        beta2=[0.0, 0.999999],
        grad_clip=[0.0, 1e-20, 1e20],
        dtype=["auto", "float32", "bfloat16"],
        activation_checkpointing=[True, False],
        loss_chunk=[None, 1, 10**12],
        compile=[False, "auto"],
        deterministic=[True, False],
        seed=[0, 2**32, 2**63 - 1],
        eval_every=[1, 2, 10**12],
        eval_tokens=[1, 64] if block < 16 else [None, 1, 10**15],
        checkpoint_every=[1, 10**15],
        keep_last=[1, 10**15],
        keep_best=[True, False],
        log_every=[1, 10**15],
        stop_on_nan=[True, False],
        sample_every=[None, 1, 10**15],
        wandb_project=[None, "é", "x" * 200],
        shard=[True, False],
        batch_schedule=[[], [[1, block]], [[1, block * 2], [2, block]]],
    )
    sample = some(
        prompt=["", "the ", "a" * 100],
        num_samples=[1, 3],
        max_new_tokens=[1, 5],
        temperature=[0.0, 1e-4, 1.0, 1e300],
        top_k=[None, 1, 10**15],
        top_p=[None, 1e-300, 1.0],
        seed=[0, 2**63 - 1],
    )
    if variant == "modern" and rng.random() < 0.5:
        model |= {"attention_pattern": rng.choice(["S", "SL", "LS", "SSSL"])}
        model |= {"window_size": rng.choice([1, 2, block])}
        train |= some(window_schedule=[[], [[0, 1], [1, model["window_size"]]]])
    sample.setdefault("max_new_tokens", 5)
    return {"model": model, "data": data, "train": train, "sample": sample}


if __name__ == "__main__":
    sys.exit(harness_main(__doc__, count=faults, train=training_faults))
