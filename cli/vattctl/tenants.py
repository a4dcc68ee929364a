"""`vattctl tenants`: what every tenant was promised, and how far it is kept."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.console import Group, RenderableType
from rich.text import Text

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
from vattctl.words import (
    access_words,
    max_words,
    min_words,
    over_max_notes,
    promise_words,
    source_words,
    until_words,
    waiting_words,
)


@click.command(short_help="Show what tenants were promised, and what they have.")
@only_gpu_option
@socket_dir_option
@output_option
def tenants(device: str | None, socket_dir: Path | None, output: str) -> None:
    """Show what tenants were promised, what they have, and who may use them.

    MIN is promised: hard, its unused part is kept free; soft, it is lent to others and asked back. WAITING is what
    leases that queue ask for, and how long the first of them has waited. Below each tenant: by how much it is over its
    max, if that was lowered; how far its min is kept, where that was set (by a command or the configuration file),
    until when it holds, and who may use the tenant.

    \b
    Examples:
      vattctl tenants
      vattctl tenants -o json | jq '.daemons[].tenants[] | {name, leased_bytes}'
    """
    answers = ask_all(device, socket_dir, "tenants")
    if output == "json":
        daemons = [
            {"device": to_plain(answer.device), "tenants": [to_plain(tenant) for tenant in answer.tenants]}
            for answer in answers.statuses
        ]
        click.echo(daemons_json(daemons, answers.unreachable))
    elif answers.statuses:
        show(render(answers, time.time()))
    answers.check()


def render(answers: Answers, now_s: float) -> RenderableType:
    tables = [_table(answer, now_s) for answer in answers.statuses]
    if len(answers.statuses) + len(answers.unreachable) > 1:
        names = [Text(answer.device.uuid, style="bold") for answer in answers.statuses]
        tables = [Group(name, table) for name, table in zip(names, tables, strict=True)]
    return spaced([*tables, *unreachable_words(answers.unreachable)])


def _table(answer: pb.GetStatusResponse, now_s: float) -> RenderableType:
    if not answer.tenants:
        return Text("no tenants")
    table = new_table()
    table.add_column("TENANT")
    for title in ("MIN", "MAX", "WEIGHT", "LEASED", "SESSIONS", "WAITING"):
        table.add_column(title, justify="left" if title == "WAITING" else "right", no_wrap=True)
    rows = sorted(answer.tenants, key=lambda tenant: tenant.name)
    for tenant in rows:
        table.add_row(
            name_cell(tenant.name),
            min_words(tenant.guarantee),
            max_words(tenant.guarantee),
            str(tenant.guarantee.weight or 1),
            format_size(tenant.leased_bytes),
            str(tenant.session_count),
            waiting_words(tenant),
        )
    below = [Below({"tenant": tenant.name}, _notes(tenant, answer, now_s)) for tenant in rows]
    return NotedTable(table, below)


def _notes(tenant: pb.Tenant, answer: pb.GetStatusResponse, now_s: float) -> list[Text]:
    notes = over_max_notes(tenant, answer.pool)
    if tenant.HasField("promise"):
        notes.append(Text("min is ").append_text(promise_words(tenant.promise, answer.sessions, now_s)))
    until = f", until {until_words(tenant, now_s)}" if tenant.HasField("until") else ""
    source = f"set by {source_words(tenant.source)}{until}; " if tenant.source else ""
    notes.append(Text(f"{source}for {access_words(tenant)}"))
    return notes
