"""What shells complete: asked of click as a shell asks, and of real shells with a key that is pressed."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from tests.daemon import Vattd, run_command
from tests.raw_engine import RawEngine
from tests.vattctl.command import done
from vatt import completion as devices
from vattctl.main import vattctl
from vattd.app import vattd as vattd_command

WITHIN_S = 20.0
PROMPT = "ready> "


def completed(command: click.Command, *words: str) -> list[str]:
    """What the last word may become."""
    *before, incomplete = words
    shell = ShellComplete(command, {}, "command", "_COMMAND_COMPLETE")
    return [item.value for item in shell.get_completions(before, incomplete)]


@pytest.fixture(scope="module")
def vattd() -> Iterator[tuple[Vattd, str]]:
    """One with a session of tenant chat, and a reservation for batch."""
    with Vattd("--pool-max", "64MiB") as vattd, RawEngine(vattd.sockets, "chat") as engine:
        done(vattd, "reserve", "batch", "--min", "1MiB")
        engine.lease(4)
        yield vattd, engine.key.session_id
        engine.detach()


def at(vattd: Vattd) -> list[str]:
    return ["--socket-dir", str(vattd.socket_dir)]


def test_commands_and_options_are_completed() -> None:
    assert completed(vattctl, "res") == ["reserve"]
    assert {"status", "tenants", "doctor", "completion"} <= set(completed(vattctl, ""))
    assert completed(vattctl, "status", "--out") == ["--output"]
    assert completed(vattctl, "status", "-o", "") == ["table", "json"]
    assert completed(vattctl, "completion", "") == ["bash", "zsh", "fish"]
    assert completed(vattctl, "replay", "azure") == ["azure_conv", "azure_code", "azure"], "and files"


def test_names_are_those_of_the_vattd_that_runs(vattd: tuple[Vattd, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vattctl.completion.WITHIN_S", WITHIN_S)
    vattd_, session = vattd
    place = at(vattd_)
    assert completed(vattctl, "evict", *place, "") == [session]
    assert completed(vattctl, "evict", *place, session[:2]) == [session]
    assert completed(vattctl, "evict", *place, "nobody") == []
    assert set(completed(vattctl, "reserve", *place, "")) == {"chat", "batch"}
    assert completed(vattctl, "reserve", *place, "ch") == ["chat"]
    assert completed(vattctl, "unreserve", *place, "") == ["batch"], "only what was reserved can be taken back"
    for verb in ("status", "shrink", "drain"):
        assert completed(vattctl, verb, *place, "--gpu", "") == ["host"]
    assert completed(vattd_command, "stop", *place, "--gpu", "h") == ["host"]
    assert completed(vattctl, "evict", *place, "--gpu", "host", "") == [session]
    assert completed(vattctl, "evict", *place, "--gpu", "GPU-other", "") == []
    assert completed(vattctl, "evict", *place, "--gpu", "0", "") == [session], "no driver is asked for its number"
    assert completed(vattctl, "evict", *place, "--gpu", "nonsense", "") == []


def test_where_no_vattd_answers_nothing_is_offered_and_nothing_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        vattd.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, vattd.pid, os.WSTOPPED | os.WNOWAIT)  # until it is
        silent = at(vattd)
        unsafe = tmp_path / "unsafe"
        unsafe.mkdir()
        unsafe.chmod(0o777)
        for place in (silent, ["--socket-dir", str(tmp_path / "nowhere")], ["--socket-dir", str(unsafe)]):
            for words in (["evict", *place, ""], ["reserve", *place, ""], ["unreserve", *place, ""]):
                assert completed(vattctl, *words) == []
            assert completed(vattctl, "status", *place, "--gpu", "") == (["host"] if place is silent else [])
    assert capfd.readouterr() == ("", "")


def test_a_vattd_can_be_started_for_the_gpus_that_the_kernel_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slot, uuid in (("0000:07:00.0", "GPU-1"), ("0000:0b:00.0", "GPU-2")):
        (tmp_path / slot).mkdir()
        (tmp_path / slot / "information").write_text(
            f"Model: \t\t NVIDIA A100-SXM4-80GB\nIRQ:   \t\t 12\nGPU UUID: \t {uuid}\nVideo BIOS: \t 92.00\n"
        )
    monkeypatch.setattr(devices, "GPUS", tmp_path)
    assert completed(vattd_command, "start", "--gpu", "") == ["host", "GPU-1", "GPU-2"]
    assert completed(vattd_command, "start", "--gpu", "GPU") == ["GPU-1", "GPU-2"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_is_printed_is_for_all_three_commands(shell: str) -> None:
    result = run_command(["vattctl", "completion", shell])
    assert result.returncode == 0
    assert result.stderr == ""
    for name in ("vattctl", "vattd", "vattention"):
        assert f"_{name.upper()}_COMPLETE={shell}_complete" in result.stdout


# Real shells


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where a shell finds our commands, as they are in this checkout, but with patience: this machine may be busy."""
    patient = f"import vattctl.completion as one; one.WITHIN_S = {WITHIN_S}; from vattctl.main import main; main()"
    for name in ("vattctl", "vattd", "vattention"):
        script = tmp_path / name
        run = f"-c '{patient}'" if name == "vattctl" else f"-m {name}"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {run} "$@"\n')
        script.chmod(0o755)
    return f"{tmp_path}{os.pathsep}{os.environ['PATH']}"


class Shell:
    """An interactive shell on a terminal."""

    def __init__(self, command: list[str], env: Mapping[str, str]) -> None:
        self._fd, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, **env}, start_new_session=True
        )
        os.close(theirs)
        self.seen = ""

    def type(self, keys: str) -> None:
        self.seen = ""
        os.write(self._fd, keys.encode())

    def read_until(self, words: str) -> None:
        deadline_s = time.monotonic() + WITHIN_S
        while words not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\x08", "", self.seen):
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline_s - time.monotonic()))
            assert ready, f"no {words!r} in {self.seen!r}"
            self.seen += os.read(self._fd, 4096).decode(errors="replace")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


STARTS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], {"PS1": PROMPT}, ""),
    "zsh": (["zsh", "-f", "-i"], {"PS1": PROMPT}, "autoload -U compinit && compinit -u -D; "),
}


@pytest.mark.parametrize("shell", STARTS)
def test_the_tab_key_completes_commands_and_sessions(shell: str, path: str, vattd: tuple[Vattd, str]) -> None:
    vattd_, session = vattd
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    command, env, first = STARTS[shell]
    typed = Shell(command, {**env, "PATH": path, "VATTD_SOCKET_DIR": str(vattd_.socket_dir), "TERM": "dumb"})
    try:
        typed.read_until(PROMPT)
        typed.type(f'{first}eval "$(vattctl completion {shell})"; echo lo""aded\n')
        typed.read_until("loaded\n")
        typed.type("vattctl unres\t")
        typed.read_until("vattctl unreserve ")
        typed.type("bat\t")
        typed.read_until("batch")
        typed.type(f"\x15vattctl evict {session[:-1]}\t")
        typed.read_until(session)
        typed.type("\x15vattd st\t\t")
        typed.read_until("stop")
    finally:
        typed.close()


def test_fish_completes_them_too(path: str, vattd: tuple[Vattd, str], tmp_path: Path) -> None:
    vattd_, session = vattd
    if shutil.which("fish") is None:
        pytest.skip("there is no fish here")
    asked = "; ".join(f'complete -C "vattctl {words}"' for words in ("unres", "evict ", "reserve ch"))
    result = subprocess.run(
        ["fish", "--no-config", "-c", f"vattctl completion fish | source; {asked}"],
        env={**os.environ, "PATH": path, "VATTD_SOCKET_DIR": str(vattd_.socket_dir), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    offered = dict(line.partition("\t")[::2] for line in result.stdout.splitlines())
    assert {"unreserve", session, "chat"} <= offered.keys(), result.stdout
    assert re.fullmatch(r"tenant chat; 256 KiB leased; pid \d+", offered[session])
