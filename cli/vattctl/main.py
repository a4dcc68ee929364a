"""The `vattctl` command. Exit status: 0 done, 1 refused, 2 usage, 3 no daemon answers."""

from __future__ import annotations

import sys

import click

from vatt.errors import DaemonUnreachable, VattError
from vattctl.replay.command import replay
from vattctl.status import status

EXIT_REFUSED = 1
EXIT_UNREACHABLE = 3


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vattd", prog_name="vattctl")
def vattctl() -> None:
    """See and steer the vattd of this machine."""


vattctl.add_command(status)
vattctl.add_command(replay)


def main() -> None:
    try:
        vattctl()
    except VattError as error:
        click.echo(f"vattctl: {error}", err=True)
        sys.exit(EXIT_UNREACHABLE if isinstance(error, DaemonUnreachable) else EXIT_REFUSED)
