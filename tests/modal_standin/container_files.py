"""The files, environment, arguments and volumes of a container that starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from modal_proto import api_pb2

from .apps import Apps
from .executor import Container
from .images import Images
from .mounts import Mounts
from .processes import TASK_VARIABLE
from .rpc import ENVIRONMENT, TASK_HEADER
from .secret_values import Secrets
from .settings import Settings
from .volume_views import View, open_view
from .volumes import Volumes

if TYPE_CHECKING:
    from .tasks import Task

SITE = Path(__file__).with_name("entry_point_site.py")
PYTHONPATH = "/root:/pkg"  # as on Modal: the user's code, then the client
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ContainerFiles:
    """Prepare the containers of functions and sandboxes."""

    def __init__(
        self,
        settings: Settings,
        apps: Apps,
        images: Images,
        mounts: Mounts,
        secrets: Secrets,
        volumes: Volumes,
    ) -> None:
        self._settings = settings
        self._apps = apps
        self._images = images
        self._mounts = mounts
        self._secrets = secrets
        self._volumes = volumes
        self.server_url = ""

    def prepare(self, task: Task) -> Container:
        """Write the files of a function's container to disk, and set the task's volume views."""
        definition = task.function.definition
        folder = self.new_folder(task.id)
        arguments = api_pb2.ContainerArguments(
            task_id=task.id,
            function_id=task.function.id,
            app_id=task.function.app_id,
            function_def=definition,
            environment_name=ENVIRONMENT,
            app_layout=self._layout(task),
        )
        arguments_file = folder / "args" / "container-arguments.bin"
        arguments_file.write_bytes(arguments.SerializeToString())
        env = self.environment(task.id, definition.image_id, list(definition.secret_ids))
        env["MODAL_CONTAINER_ARGUMENTS_PATH"] = str(arguments_file)
        env["MODAL_FUNCTION_ID"] = task.function.id
        task.views = self.views(folder, list(definition.volume_mounts))
        return Container(
            task_id=task.id,
            image_id=definition.image_id,
            folder=folder,
            tree=self.tree(folder, definition.image_id, list(definition.mount_ids)),
            command=["-m", "modal._container_entrypoint"],
            env=env,
            workdir=self._images.workdir(definition.image_id) or "/root",
            views=task.views,
        )

    def new_folder(self, task_id: str) -> Path:
        """Create a folder for the files of one container."""
        folder = self._settings.containers / task_id
        (folder / "args").mkdir(parents=True)
        return folder

    def discard(self, task_id: str) -> None:
        """Delete the folder of an ended container, with its copies of volumes."""
        shutil.rmtree(self._settings.containers / task_id, ignore_errors=True)

    def tree(self, folder: Path, image_id: str, mount_ids: list[str]) -> Path:
        """Return a folder with the files of the image and, over them, those of the mounts."""
        tree = folder / "tree"
        for name in ("root", "pkg"):
            (tree / name).mkdir(parents=True)
        shutil.copyfile(SITE, tree / "pkg" / "sitecustomize.py")
        self._images.lay_out(image_id, tree)
        for mount_id in mount_ids:
            self._mounts.lay_out(mount_id, tree)
        return tree

    def views(self, folder: Path, mounts: list[api_pb2.VolumeMount]) -> list[View]:
        copies = folder / "volumes" if self._settings.strict_commits else None
        return [
            open_view(
                mount.volume_id,
                self._volumes.folder(mount.volume_id) / mount.sub_path.lstrip("/"),
                mount.mount_path,
                mount.read_only,
                copies,
            )
            for mount in mounts
        ]

    def environment(self, task_id: str, image_id: str, secret_ids: list[str]) -> dict[str, str]:
        """Return a container's variables, without any of this machine."""
        image = self._images.environment(image_id)
        interpreter = str(Path(self._settings.python).parent)
        return {
            "HOME": "/root",
            "LANG": "C.UTF-8",
            **image,
            "PATH": f"{interpreter}:{image.get('PATH', '') or SYSTEM_PATH}:{SYSTEM_PATH}",
            "PYTHONPATH": f"{PYTHONPATH}:{image['PYTHONPATH']}"
            if image.get("PYTHONPATH")
            else PYTHONPATH,
            **self._settings.container_env,
            **self._secrets.values(secret_ids),
            TASK_VARIABLE: task_id,
            "MODAL_IS_REMOTE": "1",
            "MODAL_IMAGE_ID": image_id,
            "MODAL_ENVIRONMENT": ENVIRONMENT,
            "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_AWS",
            "MODAL_REGION": "us-east-1",
            "MODAL_SERVER_URL": self.server_url,
            "MODAL_CONFIG_PATH": "/dev/null",
            "MODAL_DISABLE_API_PROXY": "1",
            "MODAL_OVERRIDE_HEADERS": f"{TASK_HEADER}:{task_id}",
            "STANDIN_BLOCKED": ",".join(self._settings.blocked),
        }

    def _layout(self, task: Task) -> api_pb2.AppLayout:
        layout = self._apps.layout(task.function.app_id)
        for dependency in task.function.definition.object_dependencies:
            entry = layout.objects.add(object_id=dependency.object_id)
            if dependency.object_id.startswith("vo-"):
                entry.volume_metadata.CopyFrom(self._volumes.metadata(dependency.object_id))
        return layout
