"""Small stand-ins for nanochat's downloads, in the formats that its scripts read.

    python -m tests.runner.nanochat_data FOLDER [TEXT_FILE]

fills FOLDER, nanochat's NANOCHAT_BASE_DIR: its scripts skip files that exist.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SHARDS = (*range(8), 6542)  # of runs/runcpu.sh; the last one is for validation
ROWS = 60
LETTERS = ["A", "B", "C", "D"]

QUESTION = {"question": "Which word?", "choices": ["king", "queen", "sky", "sea"], "answer": 1}
ARC = {
    "question": "What is blue?",
    "choices": {"text": ["sky", "king", "queen", "fish"], "label": LETTERS},
    "answerKey": "A",
}
MATHS = {"question": "What is 2 times 3?", "answer": "It is <<2*3=6>>6.\n#### 6"}
PROGRAM = {
    "prompt": "def double(x):\n",
    "canonical_solution": "    return 2 * x\n",
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
TASKS: dict[str, dict[str, Any]] = {
    "HuggingFaceTB--smol-smoltalk/default/train": TALK,
    "HuggingFaceTB--smol-smoltalk/default/test": TALK,
    "cais--mmlu/all/auxiliary_train": {**QUESTION, "subject": "words"},
    "cais--mmlu/all/test": {**QUESTION, "subject": "words"},
    "openai--gsm8k/main/train": MATHS,
    "openai--gsm8k/main/test": MATHS,
    "allenai--ai2_arc/ARC-Easy/test": ARC,
    "allenai--ai2_arc/ARC-Challenge/test": ARC,
    "openai--openai_humaneval/openai_humaneval/test": PROGRAM,
}
TASK_ROWS = {"cais--mmlu/all/test": 5200, "openai--gsm8k/main/test": 420}  # that chat_sft indexes
CORE: dict[str, dict[str, Any]] = {
    "multiple_choice": {"query": "The sky is", "choices": ["blue", "green"], "gold": 0},
    "schema": {
        "context_options": ["The king", "The queen"],
        "continuation": "spoke",
        "gold": 0,
    },
    "language_modeling": {"context": "two and two is", "continuation": "four"},
}


def write_base(folder: Path, text: str) -> None:
    """Write shards of ``text``, the data of the fine-tuning and the tasks of both evaluations."""
    shards = folder / "base_data_climbmix"
    shards.mkdir(parents=True)
    size = len(text) // (len(SHARDS) * ROWS)
    rows = [text[start : start + size] for start in range(0, len(text), size)]
    for place, number in enumerate(SHARDS):
        table = pa.table({"text": rows[place * ROWS : (place + 1) * ROWS]})
        pq.write_table(table, shards / f"shard_{number:05d}.parquet", row_group_size=10)
    for path, row in TASKS.items():
        data = folder / "task_data" / path
        data.mkdir(parents=True)
        pq.write_table(
            pa.Table.from_pylist([row] * TASK_ROWS.get(path, ROWS)), data / "00000.parquet"
        )
        (data / "manifest.json").write_text('["00000.parquet"]')
    bundle = folder / "eval_bundle"
    (bundle / "eval_data").mkdir(parents=True)
    for kind, row in CORE.items():
        (bundle / "eval_data" / f"{kind}.jsonl").write_text(f"{json.dumps(row)}\n" * 20)
    tasks = [
        {
            "label": kind,
            "icl_task_type": kind,
            "dataset_uri": f"{kind}.jsonl",
            "num_fewshot": [1],
        }
        for kind in CORE
    ]
    (bundle / "core.yaml").write_text(json.dumps({"icl_tasks": tasks}))
    baselines = "".join(f"{kind},0\n" for kind in CORE)
    (bundle / "eval_meta_data.csv").write_text(f"Eval Task,Random baseline\n{baselines}")


if __name__ == "__main__":
    write_base(Path(sys.argv[1]), Path(sys.argv[2]).read_text(encoding="utf-8"))
