"""Checks of the trackers' stores after a run: one run, with every step once."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from job.metrics import read_metrics

BLOCK = 1 << 15  # of W&B's file, whose format is that of LevelDB's log
WORDS = (
    *(f"{name}_project=mine" for name in ("wandb", "mlflow", "trackio")),
    "sample_every=20",
    "tracker_tags=[first]",
    "tracker_checkpoint=true",
)


def check_stores(folder: Path, target: str) -> None:
    """Check the stores of a run of 60 steps with three attempts and the settings WORDS."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    record = json.loads((folder / "run.json").read_text())
    assert len(record["attempts"]) == 3
    assert record["trackers"]["mlflow"] == f"offline: mlruns/ in {folder.name}"
    steps = sorted({line["step"] for line in read_metrics(folder / "metrics.jsonl")})
    samples = {
        int(path.stem[5:]): path.read_text() for path in (folder / "samples").glob("step_*.txt")
    }
    assert sorted(samples) == [20, 40, 60]
    assert steps == list(range(1, 61))
    commit = record["git"]["commit"][:12]
    facts = {"first", f"commit:{commit}", f"target:{target}"}
    _check_wandb(folder, recipe, steps, samples, facts)
    _check_mlflow(folder, recipe, steps, samples, commit)
    _check_trackio(folder, recipe, steps, samples, commit)


def _check_wandb(
    folder: Path, recipe: Any, steps: list[int], samples: dict[int, str], facts: set[str]
) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    paths = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    records = [Record.FromString(data) for path in paths for data in wandb_records(path)]
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert len({run.run_id for run in runs}) == 1
    assert {run.project for run in runs} == {"mine"}
    assert facts <= set(runs[0].tags)
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert {key: value for key, value in config.items() if key != "_wandb"} == recipe
    history = [r.history for r in records if r.WhichOneof("record_type") == "history"]
    assert [entry.step.num for entry in history] == steps
    with_table = [
        entry.step.num
        for entry in history
        if any(item.key == "samples" or "samples" in item.nested_key for item in entry.item)
    ]
    assert with_table == sorted(samples)
    assert len(paths) == 3
    tables = folder.glob("wandb/offline-run-*/files/media/table/samples_*")
    rows = max((json.loads(path.read_text())["data"] for path in tables), key=len)
    assert rows == [list(row) for row in sorted(samples.items())]
    uploads = [r for r in records if r.WhichOneof("record_type") == "artifact"]
    assert any(upload.artifact.type == "model" for upload in uploads)


def wandb_records(path: Path) -> Iterator[bytes]:
    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:  # padding at the end of a block
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # complete, or the last part
            yield parts
            parts = b""


def _check_mlflow(
    folder: Path, recipe: Any, steps: list[int], samples: dict[int, str], commit: str
) -> None:
    (run,) = folder.glob("mlruns/*/*/meta.yaml")
    run = run.parent
    assert yaml.safe_load((run / "meta.yaml").read_text())["status"] == 3  # finished
    assert (run / "tags" / "commit").read_text() == commit
    losses = [line.split() for line in (run / "metrics/train/loss").read_text().splitlines()]
    assert [int(step) for _, _, step, *_ in losses] == steps
    assert json.loads((run / "artifacts" / "config.json").read_text()) == recipe
    assert (run / "params" / "train.lr").read_text() == "0.003"
    table = json.loads((run / "artifacts" / "samples.json").read_text())
    assert table["data"] == [list(row) for row in sorted(samples.items())]
    assert (run / "artifacts" / "checkpoint" / "model.safetensors").is_file()


def _check_trackio(
    folder: Path, recipe: Any, steps: list[int], samples: dict[int, str], commit: str
) -> None:
    with sqlite3.connect(folder / "trackio" / "mine.db") as store:
        rows = store.execute("select run_name, step, metrics from metrics order by id").fetchall()
        ((config,),) = store.execute("select config from configs").fetchall()
    assert len({name for name, *_ in rows}) == 1
    assert [step for _, step, _ in rows] == steps
    config = json.loads(config)
    assert {key: config[key] for key in recipe} == recipe
    assert config["metadata"]["commit"] == commit
    tables = {step: json.loads(text).get("samples") for _, step, text in rows}
    assert [step for step, table in tables.items() if table] == sorted(samples)
    shown = [(row["step"], row["text"]) for row in tables[60]["_value"]]
    assert shown == sorted(samples.items())
