"""Plans for Modal, computed without Modal: rows, refusals and confirmations."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from job.recipe import load
from runner.cli import main
from runner.console import CliContext
from runner.errors import RunnerError
from runner.launch.execute import rows
from runner.plan import ImageState, JobEnvironment, Plan, Volume
from runner.planning.metric_presets import read_metrics
from runner.request import (
    CommandRequest,
    EvaluateRequest,
    PrepareRequest,
    Request,
    SampleRequest,
    TrainRequest,
    UserCommand,
)
from runner.target import options_from_json
from runner.targets.modal.image import ImageBuilds, code_filter, fingerprint
from runner.targets.modal.options import (
    ModalOptions,
    ResolvedOptions,
    parse_options,
    resolve_options,
)
from runner.targets.modal.plan import ModalState, modal_plan
from tests.runner.fake_target import change_state
from tests.runner.targets.modal.conftest import make_checkout

SECRET_VALUE = "s3cret-0123456789abcdef"

Type, MakePlan = Callable[..., Result], Callable[..., Plan]


REQUESTS: dict[str, Callable[..., Request]] = {
    "train": TrainRequest,
    "prepare": PrepareRequest,
    "sample": SampleRequest,
    "evaluate": EvaluateRequest,
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "checkout")


@pytest.fixture
def type_(checkout: Path) -> Type:
    """Return a function that runs a command on a machine without a Modal token."""

    def run(*words: str, **variables: str) -> Result:
        environ = {"PATH": os.environ["PATH"], "HOME": str(checkout.parent), **variables}
        cli = CliContext(environ=environ, cwd=checkout, terminal=False)
        return CliRunner().invoke(main, list(words), obj=cli)

    return run


@pytest.fixture
def make(checkout: Path) -> MakePlan:
    """Return a function that makes a plan from options and parts of the target's state."""

    def plan(
        job: str = "train",
        options: ModalOptions | None = None,
        request: Request | None = None,
        **facts: object,
    ) -> Plan:
        path = checkout / "configs" / "tiny.yaml"
        request = request or REQUESTS[job](
            run="tiny",
            settings=load(path),
            target_options=options or ModalOptions(),
            **({"recipe": path} if job in ("train", "prepare") else {}),
        )
        volumes = checkout / "volumes"
        volumes = tuple(
            Volume(name, str(volumes / name), f"/vol/{name}", remote=f"gpt-runner-{name}")
            for name in ("data", "checkpoints", "cache")
        )
        state = ModalState(
            target="cloud",
            checkout=str(checkout),
            environment=JobEnvironment("/workspace", volumes, can_mount=False),
            image=ImageState("Dockerfile, cached"),
            is_dataset_ready=True,
        )
        changed = change_state(state, **facts)
        assert isinstance(changed, ModalState)
        return modal_plan(request, changed, resolve_options(request))

    return plan


def resolved(plan: Plan) -> ResolvedOptions:
    """Return the options of a plan for Modal."""
    assert isinstance(plan.target_options, ResolvedOptions)
    return plan.target_options


class TestPlan:
    def test_plan_shows_machine_price_estimate_and_limits(self, make: MakePlan) -> None:
        plan = make(options=parse_options(gpu="H100:8", max_cost="25", timeout="3d"))
        shown = dict(rows(plan))
        assert shown["machine"] == "8 x H100, 16 cores, 64 GiB"
        assert shown["price"].startswith("$32.87 an hour")
        assert "estimate" in shown
        limits = "3d00h or $25.00 in total for all attempts, after saving a checkpoint"
        assert shown["stops at"] == limits
        assert "about 1.5 of 80 GB on H100 (estimated)" in shown["memory"]
        assert "gpt-runner-data → /vol/data" in shown["volumes"]
        assert plan.process.command[:3] == ("torchrun", "--standalone", "--nproc-per-node=8")
        assert plan.price is not None
        assert "$25.00 at most" in plan.price
        assert json.loads(dict(plan.process.environment)["RUN_LAUNCH"])["gpu"] == "H100:8"

    def test_estimate_is_recorded(self, make: MakePlan) -> None:
        def estimate(plan: Plan) -> dict[str, float]:
            return dict(plan.metadata["estimate"])

        first = estimate(make(options=parse_options(gpu="H100:8")))
        assert first["usd"] == pytest.approx(first["seconds"] / 3600 * 32.87, rel=0.01)
        # The estimate of a resumed run includes the earlier attempts.
        spent = {"step": 59, "seconds": 1000.0, "cost": 9.0, "attempts": 1}
        later = estimate(make(options=parse_options(gpu="H100:8"), **spent))
        assert later["seconds"] > 1000.0
        assert later["usd"] > 9.0

    def test_auto_micro_batch_fits_the_smallest_gpu(self, make: MakePlan, checkout: Path) -> None:
        path = checkout / "configs" / "tiny.yaml"
        words = ("micro_batch=auto", "n_layer=12", "n_embd=768", "n_head=12", "block_size=1024")
        words += ("global_batch_tokens=524288", "tokenizer=gpt2")
        settings = load(path, words)
        for gpus, size in (("H100", 64), ("H100,L4", 16), ("H100:16", 32)):
            nodes = 2 if ":16" in gpus else None
            options = parse_options(gpu=gpus.replace(":16", ":8"), nodes=nodes)
            request = TrainRequest(run="tiny", recipe=path, overrides=words, settings=settings)
            plan = make(request=replace(request, target_options=options))
            assert f"train.micro_batch={size}" in plan.process.command
            assert "micro_batch=auto" not in plan.process.command
            assert f"micro_batch {size}" in dict(rows(plan))["memory"]

    def test_watchdogs_of_the_recipe_reach_the_options(
        self, make: MakePlan, checkout: Path
    ) -> None:
        path, words = checkout / "configs" / "tiny.yaml", ("stop_idle_gpu_after=null",)
        settings = load(path, words)
        request = TrainRequest(run="tiny", recipe=path, overrides=words, settings=settings)
        plan = make(request=request)
        assert resolved(plan).stop_stalled_after_s == 600.0
        assert resolved(plan).stop_idle_gpu_after_s is None
        assert resolved(make()).stop_idle_gpu_after_s == 900.0

    def test_command_has_watchdogs_if_it_surely_prints_metrics(self) -> None:
        for given, seconds in (("loss=l=(.)", 600.0), ("none", None), ("", None)):
            metrics = read_metrics([given] if given else [], Path("/absent"), ["x"])
            command = UserCommand(("x",), Path("/absent"), metrics=metrics)
            options = resolve_options(CommandRequest(run="r", command=command))
            assert options.stop_stalled_after_s == seconds

    def test_plan_names_the_cause_of_a_rebuild(self, make: MakePlan) -> None:
        reason = "rebuild: requirements.lock changed"
        plan = make(image=ImageState("Dockerfile", is_built=False), build_reason=reason)
        shown = dict(rows(plan))
        assert shown["build"] == reason
        assert "not built yet" in shown["image"]

    def test_gpu_and_cpu_exclude_each_other(self, checkout: Path) -> None:
        path = checkout / "configs" / "tiny.yaml"
        options, settings = parse_options(gpu="H100"), load(path)
        request = TrainRequest(run="tiny", recipe=path, settings=settings, device="cpu")
        message = r"--device cpu .* --gpu H100 .* remove one of the two"
        with pytest.raises(RunnerError, match=message) as caught:
            resolve_options(replace(request, target_options=options))
        assert caught.value.exit_code == 2

    def test_nodes_are_whole_machines(self, make: MakePlan) -> None:
        plan = make(options=parse_options(gpu="H100:8", nodes=4))
        assert "--nnodes=4" in plan.process.command
        assert "--node-rank={rank}" in plan.process.command
        assert "--standalone" not in plan.process.command
        assert dict(rows(plan))["price"].startswith("$131.4")
        with pytest.raises(RunnerError, match="whole machines"):
            make(options=parse_options(gpu="H100:4", nodes=2))

    def test_reached_limit_is_refused(self, make: MakePlan) -> None:
        with pytest.raises(RunnerError, match=r"has cost \$30.00 of its \$25.00.*--max-cost 50"):
            make(options=parse_options(max_cost="25"), cost=30.0, attempts=2)
        with pytest.raises(RunnerError, match=r"has used 1d01h of its 1d00h.*--timeout 48h"):
            make(seconds=90000.0, attempts=2)

    def test_limit_that_ended_the_run_is_refused(self, make: MakePlan) -> None:
        spent = {"cost": 24.9, "seconds": 86000.0, "attempts": 2}
        with pytest.raises(RunnerError, match=r"has cost \$24.90 of its \$25.00.*--max-cost 50"):
            make(options=parse_options(max_cost="25"), **spent, reached=("budget", 25.0))
        with pytest.raises(RunnerError, match=r"has used .* of its 1d00h.*--timeout 48h"):
            make(**spent, reached=("run-timeout", 86400.0))
        for options, reached in (
            (parse_options(max_cost="26"), ("budget", 25.0)),
            (parse_options(timeout="25h"), ("run-timeout", 86400.0)),
            (parse_options(max_cost="25"), None),  # stopped by the user before its limit
        ):
            assert make(options=options, **spent, reached=reached).price

    def test_options_survive_the_launch_record(self, make: MakePlan) -> None:
        options = parse_options(
            gpu="H100:2,H200:2",
            nodes=None,
            timeout="36h",
            max_cost="7.5",
            region="us",
            variables=("A=b=c", "HF_TOKEN"),
            secrets=("mine",),
        )
        plan = make(options=options)
        read = options_from_json("cloud", json.loads(json.dumps(asdict(plan.target_options))))
        assert read == replace(options, nodes=1)
        assert (read.gpu, read.max_cost, read.timeout_s) == ("H100:2,H200:2", 7.5, 129600.0)
        assert (read.environment, read.forwarded_env) == ((("A", "b=c"),), ("HF_TOKEN",))
        assert plan.process.secrets == ("HF_TOKEN",)
        assert dict(rows(plan))["Modal secrets"] == "mine"

    def test_path_outside_the_checkout_is_refused(self, make: MakePlan, checkout: Path) -> None:
        path = checkout / "configs" / "tiny.yaml"
        overrides = ("data.source=/home/me/texts",)
        request = TrainRequest(run="tiny", recipe=path, settings=load(path), overrides=overrides)
        with pytest.raises(RunnerError, match="runner push data /home/me/texts"):
            make(request=request, is_dataset_ready=False)
        inside = replace(request, overrides=(f"data.source={checkout}/texts",))
        assert "data.source=texts" in make(request=inside).process.command
        pushed = replace(request, overrides=("data.source=/vol/data/texts",))
        assert "data.source=/vol/data/texts" in make(request=pushed).process.command

    @pytest.mark.parametrize(
        ("gpu", "command", "hint"),
        [
            ("H100:8", "python train.py", "python starts one process; torchrun --standalone --np"),
            ("H100:8", "torchrun --nproc-per-node=4 train.py", "starts 4 processes on a machine"),
            ("T4", "torchrun --nproc_per_node 8 train.py", "8 processes on a machine with 1 GPU;"),
            ("H100:8", "torchrun --nproc-per-node=8 train.py", ""),
            ("T4", "python train.py", ""),
        ],
    )
    def test_hint_at_the_number_of_processes(
        self, type_: Type, checkout: Path, gpu: str, command: str, hint: str
    ) -> None:
        (checkout / "train.py").write_text("")
        result = type_("cloud", "--gpu", gpu, "--dry-run", "--", *command.split())
        assert result.exit_code == 0, result.output
        assert hint in result.output
        assert bool(hint) == (
            f"torchrun --standalone --nproc_per_node={gpu[5:] or 1}" in result.output
        )

    def test_script_that_is_not_uploaded_is_refused(self, type_: Type, checkout: Path) -> None:
        (checkout / "mine").mkdir()
        (checkout / "mine" / "train.py").write_text("")
        (checkout / "mine" / ".gitignore").write_text("train.py\n")
        result = type_("cloud", "--dry-run", "--dir", "mine", "--", "python", "train.py")
        assert result.exit_code == 2, result.output
        assert "train.py, which is not uploaded (an ignore rule excludes it)" in result.output

    @pytest.mark.parametrize(
        ("job", "gpu"), [("prepare", ""), ("sample", "L4,T4"), ("evaluate", "L4,T4")]
    )
    def test_default_gpus_of_jobs(self, make: MakePlan, job: str, gpu: str) -> None:
        assert (resolved(make(job, step=10)).gpu or "") == gpu

    def test_missing_data_is_prepared_without_a_gpu(self, make: MakePlan) -> None:
        plan = make(options=parse_options(gpu="H100:8"), is_dataset_ready=False)
        step = "first prepares the data on a machine without a GPU, for $0.25 an hour"
        assert step in plan.steps
        assert resolved(plan).prepares_first
        assert not resolved(make(options=parse_options(gpu="H100:8"))).prepares_first

    def test_pretrained_weights_are_downloaded_without_a_gpu(self, make: MakePlan) -> None:
        options = parse_options(gpu="H100:8")
        assert resolved(make(options=options, is_pretrained_cached=False)).prepares_first
        assert not resolved(make(options=options, is_pretrained_cached=True)).prepares_first
        resumed = make(options=options, is_pretrained_cached=False, step=10)
        assert not resolved(resumed).prepares_first


class TestCommandLine:
    def test_start_needs_an_account_and_a_plan_does_not(self, type_: Type) -> None:
        assert type_("cloud", "tiny", "--dry-run").exit_code == 0
        for words in (("--gpu", "H100:8", "--max-cost", "5"), ("-y",)):  # before the question
            result = type_("cloud", "tiny", *words)
            assert (result.exit_code, "modal token new" in result.stderr) == (1, True)

    @pytest.mark.parametrize(
        ("words", "part"),
        [
            (["--env", f"MY_KEY={SECRET_VALUE}"], "write --env MY_KEY"),
            (["--env", "NOT_HERE"], "NOT_HERE is set neither in the environment nor in .env"),
            (["--timeout", "soon"], "90m, 12h or 3d"),
            (["--timeout", "30d"], "11 attempts"),
            (["--max-cost", "free"], "such as 25"),
            (["--gpu", "H10"], "did you mean 'H100'?"),
            (["prepare", "--gpu", "T4"], "not of prepare; prepare needs no GPU"),
            (["export", "--gpu", "T4"], "not of export; export needs no GPU"),
        ],
    )
    def test_error_names_the_remedy(self, type_: Type, words: list[str], part: str) -> None:
        result = type_("cloud", "tiny", "-y", *words)
        assert result.exit_code == 2
        assert part in result.stderr
        assert SECRET_VALUE not in result.output


class TestImage:
    def test_lock_and_dockerfile_rebuild_and_code_does_not(
        self, checkout: Path, tmp_path: Path
    ) -> None:
        cache = tmp_path / "cache"
        builds = ImageBuilds(checkout, cache, {"MODAL_TOKEN_ID": "me"})
        other = ImageBuilds(checkout, cache, {"MODAL_TOKEN_ID": "another account"})
        assert builds.describe()[0] is False
        builds.remember()
        (checkout / "model" / "gpt.py").write_text("# another\n")
        built, words = builds.describe()
        assert built
        assert words.startswith("cached, built 20")
        assert other.describe()[0] is False
        dockerfile = checkout / "Dockerfile"
        text = dockerfile.read_text()
        dockerfile.write_text(text + "\n# a comment\n")
        assert builds.describe()[0] is True
        dockerfile.write_text(text.replace("apt-get update", "apt-get  update"))
        line = text.splitlines().index("RUN apt-get update \\") + 1
        assert f"Dockerfile:{line} changed: RUN apt-get" in builds.describe()[1]
        dockerfile.write_text(text)
        with (checkout / "requirements.lock").open("a") as lock:
            lock.write("# more\n")
        assert builds.describe() == (False, "rebuild: requirements.lock changed")

    @pytest.mark.parametrize(
        ("line", "part"),
        [
            ("COPY ./ .", "write COPY . TARGET"),
            ('COPY ["a", "b"]', "write COPY SOURCE TARGET"),
            ("COPY $HERE /x", "write the path out"),
            ("COPY --parents a/b /x", "name the files"),
            ("COPY missing.txt /x", "COPY missing.txt: not found in"),
            ("ADD requirements.lock /x", "write COPY"),
            ("RUN --mount=type=bind,target=/x pip list", "write COPY"),
            ('ENTRYPOINT ["bash"]', "move it to docker-compose.yml"),
        ],
    )
    def test_unsupported_instruction_is_refused(self, checkout: Path, line: str, part: str) -> None:
        dockerfile = checkout / "Dockerfile"
        number = len(dockerfile.read_text().splitlines()) + 1
        with dockerfile.open("a") as file:
            file.write(f"{line}\n")
        with pytest.raises(RunnerError) as caught:
            fingerprint(checkout)
        assert caught.value.message.startswith(f"Dockerfile:{number}: ")
        assert part in caught.value.message

    @pytest.mark.parametrize("in_git", [False, True])
    def test_code_is_mounted_without_ignored_files(self, checkout: Path, in_git: bool) -> None:
        (checkout / ".gitignore").write_text(
            "/volumes/*/*\n!/volumes/*/.gitkeep\n/build/\nnotes/\n\\#x\n"
        )
        (checkout / "sub").mkdir()
        (checkout / "sub" / ".gitignore").write_text("secret.txt\n")
        kept = [
            "model/gpt.py",
            "configs/tiny.yaml",
            "requirements.lock",
            ".env.example",
            "my/build/x.py",
            "texts/a.txt",
            "texts/notes",
        ]
        omitted = [
            ".env",
            "sub/.env",
            "sub/.env.local",
            "sub/secret.txt",
            "#x",
            "volumes/data/x.bin",
            "volumes/data/.gitkeep",
            ".venv/bin/python",
            "deep/.venv/bin/python",
            "notes/a.txt",
            "model/__pycache__/gpt.cpython-311.pyc",
            "deep/er/.DS_Store",
        ]
        for path in (*kept, *omitted):
            (checkout / path).parent.mkdir(parents=True, exist_ok=True)
            (checkout / path).touch()
        if in_git:
            subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
        out = code_filter(checkout)
        assert [
            path for path in (*omitted, ".git/config", ".venv", "volumes") if not out(Path(path))
        ] == []
        assert [path for path in (*kept, "my", "my/build") if out(Path(path))] == []
