"""The `vattention` command, without a terminal and with one."""

from __future__ import annotations

import builtins
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from click.testing import CliRunner, Result

from tests.daemon import Vattd
from tests.operator import operator
from tests.vattention.chat.conftest import MakeEngine, SlowDown
from vatt.errors import InvalidRequest
from vattention.chat import ChatEngine, Sampling
from vattention.chat.cli import main, of_the_extra, vattention
from vattention.chat.flow import Flow
from vattention.chat.terminal import Terminal

Invoke = Callable[..., Result]


@pytest.fixture
def chat(vattd_socket_dir: Path, llama: Path) -> Invoke:
    """`vattention chat` with these lines as standard input."""

    def invoke(lines: str | bytes, *options: str) -> Result:
        arguments = ["chat", "--model", str(llama), "--socket-dir", str(vattd_socket_dir), "--max-tokens", "8"]
        return CliRunner().invoke(vattention, [*arguments, *options], input=lines)

    return invoke


def test_without_a_terminal_each_line_is_answered_on_standard_output(
    chat: Invoke, make_engine: MakeEngine, llama: Path
) -> None:
    expected = make_engine(llama).new_conversation().say("Hello", Sampling(max_tokens=8)).wait()
    result = chat("Hello\n\n/new\nHello\n/list\n/quit\nnever read\n")
    assert result.exit_code == 0
    first, rest = result.stdout.split("messages", 1)[0], result.stdout.split("begins", 1)[1]
    harmless: list[str] = []
    Flow(harmless.append, None).add(expected)
    assert first.count("".join(harmless)) == 2
    assert [line.split()[:2] for line in rest.strip().split("\n")] == [["1", "2"], ["*2", "2"]]
    assert "conversation 2" in result.stderr
    assert "\x1b" not in result.stdout


def test_what_is_refused_is_told_on_standard_error_and_the_exit_status(chat: Invoke) -> None:
    result = chat(b"/bogus\n/switch\n/switch 2\n" + b"x" * 600 + b"\nno text: \xff\n/stats\n")
    assert result.exit_code == 1
    assert "/bogus is no command: /help lists them" in result.stderr
    assert "type /switch N" in result.stderr
    assert "there is no conversation 2: type /switch 1 to 1" in result.stderr
    assert "the context holds 512" in result.stderr
    assert "static reservation of 16 slots x 512 tokens" in result.stdout


def test_the_same_is_said_without_vattention(chat: Invoke) -> None:
    with_pages, without = chat("Hello\n"), chat("Hello\n/stats\n", "--no-vattention")
    assert without.stdout.startswith(with_pages.stdout)
    assert "DynamicCache" in without.stdout


def test_an_address_that_others_reach_has_to_be_asked_for() -> None:
    for host in ("0.0.0.0", "192.0.2.1", "example.org", "::"):
        result = CliRunner().invoke(vattention, ["serve", "--host", host])
        assert result.exit_code == 2
        assert "say --public as well" in result.stderr


def test_exit_statuses_tell_an_unreachable_vattd_from_a_refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, llama: Path
) -> None:
    cases: list[tuple[list[str], int, str]] = [
        (["chat", "--model", str(llama), "--socket-dir", str(tmp_path)], 3, "vattd start"),
        (["chat", "--model", str(tmp_path), "--no-vattention"], 1, "give a folder with config.json"),
    ]
    for arguments, status, words in cases:
        monkeypatch.setattr(sys, "argv", ["vattention", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == status
        assert words in capsys.readouterr().err


def test_a_server_killed_in_mid_answer_leaves_vattd_every_page(own_vattd: Vattd, llama: Path) -> None:
    command = [sys.executable, "-m", "vattention", "serve", "--model", str(llama), "--port", "0"]
    with subprocess.Popen(
        [*command, "--socket-dir", str(own_vattd.socket_dir)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        name, _, address = server.stdout.readline().split()
        body = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "stream": True}
        with (
            operator(own_vattd.sockets) as admin,
            httpx.stream("POST", f"{address}/chat/completions", json=body, timeout=30) as answer,
        ):
            assert next(answer.iter_lines()).startswith("data: ")
            assert own_vattd.pages()["leased"] > 0
            server.send_signal(signal.SIGKILL)
            admin.until(lambda status: not status.sessions)
        server.wait()
    assert own_vattd.pages().get("leased", 0) == 0


class Typed:
    """A terminal in which these lines are typed; an exception is a key, and the end is Ctrl-D."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
        self.prompts: list[str] = []
        self._lines = list(lines)
        monkeypatch.setattr(builtins, "input", self._input)
        for stream in (sys.stdin, sys.stdout):
            monkeypatch.setattr(stream, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", "80")

    def _input(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = self._lines.pop(0) if self._lines else EOFError
        if isinstance(line, str):
            return line
        raise line


def test_keys_and_commands_of_a_terminal(
    make_engine: MakeEngine, llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    typed = Typed(monkeypatch, "Hello", KeyboardInterrupt, "/new", "Hello", "/switch 1", "/bogus", "/stats")
    assert Terminal(make_engine(llama), Sampling(max_tokens=8)).run()
    numbers = [prompt.strip() for prompt in typed.prompts]
    assert numbers == ["1>", "1>", "1>", "2>", "2>", "1>", "1>", "1>"]
    shown = capsys.readouterr().out
    assert "Ctrl-D or /quit ends the chat" in shown
    assert "conversation 1: 2 messages" in shown
    assert "2 of 16 slots" in shown
    assert "/bogus is no command" in shown
    plain = re.sub(r"\x1b\[[02]m", "", shown)  # dim, which is no colour
    assert "\x1b" not in plain
    assert all(len(line) <= 80 for line in plain.split("\n"))


def test_ctrl_c_ends_the_answer_only(
    make_engine: MakeEngine,
    llama: Path,
    slow_down: SlowDown,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = make_engine(llama)
    slow_down(engine)  # so that the answer is not over before the key is heard
    interrupt_at_step(engine, 5, monkeypatch)
    Typed(monkeypatch, "Hello", "And?")
    assert Terminal(engine, Sampling(max_tokens=60)).run()
    assert capsys.readouterr().out.count("ended by Ctrl-C") == 1
    stats = engine.stats()
    assert stats.answers_total == 2
    assert 60 < stats.generated_tokens_total < 120


def interrupt_at_step(engine: ChatEngine, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the engine computes this step."""
    steps = 0
    logits_after = engine._model.logits_after

    def counted(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == number:
            os.kill(os.getpid(), signal.SIGINT)
        return logits_after(*arguments)

    monkeypatch.setattr(engine._model, "logits_after", counted)


def test_without_the_extra_what_to_type_is_told() -> None:
    with pytest.raises(InvalidRequest, match=r"no_such_torch is not installed: `pip install '\.\[chat\]'`"):
        of_the_extra("no_such_torch")
