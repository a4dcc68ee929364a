"""`vattctl doctor`: collect, examine, render."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from vatt.command_line import EXIT_REFUSED
from vattctl.daemon import socket_dir_option
from vattctl.output import as_json, output_option, show


@click.command(short_help="Check this machine for what goes wrong, and say what to type.")
@socket_dir_option
@output_option
def doctor(socket_dir: Path | None, output: str) -> None:
    """Check this machine for what goes wrong in practice, and say what to type.

    Looked at are Python and its packages, the kernel and its limits, memory, the NVIDIA driver and each GPU, every
    vattd that is found, and what engines need. It changes nothing, makes no CUDA context, and asks the driver in a
    process of its own, so that one that hangs is told of.

    Run it as the user, and in the container, whose vattd or engine does not work: what it sees is what they see.

    Exit status: 0 nothing is broken (warnings may be there), 1 something is.

    \b
    Examples:
      vattctl doctor
      vattctl doctor --socket-dir /run/vattd
      vattctl doctor -o json | jq '.findings[] | select(.state != "ok")'
    """
    # Late: other commands, and a key that completes them, do not wait for what only this one needs.
    from vattctl.doctor.collect import collect
    from vattctl.doctor.examine import examine
    from vattctl.doctor.finding import State
    from vattctl.doctor.render import render, to_plain

    facts = collect(os.environ, socket_dir)
    findings = examine(facts)
    if output == "json":
        click.echo(as_json(to_plain(findings, facts.software.version)))
    else:
        show(render(findings))
    if any(one.state is State.BROKEN for one in findings):
        sys.exit(EXIT_REFUSED)
