"""`vattctl status`: the vattds of this machine at one instant each."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vatt.durations import format_duration
from vatt.sizes import format_size
from vatt.v1 import vatt_pb2 as pb
from vattctl.daemon import Answers, ask_all, only_gpu_option, socket_dir_option
from vattctl.output import (
    Below,
    NotedTable,
    daemons_json,
    name_cell,
    new_table,
    output_option,
    show,
    spaced,
    to_plain,
    unreachable_words,
)
from vattctl.pool_picture import MAP_CELLS, MapLine, state_table
from vattctl.words import guarantee_words, over_max_notes, promise_words, waiting_words

DAEMON_STYLES = {"serving": "", "draining": "yellow"}
# Sessions of an earlier vattd that have not re-attached.
AWAITED = ("recovering", "silent")


@click.command(short_help="Show every vattd here, its pool, tenants and sessions.")
@only_gpu_option
@socket_dir_option
@output_option
def status(device: str | None, socket_dir: Path | None, output: str) -> None:
    """Show every vattd here: its device, the pool by state, the tenants, and the sessions.

    A tenant's UTILIZATION is how much of its mapped memory tokens fill; SAVED is what it takes less than STATIC, a
    cache without paging whose every slot has its full context from the start. A vattd that does not answer is named,
    and hides no other.

    \b
    Examples:
      vattctl status
      vattctl status --gpu 0
      vattctl status -o json | jq '.daemons[].sessions[].leased_bytes'
    """
    answers = ask_all(device, socket_dir, "status", cell_count=MAP_CELLS)
    if output == "json":
        click.echo(daemons_json([to_plain(answer) for answer in answers.statuses], answers.unreachable))
    elif answers.statuses:
        show(render_all(answers, time.time()))
    answers.check()


def render_all(answers: Answers, now_s: float) -> RenderableType:
    pairs = zip(answers.statuses, answers.page_maps, strict=True)
    return spaced(
        [*(render(status, now_s, page_map) for status, page_map in pairs), *unreachable_words(answers.unreachable)]
    )


def render(answer: pb.GetStatusResponse, now_s: float, page_map: pb.GetPageMapResponse | None = None) -> RenderableType:
    pool = state_table(answer.pool)
    if page_map is not None:
        pool = Group(pool, MapLine(answer.pool, page_map, [tenant.name for tenant in answer.tenants]))
    return spaced([_head(answer, now_s), pool, _tenants_table(answer, now_s), _sessions_table(answer)])


def _head(answer: pb.GetStatusResponse, now_s: float) -> RenderableType:
    daemon, device, memory, pool = answer.daemon, answer.device, answer.memory, answer.pool
    uptime = format_duration(max(0.0, now_s - daemon.start_time.ToNanoseconds() / 1e9))
    state = Text(daemon.state, style=DAEMON_STYLES.get(daemon.state, "red"))
    head = Table.grid(padding=(0, 2))
    head.add_row("device", f"{device.uuid}  {device.name}" if device.uuid != device.name else device.name)
    head.add_row("vattd", Text.assemble(f"{daemon.version}, pid {daemon.pid}, ", state, f", up for {uptime}"))
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
    head.add_row("scrub", _scrub_words(pool, device.backend))
    if pool.promised_bytes:
        kept = f", {format_size(pool.kept_free_bytes)} of it kept free" if pool.kept_free_bytes else ""
        head.add_row("promised", f"{format_size(pool.promised_bytes)} to tenants{kept}")
    if pool.waiting_pages:
        head.add_row("waiting", f"leases wait for {format_size(pool.waiting_pages * pool.page_size_bytes)}")
    if recovery := _recovery_words(answer):
        head.add_row("restart", recovery)
    if daemon.state == "draining":
        words = "no new sessions or requests; `vattctl drain --resume` ends it"
        head.add_row(Text("draining", style="yellow"), Text(words, style="yellow"))
    if pool.shortage:
        head.add_row("shortage", Text(pool.shortage, style="red"))
    return head


def _recovery_words(answer: pb.GetStatusResponse) -> str:
    """What became of the sessions of the vattd before; empty if there were none, or all are back."""
    daemon = answer.daemon
    awaited = [session for session in answer.sessions if session.state in AWAITED]
    words = []
    if awaited:
        size = format_size(sum(session.leased_bytes for session in awaited))
        words.append(f"{len(awaited)} with {size} not back yet")
    if daemon.lost_sessions_total:
        words.append(f"{daemon.lost_sessions_total} ended before they were back")
    if daemon.disputed_pages_total:
        words.append(f"{daemon.disputed_pages_total} pages claimed by two sessions, lent to nobody")
    if not words:
        return ""
    back = daemon.recovered_sessions_total
    return f"of the sessions of the vattd before, {back} {'is' if back == 1 else 'are'} back; {', '.join(words)}"


def _scrub_words(pool: pb.Pool, backend: str) -> Text:
    """What a tenant may find in a page, and what a context costs."""
    words = Text(pool.scrub or "cross-tenant")
    if pool.scrub == "never" and backend != "host":
        words.append(": tenants may read each other's old bytes", style="yellow")
    elif pool.isolated:
        words.append(": a page that leaves a tenant is destroyed")
    if pool.scrub and not pool.HasField("context_bytes"):
        words.append("; has a CUDA context, of unknown size")
    elif pool.context_bytes:
        words.append(f"; its CUDA context takes {format_size(pool.context_bytes)}")
    return words


# In a narrow terminal rich takes the width from columns that may wrap: in these two tables names, never figures.
def _tenants_table(answer: pb.GetStatusResponse, now_s: float) -> RenderableType:
    if not answer.tenants:
        return Text("no tenants")
    table = new_table()
    table.add_column("TENANT")
    for title in ("LEASED", "MAPPED", "STATIC", "UTILIZATION", "SAVED"):
        table.add_column(title, justify="right", no_wrap=True)
    rows = sorted(answer.tenants, key=lambda tenant: -tenant.leased_bytes)
    for tenant in rows:
        static_bytes = tenant.static_reservation_bytes
        table.add_row(
            name_cell(tenant.name),
            format_size(tenant.leased_bytes),
            format_size(tenant.mapped_bytes),
            format_size(static_bytes),
            _percent(tenant.token_bytes, tenant.mapped_bytes),
            _percent(static_bytes - tenant.mapped_bytes, static_bytes),
        )
    below = [Below({"tenant": tenant.name}, _tenant_notes(tenant, answer, now_s)) for tenant in rows]
    return NotedTable(table, below)


def _tenant_notes(tenant: pb.Tenant, answer: pb.GetStatusResponse, now_s: float) -> list[Text]:
    """One line, where there is something to say."""
    note = Text()
    if tenant.HasField("guarantee"):
        note.append(guarantee_words(tenant.guarantee))
    if tenant.HasField("promise"):
        note.append("; ").append_text(promise_words(tenant.promise, answer.sessions, now_s))
    if tenant.waiting_leases:
        note.append("; waiting: " if note else "waiting: ").append(waiting_words(tenant))
    return [*over_max_notes(tenant, answer.pool), *([note] if note else [])]


def _percent(part_bytes: int, whole_bytes: int) -> str:
    return f"{part_bytes / whole_bytes:.1%}" if whole_bytes else "-"


def _sessions_table(answer: pb.GetStatusResponse) -> RenderableType:
    if not answer.sessions:
        return Text("no sessions")
    table = new_table()
    table.add_column("SESSION", no_wrap=True)
    table.add_column("TENANT")
    for title in ("PID", "STATE"):
        table.add_column(title, no_wrap=True)
    for title in ("LEASED", "MAPPED"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("CLIENT")
    rows = sorted(answer.sessions, key=lambda session: -session.leased_bytes)
    for session in rows:
        table.add_row(
            session.session_id,
            name_cell(session.tenant),
            str(session.pid),
            Text(session.state, style="" if session.state == "attached" else "red"),
            format_size(session.leased_bytes),
            format_size(session.mapped_bytes),
            name_cell(session.client_name),
        )
    below = [Below({"tenant": one.tenant, "client": one.client_name}, _session_notes(one)) for one in rows]
    return NotedTable(table, below)


def _session_notes(session: pb.Session) -> list[Text]:
    if session.state == "silent":
        return [Text(f"keeps its memory; `vattctl evict {session.session_id} --kill` ends it")]
    if not session.asked_back_bytes:
        return []
    since = format_duration(session.asked_back_since.ToNanoseconds() / 1e9)
    note = Text(f"asked back {format_size(session.asked_back_bytes)}, {since} ago")
    if session.asked_back_overdue:
        note.append(": ").append("overdue", style="red")
    return [note]
