"""runner watch on a real process: on a terminal, off it, to the end and left before."""

from __future__ import annotations

import json
import re
import signal

import pexpect
import pytest

from tests.waiting import wait_for

ESCAPE = "\x1b]0;title\x07"


class TestOnATerminal:
    def test_it_shows_what_is_new_until_the_run_ends(self, at_work, on_terminal) -> None:
        at_work.order("step 10")
        person = on_terminal("watch", "--interval", "0.1")
        person.expect("step 10/100")
        person.expect("45s left")
        person.expect("loss.*4.8000")
        person.expect("MFU.*41.2%")
        person.expect("memory.*3.2 GB")
        person.expect("training loss")
        at_work.order("step 90", rf"sample def f():\n    return '{ESCAPE}x'")
        person.expect("step 90/100")
        person.expect("sample of step 90")
        person.expect("return '·]0;title·x'")  # what would set the terminal's title is only shown
        at_work.order("step 100", "exit 0")
        person.expect("run quickstart is finished")
        person.expect(pexpect.EOF)
        person.close()
        assert person.exitstatus == 0

    @pytest.mark.parametrize("leave", ["q", "\x03"])
    def test_leaving_leaves_the_run_alone(self, at_work, on_terminal, leave: str) -> None:
        at_work.order("step 10")
        person = on_terminal("watch", "--interval", "0.1")
        person.expect("step 10/100")
        person.send(leave)
        person.expect("left; run quickstart goes on. `runner watch quickstart` shows it again")
        person.expect(pexpect.EOF)
        person.close()
        assert person.exitstatus == 130
        at_work.order("step 20")
        wait_for(lambda: at_work.has('"step": 20,'))

    def test_a_resized_terminal_is_filled_again(self, at_work, on_terminal) -> None:
        at_work.order("step 10")
        person = on_terminal("watch", "--interval", "0.1", size=(30, 80))
        person.expect("training loss")
        person.setwinsize(40, 160)
        person.expect("━ ?.*tokens/s")  # the second plot has room now
        person.setwinsize(8, 30)
        person.expect("step 10/100")
        person.send("q")
        person.expect("goes on")

    def test_the_terminal_is_as_it_was(self, at_work, on_terminal, checkout) -> None:
        at_work.order("step 10")
        person = on_terminal("watch", "--interval", "0.1")
        person.expect("step 10/100")
        person.send("q")
        person.expect("\x1b\\[\\?1049l")  # the screen before it
        person.expect(pexpect.EOF)


class TestColor:
    """SGR codes that set a colour; bold and underlined text has none."""

    COLOR = re.compile(r"\x1b\[(\d+;)*(3[0-8]|4[0-8]|9[0-7])[;m]")

    @pytest.mark.parametrize(
        "line", ["doctor", "runs", "watch quickstart --interval 0.1", "host sample"]
    )
    def test_no_color_means_none(self, at_work, on_terminal, line: str) -> None:
        at_work.order("step 10", "exit 0")
        wait_for(lambda: '"finished"' in (at_work.folder / "run.json").read_text())
        seen = []
        for more in ({}, {"NO_COLOR": "1"}):
            person = on_terminal(*line.split(), **more)
            person.expect(pexpect.EOF)
            seen.append(person.before)
        assert self.COLOR.search(seen[1]) is None
        if line in ("doctor", "watch quickstart --interval 0.1"):
            assert self.COLOR.search(seen[0]) is not None


class TestOffATerminal:
    @pytest.mark.parametrize(("code", "ends"), [(0, 0), (101, 101), (1, 100)])
    def test_a_line_a_look_and_the_runs_own_end(self, at_work, spawn, code: int, ends: int) -> None:
        at_work.order("step 10")
        process = spawn("watch", "quickstart", "--interval", "0.1")
        first = process.stdout.readline()
        assert first.startswith(("running", "starting"))
        at_work.order("step 20", f"exit {code}")
        out, err = process.communicate(timeout=60)
        assert process.returncode == ends, err
        last = out.splitlines()[-1]
        assert (
            "step 20/100  loss 4.6000  validation 4.5000  tokens/s 200  MFU 41.2%  memory 3.2 GB"
            in last
        )
        assert "\x1b" not in out + err
        assert ("`runner resume quickstart` goes on" in err) == (code != 0)

    def test_json_lines(self, at_work, spawn) -> None:
        at_work.order("step 50", "exit 0")
        out, _ = spawn("watch", "--json", "--interval", "0.1").communicate(timeout=60)
        rows = [json.loads(line) for line in out.splitlines()]
        assert rows[-1]["status"] == "finished"
        assert rows[-1]["newest"]["loss"] == 4.0

    def test_sigterm_leaves_it(self, at_work, spawn) -> None:
        at_work.order("step 10")
        process = spawn("watch", "--interval", "0.1")
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "left; run quickstart goes on" in err

    def test_no_run_and_an_unknown_one(self, type_, fake, make_run) -> None:
        result = type_("runner watch")
        assert (result.exit_code, "no runs yet" in result.stderr) == (102, True)
        result = type_("runner watch quick")
        assert result.exit_code == 102
