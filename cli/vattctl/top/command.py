"""`vattctl top`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from vatt.command_line import TIME_WORDS, Time
from vattctl.daemon import ask_all, find_all, only_gpu_option, socket_dir_option
from vattctl.output import daemons_json, output_option

DEFAULT_INTERVAL = "1s"
LEAST_INTERVAL_S = 0.1
NO_TERMINALS = ("", "dumb", "unknown")


@click.command(epilog=TIME_WORDS, short_help="Watch vattds as they live: pool, page map, tenants, sessions.")
@click.option(
    "--interval",
    "interval_s",
    type=Time(least_s=LEAST_INTERVAL_S),
    default=DEFAULT_INTERVAL,
    show_default=True,
    metavar="TIME",
    help="How often vattd is asked.",
)
@click.option("--once", is_flag=True, help="Print one frame and end; rates are those of one interval.")
@only_gpu_option
@socket_dir_option
@output_option
def top(interval_s: float, once: bool, device: str | None, socket_dir: Path | None, output: str) -> None:
    """Watch vattds as they live: the pool and its pages by owner, the tenants, the sessions, how fast they lease.

    Keys: ? explains them and the words, q quits. Where several vattds run, g goes to the next one. Letters stand for
    colours where there are none (NO_COLOR).

    \b
    Examples:
      vattctl top
      vattctl top --interval 5s --gpu 0
      vattctl top --once
      vattctl top --once -o json | jq '.daemons[].rates.all.leases_per_s'
    """
    if output == "json" and not once:
        raise click.UsageError("-o json is for one frame: add --once")
    if not once and not _is_on_a_terminal():
        raise click.UsageError("this is no terminal that top can draw on: `vattctl top --once` prints one frame")
    answers = ask_all(device, socket_dir, "top")
    if output == "json" and not answers.statuses:
        click.echo(daemons_json([], answers.unreachable))
    answers.check()
    silent = [one.sockets for one in answers.unreachable]
    found = sorted(find_all(device, socket_dir), key=lambda one: one in silent)
    if once:
        from vattctl.top.once import print_once

        print_once(found, interval_s, output)
        return
    from vattctl.top.app import Top  # textual takes a while to import

    Top(lambda: find_all(device, socket_dir), found, interval_s, letters="NO_COLOR" in os.environ).run(mouse=False)


def _is_on_a_terminal() -> bool:
    """textual reads keys from stdin and draws on stderr; who has stdout piped wants text."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return os.environ.get("TERM", "") not in NO_TERMINALS and all(one is not None and one.isatty() for one in streams)
