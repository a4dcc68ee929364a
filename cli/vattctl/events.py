"""`vattctl events`: what happened in a vattd, and what happens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import chain
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from vatt.durations import format_duration
from vatt.sizes import format_size
from vatt.v1 import vatt_pb2 as pb
from vattctl.daemon import Admin, find, gpu_option, socket_dir_option
from vattctl.output import output_option, to_plain
from vattctl.parameters import Size
from vattctl.waiting import interrupts

DEFAULT_MIN_LEASE = "64MiB"
KIND_WIDTH = len("pages_quarantined")
STYLES = {
    "lease_refused": "yellow",
    "session_fenced": "yellow",
    "session_killed": "red",
    "reclaim_ignored": "red",
    "promise_broken": "red",
    "promise_kept": "green",
    "drain_began": "yellow",
    "shortage_began": "red",
    "shortage_ended": "green",
    "pages_quarantined": "red",
}


@click.command(short_help="Show what happened, and follow what happens.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("-n", "--last", type=click.IntRange(0), metavar="N", help="Of the past, only the last N.")
@click.option("--after", type=click.IntRange(0), default=0, metavar="N", help="Only what came after event N.")
@click.option(
    "--min-lease",
    "min_lease_bytes",
    type=Size(),
    default=DEFAULT_MIN_LEASE,
    show_default=True,
    help="Leave out leases smaller than this; 0 shows all.",
)
@gpu_option
@socket_dir_option
@output_option
def events(
    follow: bool,
    last: int | None,
    after: int,
    min_lease_bytes: int,
    device: str | None,
    socket_dir: Path | None,
    output: str,
) -> None:
    """Show what happened in a vattd: sessions that came and went, leases, pages asked back, promises broken, drains,
    shortages, recovery.

    vattd keeps the last thousand leases and asks for pages, and the last thousand other events. With -o json each event
    is one line. What a slow reader missed is said in its place.

    \b
    Examples:
      vattctl events
      vattctl events -f --min-lease 1GiB
      vattctl events -f -o json | jq 'select(.kind == "session_ended") | .reason'
    """
    with Admin(find(device, socket_dir), "events") as admin, interrupts(admin.end_events):
        told = admin.events(after=after, min_lease_bytes=min_lease_bytes)
        past = list(told)
        newest = past[-1].sequence if past else after
        if last is not None:
            past = past[len(past) - last :] if last else []
        coming = admin.events(after=newest, min_lease_bytes=min_lease_bytes, follow=True) if follow else iter(())
        _show(chain(past, coming), output)


def _show(told: Iterable[pb.Event], output: str) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for event in told:
        if output == "json":
            click.echo(json.dumps(to_plain(event)))
        else:
            for line in render(event):
                console.print(line)


def render(event: pb.Event) -> Iterator[Text]:
    """Lines that are as long as they need, as in a log."""
    if event.missed:
        yield Text(f"({event.missed} events were missed here: this reader is too slow)", style="yellow")
    when = datetime.fromtimestamp(event.time.ToNanoseconds() / 1e9).astimezone()
    line = Text(f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03}  ")
    line.append(f"{event.kind:{KIND_WIDTH}}", style=STYLES.get(event.kind, ""))
    who = " ".join(name for name in (event.tenant, event.session_id) if name)
    parts = [who, format_size(event.bytes) if event.bytes else "", event.reason, _waited_words(event), event.message]
    for part in parts:
        if part:
            line.append(f"  {part}")
    yield line


def _waited_words(event: pb.Event) -> str:
    """Nothing for what came at once."""
    waited_s = event.waited.ToNanoseconds() / 1e9 if event.HasField("waited") else 0.0
    return f"after {format_duration(waited_s)}" if waited_s >= 0.001 else ""
