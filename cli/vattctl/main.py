"""The `vattctl` command. Exit status: 0 done, 1 refused, 2 usage, 3 no daemon answers."""

from __future__ import annotations

import os
import sys

import click

from vatt.command_line import EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_WORDS, SIZE_WORDS, TIME_WORDS
from vatt.errors import DaemonUnreachable, VattError
from vattctl.drain import drain
from vattctl.events import events
from vattctl.evict import evict
from vattctl.replay.command import replay
from vattctl.reserve import reserve, unreserve
from vattctl.shrink import shrink
from vattctl.status import status
from vattctl.tenants import tenants


@click.group(
    epilog=f"{EXIT_WORDS}\n\n{TIME_WORDS} {SIZE_WORDS}", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="vattd", prog_name="vattctl")
def vattctl() -> None:
    """See and steer the vattd of this machine."""


for command in (status, events, tenants, reserve, unreserve, evict, drain, shrink, replay):
    vattctl.add_command(command)


def main() -> None:
    try:
        vattctl()
    except VattError as error:
        click.echo(f"vattctl: {error}", err=True)
        sys.exit(EXIT_UNREACHABLE if isinstance(error, DaemonUnreachable) else EXIT_REFUSED)
    except OSError as error:  # what it wrote to: a full disk, say
        click.echo(f"vattctl: {error.strerror or error}", err=True)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what is left in the buffer would fail again at exit
        sys.exit(EXIT_REFUSED)
