"""The `vattctl` command. Exit status: 0 done, 1 refused, 2 usage, 3 no daemon answers."""

from __future__ import annotations

import click

from vatt.command_line import EXIT_WORDS, HELP_OPTIONS, SIZE_WORDS, TIME_WORDS, run
from vattctl.bench.command import bench
from vattctl.closed_pipe import end_when_stdout_closes
from vattctl.completion import completion
from vattctl.doctor.command import doctor
from vattctl.drain import drain
from vattctl.events import events
from vattctl.evict import evict
from vattctl.replay.command import replay
from vattctl.reserve import reserve, unreserve
from vattctl.shrink import shrink
from vattctl.status import status
from vattctl.tenants import tenants
from vattctl.top.command import top


@click.group(epilog=f"{EXIT_WORDS}\n\n{TIME_WORDS} {SIZE_WORDS}", context_settings=HELP_OPTIONS)
@click.version_option(package_name="vattd", prog_name="vattctl")
def vattctl() -> None:
    """See and steer the vattd of this machine."""


for command in (
    *(status, top, events, tenants),
    *(reserve, unreserve, evict, drain, shrink),
    *(doctor, bench, replay, completion),
):
    vattctl.add_command(command)


def main() -> None:
    end_when_stdout_closes()
    run(vattctl, "vattctl")
