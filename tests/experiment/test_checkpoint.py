"""Checkpoints of an experiment: exact, of one configuration alone, and sound."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from experiment import OtherConfiguration, load_checkpoint, save_checkpoint
from experiment.weights import OtherNetwork


def network(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.rand(8, 3)).sum().backward()
    optimizer.step()


def test_a_loaded_one_goes_on_as_the_unbroken_one(tmp_path: Path) -> None:
    torch.manual_seed(1)
    random.seed(1)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer)
    optimizer.param_groups[0]["lr"] = 0.05  # as a scheduler does
    save_checkpoint(tmp_path, 1, config={"a": 1}, model=model, optimizer=optimizer, state={"epoch": 2})
    step(model, optimizer)
    drawn = random.random()

    other = network()
    second = torch.optim.AdamW(other.parameters(), lr=0.1)
    found = load_checkpoint(tmp_path, config={"a": 1}, model=other, optimizer=second)
    assert found is not None
    assert (found.step, found.state) == (1, {"epoch": 2})
    assert second.param_groups[0]["lr"] == 0.05
    step(other, second)
    assert random.random() == drawn
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_one_of_another_configuration_is_refused_both_ways(tmp_path: Path) -> None:
    config = {"lr": 0.1, "model": {"width": 4}}
    save_checkpoint(tmp_path, 1, config=config)
    other = {"lr": 0.2, "model": {"width": 8}, "new": True}
    with pytest.raises(OtherConfiguration) as error:
        load_checkpoint(tmp_path, config=other)
    for line in ("lr: 0.1 → 0.2", "model.width: 4 → 8", "new: (not there) → True"):
        assert line in str(error.value)
    with pytest.raises(OtherConfiguration):
        save_checkpoint(tmp_path, 2, config=other)
    with pytest.raises(TypeError, match="config"):
        load_checkpoint(tmp_path)  # type: ignore[call-arg]


def test_a_damaged_newest_one_is_passed_over_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network()
    save_checkpoint(tmp_path, 1, config={}, model=model)
    folder = save_checkpoint(tmp_path, 2, config={}, model=model)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    found = load_checkpoint(tmp_path, config={}, model=network())
    assert found is not None
    assert found.step == 1
    assert "damaged checkpoint passed over: step_00000002" in capsys.readouterr().err


def test_wrappers_leave_no_trace_in_the_names(tmp_path: Path) -> None:
    model = network()
    wrapped = torch.compile(model)  # nothing is compiled before it is called
    inner = nn.Sequential(torch.compile(nn.Linear(2, 2)))
    save_checkpoint(tmp_path / "a", 1, config={}, model=wrapped)
    folder = save_checkpoint(tmp_path / "b", 1, config={}, model=inner)
    assert set(load_file(folder / "model.safetensors")) == {"0.weight", "0.bias"}
    plain = nn.Sequential(nn.Linear(2, 2))
    load_checkpoint(tmp_path / "b", config={}, model=plain)
    assert torch.equal(plain[0].weight, inner[0].weight)
    again = torch.compile(network())
    load_checkpoint(tmp_path / "a", config={}, model=again)
    assert torch.equal(again.state_dict()["_orig_mod.0.weight"], model.state_dict()["0.weight"])


def test_tied_weights_are_kept_once_and_tied_again(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    save_checkpoint(tmp_path, 1, config={}, model=model)
    other = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    load_checkpoint(tmp_path, config={}, model=other)
    assert torch.equal(other[1].weight, model[0].weight)


def test_another_network_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, config={}, model=network(4))
    with pytest.raises(OtherNetwork, match=r"0\.weight has shape \(4, 3\), here \(8, 3\)"):
        load_checkpoint(tmp_path, config={}, model=network(8))


def test_two_experiments_outside_the_runner_do_not_mix(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path, 1, config={"a": 1}, name="first")
    second = save_checkpoint(tmp_path, 5, config={"b": 2}, name="second")
    assert (first.parent.name, second.parent.name) == ("first", "second")
    found = load_checkpoint(tmp_path, config={"a": 1}, name="first")
    assert found is not None
    assert found.step == 1


def test_only_the_newest_stay(tmp_path: Path) -> None:
    for number in range(1, 5):
        folder = save_checkpoint(tmp_path, number, config={}, keep_last=2)
    assert sorted(path.name for path in folder.parent.glob("step_*")) == ["step_00000003", "step_00000004"]
