"""An exported run in Hugging Face's transformers: tokenizer, network and text, offline."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from corpus.tokenizer_export import write_tokenizer
from corpus.tokenizers import ByteTokenizer
from job.recipe import ModelConfig
from model.export import export
from model.gpt import GPT
from tests.model.conftest import Lab

TRAINED = ("variant=gpt2", "max_steps=20")


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    def refuse(*args: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return pytest.importorskip("transformers")


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
    export(network, tmp_path, tokenizer.eot)
    write_tokenizer(tokenizer, tmp_path, 32, network.vocab_size)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    prompt = transformers.AutoTokenizer.from_pretrained(tmp_path)("the", return_tensors="pt")
    assert theirs(**prompt).logits[0, -1].argmax() >= tokenizer.vocab_size
    written = theirs.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert written[0].tolist() == [*b"the", tokenizer.eot]


def test_an_export_does_not_overwrite_the_tokenizer_of_the_run(lab: Lab) -> None:
    lab.train("small", *TRAINED)
    run = lab.run_folder("small")
    before = (run / "tokenizer.json").read_text()
    _, err = lab.run("export", "--name", "small", "--output", str(run), status=1)
    assert f"--output {run} is a run's folder; give another one: --output {run}/huggingface" in err
    assert (run / "tokenizer.json").read_text() == before
    assert not (run / "config.json").exists()
    lab.run("export", "--name", "small")
    assert (run / "huggingface" / "tokenizer.json").exists()
