"""The pulled copy of a run that was deleted on Modal."""

from __future__ import annotations

import json

from tests.runner.targets.modal.cloud_run import put_run
from tests.runner.targets.modal.conftest import CloudFixture


def test_run_deleted_on_modal_is_found_in_its_copy(cloud: CloudFixture) -> None:
    put_run(cloud, "cl")
    cloud.run("pull", "checkpoints", "cl", "--all")
    assert json.loads(cloud.run("status", "cl", "--json")[0])["is_copy"] is False
    cloud.run("rm", "checkpoints", "cl", "-r", "-y")
    out, err = cloud.run("status", "cl")
    assert "cl (train on cloud; the copy that was pulled)" in out
    assert err == ""
    assert "cloud (copy)" in cloud.run("runs")[0]
    _, err = cloud.run("resume", "cl", "--target", "cloud", status=1)
    assert "runner push checkpoints cl" in err
