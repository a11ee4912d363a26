"""prepare and sample, secrets, clusters, and an offline machine."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from modal_proto.api_pb2 import OBJECT_CREATION_TYPE_UNSPECIFIED

from tests.runner.targets.modal.conftest import CloudFixture

SECRET_VALUE = "s3cret-0123456789abcdef"

# Writes the environment of each rank to the volume.
WRITE_ENVIRONMENT = """
import json, os, pathlib, sys
folder = pathlib.Path("/vol/checkpoints/tiny"); folder.mkdir(exist_ok=True)
seen = {name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK")}
(folder / f"rank_{seen['RANK']}.json").write_text(json.dumps({**seen, "argv": sys.argv[1:]}))
"""


def test_prepare_rents_no_gpu_and_sample_a_small_one(cloud: CloudFixture) -> None:
    cloud.run("cloud", "prepare", "tiny", "-y")
    assert (cloud.volume("data") / "tiny" / "meta.json").exists()
    cloud.train("--gpu", "T4", "max_steps=10")
    words = ("--name", "tiny", "prompt=the ", "max_new_tokens=12", "-y")
    out, _ = cloud.run("cloud", "sample", *words)
    assert out.startswith("the ")
    out, _ = cloud.run("cloud", "evaluate", "--name", "tiny", "--json", "-y")
    assert json.loads(out)["step"] == 10
    gpus = [task["gpu"] for task in cloud.modal.tasks()]
    assert gpus[0] == ""
    assert gpus[1] == "T4"
    assert gpus[2] in ("L4", "T4")
    # Reading a run does not change its record.
    assert len(cloud.ledger()["attempts"]) == 1


def test_secrets_appear_nowhere(cloud: CloudFixture) -> None:
    (cloud.checkout / ".env").write_text(
        f"WANDB_API_KEY={SECRET_VALUE}\nMY_TOKEN={SECRET_VALUE}x\n"
    )
    cloud.modal.add_secret("kept-by-modal", {"OTHER": SECRET_VALUE + "y"})
    code = cloud.checkout / "model" / "train.py"
    lengths = (
        "print('lengths', *(len(os.environ[n]) for n in ('WANDB_API_KEY', 'MY_TOKEN', 'OTHER')))"
    )
    code.write_text(f"import os\n{lengths}\n")
    words = ["--gpu", "T4", "train.wandb_project=mine"]
    words += ["--env", "MY_TOKEN", "--secret", "kept-by-modal"]
    plan, _ = cloud.run("cloud", "tiny", *words, "--dry-run", "--json")
    assert json.loads(plan)["secrets"] == ["WANDB_API_KEY", "MY_TOKEN"]
    assert json.loads(plan)["target_options"]["modal_secrets"] == ["kept-by-modal"]
    _, err = cloud.run("cloud", "tiny", "-y", *words[:-1], "nosuch", status=2)
    assert "--secret nosuch: Modal has no secret of that name" in err
    assert "modal secret create nosuch KEY=VALUE" in err
    assert "building the image" not in err
    process = cloud.start("cloud", "tiny", "-y", *words)
    observed = [_command_lines()]
    cloud.modal.wait_until(
        lambda: observed.append(_command_lines()) or process.poll() is not None, 60
    )
    out, err = process.communicate()
    assert "lengths 23 24 24" in out
    assert "WANDB_API_KEY, MY_TOKEN\n" in err
    assert "kept-by-modal\n" in err
    assert cloud.modal.appeared(SECRET_VALUE) == []
    assert SECRET_VALUE not in plan + out + err + cloud.modal.log()
    assert any(b"model.train" in line for line in observed)
    assert not any(SECRET_VALUE.encode() in line for line in observed)
    files = [path for path in cloud.checkout.rglob("*") if path.is_file() and path.name != ".env"]
    assert not any(SECRET_VALUE.encode() in path.read_bytes() for path in files)


def _command_lines() -> bytes:
    """Return the command lines of all processes on this machine."""
    found = b""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # the process has just ended
            found += path.read_bytes()
    return found


def test_two_nodes_form_one_torchrun_job(cloud: CloudFixture) -> None:
    (cloud.checkout / "model" / "train.py").write_text(WRITE_ENVIRONMENT)
    _, err = cloud.run("cloud", "tiny", "-y", "--gpu", "H100:8", "--nodes", "2")
    assert "2 nodes, each 8 x H100" in err
    observed = [json.loads(path.read_text()) for path in cloud.run_folder().glob("rank_*.json")]
    assert sorted(int(rank["RANK"]) for rank in observed) == list(range(16))
    assert {rank["WORLD_SIZE"] for rank in observed} == {"16"}
    assert {(rank["GROUP_RANK"], rank["LOCAL_RANK"]) for rank in observed} == {
        (str(node), str(local)) for node in range(2) for local in range(8)
    }
    assert len(cloud.ledger()["attempts"]) == 1
    # A machine outside the cluster prepared the data first.
    assert [task["gpu"] for task in cloud.modal.tasks()] == ["", "H100", "H100"]
    assert (cloud.volume("data") / "tiny" / "meta.json").exists()


def test_read_only_commands_create_no_volume(cloud: CloudFixture) -> None:
    assert "no runs yet" in cloud.run("runs")[1]
    cloud.run("status", "tiny", status=102)
    cloud.run("logs", "tiny", status=102)
    cloud.run("cloud", "tiny", "--dry-run")
    assert "data/ is empty" in cloud.run("ls", "data")[1]
    cloud.run("pull", "checkpoints", "tiny", status=102)
    cloud.run("rm", "data", "texts", "-y", status=102)
    cloud.run("push", "data", "texts", "--dry-run")
    made = [
        request.message.object_creation_type
        for request in cloud.modal.recorded("VolumeGetOrCreate")
    ]
    assert made
    assert set(made) == {OBJECT_CREATION_TYPE_UNSPECIFIED}
    assert list((cloud.modal.state / "volumes").iterdir()) == []
    cloud.run("push", "data", "texts")
    assert [path.name for path in cloud.volume("data").iterdir()] == ["texts"]


def test_missing_path_on_a_volume_is_refused_by_the_plan(light_cloud: CloudFixture) -> None:
    cloud = light_cloud
    cloud.run("push", "data", "texts")
    other = cloud.volume("data") / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "other"}')
    for setting in ("source=/vol/data/texts/*.txt", "source=/vol/data"):
        cloud.run("cloud", "tiny", "-y", "--dry-run", setting)
    for setting, problem in (
        ("data.source=/vol/data/texts/gone.txt", "no such file on the volume data"),
        ("train.init_from=/vol/checkpoints/gone", "no such file on the volume checkpoints"),
        ("train.init_from=/vol/data/texts", "not a run"),
        ("train.init_from=/vol/data/other", "other/config.json is not a GPT-2"),
    ):
        err = cloud.run("cloud", "tiny", "-y", setting, status=2)[1]
        assert err.startswith(f"error: {setting}: {problem}")
    assert cloud.modal.calls() == []


def test_offline_runs_lists_the_others_and_names_modal(cloud: CloudFixture) -> None:
    folder = cloud.checkout / "volumes" / "checkpoints" / "mine"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"name": "mine", "status": "finished"}))
    out, err = cloud.run("runs", MODAL_SERVER_URL="http://127.0.0.1:1")
    assert "mine" in out
    assert err.count("\n") == 1
    assert "skipped target cloud: Modal can't be reached" in err
    out, err = cloud.run("runs", MODAL_TOKEN_ID="")
    assert "mine" in out
    assert err == ""
