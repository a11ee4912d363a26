"""Images: count and check their builds as Modal does, without building them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .dockerfile import copied, environment, missing_sources, working_directory
from .executor import OWN_FOLDERS
from .ids import id_of, new_id
from .mounts import Mounts
from .rpc import Caller
from .settings import Settings
from .store import Shelf

DOCKERFILE = "Dockerfile.flat"  # a copied folder may have its own Dockerfile


@dataclass(frozen=True)
class Build:
    """A layer that was not cached. `failure` is empty if the build succeeded."""

    image_id: str
    commands: tuple[str, ...]
    failure: str = ""


class Images:
    """All images. The id depends on the content, so the same content is built once."""

    def __init__(self, settings: Settings, mounts: Mounts) -> None:
        self._mounts = mounts
        self._builder_version = settings.builder_version
        self._registry = settings.registry
        self._images: Shelf[api_pb2.ImageGetOrCreateRequest] = Shelf(
            settings.state / "images.json", api_pb2.ImageGetOrCreateRequest
        )
        self._failures: dict[str, str] = {}
        self.builds: list[Build] = []

    async def ImageGetOrCreate(
        self, request: api_pb2.ImageGetOrCreateRequest, caller: Caller
    ) -> api_pb2.ImageGetOrCreateResponse:
        for base in request.image.base_images:
            self._get(base.image_id)
        image_id = _image_id(request)
        if image_id in self._images and not (request.force_build or request.ignore_cache):
            return api_pb2.ImageGetOrCreateResponse(
                image_id=image_id, result=self._result(image_id), metadata=self._metadata(image_id)
            )
        if image_id in self._images:
            image_id = new_id("im")  # Modal rebuilds under a new id when it is forced to
        failure = self._check(request.image)
        if failure:
            self._failures[image_id] = failure
        else:
            self._images.put(image_id, request)
        if (
            request.namespace == api_pb2.DEPLOYMENT_NAMESPACE_GLOBAL
        ):  # Modal's own images are built already
            return api_pb2.ImageGetOrCreateResponse(
                image_id=image_id, result=self._result(image_id), metadata=self._metadata(image_id)
            )
        self.builds.append(Build(image_id, tuple(request.image.dockerfile_commands), failure))
        return api_pb2.ImageGetOrCreateResponse(image_id=image_id)

    async def ImageJoinStreaming(
        self, request: api_pb2.ImageJoinStreamingRequest, caller: Caller
    ) -> AsyncIterator[api_pb2.ImageJoinStreamingResponse]:
        failure = self._failures.get(request.image_id)
        if failure is None:
            self._get(request.image_id)
        text = failure or f"Built image {request.image_id}"
        yield api_pb2.ImageJoinStreamingResponse(
            entry_id="1-0",
            task_logs=[
                api_pb2.TaskLogs(data=text + "\n", file_descriptor=api_pb2.FILE_DESCRIPTOR_STDOUT)
            ],
        )
        yield api_pb2.ImageJoinStreamingResponse(
            entry_id="2-0",
            result=self._result(request.image_id),
            metadata=self._metadata(request.image_id),
            eof=True,
        )

    async def ImageFromId(
        self, request: api_pb2.ImageFromIdRequest, caller: Caller
    ) -> api_pb2.ImageFromIdResponse:
        self._get(request.image_id)
        return api_pb2.ImageFromIdResponse(
            image_id=request.image_id, metadata=self._metadata(request.image_id)
        )

    def chain(self, image_id: str) -> list[api_pb2.Image]:
        """Return the image's layers, starting with the base."""
        image = self._get(image_id).image
        below = self.chain(image.base_images[0].image_id) if image.base_images else []
        return [*below, image]

    def environment(self, image_id: str) -> dict[str, str]:
        env: dict[str, str] = {}
        for layer in self.chain(image_id) if image_id else []:
            env = environment(self._instructions(layer), layer.build_args, env)
        return env

    def workdir(self, image_id: str) -> str:
        directory = ""
        for layer in self.chain(image_id) if image_id else []:
            directory = working_directory(self._instructions(layer), directory)
        return directory

    def _instructions(self, layer: api_pb2.Image) -> list[str]:
        """Return the layer's instructions, after those of the registry's image below it."""
        lines = [*layer.dockerfile_commands]
        base = lines[0].removeprefix("FROM ").strip() if lines else ""
        return [*self._registry.get(base, "").splitlines(), *lines]

    def lay_out(self, image_id: str, tree: Path) -> None:
        """Write the files that COPY puts into OWN_FOLDERS, which replace this machine's folders."""
        directory = ""
        for layer in self.chain(image_id) if image_id else []:
            if layer.context_mount_id:
                context = self._mounts.files(layer.context_mount_id)
                for source, target in copied(layer.dockerfile_commands, context, directory):
                    if target.startswith(tuple(f"{own}/" for own in OWN_FOLDERS)):
                        self._mounts.lay_out_file(context[source], tree / target.lstrip("/"))
            directory = working_directory(layer.dockerfile_commands, directory)

    def write_dockerfile(self, image_id: str, folder: Path) -> Path:
        """Write a build context and one Dockerfile for all layers of the image.

        Returns the Dockerfile's path. If several layers have a context, each is in a separate
        folder, and sources are renamed to match, so files of different layers do not collide. A
        single one keeps its names, so that Docker reuses its cache of the same Dockerfile.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lines: list[str] = []
        chain = self.chain(image_id)
        is_alone = sum(bool(layer.context_mount_id or layer.context_files) for layer in chain) == 1
        for number, layer in enumerate(chain):
            name = "." if is_alone else f"layer{number}"
            context = folder / name
            context.mkdir(exist_ok=True)
            if layer.context_mount_id:
                self._mounts.lay_out(layer.context_mount_id, context)
            for file in layer.context_files:
                target = context / file.filename.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.data)
            lines += _rebased(layer, name)
        dockerfile = folder / DOCKERFILE
        dockerfile.write_text("\n".join(lines) + "\n")
        return dockerfile

    def _check(self, image: api_pb2.Image) -> str:
        context = [file.filename for file in image.context_files]
        if image.context_mount_id:
            context += self._mounts.files(image.context_mount_id)
        missing = missing_sources(image.dockerfile_commands, context)
        if not missing:
            return ""
        source = "/" + missing[0].lstrip("./")
        return (
            "failed to solve: failed to compute cache key: failed to calculate checksum of ref: "
            f'"{source}": not found'
        )

    def _get(self, image_id: str) -> api_pb2.ImageGetOrCreateRequest:
        image = self._images.get(image_id)
        if image is None:
            raise GRPCError(Status.NOT_FOUND, f"Image with ID '{image_id}' not found")
        return image

    def _result(self, image_id: str) -> api_pb2.GenericResult:
        failure = self._failures.get(image_id)
        if failure:
            return api_pb2.GenericResult(
                status=api_pb2.GenericResult.GENERIC_STATUS_FAILURE, exception=failure, exitcode=1
            )
        return api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)

    def _metadata(self, image_id: str) -> api_pb2.ImageMetadata:
        workdir = self.workdir(image_id) if image_id in self._images else ""
        return api_pb2.ImageMetadata(
            python_version_info="Python 3.11.7",
            workdir=workdir or "/root",
            image_builder_version=self._builder_version,
        )


def _image_id(request: api_pb2.ImageGetOrCreateRequest) -> str:
    """Return the image's id, without the app and the secrets' ids, which change each run."""
    image = api_pb2.Image()
    image.CopyFrom(request.image)
    image.ClearField("secret_ids")
    image.image_registry_config.ClearField("secret_id")
    content = image.SerializeToString(deterministic=True)
    return id_of("im", content, request.builder_version, str(request.namespace))


def _rebased(layer: api_pb2.Image, context: str) -> list[str]:
    """Return the layer's commands without `FROM base`, with COPY sources below `context`."""
    lines = []
    bases = {base.docker_tag for base in layer.base_images}
    for command in layer.dockerfile_commands:
        words = command.split()
        if len(words) > 1 and words[0].upper() == "FROM" and words[1] in bases:
            continue
        if words and words[0].upper() in ("COPY", "ADD") and "--from=" not in command:
            flags = [word for word in words[1:] if word.startswith("--")]
            paths = [word for word in words[1:] if not word.startswith("--")]
            sources = [str(PurePosixPath(context) / source.lstrip("/")) for source in paths[:-1]]
            command = " ".join([words[0], *flags, *sources, paths[-1]])
        lines.append(command)
    return lines
