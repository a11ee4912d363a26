"""A prebuilt image on Modal, in a registry that asks for a user and a password."""

from __future__ import annotations

from pathlib import Path

from tests.runner.targets.modal.conftest import ROOT, make_checkout, open_cloud, use_light_attempts

IMAGE = "ghcr.io/me/gpt:v1"


def test_a_private_image_is_pulled_with_the_secret_of_that_name(tmp_path: Path) -> None:
    checkout, registry = make_checkout(tmp_path / "checkout"), (ROOT / "Dockerfile").read_text()
    with open_cloud(checkout, tmp_path, registry={IMAGE: registry}) as cloud:
        use_light_attempts(cloud)
        variables = {"GPT_RUNNER_IMAGE": IMAGE, "GPT_RUNNER_IMAGE_SECRET": "registry"}
        words = ("--device", "cpu", "max_steps=5")
        _, err = cloud.train(*words, status=2, **variables)
        assert "GPT_RUNNER_IMAGE_SECRET=registry: Modal has no secret of that name" in err
        keys = "REGISTRY_USERNAME=... REGISTRY_PASSWORD=..."
        assert f"modal secret create registry {keys}" in err
        cloud.modal.add_secret("registry", {"REGISTRY_USERNAME": "me", "REGISTRY_PASSWORD": "p"})
        cloud.train(*words, **variables)
        builds = [build for build in cloud.modal.builds if f"FROM {IMAGE}" in build.commands]
        assert len(builds) == 1
        images = [each.message.image for each in cloud.modal.recorded("ImageGetOrCreate")]
        assert any(image.image_registry_config.secret_id for image in images)
