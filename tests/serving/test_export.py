"""An exported run in Hugging Face's transformers: tokenizer, network and text, offline."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from corpus.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from inference.engine import generate
from job.exit_status import UserError
from job.paths import CONFIGS
from job.recipe import ModelConfig, SampleConfig, load
from model.gpt import GPT
from serving.export import export
from tests.model.conftest import Lab

TRAINED = ("variant=gpt2", "max_steps=20")


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    def refuse(*args: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return pytest.importorskip("transformers")


def test_value_embeddings_are_refused(tmp_path: Path) -> None:
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 32, "value_embeddings": 1}
    network = GPT(ModelConfig(variant="modern", **shape), 64)
    with pytest.raises(UserError, match=r"model\.value_embeddings=0"):
        export(network, None, tmp_path)


@pytest.mark.slow
def test_a_pipeline_generates_the_text_of_the_run(lab: Lab, transformers: Any) -> None:
    lab.train("small", *TRAINED)
    out, _ = lab.run("export", "--name", "small", "--output", str(lab.folder / "out"))
    assert out == f"{lab.folder / 'out'}\n"
    words = ("--name", "small", "prompt=the ", "temperature=0", "max_new_tokens=20", "--json")
    text = json.loads(lab.run("sample", *words)[0])["samples"][0]
    write = transformers.pipeline("text-generation", model=str(lab.folder / "out"))
    # A sample starts after the end-of-text token.
    found = write("<|endoftext|>the ", max_new_tokens=20, do_sample=False, return_full_text=False)
    assert "the " + found[0]["generated_text"] == text
    # The exported folder works as init_from.
    _, err = lab.train(
        "next", *TRAINED[:1], "max_steps=0", f"init_from={lab.folder / 'out'}", "warmup_steps=0"
    )
    assert f"initial weights: {lab.folder / 'out'}" in err


def test_generation_skips_padding_rows_and_stops_at_the_end_of_text(
    tmp_path: Path, transformers: Any
) -> None:
    tokenizer = ByteTokenizer()
    network = GPT(
        ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=32), tokenizer.padded_vocab_size
    )
    torch.nn.init.ones_(network.ln_f.bias)
    with torch.no_grad():  # padding has the largest logits, then the end of text
        network.wte.weight[tokenizer.vocab_size :] += 10
        network.wte.weight[tokenizer.eot] += 5
    export(network, tokenizer, tmp_path)
    exported = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    prompt = transformers.AutoTokenizer.from_pretrained(tmp_path)("the", return_tensors="pt")
    assert exported(**prompt).logits[0, -1].argmax() >= tokenizer.vocab_size
    written = exported.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert written[0].tolist() == [*b"the", tokenizer.eot]


RECIPES = [path.stem for path in CONFIGS.glob("*.yaml") if "\ntrain:" in path.read_text()]
WINDOWS = {"attention_pattern": "SSL", "window_size": 5}


@pytest.mark.parametrize(
    ("recipe", "changes", "name"),
    [(recipe, {}, None) for recipe in sorted(RECIPES)]
    + [
        ("quickstart", WINDOWS, "GPTRunnerForCausalLM"),
        ("quickstart", WINDOWS | {"smear": 3}, "GPTRunnerForCausalLM"),
        ("quickstart", WINDOWS | {"smear": 0}, "GPTRunnerForCausalLM"),
        ("quickstart", {"smear": 0}, "NanoChatForCausalLM"),
    ],
)
def test_transformers_computes_the_network_of_each_recipe(
    recipe: str, changes: dict[str, Any], name: str | None, tmp_path: Path, transformers: Any
) -> None:
    size = {"n_layer": 3, "n_head": 2, "n_embd": 32, "block_size": 32, "vocab_size": None}
    settings = load(CONFIGS / f"{recipe}.yaml")
    model = ModelConfig(**{**settings.model.model_dump(), **size, **changes, "dropout": 0.0})
    tokenizer: Tokenizer = ByteTokenizer()
    if settings.data.tokenizer == "chars":
        tokenizer = CharTokenizer("\n abcdefghijklmnopqrstuvwxyz")
    network = GPT(model, tokenizer.padded_vocab_size)
    torch.manual_seed(1)
    with torch.no_grad():  # as after training: no zero matrix, large scores
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * (1.0 if parameter.dim() < 2 else 0.2))
    written = export(network, tokenizer, tmp_path)
    assert written == (
        name or ("GPT2LMHeadModel", "GPTRunnerForCausalLM")[model.variant == "modern"]
    )
    trust = {"trust_remote_code": written == "GPTRunnerForCausalLM"}
    exported, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, **trust
    )
    assert type(exported).__name__ == written
    assert not loading["missing_keys"]
    ids = torch.randint(tokenizer.vocab_size - 1, (2, 20))
    with torch.no_grad():
        expected = network.eval()(ids)
        assert (exported(ids).logits - expected).abs().max() < 1e-5 * expected.abs().max().clamp(
            min=1
        )
        # Padding on the left does not change the rows of a batch.
        mask = torch.ones_like(ids).index_fill(1, torch.arange(4), 0)
        padded = exported(ids, attention_mask=mask).logits[:, 4:]
        if model.variant == "modern":
            torch.testing.assert_close(padded, network(ids[:, 4:]), atol=1e-4, rtol=1e-4)
    prompt = "the "
    config = SampleConfig(temperature=0.0, max_new_tokens=20)
    tokens = tokenizer.encode(prompt).tolist()
    rows = generate(network, tokens, config, tokenizer.vocab_size, tokenizer.eot)
    text = tokenizer.decode(row[0] for row in rows if row[0] is not None)
    write = transformers.pipeline("text-generation", model=str(tmp_path), **trust)
    found = write(prompt, max_new_tokens=20, do_sample=False, return_full_text=False)
    assert found[0]["generated_text"] == text


def test_an_export_does_not_overwrite_the_tokenizer_of_the_run(lab: Lab) -> None:
    lab.train("small", *TRAINED)
    run = lab.run_folder("small")
    before = (run / "tokenizer.json").read_text()
    _, err = lab.run("export", "--name", "small", "--output", str(run), status=1)
    assert (
        f"--output {run} is a run's folder; give a different one: --output {run}/huggingface" in err
    )
    assert (run / "tokenizer.json").read_text() == before
    assert not (run / "config.json").exists()
    lab.run("export", "--name", "small")
    assert (run / "huggingface" / "tokenizer.json").exists()
