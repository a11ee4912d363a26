"""What becomes of a file with train(): its result, its failure, its being stopped."""

from __future__ import annotations

import json
import signal

import pytest

from tests.experiment.conftest import Bench
from tests.waiting import wait_for

PLAIN = """\
def train(output_dir=".", lr: float = 1e-3, fail: bool = False):
    print("at work with", lr)
    if fail:
        raise ValueError("as asked")
    return {"loss": 2 * lr, "steps": 3}
"""

WAITS = """\
import sys, time
def train(output_dir="."):
    while True:
        time.sleep(0.01)
        ASK
        print("waiting", flush=True)
    return {"done": 1}
"""


def test_what_it_returns_is_the_runs_result(bench: Bench) -> None:
    bench.write("mine.py", PLAIN)
    out, err = bench.run("mine.py", "lr=0.5", "--name", "first")
    assert out == "at work with 0.5\n"
    assert "run first is finished: loss=1 steps=3" in err
    record = bench.record("first")
    assert record["result"] == {"loss": 1.0, "steps": 3}
    assert record["arguments"] == {"lr": 0.5, "fail": False}
    assert (record["status"], record["job"]) == ("finished", "experiment")
    assert "at work with 0.5" in bench.log("first")


def test_one_that_is_finished_is_not_run_again(bench: Bench) -> None:
    path = bench.write("mine.py", PLAIN)
    bench.run("mine.py", "lr=0.5")
    out, err = bench.run("mine.py", "lr=0.5", "--json")
    assert json.loads(out)["result"]["loss"] == 1.0
    assert "finished already: loss=1 steps=3" in err
    assert len(bench.record("mine")["attempts"]) == 1
    path.write_text(PLAIN + "# edited\n")
    assert "the file has changed since" in bench.run("mine.py", "lr=0.5")[1]


def test_other_parameters_under_its_name_are_refused_with_the_difference(bench: Bench) -> None:
    bench.write("mine.py", PLAIN)
    bench.run("mine.py", "lr=0.5")
    _, err = bench.run("mine.py", "lr=0.25", status=1)
    assert "lr: 0.5 → 0.25" in err
    assert "--name NEW-NAME" in err
    bench.write("other.py", PLAIN)
    assert "file: mine.py → other.py" in bench.run("other.py", "lr=0.5", "--name", "mine", status=1)[1]


def test_an_exception_is_a_failed_run_with_its_traceback_in_the_log(bench: Bench) -> None:
    bench.write("mine.py", PLAIN)
    _, err = bench.run("mine.py", "fail=yes", status=100)
    record = bench.record("mine")
    assert (record["status"], record["attempts"][0]["reason"]) == ("failed", "ValueError: as asked")
    log = bench.log("mine")
    assert 'raise ValueError("as asked")' in log
    assert "experiment/run.py" not in log  # it begins in the user's file
    assert "ValueError: as asked" in err


@pytest.mark.parametrize(
    ("returned", "kept"),
    [
        ("None", {}),
        ("3.5", {"result": 3.5}),
        ("{'a': float('nan'), 'b': [1, (2,)]}", {"a": "nan", "b": [1, [2]]}),
        ("{'a': object}", {"a": "<class 'object'>"}),
    ],
)
def test_no_work_is_lost_for_a_result_that_json_lacks(bench: Bench, returned: str, kept: object) -> None:
    bench.write("mine.py", f"def train(output_dir='.'):\n    return {returned}\n")
    bench.run("mine.py")
    assert bench.record("mine")["result"] == kept


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "ask", ["", "from experiment import should_stop\n        if should_stop(): return {'half': 1}"]
)
def test_one_that_is_stopped_is_unfinished_whether_it_asks_or_not(
    bench: Bench, ask: str, which: signal.Signals
) -> None:
    bench.write("mine.py", WAITS.replace("ASK", ask or "pass"))
    process = bench.start("mine.py")
    wait_for(lambda: "waiting" in bench.log("mine"))
    process.send_signal(which)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 101, err
    record = bench.record("mine")
    assert record["status"] == "unfinished"
    assert record["attempts"][0]["reason"] == which.name
    assert record["result"] == {}
    assert ("before it asked" in err) == (ask == "")


def test_its_neighbours_may_have_the_names_of_our_packages(bench: Bench) -> None:
    bench.write("model.py", "WIDTH = 7\n")
    bench.write("job.py", "NAME = 'theirs'\n")
    bench.write(
        "mine.py",
        "import job, model\nfrom experiment import TBLogger, save_checkpoint\n"
        "def train(output_dir='.'):\n"
        "    TBLogger(output_dir).log(1, loss=1.0)\n"
        "    save_checkpoint(output_dir, 1, config={})\n"
        "    return {'width': model.WIDTH, 'name': job.NAME}\n",
    )
    bench.run("mine.py")
    assert bench.record("mine")["result"] == {"width": 7, "name": "theirs"}
    assert (bench.run_folder("mine") / "latest").read_text() == "step_00000001\n"
