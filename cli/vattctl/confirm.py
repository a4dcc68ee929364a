"""Before something that cannot be undone: a question, where there is somebody to ask."""

from __future__ import annotations

import sys

import click

from vatt.errors import VattError


def confirm(question: str, *, yes: bool) -> None:
    """Raises VattError if the answer is no, or nobody is there to give one."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise VattError(f"nothing was done, since there is no terminal to ask at: add --yes. ({question})")
    if not click.confirm(question, err=True):
        raise VattError("nothing was done")
