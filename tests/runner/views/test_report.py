"""`runner report` writes a page without scripts and requests; a real browser renders it."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest

from job.run_record import Attempt, RunRecord
from runner.runs.attempts import AttemptLog, CloudAttempt
from runner.runs.history import History
from runner.runs.metrics import Metrics
from runner.runs.store import write_launch
from runner.target import LaunchHandle, RunInfo
from runner.targets.modal.options import ModalOptions
from runner.views.report import content, pictures, settings
from tests.browser import render
from tests.runner.fake_run import fill_run

TRAIN, VAL = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)

TRAIN_ON_DARK = (0x56, 0xB4, 0xE9)


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def links(self) -> list[str]:
        """Return everything that the page would fetch or follow."""
        names = ("src", "href", "xlink:href", "action", "data", "srcset", "poster")
        found = [
            str(attrs[name]) for _, attrs in self.elements for name in names if attrs.get(name)
        ]
        return [value for value in found if not value.startswith(("#", "data:,"))]

    def scripts(self) -> list[str]:
        """Return scripts, and attributes that contain scripts."""
        kinds = ("script", "iframe", "object", "embed", "base")
        handlers = [name for _, attrs in self.elements for name in attrs if name.startswith("on")]
        return [tag for tag, _ in self.elements if tag in kinds] + handlers


@pytest.fixture
def filled_run(make_run, fake) -> Path:
    attempts = [
        Attempt(1e9, ended=1e9 + 60, last_step=40, reason="SIGTERM", device="cpu"),
        Attempt(2e9, ended=2e9 + 90, first_step=40, last_step=100, reason="finished"),
    ]
    folder = make_run("warm", step=100)
    fill_run(
        folder,
        sample="class Queue:\n    def __init__",
        attempts=[asdict(attempt) for attempt in attempts],
        overrides=["lr=1e-3"],
        git={"commit": "aaaabbbb", "dirty": True},
        versions={"torch": "2.13.0"},
    )
    fake.states = [
        RunInfo(
            "warm", "train", "host", "finished", step=100, max_steps=100, attempts=2, started=2e9
        )
    ]
    return folder


def test_the_page_shows_everything_that_was_recorded(
    type_, filled_run: Path, checkout: Path
) -> None:
    result = type_("runner report warm")
    assert (result.exit_code, result.stdout) == (0, "warm.html\n"), result.stderr
    page = Elements((checkout / "warm.html").read_text())
    for expected in (
        *("warm", "finished", "train on host", "started 2001-09-09"),
        *("validation loss", "1.1", "2,000", "25.0%", "3.2 GB", "50s"),
        *("tokens per second", "learning rate", "gradient norm"),
        *("class Queue:\n    def __init__", "an earlier one", "step 50"),
        *("0 to 40", "SIGTERM", "40 to 100", "a new attempt starts"),
        *("lr=1e-3", "n_layer", "false"),
        *("aaaabbbb, with uncommitted changes", "2.13.0", "step 299"),
    ):
        assert expected in page.text, expected
    assert [tag for tag, _ in page.elements].count("svg") == 6
    assert page.links() == []
    assert page.scripts() == []


def test_a_browser_draws_the_curves_in_light_and_dark(
    type_, filled_run: Path, checkout: Path
) -> None:
    type_("runner report warm")
    light = render(checkout / "warm.html")
    assert light.console == []
    assert light.dom.count("<svg") == 6
    assert "training loss" in Elements(light.dom).text
    assert light.screenshot.getpixel((2, 2)) == (255, 255, 255)
    assert light.pixels(TRAIN) > 2000
    assert light.pixels(VAL) > 300
    dark = render(checkout / "warm.html", dark=True)
    assert sum(dark.screenshot.getpixel((2, 2))) < 150
    assert dark.pixels(TRAIN_ON_DARK) > 2000
    assert dark.pixels(TRAIN) < 100


@pytest.fixture
def server_log() -> Iterator[tuple[str, list[str]]]:
    """Start a server; return its address and the paths of its requests."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()


def test_scripts_in_files_are_shown_and_never_run(
    type_, make_run, fake, checkout: Path, server_log
) -> None:
    url, paths = server_log
    attack = (
        f"</pre></style></title></svg><script>console.log('owned'); fetch('{url}/script')</script>"
        f"<img src='{url}/image' onerror='console.log(1)'><style>@import '{url}/css';</style>"
    )
    folder = make_run("warm", step=100)
    fill_run(
        folder,
        sample=attack,
        attempts=[
            {"started": 1e9, "ended": 2e9, "reason": attack, "device": attack, "host": attack}
        ],
        overrides=[attack],
        git={"commit": attack},
        versions={attack: attack},
    )
    (folder / "log.txt").write_text(attack + "\n")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": attack, "step": 1, f"$x{attack}": 1.0}) + "\n")
    (folder / "recipe.yaml").write_text(
        'train: {lr: "' + attack.replace('"', "'") + '"}\n' + f'"{attack}": 1\n'
    )
    fake.states = [RunInfo("warm", "train", "host", "failed", reason=attack, gpu=attack)]
    assert type_("runner report warm").exit_code == 0
    written = (checkout / "warm.html").read_text()
    rendering = render(checkout / "warm.html")
    for page in (Elements(written), Elements(rendering.dom)):
        assert page.scripts() == []
        assert page.links() == []
        assert page.text.count("owned") >= 8  # shown as text
    assert (paths, rendering.console) == ([], [])
    # The browser does run the same text if it is not escaped.
    bad = checkout / "bad.html"
    bad.write_text(f"<title>{attack}")
    assert any("owned" in line for line in render(bad).console)
    assert {"/image", "/css"} <= set(paths)
    # Without escaping, the policy in the head still forbids it.
    paths.clear()
    bad.write_text(written.replace("<h1>", attack))
    rendering = render(bad)
    assert paths == []
    assert not any(line == "owned" for line in rendering.console)


def test_attempts_on_a_target_that_bills_have_their_cost(
    type_, filled_run: Path, fake, checkout: Path
) -> None:
    attempts = [
        CloudAttempt(
            "fc-1", "ta-1", started, started, 4.0, "NVIDIA H100", started + seconds, reason
        )
        for started, seconds, reason in ((1e9, 1800, "preempted"), (2e9, 3600, "finished"))
    ]
    AttemptLog(attempts, call="fc-1", status=0).write(filled_run)
    options = ModalOptions(max_cost=25.0)
    launch = LaunchHandle("warm", "cloud", "train", "fc-1", 1e9, target_options=options)
    write_launch(filled_run, launch)
    fake.states = [RunInfo("warm", "train", "cloud", "finished", attempts=2, cost=6.0)]
    assert type_("runner report warm").exit_code == 0
    text = Elements((checkout / "warm.html").read_text()).text
    costs = ("$2.00", "$4.00", "$6.00", "$25.00")
    for expected in ("preempted", "30m00s", "NVIDIA H100", "1h00m", *costs):
        assert expected in text, expected


def test_a_report_replaces_only_a_report(type_, filled_run: Path, checkout: Path) -> None:
    (checkout / "notes.html").write_text("mine")
    result = type_("runner report warm --output notes.html")
    assert (result.exit_code, "exists and is not a report" in result.stderr) == (2, True)
    assert (checkout / "notes.html").read_text() == "mine"
    assert type_("runner report warm --output there.html").exit_code == 0
    assert type_("runner report warm --output there.html").exit_code == 0
    assert type_("runner report warm --output -").stdout.startswith("<!DOCTYPE html>")


def test_a_run_without_metrics_has_a_page(type_, make_run, fake, checkout: Path) -> None:
    folder = make_run("warm", status="failed", attempts=[])
    (folder / "recipe.yaml").write_bytes(b"\xff: [")
    fake.states = [RunInfo("warm", "train", "host", "failed")]
    result = type_("runner report warm")
    assert result.exit_code == 0, result.stderr
    assert "No curves" in (checkout / "warm.html").read_text()


def test_arguments_of_an_experiment_are_its_settings() -> None:
    assert settings({"lr": 0.1, "bias": False}) == [
        ("arguments", [("lr", "0.1"), ("bias", "false")])
    ]


def test_a_missing_matplotlib_names_the_install_command(type_, filled_run, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = type_("runner report warm")
    assert (result.exit_code, "-m pip install 'jinja2" in result.stderr) == (1, True)


@pytest.mark.filterwarnings("error")
def test_a_single_evaluation_at_step_zero_is_drawn() -> None:
    metrics = Metrics()
    metrics.read(
        [b'{"kind": "train", "step": 0, "loss": 4.5}', b'{"kind": "val", "step": 0, "loss": 3.5}']
    )
    attempts = [Attempt(started=1.0, host="h"), Attempt(started=2.0, host="h")]
    state = RunInfo("gpt2", "train", "host", "finished")
    record = RunRecord(name="gpt2", job="train", attempts=attempts)
    (picture,) = pictures(History(state, record, metrics=metrics))
    assert "3.5 at step 0" in picture.description
    assert "a new attempt starts" in picture.svg


def test_a_task_is_drawn_with_the_published_scores_of_gpt2() -> None:
    metrics = Metrics()
    lines = ({"kind": "task", "step": step, "hellaswag": step / 100} for step in (10, 30))
    metrics.read(json.dumps(line).encode() for line in lines)
    state = RunInfo("a", "train", "host", "finished", trackers={"wandb": "https://wandb.ai/a"})
    history = History(state, RunRecord(name="a"), metrics=metrics)
    (picture,) = pictures(history)
    assert picture.title == "task/hellaswag"
    assert "task/hellaswag from 0.1 at step 10 to 0.3 at step 30" in picture.description
    assert "GPT-2 124M from 0.295 at step 10 to 0.295 at step 30" in picture.description
    assert ("wandb", "https://wandb.ai/a") in content(history, 1.0)["environment"]
