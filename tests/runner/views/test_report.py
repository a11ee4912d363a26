"""runner report: one page that shows the run, asks for nothing and runs nothing, looked at in a real browser."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from job.run_record import Attempt, RunRecord
from runner.runs.history import History
from runner.runs.metrics import Metrics
from runner.target import RunInfo
from runner.views.report import settings
from runner.views.report_curves import pictures
from tests.runner.fake_run import tell
from tests.runner.views.browser import look_at

TRAIN, VAL = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)

TRAIN_ON_DARK = (0x56, 0xB4, 0xE9)


class Elements(HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def asked_for(self) -> list[str]:
        """What the page would fetch or follow."""
        names = ("src", "href", "xlink:href", "action", "data", "srcset", "poster")
        found = [str(attrs[name]) for _, attrs in self.found for name in names if attrs.get(name)]
        return [value for value in found if not value.startswith(("#", "data:,"))]

    def runs(self) -> list[str]:
        """Scripts, and attributes that hold some."""
        scripts = [
            tag
            for tag, _ in self.found
            if tag in ("script", "iframe", "object", "embed", "link", "base")
        ]
        scripts = [tag for tag in scripts if tag != "link"]
        return scripts + [
            name for _, attrs in self.found for name in attrs if name.startswith("on")
        ]


@pytest.fixture
def told(make_run, fake) -> Path:
    attempts = [
        {
            "started": 1e9,
            "ended": 1e9 + 60,
            "first_step": 0,
            "last_step": 40,
            "reason": "SIGTERM",
            "device": "cpu",
        },
        {
            "started": 2e9,
            "ended": 2e9 + 90,
            "first_step": 40,
            "last_step": 100,
            "reason": "finished",
        },
    ]
    folder = make_run("warm", step=100)
    tell(
        folder,
        sample="class Queue:\n    def __init__",
        attempts=attempts,
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


def test_the_page_has_all_that_is_known(type_, told: Path, checkout: Path) -> None:
    result = type_("runner report warm")
    assert (result.exit_code, result.stdout) == (0, "warm.html\n"), result.stderr
    page = Elements((checkout / "warm.html").read_text())
    for words in (
        *("warm", "finished", "train on host", "began 2001-09-09"),
        *("validation loss", "1.1", "2,000", "25.0%", "3.2 GB", "50s"),
        *("tokens a second", "learning rate", "norm of the gradient"),
        *("class Queue:\n    def __init__", "an earlier one", "step 50"),
        *("0 to 40", "SIGTERM", "40 to 100", "another attempt begins"),
        *("lr=1e-3", "n_layer", "false"),
        *("aaaabbbb and changes that were not committed", "2.13.0", "step 299"),
    ):
        assert words in page.text, words
    assert [tag for tag, _ in page.found].count("svg") == 6
    assert page.asked_for() == []
    assert page.runs() == []


def test_a_browser_draws_the_curves_in_light_and_dark(type_, told: Path, checkout: Path) -> None:
    type_("runner report warm")
    light = look_at(checkout / "warm.html")
    assert light.console == []
    assert light.dom.count("<svg") == 6
    assert "training loss" in Elements(light.dom).text
    assert light.picture.getpixel((2, 2)) == (255, 255, 255)
    assert light.pixels(TRAIN) > 2000
    assert light.pixels(VAL) > 300
    dark = look_at(checkout / "warm.html", dark=True)
    assert sum(dark.picture.getpixel((2, 2))) < 150
    assert dark.pixels(TRAIN_ON_DARK) > 2000
    assert dark.pixels(TRAIN) < 100


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """A server's address, and the paths that it was asked for."""
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


def test_what_stands_in_files_is_shown_and_never_run(
    type_, make_run, fake, checkout: Path, asked
) -> None:
    url, paths = asked
    attack = (
        f"</pre></style></title></svg><script>console.log('owned'); fetch('{url}/script')</script>"
        f"<img src='{url}/image' onerror='console.log(1)'><style>@import '{url}/css';</style>"
    )
    folder = make_run("warm", step=100)
    tell(
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
    seen = look_at(checkout / "warm.html")
    for page in (Elements(written), Elements(seen.dom)):
        assert page.runs() == []
        assert page.asked_for() == []
        assert page.text.count("owned") >= 8  # it is there, as text
    assert (paths, seen.console) == ([], [])
    # And the browser would have run it: the same words unescaped do.
    bad = checkout / "bad.html"
    bad.write_text(f"<title>{attack}")
    assert any("owned" in line for line in look_at(bad).console)
    assert {"/image", "/css"} <= set(paths)
    # Were something not escaped, the policy in the head would still forbid it.
    paths.clear()
    bad.write_text(written.replace("<h1>", attack))
    look = look_at(bad)
    assert paths == []
    assert not any(line.startswith('"owned"') for line in look.console)


def test_a_run_in_the_cloud_has_its_attempts_and_what_each_cost(
    type_, told: Path, fake, checkout: Path
) -> None:
    common = {
        "call": "fc-1",
        "container": "ta-1",
        "usd_per_hour": 4.0,
        "gpu": "NVIDIA H100 80GB HBM3",
    }
    attempts = [
        {**common, "started": 1e9, "seen": 1e9, "ended": 1e9 + 1800, "reason": "preempted"},
        {**common, "started": 2e9, "seen": 2e9, "ended": 2e9 + 3600, "reason": "finished"},
    ]
    (told / "cloud.json").write_text(
        json.dumps({"attempts": attempts, "call": "fc-1", "status": 0})
    )
    launch = {
        "run": "warm",
        "target": "cloud",
        "job": "train",
        "id": "fc-1",
        "started": 1e9,
        "target_options": {"max_cost": 25.0},
    }
    (told / "launch.json").write_text(json.dumps(launch))
    fake.states = [RunInfo("warm", "train", "cloud", "finished", attempts=2, cost=6.0)]
    assert type_("runner report warm").exit_code == 0
    text = Elements((checkout / "warm.html").read_text()).text
    for words in (
        "$6.00",
        "preempted",
        "30m00s",
        "$2.00",
        "NVIDIA H100",
        "1h00m",
        "$4.00",
        "$25.00",
    ):
        assert words in text, words


def test_a_report_replaces_a_report_and_nothing_else(type_, told: Path, checkout: Path) -> None:
    (checkout / "notes.html").write_text("mine")
    result = type_("runner report warm --output notes.html")
    assert (result.exit_code, "is there and is no report" in result.stderr) == (2, True)
    assert (checkout / "notes.html").read_text() == "mine"
    assert type_("runner report warm --output there.html").exit_code == 0
    assert type_("runner report warm --output there.html").exit_code == 0
    result = type_("runner report warm --output configs/")
    assert (result.exit_code, "--output configs/warm.html" in result.stderr) == (2, True)
    assert type_("runner report warm --output -").stdout.startswith("<!DOCTYPE html>")


def test_a_run_that_has_logged_nothing_has_a_page(type_, make_run, fake, checkout: Path) -> None:
    folder = make_run("warm", status="failed", attempts=[])
    (folder / "recipe.yaml").write_bytes(b"\xff: [")
    fake.states = [RunInfo("warm", "train", "host", "failed")]
    result = type_("runner report warm")
    assert result.exit_code == 0, result.stderr
    assert "No curves" in (checkout / "warm.html").read_text()


def test_an_experiments_arguments_are_its_settings() -> None:
    assert settings({"lr": 0.1, "bias": False}) == [("given", [("lr", "0.1"), ("bias", "false")])]


def test_without_matplotlib_it_says_what_to_install(type_, told, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = type_("runner report warm")
    assert (result.exit_code, "-m pip install 'Jinja2" in result.stderr) == (1, True)


@pytest.mark.filterwarnings("error")
def test_a_curve_of_step_zero_alone_is_drawn_and_an_attempt_from_there_is_marked() -> None:
    metrics = Metrics()
    metrics.read(
        [b'{"kind": "train", "step": 0, "loss": 4.5}', b'{"kind": "val", "step": 0, "loss": 3.5}']
    )
    attempts = [Attempt(started=1.0, host="h"), Attempt(started=2.0, host="h")]
    state = RunInfo("gpt2", "train", "host", "finished")
    record = RunRecord(name="gpt2", job="train", attempts=attempts)
    (picture,) = pictures(History(state, record, metrics=metrics))
    assert "3.5 at step 0" in picture.words
    assert "another attempt begins" in picture.svg
