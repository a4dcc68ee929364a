"""What holds for every command, those of tomorrow too: found by a walk over the three that are installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from manual.__main__ import COMMANDS, books
from tests.daemon import Vattd, run_command
from tests.raw_engine import RawEngine
from tests.vattctl.command import on_a_terminal
from vatt.command_line import run as main

# All but groups, which only lead to others.
LEAVES = [page.name for pages in books().values() for page in pages if not page.commands]
EVERY = [page.name for pages in books().values() for page in pages]

# What must be given, so that a command does something that ends. All others are run as they are.
ARGUMENTS = {
    "vattctl completion": ["bash"],
    "vattctl evict": ["1-1", "--yes"],
    "vattctl replay": ["azure_conv", "--max-requests", "3"],
    "vattctl reserve": ["chat", "--min", "1MiB"],
    "vattctl top": ["--once"],
    "vattctl unreserve": ["chat"],
}
NO_JSON = {
    "vattctl completion": "what it prints is a program for a shell",
    "vattention chat": "a conversation; programs use `serve`",
}
# These need no vattd, or a model first (tests/vattention/chat has theirs).
NEEDS_NO_VATTD = {"vattctl bench", "vattctl completion", "vattctl doctor", "vattctl replay", "vattd start"}
NEEDS_A_MODEL = {"vattention chat", "vattention serve"}
AS_LONG_AS_NEEDED = {"vattctl completion": "a program", "vattctl events": "lines as of a log"}
# What would not end, would end the vattd of the test, or takes long.
NOT_RUN = {"vattctl bench", "vattd start", "vattd stop", *NEEDS_A_MODEL}
RUN = sorted(set(LEAVES) - NOT_RUN)
COLOUR = re.compile(r"\x1b\[[0-9;]*\b[349][0-7]\b")


def command_of(name: str) -> click.Command:
    root, *rest = name.split()
    command = COMMANDS[root]
    for word in rest:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    return command


def options_of(name: str) -> list[click.Option]:
    return [one for one in command_of(name).params if isinstance(one, click.Option) and not one.hidden]


def has(name: str, option: str) -> bool:
    return any(option in one.opts for one in options_of(name))


def at(vattd: Vattd, name: str) -> list[str]:
    return ["--socket-dir", str(vattd.socket_dir)] if has(name, "--socket-dir") else []


@pytest.fixture(scope="module")
def vattd() -> Iterator[Vattd]:
    """With a tenant and a session, which `evict` is shown at its last breath."""
    with Vattd("--pool-max", "64MiB") as vattd, RawEngine(vattd.sockets, "chat") as engine:
        engine.lease(4)
        ARGUMENTS["vattctl evict"][0] = engine.key.session_id
        yield vattd


def prepare(vattd: Vattd, name: str) -> None:
    if name == "vattctl unreserve":  # there must be something to take back
        assert typed("vattctl reserve", "chat", "--min", "1MiB", *at(vattd, name)).exit_code == 0


def typed(name: str, *more: str) -> Result:
    """In this process, which is cheaper than one of its own."""
    root, *rest = name.split()
    return CliRunner().invoke(COMMANDS[root], [*rest, *more], env={"COLUMNS": "80"}, prog_name=root)


# What needs no run


@pytest.mark.parametrize("name", LEAVES)
def test_help_shows_examples_that_begin_with_the_command(name: str) -> None:
    [page] = [one for pages in books().values() for one in pages if one.name == name]
    assert any(name in line for line in page.examples), f"no example of {name}"


@pytest.mark.parametrize("name", EVERY)
def test_help_fits_80_columns_and_each_option_says_what_it_is(name: str) -> None:
    result = typed(name, "--help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert typed(name, "-h").stdout == result.stdout
    assert [one.opts for one in options_of(name) if not one.help] == []


@pytest.mark.parametrize("name", LEAVES)
def test_whatever_prints_data_prints_json_where_it_is_asked_to(name: str) -> None:
    assert has(name, "-o") is not (name in NO_JSON), NO_JSON.get(name, f"{name} has no -o json")
    if has(name, "-o"):
        [output] = [one for one in options_of(name) if "-o" in one.opts]
        assert "--output" in output.opts
        assert isinstance(output.type, click.Choice)
        assert "json" in output.type.choices


@pytest.mark.parametrize("name", EVERY)
def test_what_makes_no_sense_is_a_usage_error_and_prints_nothing(name: str) -> None:
    result = typed(name, "--no-such-option")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert f"Usage: {name}" in result.stderr


def test_names_of_these_lists_are_names_of_commands() -> None:
    coming = {"vattctl bench", "vattctl top"}
    named = {*ARGUMENTS, *NO_JSON, *NEEDS_NO_VATTD, *NOT_RUN}
    assert named - coming <= set(LEAVES)


# What runs


@pytest.mark.parametrize("name", sorted(set(LEAVES) - NEEDS_NO_VATTD - NEEDS_A_MODEL))
def test_without_a_vattd_the_exit_status_is_3_and_says_how_to_start_one(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root, *rest = name.split()
    with tempfile.TemporaryDirectory() as empty:
        for more in ([], ["-o", "json"] if has(name, "-o") else []):
            with pytest.raises(SystemExit) as end:
                main(COMMANDS[root], root, [*rest, *ARGUMENTS.get(name, []), "--socket-dir", empty, *more])
            said = capsys.readouterr()
            assert end.value.code == 3, said.err
            assert f"`vattd start --socket-dir {empty}`" in said.err
            if said.out:  # of several that could have answered, none has
                assert json.loads(said.out)["daemons"] == []


@pytest.mark.parametrize("name", RUN)
def test_piped_it_has_no_escape_codes_no_spaces_at_the_ends_and_80_columns(vattd: Vattd, name: str) -> None:
    prepare(vattd, name)
    result = run_command([*name.split(), *ARGUMENTS.get(name, []), *at(vattd, name)], {"COLUMNS": "80"})
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "\x1b" not in result.stdout + result.stderr
    if name not in AS_LONG_AS_NEEDED:
        assert lines == [line.rstrip() for line in lines]
        assert max(map(len, lines), default=0) <= 80


@pytest.mark.parametrize("name", [name for name in RUN if name not in NO_JSON])
def test_what_it_prints_as_json_is_json_and_nothing_else(vattd: Vattd, name: str) -> None:
    prepare(vattd, name)
    result = typed(name, *ARGUMENTS.get(name, []), *at(vattd, name), "-o", "json")
    assert result.exit_code == 0, result.stderr
    try:
        json.loads(result.stdout)
    except ValueError:  # a stream has a value a line
        assert [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("name", RUN)
def test_a_reader_that_has_gone_is_no_traceback(vattd: Vattd, name: str) -> None:
    command = [sys.executable, "-m", *name.split(), *ARGUMENTS.get(name, []), *at(vattd, name)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert "Traceback" not in said
    assert "Exception ignored" not in said


@pytest.mark.parametrize("name", [name for name in RUN if has(name, "--socket-dir")])
def test_on_a_terminal_no_color_is_honoured(vattd: Vattd, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with on_a_terminal(vattd, *name.split()[1:], *ARGUMENTS.get(name, [])) as terminal:
        terminal.read_to_end()
        assert not COLOUR.search(terminal.seen), terminal.seen


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_told_in_one_line(name: str) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", name, "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == f"{name}: No space left on device\n"
