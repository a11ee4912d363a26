"""Checkpoints of an experiment: exact, intact, and only for one configuration."""

from __future__ import annotations

import argparse
import json
import math
import random
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from experiment import ConfigMismatch, TBLogger, load_checkpoint, save_checkpoint
from experiment.checkpoint import ModelMismatch
from job.exit_status import UserError


def make_model(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.rand(8, 3)).sum().backward()
    optimizer.step()


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.glob("step_*"))


class TestResume:
    def test_continues_exactly_like_the_unbroken_run(self, tmp_path: Path) -> None:
        torch.manual_seed(1)
        random.seed(1)
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        train_step(model, optimizer)
        optimizer.param_groups[0]["lr"] = 0.05  # as a scheduler does
        save_checkpoint(
            tmp_path, 1, config={"a": 1}, model=model, optimizer=optimizer, state={"epoch": 2}
        )
        train_step(model, optimizer)
        drawn = random.random()

        resumed = make_model()
        other = torch.optim.AdamW(resumed.parameters(), lr=0.1)
        found = load_checkpoint(tmp_path, config={"a": 1}, model=resumed, optimizer=other)
        assert found is not None
        assert (found.step, found.state) == (1, {"epoch": 2})
        assert other.param_groups[0]["lr"] == 0.05
        train_step(resumed, other)
        assert random.random() == drawn
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, resumed.state_dict()[name]), name

    def test_state_may_hold_nan_and_infinity_and_stays_valid_json(self, tmp_path: Path) -> None:
        state = {"best": math.inf, "worst": -math.inf, "last": [math.nan, np.float32(0.5)]}
        folder = save_checkpoint(tmp_path, 1, config={}, state=state)
        text = (folder / "state.json").read_text()
        assert "NaN" not in text
        assert "Infinity" not in text
        found = load_checkpoint(tmp_path, config={})
        assert found is not None
        assert (found.state["best"], found.state["worst"]) == (math.inf, -math.inf)
        assert math.isnan(found.state["last"][0])
        assert found.state["last"][1] == 0.5

    def test_metrics_are_on_disk_before_the_checkpoint(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logger = TBLogger(tmp_path)
        logger.log(1, loss=1.0)
        synced: list[Path] = []

        def record_sync(path: Path) -> None:
            assert not list(tmp_path.glob("*/step_*"))
            synced.append(path)

        monkeypatch.setattr("experiment.logger.fsync_file", record_sync)
        save_checkpoint(tmp_path, 1, config={})
        assert synced == [tmp_path / "metrics.jsonl"]


class TestConfig:
    def test_different_configuration_is_refused_by_save_and_load(self, tmp_path: Path) -> None:
        config = {"lr": 0.1, "model": {"width": 4}}
        save_checkpoint(tmp_path, 1, config=config)
        other = {"lr": 0.2, "model": {"width": 8}, "new": True}
        with pytest.raises(ConfigMismatch) as error:
            load_checkpoint(tmp_path, config=other)
        for line in ("lr: 0.1 → 0.2", "model.width: 4 → 8", "new: (not set) → True"):
            assert line in str(error.value)
        with pytest.raises(ConfigMismatch):
            save_checkpoint(tmp_path, 2, config=other)
        with pytest.raises(TypeError, match="config"):
            load_checkpoint(tmp_path)  # type: ignore[call-arg]

    def test_nan_in_a_configuration_equals_itself(self, tmp_path: Path) -> None:
        config = {"clip": math.inf, "dropout": math.nan}
        save_checkpoint(tmp_path, 1, config=config)
        assert load_checkpoint(tmp_path, config=dict(config)) is not None
        with pytest.raises(ConfigMismatch, match=r"clip: inf → 1\.0"):
            load_checkpoint(tmp_path, config={**config, "clip": 1.0})

    def test_dataclasses_namespaces_enums_and_numpy_numbers_are_configurations(
        self, tmp_path: Path
    ) -> None:
        class Kind(Enum):
            SMALL = "small"

        @dataclass
        class Config:
            kind: Kind
            width: int

        save_checkpoint(tmp_path, 1, config=Config(Kind.SMALL, 4))
        same = argparse.Namespace(kind="small", width=np.int64(4))
        assert load_checkpoint(tmp_path, config=same) is not None

    @pytest.mark.parametrize("value", [torch.nn.functional.gelu, nn.GELU(), object(), {1, 2}])
    def test_value_that_cannot_be_compared_is_refused(self, tmp_path: Path, value: object) -> None:
        with pytest.raises(TypeError, match="config and state hold numbers"):
            save_checkpoint(tmp_path, 1, config={"activation": value})

    def test_checkpoints_of_the_trainer_are_refused(self, tmp_path: Path) -> None:
        folder = save_checkpoint(tmp_path, 1, config={})
        state = json.loads((folder / "state.json").read_text())
        del state["config"]
        (folder / "state.json").write_text(json.dumps(state))
        with pytest.raises(UserError, match="checkpoints that the trainer wrote"):
            save_checkpoint(tmp_path, 2, config={})


class TestNetwork:
    def test_wrappers_do_not_change_names(self, tmp_path: Path) -> None:
        model = make_model()
        wrapped = torch.compile(model)  # compiles nothing before the first call
        inner = nn.Sequential(torch.compile(nn.Linear(2, 2)))
        save_checkpoint(tmp_path / "a", 1, config={}, model=wrapped)
        folder = save_checkpoint(tmp_path / "b", 1, config={}, model=inner)
        assert set(load_file(folder / "model.safetensors")) == {"0.weight", "0.bias"}
        plain = nn.Sequential(nn.Linear(2, 2))
        load_checkpoint(tmp_path / "b", config={}, model=plain)
        assert torch.equal(plain[0].weight, inner[0].weight)
        compiled = torch.compile(make_model())
        load_checkpoint(tmp_path / "a", config={}, model=compiled)
        loaded = compiled.state_dict()["_orig_mod.0.weight"]
        assert torch.equal(loaded, model.state_dict()["0.weight"])

    def test_tied_weights_stay_tied(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
        model[1].weight = model[0].weight
        save_checkpoint(tmp_path, 1, config={}, model=model)
        other = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
        load_checkpoint(tmp_path, config={}, model=other)
        assert torch.equal(other[1].weight, model[0].weight)

    def test_weights_of_another_network_are_refused(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path, 1, config={}, model=make_model(4))
        with pytest.raises(ModelMismatch, match=r"0\.weight has shape \(4, 3\), expected \(8, 3\)"):
            load_checkpoint(tmp_path, config={}, model=make_model(8))

    def test_state_of_a_different_optimizer_is_refused_and_nothing_is_loaded(
        self, tmp_path: Path
    ) -> None:
        model, other = make_model(), make_model()
        before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        adam = torch.optim.AdamW(model.parameters())
        save_checkpoint(tmp_path / "adam", 1, config={}, model=model, optimizer=adam)
        save_checkpoint(tmp_path / "none", 1, config={}, model=model)
        sgd = torch.optim.SGD(other.parameters(), lr=0.1)
        with pytest.raises(ModelMismatch, match="the state of AdamW, expected SGD"):
            load_checkpoint(tmp_path / "adam", config={}, model=other, optimizer=sgd)
        with pytest.raises(ModelMismatch, match="the state of no optimizer, expected SGD"):
            load_checkpoint(tmp_path / "none", config={}, model=other, optimizer=sgd)
        groups = [{"params": [parameter]} for parameter in other.parameters()]
        with pytest.raises(ModelMismatch, match="1 parameter groups, expected 6"):
            load_checkpoint(
                tmp_path / "adam", config={}, model=other, optimizer=torch.optim.AdamW(groups)
            )
        for name, tensor in other.state_dict().items():
            assert torch.equal(tensor, before[name]), name


class TestFolder:
    def test_damaged_checkpoint_is_skipped_with_a_warning(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = make_model()
        save_checkpoint(tmp_path, 1, config={}, model=model)
        folder = save_checkpoint(tmp_path, 2, config={}, model=model)
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
        found = load_checkpoint(tmp_path, config={}, model=make_model())
        assert found is not None
        assert found.step == 1
        assert "step_00000002" in capsys.readouterr().err

    def test_experiments_outside_the_runner_do_not_mix(self, tmp_path: Path) -> None:
        first = save_checkpoint(tmp_path, 1, config={"a": 1}, name="first")
        second = save_checkpoint(tmp_path, 5, config={"b": 2}, name="second")
        assert (first.parent.name, second.parent.name) == ("first", "second")
        found = load_checkpoint(tmp_path, config={"a": 1}, name="first")
        assert found is not None
        assert found.step == 1

    def test_only_the_newest_are_kept(self, tmp_path: Path) -> None:
        for number in range(1, 5):
            folder = save_checkpoint(tmp_path, number, config={}, keep_last=2)
        assert steps_in(folder.parent) == [3, 4]

    @pytest.mark.parametrize("step", [torch.tensor(7), np.int64(7)])
    def test_step_may_be_a_tensor_or_numpy_number(self, tmp_path: Path, step: int) -> None:
        assert save_checkpoint(tmp_path, step, config={}).name == "step_00000007"

    def test_negative_step_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="step must be 0 or more, got -1"):
            save_checkpoint(tmp_path, -1, config={})

    def test_new_checkpoint_outlives_a_damaged_newer_one(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path, 10, config={})
        folder = save_checkpoint(tmp_path, 20, config={}, model=make_model())
        (folder / "model.safetensors").write_bytes(b"")
        found = load_checkpoint(tmp_path, config={})
        assert found is not None
        assert found.step == 10
        for step in (11, 12):
            save_checkpoint(tmp_path, step, config={}, keep_last=1)
        assert steps_in(folder.parent) == [12, 20]
        assert (folder.parent / "latest").read_text() == "step_00000012\n"
        found = load_checkpoint(tmp_path, config={})
        assert found is not None
        assert found.step == 12
