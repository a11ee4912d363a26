"""An export is uploaded to a local Hub, with its model card and without the token."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.model.conftest import Lab

pytest.importorskip("huggingface_hub")
TOKEN = "hf_secretsecretsecret"


class Hub(ThreadingHTTPServer):
    """A server for HfApi; ``files`` has the commit's files. ``status`` refuses new repositories."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.created: dict[str, Any] = {}
        self.status = 200


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        hub, url = self.server, f"http://127.0.0.1:{self.server.server_address[1]}/me/tiny"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub.tokens.add(self.headers["Authorization"])
        if self.path == "/api/repos/create":
            hub.created = json.loads(body)
            answer: dict[str, Any] = {"url": url, "error": "you may not write to me"}
            self.answer(answer, hub.status)
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]
            self.answer({"files": modes})
        elif self.path.endswith("/commit/main"):
            for line in body.splitlines():
                if (operation := json.loads(line))["key"] == "file":
                    value = operation["value"]
                    hub.files[value["path"]] = base64.b64decode(value["content"])
            self.answer({"commitUrl": f"{url}/commit/1", "commitOid": "1"})
        else:
            self.answer({"error": self.path}, 404)

    def do_GET(self) -> None:
        self.answer({"error": "not found"}, 404)

    def answer(self, tree: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


def test_push_uploads_the_export_with_a_card_made_from_the_record(lab: Lab, hub: Hub) -> None:
    lab.train("small", "max_steps=5", "warmup_steps=0", "eval_every=5")
    run = lab.run_folder("small")
    (run / "cloud.json").write_text('{"cost": 1.5}')
    _, err = lab.run("export", "--name", "small", "--push", "tiny", status=2)
    assert "--push tiny: expected OWNER/NAME" in err
    hub.status = 403
    _, err = lab.run("export", "--name", "small", "--push", "me/tiny", status=1)
    assert "--push me/tiny: the Hub refused it" in err
    assert f"The export is complete: {run}/huggingface" in err
    assert not hub.files
    hub.status = 200
    out, err = lab.run("export", "--name", "small", "--push", "me/tiny")
    assert out.splitlines()[-1].endswith("/me/tiny")
    assert True in (hub.created.get("private"), hub.created.get("visibility") == "private")
    assert hub.files.keys() == {path.name for path in (run / "huggingface").iterdir()}
    assert hub.files["model.safetensors"] == (run / "huggingface/model.safetensors").read_bytes()
    card = hub.files["README.md"].decode()
    record = json.loads((run / "run.json").read_text())
    for fact in (
        "library_name: transformers",
        'pipeline("text-generation", "me/tiny"',
        "max_steps: 5",
        f"best validation {record['best_val_loss']:.4f}",
        "$1.50 on Modal",
        (run / "samples" / "step_00000005.txt").read_text().rstrip()[:50],
        record["git"].get("commit", "run"),
    ):
        assert fact in card
    assert hub.tokens == {f"Bearer {TOKEN}"}
    shown = [out.encode(), err.encode(), *hub.files.values()]
    shown += [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in text for text in shown)
