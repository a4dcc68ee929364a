"""`vattctl top` as it is typed: on a terminal, in pipes, and where no vattd is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cudasim import World
from tests.daemon import Vattd, run_command
from tests.raw_engine import RawEngine
from tests.vattctl.command import done, on_a_terminal, refused, vattctl

QUICK = ("--interval", "100ms")


@pytest.fixture(scope="module")
def shared() -> Iterator[Vattd]:
    """Two engines of two tenants, and one of a third that holds nothing."""
    with ExitStack() as stack:
        vattd = stack.enter_context(Vattd("--pool-max", "64MiB"))
        for tenant, pages in (("chat", 300), ("batch", 100), ("idle", 0)):
            engine = stack.enter_context(RawEngine(vattd.sockets, tenant, client_name="tester/1"))
            if pages:
                engine.lease(pages)
                engine.report(mapped_pages=pages // 2, token_bytes=pages << 14)
        yield vattd


def test_once_prints_a_frame_of_plain_text_in_80_columns(shared: Vattd) -> None:
    lines = done(shared, "top", "--once", *QUICK).splitlines()
    text = "\n".join(lines)
    assert max(len(line) for line in lines) <= 80
    assert "\x1b" not in text
    assert lines[0].startswith("host  host memory  serving  up ")
    assert "B chat          18.8 MiB  9.38 MiB         -         -         0" in text
    assert "A" * 20 in text, "the page map"
    assert lines[3].split()[:2] == ["leases", "0/s"]


def test_once_as_json_has_status_page_map_and_rates(shared: Vattd) -> None:
    everything = json.loads(done(shared, "top", "--once", *QUICK, "-o", "json"))
    assert everything.keys() == {"daemons", "unreachable"}
    [one] = everything["daemons"]
    assert one.keys() >= {"daemon", "pool", "tenants", "sessions", "page_map", "rates"}
    assert one["rates"]["all"]["leases_per_s"] == 0
    assert one["rates"]["tenants"].keys() == {"chat", "batch", "idle"}
    cells = one["page_map"]["cells"]
    assert sum(cell["total_pages"] for cell in cells) == 1024
    assert {cell["state"] for cell in cells} >= {"leased", "clean"}


def test_once_of_64_sessions_shows_each_of_them() -> None:
    with ExitStack() as stack:
        vattd = stack.enter_context(Vattd("--pool-max", "64MiB"))
        engines = [stack.enter_context(RawEngine(vattd.sockets, f"team-{number % 8}")) for number in range(64)]
        text = done(vattd, "top", "--once", *QUICK)
        assert all(engine.key.session_id in text for engine in engines)
        for engine in engines:
            engine.detach()
        assert "no sessions" in done(vattd, "top", "--once", *QUICK)


def test_once_shows_every_vattd_and_names_those_that_are_silent() -> None:
    with World(devices=2) as world, Vattd("--pool-max", "64MiB", device="0", env=world.env()) as first:
        with Vattd("--pool-max", "64MiB", "--socket-dir", str(first.socket_dir), device="1", env=world.env()) as second:
            both = done(first, "top", "--once", *QUICK)
            assert all(uuid in both for uuid in map(str, world.uuids))
            second.stop(signal.SIGKILL)
            one = done(first, "top", "--once", *QUICK)
            assert f"GPU-{world.uuids[1]}: no vattd answers at" in one
            assert f"GPU-{world.uuids[0]}" in one


def test_on_a_terminal_it_draws_and_q_ends_it(shared: Vattd) -> None:
    with on_a_terminal(shared, "top", *QUICK) as terminal:
        terminal.read_until("host memory")
        terminal.read_until("batch")
        terminal.type("q")
        terminal.read_until("\x1b[?1049l")  # back to the screen of before
        assert terminal.wait() == 0


def test_ctrl_c_ends_it_too(shared: Vattd) -> None:
    with on_a_terminal(shared, "top", *QUICK) as terminal:
        terminal.read_until("batch")
        terminal.type("\x03")
        terminal.read_until("\x1b[?1049l")
        assert terminal.wait() == 0


def test_after_ctrl_z_and_fg_all_of_it_is_drawn_again(shared: Vattd) -> None:
    with on_a_terminal(shared, "top", "--interval", "1h") as terminal:
        terminal.read_until("batch")
        terminal.type("\x1a")
        terminal.read_until("\x1b[?1049l")
        terminal.seen = ""
        os.waitpid(terminal.process.pid, os.WUNTRACED)
        terminal.process.send_signal(signal.SIGCONT)
        terminal.read_until("batch")
        terminal.read_until("quit")
        terminal.type("q")
        terminal.read_until("\x1b[?1049l")
        assert terminal.wait() == 0


def test_the_mouse_stays_the_terminals(shared: Vattd) -> None:
    with on_a_terminal(shared, "top", *QUICK) as terminal:
        terminal.read_until("batch")
        assert "\x1b[?1000h" not in terminal.seen
        terminal.type("q")
        terminal.wait()


@pytest.mark.parametrize("term", ["dumb", ""])
def test_where_nothing_can_be_drawn_once_is_what_to_type(shared: Vattd, term: str) -> None:
    assert "`vattctl top --once` prints one frame" in refused(shared, "top", status=2, env={"TERM": term})


def test_json_is_for_one_frame(shared: Vattd) -> None:
    assert "add --once" in refused(shared, "top", "-o", "json", status=2)


@pytest.mark.parametrize("arguments", [["--once"], ["--once", "-o", "json"]])
def test_without_a_vattd_it_exits_3_and_says_what_to_type(tmp_path: Path, arguments: list[str]) -> None:
    result = run_command(["vattctl", "top", *arguments, "--socket-dir", str(tmp_path)])
    assert result.returncode == 3
    assert f"`vattd start --socket-dir {tmp_path}`" in result.stderr
    if "json" in arguments:
        assert json.loads(result.stdout) == {"daemons": [], "unreachable": []}, "as `vattctl status` says it"


def test_on_a_terminal_without_a_vattd_it_exits_3_before_it_draws() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        vattd.stop(signal.SIGKILL)
        with on_a_terminal(vattd, "top") as terminal:
            terminal.read_until("vattd start --gpu host")
            assert terminal.wait() == 3
            assert "\x1b[?1049h" not in terminal.seen


def test_an_interval_is_a_time(shared: Vattd) -> None:
    assert "is not a length of time" in refused(shared, "top", "--interval", "often", status=2)
    assert "is not 0.1 s to 10 years" in refused(shared, "top", "--interval", "1ms", status=2)


def test_no_other_command_waits_for_textual() -> None:
    code = "import sys, vattctl.main; sys.exit('textual' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_has_examples() -> None:
    assert "vattctl top --once -o json" in run_command(["vattctl", "top", "--help"]).stdout


def test_a_narrow_pipe_is_narrow(shared: Vattd) -> None:
    result = vattctl(shared, "top", "--once", *QUICK, env={"COLUMNS": "60"})
    assert max(len(line) for line in result.stdout.splitlines()) <= 60
