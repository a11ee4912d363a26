"""Becomes the container's `/pkg/sitecustomize.py`: what is different in the entry point's process.

On Modal the client's dependencies are mounted into the container, without click and rich. Here they come
with the interpreter, so importing those is forbidden, in the entry point alone: a process that the body
starts runs the image's Python, with whatever the image has.
"""

import os
import socket
import sys

if os.path.isdir(
    "/__modal/deps"
):  # in a real image, where the client's dependencies come by a mount
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
        """The containers of a cluster know each other by this name; here all are on this machine."""
        return _getaddrinfo("::1" if host == "i6pn.modal.local" else host, *args, **kwargs)

    socket.getaddrinfo = _resolve
