"""The reference of commands: it is what the commands say, and man renders it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from manual.__main__ import books, write
from manual.markdown import markdown
from manual.page import pages_of
from manual.roff import man_page

ROOT = Path(__file__).parents[2]
PAGES = [(page, pages) for pages in books().values() for page in pages]


def files(root: Path) -> dict[str, str]:
    manual = {f"docs/man/{path.name}": path.read_text() for path in (root / "docs" / "man").iterdir()}
    return {**manual, "docs/vattctl.md": (root / "docs" / "vattctl.md").read_text()}


def test_what_is_committed_is_what_the_commands_say(tmp_path: Path) -> None:
    gone = tmp_path / "docs" / "man" / "vattctl-gone.1"
    gone.parent.mkdir(parents=True)
    gone.touch()
    write(tmp_path)
    assert files(ROOT) == files(tmp_path), "run `make man`"


def test_every_command_has_a_page_and_a_place_in_the_reference() -> None:
    reference = (ROOT / "docs" / "vattctl.md").read_text()
    for page, _ in PAGES:
        assert (ROOT / "docs" / "man" / f"{page.dashed}.1").exists()
        assert f"# {page.name}\n" in reference


@pytest.mark.skipif(shutil.which("man") is None, reason="there is no man here")
@pytest.mark.parametrize("name", [page.dashed for page, _ in PAGES])
def test_man_renders_each_page_without_a_warning(name: str) -> None:
    environment = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANPAGER": "cat", "MAN_KEEP_FORMATTING": ""}
    command = ["man", "--warnings", "-l", str(ROOT / "docs" / "man" / f"{name}.1")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert f"{name} - " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    names = [page.dashed for page, pages in PAGES if name in [one.dashed for one in pages]]
    assert all(f"{other}(1)" in done.stdout for other in names if other != name), "a name is broken"
    for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"):
        assert section in done.stdout.splitlines()


@click.group(epilog="Below.")
def group() -> None:
    """A group. And more."""


@group.command("do-it", epilog="Exit status: 0.")
@click.argument("what")
@click.option("-n", "--number", type=click.IntRange(1), default=3, show_default=True, help="How <often> it's *done*.")
@click.option("--hidden", hidden=True)
def do_it(what: str, number: int, hidden: str) -> None:
    """Do it.

    Words that
    go on: `x`, \\ and --option.

    \b
    .kept as it is
      indented

    \b
    Examples:
      group do-it -n 2 'it'
      .group
    """


@group.command(hidden=True)
def secret() -> None:
    """Hidden."""


def test_a_page_is_what_help_says_and_no_more() -> None:
    first, second = pages_of(group, "group")
    assert (first.name, first.summary, [one.term for one in first.commands]) == ("group", "A group", ["do-it"])
    assert (second.dashed, second.usage) == ("group-do-it", "group do-it [OPTIONS] WHAT")
    assert [one.term for one in second.options] == ["-n, --number INTEGER RANGE", "--help"]
    assert second.options[0].words == "How <often> it's *done*. [default: 3; x>=1]"
    assert second.examples == ["group do-it -n 2 'it'", ".group"]
    assert [one.text for one in second.description] == [
        "Do it.",
        "Words that go on: `x`, \\ and --option.",
        ".kept as it is   indented",
    ]
    assert [one.text for one in second.notes] == ["Exit status: 0."]


def test_nothing_in_a_page_is_taken_for_a_request_or_an_escape() -> None:
    first, second = pages_of(group, "group")
    page = man_page(second, "1.0", [first, second]).splitlines()
    assert page[0] == '.TH "GROUP-DO-IT" "1" "" "vattd 1.0" "User Commands"'
    assert "Words that go on: \\(gax\\(ga, \\e and \\-\\-option." in page
    assert "\\&.kept as it is" in page
    assert "\\&.group" in page
    assert "group do\\-it \\-n 2 \\(aqit\\(aq" in page
    assert "\\fB\\-n,\\fR \\fB\\-\\-number\\fR \\fIINTEGER\\fR \\fIRANGE\\fR" in page
    assert page[-2:] == [".SH SEE ALSO", ".BR \\%group (1)"]


def test_nothing_in_the_reference_is_taken_for_markup() -> None:
    text = markdown(list(pages_of(group, "group")))
    assert "- `-n, --number INTEGER RANGE`: How &lt;often> it's \\*done\\*. \\[default: 3; x>=1]" in text
    assert "- [`do-it`](#group-do-it): Do it." in text
    assert "\n## group\n" in text
    assert "\n### group do-it\n" in text
