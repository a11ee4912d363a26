"""Files on a box: its volumes, trees of this machine's files for a job, and the image.

An agent on the box serves the files; after a lost connection it is started again. A tree is a
Docker volume named after its content.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from job.paths import WORKSPACE
from job.run_record import is_run_name
from runner.console import CliContext
from runner.errors import RunnerError
from runner.plan import Plan
from runner.planning.command_plan import SEEDS
from runner.planning.packaging import list_files, make_omitted_test
from runner.system import System
from runner.targets.blocks import (
    BLOCK_SIZE,
    Block,
    BlockFiles,
    MissingBlock,
    NewFile,
    OpenFile,
    RemoteEntry,
    RetryPolicy,
    block_ranges,
    checked_path,
)
from runner.targets.docker import IMAGE_VARIABLE, build_context, image_id, transfer_image
from runner.targets.modal.image import VOLUME_FOLDERS, fingerprint
from runner.targets.remote import agent
from runner.targets.remote.connection import BoxSystem, BoxUnavailable, explain

ERRORS = {"FileNotFoundError": FileNotFoundError, "NotADirectoryError": NotADirectoryError}


class Agent:
    """A process on the box that answers requests, started at the first one.

    ``mounts`` are Docker volumes by their names in the agent. ``image`` returns the image to run
    it in, None while the box has none; its volumes are empty then.
    """

    def __init__(
        self, system: BoxSystem, image: Callable[[], str | None], mounts: Mapping[str, str]
    ) -> None:
        self.system, self.image, self.mounts = system, image, dict(mounts)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def request(
        self, op: str, content: bytes = b"", retry: RetryPolicy | None = None, **parameters: Any
    ) -> tuple[Any, bytes]:
        """Return the agent's result and bytes. Raises what it raised, or BoxUnavailable."""
        head = zlib.compress(json.dumps({"op": op, **parameters}).encode(), 9)
        frame = agent.FRAME.pack(len(head), len(content)) + head + content

        def attempt() -> tuple[dict[str, Any], bytes]:
            with self._lock:
                try:
                    return self._exchange(frame)
                except BoxUnavailable:
                    self.close()
                    raise

        answer, body = self.system.retry(attempt, retry)
        if "error" in answer:
            if answer["error"] not in ERRORS:
                raise RunnerError(explain(self.system.box, answer["message"], default=""))
            raise ERRORS[answer["error"]](answer["message"])
        return answer["result"], body

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                with suppress(OSError):
                    stream.close()  # type: ignore[union-attr]
            self._process = None

    def _exchange(self, request: bytes) -> tuple[dict[str, Any], bytes]:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
            length, size = agent.FRAME.unpack(process.stdout.read(agent.FRAME.size))
            head = json.loads(zlib.decompress(process.stdout.read(length)))
            body = process.stdout.read(size)
        except (OSError, ValueError, struct.error, zlib.error) as error:
            raise BoxUnavailable(f"the connection to {self.system.box} broke off") from error
        if len(body) < size:
            raise BoxUnavailable(f"the connection to {self.system.box} broke off")
        return head, body

    def _start(self) -> subprocess.Popen[bytes]:
        image = self.image()
        if image is None:
            raise FileNotFoundError(f"{self.system.box} has no image yet")
        volumes = [
            w for name, volume in self.mounts.items() for w in ("-v", f"{volume}:/vol/{name}")
        ]
        source = Path(agent.__file__).read_text(encoding="utf-8")
        packed = base64.b64encode(zlib.compress(source.encode(), 9)).decode()
        code = f"import base64,zlib;exec(zlib.decompress(base64.b64decode('{packed}')))"
        options = ("--rm", "-i", "--network", "none", "--log-driver", "none")
        command = ["docker", "run", *options, *volumes, "--entrypoint", "python", image, "-c", code]
        process = self.system.popen(command, stdin=subprocess.PIPE)
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            error = process.stderr.read().decode(errors="replace") if process.stderr else ""
            code_ = process.wait()
            lines = error.strip().splitlines() or [f"exit status {code_}"]
            if code_ in (125, 126, 127):  # Docker's own errors; a retry would fail too
                raise RunnerError(explain(self.system.box, lines[-1]))
            raise BoxUnavailable(explain(self.system.box, lines[-1]))
        # Nothing reads stderr from now on; a full pipe would stop ssh.
        assert process.stderr is not None
        threading.Thread(target=process.stderr.read, daemon=True).start()
        self._process = process
        return process


@dataclass
class BoxFiles(BlockFiles):
    """The files of one volume of a box. A volume that does not exist is empty."""

    agent: Agent
    volume: str

    @property
    def id(self) -> str:
        """Return the name of the box and the volume."""
        return f"{self.agent.system.box}-{self.agent.mounts[self.volume]}"

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Return at most ``length`` bytes from ``start``. Raises FileNotFoundError."""
        return self._request("read", path=checked_path(path), start=start, length=length)[1]

    def listing(self, path: str = "", recursive: bool = True) -> list[RemoteEntry]:
        """Return the entries of a folder, or of the file itself. Raises FileNotFoundError."""
        entries, _ = self._request("listing", path=checked_path(path), recursive=recursive)
        return [RemoteEntry(*row) for row in entries]

    def open(self, path: str, start: int = 0, length: int | None = None) -> OpenFile:
        """Return the blocks of the range, as the file is now. Raises FileNotFoundError."""
        size = self.size(path)
        if size is None:
            raise FileNotFoundError(path)
        end = size if length is None else min(size, start + length)
        blocks = (Block(a, b - a, path, True) for a, b in block_ranges(start, end))
        return OpenFile(size, tuple(blocks))

    def block(self, block: Block) -> bytes:
        """Return the bytes of a block. Raises BoxUnavailable for a file that became shorter."""
        body = self.read(block.url, block.start, block.length)
        if len(body) != block.length:
            raise BoxUnavailable(f"{block.url} became shorter during the download")
        return body

    def put(
        self, files: Sequence[NewFile], receipts: Mapping[bytes, bytes], tree: str = ""
    ) -> list[MissingBlock]:
        """Create or replace all files at once, or none and return the blocks that are missing."""
        rows = [[f.path, f.size, f.mode, [b.hex() for b in f.blocks]] for f in files]
        missing, _ = self._request("put", files=rows, tree=tree)
        return [
            MissingBlock(file, block, files[file].blocks[block].hex()) for file, block in missing
        ]

    def finish(self, tree: str) -> bool:
        """Create the files of the last ``put`` of a tree; return True if blocks are missing."""
        return bool(self._request("put", files=None, tree=tree)[0])

    def send(self, block: MissingBlock, content: bytes) -> bytes:
        """Send a block; return its receipt."""
        self.send_all([(block.url, content)])
        return b"stored"

    def send_all(self, blocks: Sequence[tuple[str, bytes]]) -> int:
        """Send blocks by digest in one compressed request; return the bytes sent."""
        packed = zlib.compress(b"".join(content for _, content in blocks))
        sizes, digests = [len(c) for _, c in blocks], [digest for digest, _ in blocks]
        self.agent.request("store", packed, self.retry, digests=digests, sizes=sizes)
        return len(packed)

    def write(self, path: str, content: str) -> None:
        """Create or replace a small file."""
        self._request("write", content.encode(), path=checked_path(path))

    def _remove(self, path: str, recursive: bool) -> None:
        self._request("remove", path=path)

    def _request(self, op: str, content: bytes = b"", **parameters: Any) -> tuple[Any, bytes]:
        return self.agent.request(op, content, self.retry, volume=self.volume, **parameters)


REPOSITORY = "gpt-runner"  # of images that the runner built on a box
BATCH_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Tree:
    """Files to mount at ``container_path``: a Docker volume named after their content.

    A running job keeps the code that it started with, and an edit sends only what changed.
    """

    container_path: str
    files: tuple[tuple[NewFile, Path], ...]

    @property
    def volume(self) -> str:
        """Return the name of the volume."""
        rows = sorted((f.path, f.mode, f.size, [b.hex() for b in f.blocks]) for f, _ in self.files)
        return f"gpt-runner-tree-{hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]}"


def make_tree(container_path: str, paths: Mapping[str, Path]) -> Tree:
    """Return the tree of local files by their paths below ``container_path``."""
    files = []
    for name, path in sorted(paths.items()):
        blocks = tuple(hashlib.sha256(block).digest() for block in _blocks(path))
        status = path.stat()
        mode = 0o755 if status.st_mode & 0o100 else 0o644
        files.append((NewFile(name, status.st_size, mode, blocks), path))
    return Tree(container_path, tuple(files))


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_SIZE):
            yield block.rstrip(b"\0")


def send_tree(files: BoxFiles, tree: Tree) -> int:
    """Fill the tree's volume, unless it is complete; return the bytes sent."""
    if files.entry(".complete") is not None:
        return 0
    new = [file for file, _ in tree.files]
    sent, batch = 0, dict[str, bytes]()
    for missing in files.put(new, {}, tree.volume):
        with tree.files[missing.file][1].open("rb") as file:
            file.seek(missing.block * BLOCK_SIZE)
            batch[missing.url] = file.read(BLOCK_SIZE).rstrip(b"\0")
        if sum(map(len, batch.values())) > BATCH_BYTES:
            sent += files.send_all([*batch.items()])
            batch = {}
    sent += files.send_all([*batch.items()]) if batch else 0
    if sent and files.finish(tree.volume):
        raise RunnerError("a file changed while it was sent; run the same command again")
    return sent


def code_tree(checkout: Path) -> Tree:
    """Return the code that a job sees at /workspace."""
    listing = list_files(checkout, checkout)
    listing.check()
    is_omitted = make_omitted_test(listing, VOLUME_FOLDERS)
    return make_tree(WORKSPACE, {n: checkout / n for n in listing.sizes if not is_omitted(n)})


def trees_of(plan: Plan) -> list[Tree]:
    """Return the files to mount: the code, the user's folder, and single given files."""
    trees = [code_tree(Path(plan.checkout))]
    if plan.folder is not None:
        folder = Path(plan.folder.host_path)
        listing = list_files(folder, Path(plan.checkout))
        persisted = tuple(path.path for path in plan.folder.persisted)
        is_omitted = make_omitted_test(listing, persisted)
        top, seeds = PurePosixPath(plan.folder.container_path), PurePosixPath(SEEDS)
        paths = {f"{top.name}/{n}": folder / n for n in listing.sizes if not is_omitted(n)}
        for path in persisted:
            for name in listing.below(path):
                paths[f"{seeds.name}/{path}/{name}"] = folder / path / name
        trees.append(make_tree(str(top.parent), paths))
    mounts: dict[str, dict[str, Path]] = {}
    for volume in plan.volumes:
        if volume.name == "mount":
            mount = PurePosixPath(volume.container_path)
            mounts.setdefault(str(mount.parent), {})[mount.name] = Path(volume.host_path)
    return [*trees, *(make_tree(folder, paths) for folder, paths in mounts.items())]


@contextmanager
def copied_records(agent: Agent) -> Iterator[Path]:
    """Copy the small files of all runs to a temporary folder, in one request."""
    with TemporaryDirectory(prefix="gpt-runner-") as temporary:
        try:
            packed = agent.request("records")[1]
        except FileNotFoundError:  # no image yet, so no runs
            packed = zlib.compress(b"{}")
        for run, files in json.loads(zlib.decompress(packed)).items():
            if not is_run_name(run):
                continue
            folder = Path(temporary) / run
            folder.mkdir()
            for name, (text, modified) in files.items():
                path = folder / Path(name).name
                path.write_text(text, encoding="utf-8")
                os.utime(path, (modified, modified))  # the age of a heartbeat is that of its file
        yield Path(temporary)


def image_name(checkout: Path, environ: Mapping[str, str]) -> str:
    """Return GPT_RUNNER_IMAGE, else a name with the digest of the Dockerfile and its files."""
    if name := environ.get(IMAGE_VARIABLE):
        return name
    text = json.dumps(sorted(fingerprint(checkout).items()))
    return f"{REPOSITORY}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def find_image(system: BoxSystem, name: str) -> str | None:
    """Return ``name`` if the box has it, else another of our images there, to read volumes with."""
    if image_id(system, name):
        return name
    answer = system.call(["docker", "images", "-q", REPOSITORY])
    if answer.code:
        raise RunnerError(explain(system.box, answer.last_line))
    return next(iter(answer.out.split()), None)


def ensure_image(cli: CliContext, system: BoxSystem, checkout: Path, name: str) -> None:
    """Pull or build the image on the box; send this machine's if the box is offline."""
    if image_id(system, name):
        return
    is_published = cli.environ.get(IMAGE_VARIABLE) == name
    if is_published:
        cli.info(f"pulling {name} on {system.box}")
        remedy = transfer_image(system, "pull", name, system.box)
        if not remedy:
            return
        remedy = f"{remedy}, or pull it on this machine: `docker pull {name}`"
    else:
        cli.info(f"building the image on {system.box}; this takes some minutes, once")
        remedy = "fix the error above, or build it on this machine: `docker compose build`"
        context = build_context({n: checkout / n for n in ("Dockerfile", "requirements.lock")})
        if system.run_visibly(["docker", "build", "--tag", name, "-"], context) == 0:
            return
    local_name = name if is_published else REPOSITORY
    if not image_id(System(cli.environ), local_name):
        verb = "pull" if is_published else "build"
        raise RunnerError(
            f"{system.box} could not {verb} the image, and this machine has none to send; {remedy}"
        )
    cli.info(f"sending this machine's image {local_name} to {system.box}")
    with (
        subprocess.Popen(["docker", "save", local_name], stdout=subprocess.PIPE) as save,
        system.popen(["docker", "load"], stdin=save.stdout) as load,
    ):
        assert save.stdout is not None
        save.stdout.close()  # so that save ends with load
        problem = load.communicate()[1].decode(errors="replace")
    if save.returncode or load.returncode:
        raise RunnerError(f"sending the image failed: {explain(system.box, problem)}")
    system.call(["docker", "tag", local_name, name])
