"""Runs that start from published GPT-2 weights, to fine-tune or to evaluate them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from job.exit_status import ExitStatus
from job.recipe import ModelConfig
from job.run_record import read_record
from job.step_folders import steps
from model.gpt import GPT
from model.load_run import read_gpt2
from serving.export import export
from tests.file_server import FileServer, serving
from tests.model.conftest import Lab
from tests.model.test_gpt import tokens

TUNED = ("init_from=hf://me/small", "variant=gpt2", "warmup_steps=0", "max_steps=20")

MEASURED = (*TUNED[:3], "max_steps=0")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    torch.manual_seed(7)
    made = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=32), vocab_size=257)
    export(made, None, tmp_path / "small")
    with serving() as server:
        for name in ("config.json", "model.safetensors"):
            server.files[f"/me/small/resolve/main/{name}"] = (
                tmp_path / "small" / name
            ).read_bytes()
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


def val_losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "val"}


def test_zero_steps_evaluate_the_initial_weights(lab: Lab, hub: FileServer) -> None:
    _, err = lab.train("as-it-is", *MEASURED)
    run = lab.run_folder("as-it-is")
    assert "run 'as-it-is' finished: 0 steps in 0s of training, validation loss" in err
    record = read_record(run)
    assert record is not None
    assert (record.status, record.step, record.val_loss) == ("finished", 0, val_losses(run)[0])
    out, _ = lab.run("evaluate", "--name", "as-it-is", "eval_tokens=1024", "--json")
    assert json.loads(out)["loss"] == pytest.approx(record.val_loss, abs=1e-6)
    lab.run("export", "--name", "as-it-is", "--output", str(lab.folder / "out"))
    given, written = (
        load_file(lab.folder / name / "model.safetensors") for name in ("small", "out")
    )
    wte = "transformer.wte.weight"
    assert torch.equal(given.pop(wte), written.pop(wte)[:257])
    assert all(torch.equal(tensor, written[name]) for name, tensor in given.items())
    _, err = lab.train("as-it-is", *MEASURED)
    assert "run 'as-it-is' is already finished: 0 steps, validation loss" in err


def test_the_initial_weights_are_kept_if_they_are_the_best(lab: Lab, hub: FileServer) -> None:
    lab.train("ruined", *TUNED, "lr=1.0", "keep_last=1")
    run = lab.run_folder("ruined")
    measured = val_losses(run)
    assert list(measured) == [0, 20]
    assert measured[20] > measured[0]
    assert sorted(steps(run)) == [0, 20]
    lab.train("tuned", *TUNED, "keep_last=1")
    assert sorted(steps(lab.run_folder("tuned"))) == [20]
    assert val_losses(lab.run_folder("tuned"))[0] == measured[0]


def test_a_run_that_restarts_at_step_0_logs_each_line_once(lab: Lab, hub: FileServer) -> None:
    lab.train("uncut", *TUNED)
    lab.train("cut", *TUNED)
    uncut, cut = lab.run_folder("uncut"), lab.run_folder("cut")
    record = read_record(cut)
    assert record is not None
    record.status = "running"  # as after SIGKILL
    record.write(cut)
    for step in steps(cut):
        (cut / f"step_{step:08d}" / "model.safetensors").write_bytes(b"")
    _, err = lab.train("cut", *TUNED)
    assert "skipping a damaged checkpoint" in err
    assert val_losses(cut) == val_losses(uncut)
    assert (cut / "metrics.jsonl").read_text().count('"kind": "val"') == 2


def test_a_failed_download_creates_no_run(lab: Lab, hub: FileServer) -> None:
    hub.files.clear()
    _, err = lab.train("lost", *TUNED, status=ExitStatus.USAGE)
    assert "argument 'init_from=hf://me/small': " in err
    assert "the server answers 404" in err
    assert not lab.run_folder("lost").exists()


def test_a_folder_without_gpt2_is_an_error(lab: Lab, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "llama"}')
    words = (f"init_from={other}", *TUNED[1:])
    _, err = lab.train("lost", *words, status=ExitStatus.ERROR)
    assert f"{other / 'config.json'} is not a GPT-2, its model_type is 'llama'" in err
    assert "Traceback" not in err


def test_padding_rows_get_almost_no_probability(
    tmp_path: Path,
) -> None:
    """GPT-2's logits are far below zero: with rows of zeros the loss would be 40."""
    torch.manual_seed(3)
    config = ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=16)
    published = GPT(config, vocab_size=1000)
    torch.nn.init.ones_(published.ln_f.bias)
    with torch.no_grad():
        published.wte.weight -= 40 / 32
    export(published, None, tmp_path)
    padded = GPT(config, vocab_size=1024)
    padded.load_state_dict(read_gpt2(tmp_path, padded, tokens(1000)))
    ids = torch.randint(0, 1000, (8, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact, padded = (
            network(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
            for network in (published, padded)
        )
    assert exact < 10
    assert abs(padded - exact) < 24 / 1000
