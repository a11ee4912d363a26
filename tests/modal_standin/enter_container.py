"""Give this process the file system of a container, then become the container's command.

    python -I enter_container.py SPEC.json

Needs only the standard library. Creates a mount namespace (as root, or in an unprivileged user
namespace) with a new root: the machine's folders, except hidden ones and the container's own; then
the mounted code; then the volumes. The namespace ends with its last process.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import sys
import termios
from contextlib import suppress
from typing import Any

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_SLAVE = 0x1, 0x20, 0x1000, 0x4000, 0x80000
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        spec = json.load(file)
    separate_mounts()
    enter(spec)
    os.chdir(spec["workdir"])
    _libc.prctl(
        PR_SET_PDEATHSIG, signal.SIGKILL
    )  # a killed server must not leave containers running
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the server may have been started with it ignored
    if os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C in the terminal reaches the command
    try:
        os.execvpe(spec["argv"][0], spec["argv"], dict(os.environ))
    except FileNotFoundError:
        sys.exit(f"{spec['argv'][0]}: command not found")


def separate_mounts() -> None:
    """Create a mount namespace. Raises OSError if the kernel allows neither way."""
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(CLONE_NEWNS) != 0:
        _check(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare")
        for name, line in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {uid} 1"),
            ("gid_map", f"0 {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(line)
    _mount("none", "/", flags=MS_REC | MS_SLAVE)


def enter(spec: dict[str, Any]) -> None:
    """Build the new root in `spec["root"]` and change into it."""
    root, tree = spec["root"], spec["tree"]
    _mount("tmpfs", root, kind="tmpfs")
    files = [
        os.path.join(folder, name)[len(tree) :]
        for folder, _, names in os.walk(tree)
        for name in names
    ]
    changed = [*files, *spec["hidden"], *(bind["target"] for bind in spec["binds"])]
    split = {parent for path in changed for parent in _parents(path)}
    _expose("/", root, split, {*spec["own"], *spec["hidden"]})
    for path in {"/" + name for name in os.listdir(tree)} & set(spec["own"]):
        _mount(tree + path, root + path, flags=MS_BIND)
    for path in spec["kept"]:  # the interpreter, if it is in a hidden folder
        os.makedirs(root + path, exist_ok=True)
        if not os.listdir(root + path):  # the first process of the container may have made it
            _mount(path, root + path, flags=MS_BIND | MS_REC)
    _graft(tree, "/", root)
    for bind in spec["binds"]:
        target = root + bind["target"]
        os.makedirs(target, exist_ok=True)
        _mount(bind["source"], target, flags=MS_BIND)
        if bind["read_only"]:
            _mount("none", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)
    os.chroot(root)
    os.makedirs(spec["workdir"], exist_ok=True)


def _parents(path: str) -> list[str]:
    parts = path.strip("/").split("/")
    return ["/" + "/".join(parts[:n]) for n in range(1, len(parts))]


def _expose(path: str, root: str, split: set[str], emptied: set[str]) -> None:
    """Bind a folder of the machine under the new root, or the entries of one in `split`."""
    for entry in os.scandir(path):
        target = root + entry.path
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), target)
        elif not entry.is_dir():
            if entry.is_file() or os.path.exists(entry.path):
                open(target, "w").close()
                _mount_unless_deleted(entry.path, target)
        elif entry.path in emptied:
            os.mkdir(target)
        elif entry.path in split:
            os.mkdir(target)
            _expose(entry.path, root, split, emptied)
        else:
            os.mkdir(target)
            _mount_unless_deleted(entry.path, target)


def _mount_unless_deleted(source: str, target: str) -> None:
    """Bind a path that other processes of the machine may delete, such as one in /tmp."""
    with suppress(FileNotFoundError):
        _mount(source, target, flags=MS_BIND | MS_REC)


def _graft(tree: str, path: str, root: str) -> None:
    """Put the mounted files over the existing ones; bind new folders as a whole."""
    for entry in os.scandir(tree):
        target = root + os.path.join(path, entry.name)
        if os.path.exists(target) and os.path.samefile(entry.path, target):
            continue  # one of the container's own folders: complete already
        if entry.is_dir() and os.path.isdir(target):
            _graft(entry.path, os.path.join(path, entry.name), root)
            continue
        if entry.is_dir():
            os.mkdir(target)
        elif not os.path.exists(target):
            open(target, "w").close()
        _mount(entry.path, target, flags=MS_BIND)


def _mount(source: str, target: str, kind: str | None = None, flags: int = 0) -> None:
    data = kind.encode() if kind else None
    _check(
        _libc.mount(source.encode(), target.encode(), data, flags, None),
        f"mount {source} on {target}",
    )


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
