"""What is worked out before anything is started: names, prices, deadlines, hours, memory."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from job.memory import flops_per_token, network_size
from job.recipe import Recipe, RecipeError, load
from job.speed import datasheet_flops
from runner import format
from runner.errors import RunnerError
from runner.pricing import compare, estimate, prices
from runner.pricing.gpus import BY_NAME, GpuRequest, parse_gpus
from runner.runs import attempts
from runner.targets.modal import deadlines
from runner.targets.modal.container import interface_of, price_of
from runner.targets.modal.options import RentedMachine

ROOT = Path(__file__).resolve().parents[4]


def recipe(**train: object) -> Recipe:
    tree = {
        "name": "gpt2",
        "data": {"dataset": "d", "tokenizer": "gpt2"},
        "train": {"max_steps": 19073, "global_batch_tokens": 524288, **train},
    }
    return Recipe.model_validate(tree)


class TestGpus:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("H100", GpuRequest(("H100",), 1)),
            ("h100:8", GpuRequest(("H100",), 8)),
            ("H100!:2,B200+:2", GpuRequest(("H100!", "B200+"), 2)),
            ("a100-80gb, L40S", GpuRequest(("A100-80GB", "L40S"), 1)),
        ],
    )
    def test_names_are_read_in_their_order(self, text: str, expected: GpuRequest) -> None:
        assert parse_gpus(text) == expected

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("H1000", "did you mean 'H100'?"),
            ("A10080GB", "did you mean 'A100-80GB'?"),
            ("rtx6000", "did you mean 'RTX-PRO-6000'?"),
            ("abacus", "it has T4, L4"),
            ("H100:9", "1 to 8 H100, not 9; for more, add --nodes"),
            ("A10:5", "1 to 4 A10"),
            ("H100:two", "write H100:2"),
            ("H100:0", "not 0"),
            ("H100:8,A100:4", "write H100:8,A100:8"),
        ],
    )
    def test_a_mistake_says_what_to_write(self, text: str, part: str) -> None:
        with pytest.raises(RunnerError) as caught:
            parse_gpus(text)
        assert part in caught.value.message
        assert caught.value.exit_code == 2

    def test_the_trainer_knows_the_peak_of_every_gpu(self) -> None:
        assert all(datasheet_flops(name) for name in BY_NAME)


class TestPrices:
    def test_an_hour_of_eight_h100_and_what_is_around_them(self) -> None:
        machine = RentedMachine(GpuRequest(("H100",), 8), 16.0, 64.0)
        hourly = prices.per_hour(machine)["H100"]
        assert hourly == pytest.approx(8 * 3.95 + 16 * 0.04716 + 64 * 0.007992)
        assert prices.per_hour(machine, nodes=4)["H100"] == pytest.approx(4 * hourly)

    @pytest.mark.parametrize(
        ("region", "factor"), [(None, 1.0), ("us", 1.15), ("us-east", 1.75), ("us,eu-west", 1.75)]
    )
    def test_a_region_costs_more(self, region: str | None, factor: float) -> None:
        machine = RentedMachine(GpuRequest(("T4",), 1), 0.0, 0.0)
        assert prices.per_hour(machine, region=region)["T4"] == pytest.approx(0.59 * factor)

    def test_a_file_of_the_users_replaces_lines(self, tmp_path: Path) -> None:
        (tmp_path / "prices.yaml").write_text("date: 2026-11-20\nh100: 3.00\nCPU: 0\nMEMORY: 0\n")
        found = prices.current_prices(tmp_path, {"HOME": str(tmp_path)})
        assert prices.per_hour(RentedMachine(GpuRequest(("H100",), 2), 4.0, 8.0), prices=found) == {
            "H100": 6.0
        }
        assert found.table["L4"] == prices.TABLE["L4"]
        assert "2026-11-20" in found.source
        assert "prices.yaml" in found.source

    def test_the_nearest_file_counts(self, tmp_path: Path) -> None:
        checkout, other = tmp_path / "checkout", tmp_path / "mine.yaml"
        home = tmp_path / ".config" / "gpt-runner" / "prices.yaml"
        environ = {"HOME": str(tmp_path)}
        assert prices.current_prices(checkout, environ) == prices.BUILT_IN
        for folder in (checkout, home.parent):
            folder.mkdir(parents=True)
        home.write_text("H100: 1\n")
        assert prices.current_prices(checkout, environ).table["H100"] == 1
        (checkout / "prices.yaml").write_text("H100: 2\n")
        assert prices.current_prices(checkout, environ).table["H100"] == 2
        other.write_text("H100: 3\n")
        environ["GPT_RUNNER_PRICES"] = str(other)
        assert prices.current_prices(checkout, environ).table["H100"] == 3

    def test_modals_own_rates_count_before_the_table(self, tmp_path: Path) -> None:
        said = {
            "gpu_hour_cost_h100": 3.5,
            "gpu_hour_cost_a100_80gb": 2.4,
            "gpu_hour_cost_a10g": 1.0,
        }
        said |= {
            "cpu_hour_cost": 0.04,
            "gpu_hour_cost_l4": 0.8 / 60,
            "gpu_hour_cost_x": 1.0,
            "egress_gib_cost": 0,
        }
        live = prices.from_rates(said, datetime.date(2026, 11, 21))
        assert live is not None
        assert [live.table[name] for name in ("H100", "H100!", "A100-80GB", "A10", "CPU")] == [
            3.5, 3.5, 2.4, 1.0, 0.04,
        ]  # fmt: skip
        assert live.table["L4"] == prices.TABLE["L4"], "a sixtieth of it is no price of an hour"
        assert "Modal's rates for this account of 2026-11-21; A100, A100-40GB, B200" in live.source
        assert prices.from_rates({"gpu_hour_cost_l4": 0.8 / 60}, datetime.date.today()) is None
        (tmp_path / "prices.yaml").write_text("A10: 0.5\n")
        mine = prices.current_prices(tmp_path, {}, live)
        assert (mine.table["A10"], mine.table["H100"]) == (0.5, 3.5)
        assert "Modal's rates for this account" in mine.source

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("L4: 1\nH1000: 2\n", "prices.yaml:2: Modal has no 'H1000'; did you mean 'H100'?"),
            (
                "H100: cheap\n",
                "prices.yaml:1: H100: 'cheap' is no price; write dollars an hour, H100: 3.50",
            ),
            ("H100: -1\n", "prices.yaml:1: H100: -1 is no price"),
            ("date: today\n", "prices.yaml:1: date: 'today' is no day; write 2026-11-20"),
            ("- H100\n", "prices.yaml: a file of prices is a list of lines like `H100: 3.50`"),
        ],
    )
    def test_a_mistake_in_it_is_named_with_its_line(
        self, tmp_path: Path, text: str, part: str
    ) -> None:
        (tmp_path / "prices.yaml").write_text(text)
        with pytest.raises((RunnerError, RecipeError)) as caught:
            prices.current_prices(tmp_path, {})
        assert part in str(getattr(caught.value, "message", caught.value))

    def test_a_variable_that_names_no_file_is_a_mistake(self, tmp_path: Path) -> None:
        with pytest.raises(RunnerError, match="GPT_RUNNER_PRICES names a file"):
            prices.current_prices(tmp_path, {"GPT_RUNNER_PRICES": "H100=3"})

    @pytest.mark.parametrize(
        ("given", "price"),
        [
            ("NVIDIA H100 80GB HBM3", 3.0),
            ("NVIDIA A100-SXM4-80GB", 2.0),
            ("NVIDIA A100-SXM4-40GB", 1.0),
            ("NVIDIA L40S", 0.7),
            ("NVIDIA L4", 0.5),
            ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 0.9),
            ("Tesla T4", 3.0),  # not among those asked for: the dearest
        ],
    )
    def test_the_price_is_that_of_the_gpu_that_was_given(self, given: str, price: float) -> None:
        table = {
            "A100-40GB": 1.0,
            "A100-80GB": 2.0,
            "H100!": 3.0,
            "L4": 0.5,
            "L40S": 0.7,
            "RTX-PRO-6000": 0.9,
        }
        assert price_of(given, table) == price


class TestDeadlines:
    def test_modals_own_clock_is_followed_by_another_attempt(self) -> None:
        found = deadlines.next_deadline(0.0, 86400.0, 3 * 86400.0, 0.0, None, 0.0, 1.0)
        assert (found.reason, found.stop, found.kill) == ("time-out", 86100.0, 86400.0)

    def test_the_timeout_counts_what_was_used(self) -> None:
        found = deadlines.next_deadline(1000.0, 86400.0, 7200.0, 3600.0, None, 0.0, 1.0)
        assert (found.reason, found.stop, found.kill) == ("timeout", 4300.0, 4600.0)

    def test_the_cap_counts_what_was_spent(self) -> None:
        found = deadlines.next_deadline(0.0, 86400.0, 86400.0, 0.0, 25.0, 5.0, 10.0)
        assert (found.reason, found.kill) == ("budget", 7200.0)
        spent = deadlines.next_deadline(0.0, 86400.0, 86400.0, 0.0, 25.0, 26.0, 10.0)
        assert spent.stop <= 0.0

    @pytest.mark.parametrize(
        ("hours", "seconds", "room"),
        [
            (5.0, 2.0, 8.0),  # a small network: seconds before the end, not 5 minutes
            (5.0, 80.0, 242.0),
            (
                5.0,
                900.0,
                300.0,
            ),  # what takes longer than that would be lost in any case: Modal's own grace is shorter
            (0.01, 0.9, 3.6),  # 36 seconds: a tenth
            (0.01, 3.0, 9.0),  # more than a tenth, where it takes more
        ],
    )
    def test_a_run_that_stops_fast_works_nearly_to_the_end(
        self, hours: float, seconds: float, room: float
    ) -> None:
        first = deadlines.Deadline(0.0, 1000.0 + hours * 3600, "budget")
        found = deadlines.with_room(first, 1000.0, seconds)
        assert found.kill - found.stop == pytest.approx(room)
        assert (found.kill, found.reason) == (first.kill, "budget")

    def test_our_clock_is_never_behind_modals(self) -> None:
        for used in (0.0, 100.0, 80000.0):
            each = deadlines.attempt_timeout(86400.0, used, deadlines.LONGEST_ATTEMPT)
            found = deadlines.next_deadline(0.0, each, 86400.0, used, None, 0.0, 1.0)
            assert found.stop < found.kill <= each
            assert found.reason == "timeout"  # and not another attempt for the last minutes

    def test_a_killed_attempt_counts_until_it_was_last_seen(self) -> None:
        book = attempts.AttemptLog()
        book.begin(attempts.CloudAttempt("fc-1", "ta-1", 0.0, 600.0, 6.0), "ap-1")
        book.begin(attempts.CloudAttempt("fc-1", "ta-2", 1000.0, 1000.0, 6.0), "ap-1")
        book.end_attempt("finished", 0, 1600.0)
        assert [a.reason for a in book.attempts] == ["killed", "finished"]
        assert book.seconds(2000.0) == 1200.0
        assert book.cost(2000.0) == pytest.approx(2.0)
        again = attempts.parse(book.dumps())
        assert again == book

    def test_a_ledger_that_cant_be_read_is_an_empty_one(self) -> None:
        assert (
            attempts.parse("{half")
            == attempts.parse(None)
            == attempts.parse("[1]")
            == attempts.AttemptLog()
        )


class TestDurations:
    @pytest.mark.parametrize(
        ("text", "seconds"), [("90m", 5400), ("12h", 43200), ("3d", 259200), ("1.5h", 5400)]
    )
    def test_a_time(self, text: str, seconds: float) -> None:
        assert format.parse_duration(text, "--timeout") == seconds

    @pytest.mark.parametrize("text", ["12", "h", "-1h", "0h", "1w"])
    def test_what_is_no_time(self, text: str) -> None:
        with pytest.raises(RunnerError, match="90m, 12h or 3d"):
            format.parse_duration(text, "--timeout")

    def test_dollars(self) -> None:
        assert (
            format.parse_dollars("$25", "--max-cost")
            == format.parse_dollars("25.0", "--max-cost")
            == 25.0
        )
        for text in ("0", "-1", "nan", "lots"):
            with pytest.raises(RunnerError):
                format.parse_dollars(text, "--max-cost")

    @pytest.mark.parametrize(
        ("span", "words"),
        [(40, "40 s"), (90, "1.5 min"), (3600, "1 h"), (86400, "24 h"), (200000, "2.31 d")],
    )
    def test_in_words(self, span: float, words: str) -> None:
        assert format.duration(span) == words


class TestSize:
    @pytest.mark.parametrize(
        ("name", "overrides"),
        [
            ("quickstart", []),
            ("shakespeare_char_cpu", []),
            ("quickstart", ["attention_pattern=SSL", "window_size=16"]),
        ],
    )
    def test_parameters_and_flops_are_those_of_the_network(
        self, name: str, overrides: list[str]
    ) -> None:
        from model.gpt import GPT

        settings = load(ROOT / "configs" / f"{name}.yaml", overrides)
        size = network_size(settings.model, settings.data.tokenizer)
        network = GPT(settings.model, size.rows)
        assert size.parameters == network.num_parameters()
        assert flops_per_token(settings) == network.flops_per_token()

    def test_gpt2_fits_on_an_h100_and_not_in_one_batch_on_a_t4(self) -> None:
        assert network_size(recipe().model, "gpt2").parameters == 124_475_904
        assert estimate.fit(recipe(micro_batch=64), "H100", 8).fits
        assert "estimate" in estimate.fits(recipe(micro_batch=32), ("H100",), 8)
        tight = estimate.fit(recipe(micro_batch=64), "T4", 1)
        assert not tight.fits
        assert "will not fit" in estimate.fits(recipe(micro_batch=64), ("H100", "T4"), 1)
        # What it says to write does fit, with the same batch, and twice as much does not.
        assert tight.largest is not None
        assert tight.accumulates is not None
        assert tight.largest * tight.accumulates == recipe().sequences_per_step
        assert f"micro_batch={tight.largest}" in tight.advice
        assert estimate.fit(recipe(micro_batch=tight.largest), "T4", 1).fits
        assert not estimate.fit(recipe(micro_batch=2 * tight.largest), "T4", 1).fits

    def test_auto_is_what_fits(self) -> None:
        for gpu in ("T4", "L4", "H100"):
            assert estimate.fit(recipe(micro_batch="auto"), gpu, 1).fits

    def test_nothing_fits_a_network_that_is_too_large(self) -> None:
        tree = recipe().model_dump()
        tree["model"] |= {"n_layer": 48, "n_head": 25, "n_embd": 1600}
        found = estimate.fit(Recipe.model_validate(tree), "T4", 1)
        assert "not even one sequence fits" in found.advice


class TestTime:
    def test_gpt2_takes_some_hours_on_eight_a100(self) -> None:
        # nanoGPT: 300 B tokens in 4 days on 8 A100, so 10 B in 3.2 hours; llm.c's kernels do it in 1.5.
        hours = estimate.training_seconds(recipe(micro_batch=64), "A100-80GB", 8) / 3600
        assert 2.5 < hours < 4.0
        rest = estimate.training_seconds(recipe(micro_batch=64), "A100-80GB", 8, first_step=19073)
        assert rest == estimate.OVERHEAD_SECONDS

    def test_the_speed_is_that_of_the_source(self) -> None:
        one = estimate.tokens_per_second(recipe(micro_batch=64), "H100", 1)
        assert one == pytest.approx(380_000, rel=0.05)  # nanoGPT's, by a user's report
        tree = recipe().model_dump()
        tree["model"] |= {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256}
        tree["data"] |= {"tokenizer": "chars"}
        tree["train"] |= {
            "max_steps": 5000,
            "global_batch_tokens": 16384,
            "micro_batch": 64,
            "eval_tokens": 1,
        }
        small = estimate.training_seconds(Recipe.model_validate(tree), "A100-40GB", 1)
        assert (
            120 < small - estimate.OVERHEAD_SECONDS < 240
        )  # nanoGPT's own: about 3 minutes on an A100

    def test_float32_is_slower_and_a_t4_has_nothing_else(self) -> None:
        half = estimate.tokens_per_second(recipe(micro_batch=8), "A10", 1)
        assert (
            estimate.tokens_per_second(recipe(micro_batch=8, dtype="float32"), "A10", 1) == half / 2
        )
        assert estimate.tokens_per_second(recipe(micro_batch=8), "T4", 1) < 5000

    def test_what_is_computed_twice_takes_longer(self) -> None:
        plain = estimate.tokens_per_second(recipe(micro_batch=8), "H100", 1)
        again = estimate.tokens_per_second(
            recipe(micro_batch=8, activation_checkpointing=True), "H100", 1
        )
        assert plain / again == pytest.approx(4 / 3)

    def test_evaluations_count(self) -> None:
        seldom = estimate.training_seconds(
            recipe(eval_every=5000, eval_tokens=10_485_760), "H100", 1
        )
        often = estimate.training_seconds(recipe(eval_every=50, eval_tokens=10_485_760), "H100", 1)
        assert 1.05 < often / seldom < 1.3


class TestComparison:
    def test_what_fits_comes_first_and_the_best_are_marked(self) -> None:
        every = [GpuRequest((name,)) for name in compare.ALL]
        rows = compare.compare_gpus(recipe(micro_batch=64), every, prices.BUILT_IN)
        assert len(rows) == len(every)
        fitting = [row for row in rows if row.fit.fits]
        assert rows[: len(fitting)] == fitting
        assert [row.usd for row in fitting] == sorted(row.usd for row in fitting)
        assert [row for row in rows if row.cheapest] == fitting[:1]
        assert [row.seconds for row in rows if row.fastest] == [min(row.seconds for row in fitting)]
        assert all(row.fit.advice for row in rows[len(fitting) :])

    def test_the_users_prices_decide(self) -> None:
        table = prices.Prices({**prices.TABLE, "L4": 0.01, "CPU": 0, "MEMORY": 0}, "mine")
        rows = compare.compare_gpus(
            recipe(micro_batch=8), [GpuRequest(("H100",)), GpuRequest(("L4",))], table
        )
        assert rows[0].gpu == "L4"
        assert rows[0].cheapest
        assert rows[0].usd == pytest.approx(rows[0].seconds / 3600 * 0.01)


def test_a_node_knows_the_interface_of_its_address(tmp_path: Path) -> None:
    known = tmp_path / "if_inet6"
    known.write_text(
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "fe800000000000000000000000000002 02 40 20 80     eth0\n"
        "fdaa000000000000000000000000000a 03 70 00 80     i6pn\n"
    )
    asked = ("fdaa::a", "::1", "127.0.0.1", "fdaa::b")
    assert [interface_of(address, known) for address in asked] == ["i6pn", "", "", ""]
