"""`vattctl shrink`: give idle memory back to the device now."""

from __future__ import annotations

from pathlib import Path

import click

from vatt.sizes import format_size
from vattctl.daemon import Admin, find, gpu_option, socket_dir_option
from vattctl.output import output_option, verb_json


@click.command(short_help="Give idle memory back to the device at once.")
@click.option("--ask-engines", is_flag=True, help="Also ask sessions for what they do not use, and wait a second.")
@gpu_option
@socket_dir_option
@output_option
def shrink(ask_engines: bool, device: str | None, socket_dir: Path | None, output: str) -> None:
    """Give idle memory back to the device at once, for other programs.

    All but the pool's minimum and what hard mins keep free. vattd does so by itself after a quiet time (vattd start
    --idle-after).

    \b
    Examples:
      vattctl shrink
      vattctl shrink --ask-engines
    """
    with Admin(find(device, socket_dir), "shrink") as admin:
        freed_bytes = admin.shrink(ask_sessions=ask_engines)
    if output == "json":
        click.echo(verb_json(admin.sockets.device, freed_bytes=freed_bytes))
    elif freed_bytes:
        click.echo(f"{format_size(freed_bytes)} went back to the device")
    else:
        click.echo("nothing went back: nothing is idle but the pool's minimum and what is kept free for hard mins")
