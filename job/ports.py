"""The port of a server."""

from __future__ import annotations

import errno
import socket

from job.exit_status import UsageError

LAST_PORT = 65535


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address. Raises UsageError, with another port to try."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        other = port + 1 if port < LAST_PORT else port - 1
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} is already in use; choose another: `--port {other}`"
        elif error.errno == errno.EACCES:
            message = f"port {port} needs root; choose one above 1023: `--port 8000`"
        else:
            reason = error.strerror or error
            message = f"--host {host} is not an address of this machine: {reason}; remove --host"
        raise UsageError(message) from None
