"""`vattctl status`: one vattd at one instant."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vatt.sizes import format_size
from vatt.v1 import vatt_pb2 as pb
from vattctl.daemon import find, get_status, gpu_option, socket_dir_option
from vattctl.output import as_json, output_option, show

STATE_STYLES = {"leased": "green", "clean": "cyan", "dirty": "yellow", "quarantined": "red", "unbacked": "dim"}
BAR_WIDTH = 40


@click.command()
@gpu_option
@socket_dir_option
@output_option
def status(device: str | None, socket_dir: Path | None, output: str) -> None:
    """Show the device, the pool by state, the tenants, and the sessions.

    A tenant's UTILIZATION is how much of its mapped memory tokens fill; SAVED is what it takes less than STATIC, a
    cache without paging whose every slot has its full context from the start.

    \b
    Examples:
      vattctl status
      vattctl status -o json | jq '.sessions[].leased_bytes'
    """
    answer = get_status(find(device, socket_dir))
    if output == "json":
        click.echo(as_json(answer))
    else:
        show(render(answer, datetime.now(timezone.utc).timestamp()))


def render(answer: pb.GetStatusResponse, now_s: float) -> RenderableType:
    daemon, device, memory, pool = answer.daemon, answer.device, answer.memory, answer.pool
    uptime_s = max(0, int(now_s - daemon.start_time.ToNanoseconds() / 1e9))
    head = Table.grid(padding=(0, 2))
    head.add_row("device", f"{device.uuid}  {device.name}" if device.uuid != device.name else device.name)
    head.add_row("vattd", f"{daemon.version}, pid {daemon.pid}, {daemon.state} for {_duration(uptime_s)}")
    head.add_row(
        "memory",
        f"{format_size(memory.free_bytes)} free of {format_size(memory.total_bytes)}; "
        f"vattd's pages take {format_size(memory.pages_bytes)}",
    )
    head.add_row(
        "pool",
        f"{format_size(pool.min_bytes)} to {format_size(pool.max_bytes)} in pages of "
        f"{format_size(pool.page_size_bytes)}; most ever leased {format_size(pool.peak_leased_bytes)}",
    )
    return Group(head, Text(), _pool_table(pool), Text(), _tenants_table(answer), Text(), _sessions_table(answer))


def _pool_table(pool: pb.Pool) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("POOL")
    for title in ("PAGES", "SIZE", "SHARE"):
        table.add_column(title, justify="right")
    table.add_column("")
    whole = sum(row.page_count for row in pool.pages_by_state) or 1
    for row in pool.pages_by_state:
        share = row.page_count / whole
        bar = Text("#" * round(share * BAR_WIDTH), style=STATE_STYLES.get(row.state, ""))
        size = format_size(row.page_count * pool.page_size_bytes)
        table.add_row(row.state, f"{row.page_count:,}", size, f"{share:.1%}", bar)
    return table


# In a narrow terminal rich takes the width from columns that may wrap: in these two tables names, never figures.
def _tenants_table(answer: pb.GetStatusResponse) -> RenderableType:
    if not answer.tenants:
        return Text("no tenants")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("TENANT", overflow="ellipsis")
    for title in ("LEASED", "MAPPED", "STATIC", "UTILIZATION", "SAVED"):
        table.add_column(title, justify="right", no_wrap=True)
    for tenant in sorted(answer.tenants, key=lambda tenant: -tenant.leased_bytes):
        static_bytes = tenant.static_reservation_bytes
        table.add_row(
            tenant.name,
            format_size(tenant.leased_bytes),
            format_size(tenant.mapped_bytes),
            format_size(static_bytes),
            _percent(tenant.token_bytes, tenant.mapped_bytes),
            _percent(static_bytes - tenant.mapped_bytes, static_bytes),
        )
    return table


def _percent(part_bytes: int, whole_bytes: int) -> str:
    return f"{part_bytes / whole_bytes:.1%}" if whole_bytes else "-"


def _sessions_table(answer: pb.GetStatusResponse) -> RenderableType:
    if not answer.sessions:
        return Text("no sessions")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("SESSION", no_wrap=True)
    table.add_column("TENANT", overflow="ellipsis")
    for title in ("PID", "STATE"):
        table.add_column(title, no_wrap=True)
    for title in ("LEASED", "MAPPED"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("CLIENT", overflow="ellipsis")
    for session in sorted(answer.sessions, key=lambda session: -session.leased_bytes):
        table.add_row(
            session.session_id,
            session.tenant,
            str(session.pid),
            Text(session.state, style="" if session.state == "attached" else "red"),
            format_size(session.leased_bytes),
            format_size(session.mapped_bytes),
            Text(session.client_name),  # anybody's words: no markup
        )
    return table


def _duration(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (seconds, "s")]
    return " ".join(f"{value}{unit}" for value, unit in parts if value) or "0s"
