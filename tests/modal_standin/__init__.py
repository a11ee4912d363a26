"""A stand-in for Modal: a server on 127.0.0.1 for the real, unmodified client. See README.md."""

from .api import Api, Remote, StandinError, connect
from .docker_executor import DockerExecutor, build_image, docker_answers
from .images import Build
from .record import Request
from .standin import ModalStandin

__all__ = [
    "Api",
    "Build",
    "DockerExecutor",
    "ModalStandin",
    "Remote",
    "Request",
    "StandinError",
    "build_image",
    "connect",
    "docker_answers",
]
