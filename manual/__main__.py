"""`python -m manual [FOLDER]`: write docs/vattctl.md and docs/man/ anew."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from manual.markdown import markdown
from manual.page import Page, pages_of
from manual.roff import man_page
from vattctl.main import vattctl
from vattd import __version__
from vattd.app import vattd
from vattention.chat.cli import vattention

COMMANDS: dict[str, click.Command] = {"vattctl": vattctl, "vattd": vattd, "vattention": vattention}


def books() -> dict[str, list[Page]]:
    return {name: list(pages_of(command, name)) for name, command in COMMANDS.items()}


def write(root: Path) -> None:
    """What is there and no command's any more goes."""
    every = books()
    manual = root / "docs" / "man"
    manual.mkdir(parents=True, exist_ok=True)
    for old in manual.glob("*.1"):
        old.unlink()
    for pages in every.values():
        for page in pages:
            (manual / f"{page.dashed}.1").write_text(man_page(page, __version__, pages))
    (root / "docs" / "vattctl.md").write_text(markdown([page for pages in every.values() for page in pages]))


if __name__ == "__main__":
    write(Path(*sys.argv[1:]))
