"""`runner watch` of a real process, with and without a terminal, until the run or user ends it."""

from __future__ import annotations

import json
import re
import signal

import pexpect
import pytest

from tests.waiting import wait_for

ESCAPE = "\x1b]0;title\x07"


class TestOnATerminal:
    def test_it_shows_new_values_until_the_run_ends(self, active_run, on_terminal) -> None:
        active_run.send("step 10")
        terminal = on_terminal("watch", "--interval", "0.1")
        terminal.expect("step 10/100")
        terminal.expect("45s left")
        terminal.expect("loss.*4.8000")
        terminal.expect("MFU.*41.2%")
        terminal.expect("memory.*3.2 GB")
        terminal.expect("training loss")
        active_run.send("step 90", rf"sample def f():\n    return '{ESCAPE}x'")
        terminal.expect("step 90/100")
        terminal.expect("sample of step 90")
        terminal.expect("return '·]0;title·x'")  # an escape sequence is shown, not executed
        active_run.send("step 100", "exit 0")
        terminal.expect("run 'quickstart' ended: finished")
        terminal.expect(pexpect.EOF)
        terminal.close()
        assert terminal.exitstatus == 0

    @pytest.mark.parametrize("key", ["q", "\x03"])
    def test_quitting_does_not_stop_the_run(self, active_run, on_terminal, key: str) -> None:
        active_run.send("step 10")
        terminal = on_terminal("watch", "--interval", "0.1")
        terminal.expect("step 10/100")
        terminal.send(key)
        terminal.expect("\x1b\\[\\?1049l")  # back to the normal screen
        terminal.expect("run 'quickstart' continues; `runner watch quickstart` shows it again")
        terminal.expect(pexpect.EOF)
        terminal.close()
        assert terminal.exitstatus == 130
        active_run.send("step 20")
        wait_for(lambda: active_run.has('"step": 20,'))

    def test_the_screen_follows_a_resized_terminal(self, active_run, on_terminal) -> None:
        active_run.send("step 10")
        terminal = on_terminal("watch", "--interval", "0.1", size=(30, 80))
        terminal.expect("training loss")
        terminal.setwinsize(40, 160)
        terminal.expect("━ ?.*tokens/s")  # there is space for the second plot
        terminal.setwinsize(8, 30)
        terminal.expect("step 10/100")
        terminal.send("q")
        terminal.expect("run 'quickstart' continues")


class TestColor:
    """Colors, as SGR codes; bold and underline are not colors."""

    COLOR = re.compile(r"\x1b\[(\d+;)*(3[0-8]|4[0-8]|9[0-7])[;m]")

    @pytest.mark.parametrize(
        "line", ["doctor", "runs", "watch quickstart --interval 0.1", "host sample"]
    )
    def test_no_color_disables_colors(self, active_run, on_terminal, line: str) -> None:
        active_run.send("step 10", "exit 0")
        wait_for(lambda: '"finished"' in (active_run.folder / "run.json").read_text())
        output = []
        for variables in ({}, {"NO_COLOR": "1"}):
            terminal = on_terminal(*line.split(), **variables)
            terminal.expect(pexpect.EOF)
            output.append(terminal.before)
        assert self.COLOR.search(output[1]) is None
        if line in ("doctor", "watch quickstart --interval 0.1"):
            assert self.COLOR.search(output[0]) is not None


class TestWithoutATerminal:
    @pytest.mark.parametrize(("code", "status"), [(0, 0), (101, 101), (1, 100)])
    def test_it_prints_a_line_for_each_poll_and_exits_like_the_run(
        self, active_run, spawn, code: int, status: int
    ) -> None:
        active_run.send("step 10")
        process = spawn("watch", "quickstart", "--interval", "0.1")
        first = process.stdout.readline()
        assert first.startswith(("running", "starting"))
        active_run.send("step 20", f"exit {code}")
        out, err = process.communicate(timeout=60)
        assert process.returncode == status, err
        last = out.splitlines()[-1]
        assert (
            "step 20/100  loss 4.6000  validation 4.5000  tokens/s 200  MFU 41.2%  memory 3.2 GB"
            in last
        )
        assert "\x1b" not in out + err
        assert ("`runner resume quickstart` resumes it" in err) == (code != 0)

    def test_json_has_one_object_per_line(self, active_run, spawn) -> None:
        active_run.send("step 50", "exit 0")
        out, _ = spawn("watch", "--json", "--interval", "0.1").communicate(timeout=60)
        rows = [json.loads(line) for line in out.splitlines()]
        assert rows[-1]["status"] == "finished"
        assert rows[-1]["newest"]["loss"] == 4.0

    def test_sigterm_quits_and_the_run_continues(self, active_run, spawn) -> None:
        active_run.send("step 10")
        process = spawn("watch", "--interval", "0.1")
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "run 'quickstart' continues" in err

    def test_a_missing_run_is_an_error(self, type_, fake, make_run) -> None:
        result = type_("runner watch")
        assert (result.exit_code, "no runs yet" in result.stderr) == (102, True)
        result = type_("runner watch quick")
        assert result.exit_code == 102
