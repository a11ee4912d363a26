"""The container's `/pkg/sitecustomize.py`, for the entry point's process alone.

On Modal, the client's dependencies are mounted into the container, without click and rich. Here
they are the interpreter's, so the entry point must not import these two. A process that the body
starts runs the image's Python with the image's packages.
"""

import os
import socket
import sys

if os.path.isdir("/__modal/deps"):  # in a real image, the client's dependencies are mounted
    sys.path.append("/__modal/deps")

if "modal._container_entrypoint" in sys.orig_argv:
    _blocked = set(filter(None, os.environ.get("STANDIN_BLOCKED", "").split(",")))

    class _Blocked:
        @staticmethod
        def find_spec(name, path=None, target=None):  # type: ignore[no-untyped-def]
            if name.partition(".")[0] in _blocked:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, _Blocked)

    _getaddrinfo = socket.getaddrinfo

    def _resolve(host, *args, **kwargs):  # type: ignore[no-untyped-def]
        """Resolve the name of a cluster's containers: all are on this machine."""
        return _getaddrinfo("::1" if host == "i6pn.modal.local" else host, *args, **kwargs)

    socket.getaddrinfo = _resolve
