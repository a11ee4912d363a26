"""The measured FLOP/s: output, stored result, and the share that training reports."""

from __future__ import annotations

import json

import pytest
import torch

from bench import roofline
from job.machine import measured_product_flops, speed_file
from job.memory import flops_per_token
from job.metrics import read_metrics
from job.recipe import load
from model import device as devices
from tests.model.conftest import Lab

CPU = torch.device("cpu")


def test_training_reports_its_share_of_the_measured_flops(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.train("before", "max_steps=10")
    monkeypatch.setenv("CACHE_PATH", str(lab.locations.cache))
    monkeypatch.setattr(roofline, "SIDES", {"cpu": (256, 512)})
    monkeypatch.setattr(roofline, "MIN_RUN_S", 0.1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # like the trainer; a different number counts as a different device
    try:
        assert roofline.main(["--device", "cpu", "--json"]) == 0
    finally:
        torch.set_num_threads(threads)
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert 1e8 < result["bfloat16"] < 1e14
    assert 1e8 < result["float32"] < 1e14  # within what CPUs can do
    assert 1e7 < result["bandwidth"] < 1e13
    assert "mfu_roofline" in shown.err
    lab.train("after", "max_steps=10")
    before, after = (
        next(
            line
            for line in read_metrics(lab.run_folder(name) / "metrics.jsonl")
            if line["kind"] == "train"
        )
        for name in ("before", "after")
    )
    assert (before["mfu"], before["mfu_roofline"], after["mfu"]) == (None, None, None)
    recipe = load(lab.recipe)
    flops = after["tokens_per_second"] * flops_per_token(recipe, rows=320)  # 257 bytes, padded
    ceiling = result[devices.number_format(recipe.train.dtype, CPU)]
    assert after["mfu_roofline"] == pytest.approx(flops / ceiling, rel=1e-3)


def test_no_larger_product_is_tried_after_a_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def median_seconds(statement: str, least: float, **names: torch.Tensor) -> float:
        if "a" not in names:
            return 1e-3
        a = names["a"]
        tried.append((a.dtype, a.size(0)))
        return 2 * a.size(0) ** 3 / (1e9 if a.dtype == torch.bfloat16 else 80e9)

    monkeypatch.setattr(roofline, "median_seconds", median_seconds)
    result = roofline.measure(CPU)
    assert tried == [(torch.bfloat16, 512), *((torch.float32, side) for side in (512, 1024, 2048))]
    assert (result["bfloat16"], result["float32"]) == pytest.approx((1e9, 80e9))


def test_each_number_format_has_its_own_figure(lab: Lab) -> None:
    path = speed_file("cpu, 1 threads", lab.locations)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"bfloat16": 2e11, "float32": 1e11}))
    assert measured_product_flops("cpu, 1 threads", "float32", lab.locations) == 1e11
    assert measured_product_flops("cpu, 1 threads", "bfloat16", lab.locations) == 2e11
    assert measured_product_flops("cpu, 2 threads", "float32", lab.locations) is None
    assert measured_product_flops("NVIDIA H200", "bfloat16", lab.locations) is None
    path.write_text("{")  # damaged: counts as not measured
    assert measured_product_flops("cpu, 1 threads", "float32", lab.locations) is None
